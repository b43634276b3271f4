"""The commands `method`, `weights` and `doctor`: methods, their weights, the environment."""

from __future__ import annotations

import keyword
import os
import platform
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from typer import Option

from esrjax import hub, registry
from esrjax.cli import options
from esrjax.cli.output import (
    download_bar,
    print_error,
    print_json,
    print_unwrapped,
    show_facts,
    show_table,
)
from esrjax.errors import InvalidArgument, UnwritableFile, UserError, error_summary
from esrjax.io import atomic_write
from esrjax.method import Ensemble, Member, Method
from esrjax.registry import entry_points_by_name

app = options.CommandGroup(
    "Installed methods: list, inspect, check and create them, count their cost."
)
weights_app = options.CommandGroup("Published weights: list, download and convert them.")

FUSIONS = {
    "mean": "weighted mean in float32",
    "adaptive": "uint8 images weighted by closeness to their mean, rounded down; two images: "
    "half each",
}


@app.command("list")
def list_methods(as_json: options.JsonOption = False) -> None:
    """List the installed methods with their parameters, MACs (256x256 LR) and weights.

    The row of a method is computed once, until its source or an installed version changes.
    """
    rows: list[dict[str, Any]] = []
    cache = registry.MethodCache()
    for name in registry.names():
        try:
            rows.append(cache.find(name) or _summary_to_cache(name, cache))
        except UserError as error:
            print_error(error)
        except (Exception, SystemExit) as error:  # a broken network does not hide the other methods
            package = registry.distribution_of(name)
            print_error(f"{name} ({package}): {error_summary(error):.500}")
    if as_json:
        print_json(rows)
    else:
        show_table(rows, ("name", "team", "scales", "params", "macs", "weights", "pretrained"))


def _summary_to_cache(name: str, cache: registry.MethodCache) -> dict[str, Any]:
    """The row of one method or ensemble, stored so that it need not be imported for the next list.

    Importing plugins takes most of the time of a list: they import JAX. An error is not stored.
    """
    row, entry = _summary(name), registry.get_entry(name)
    cache.store(name, row, entry.members if isinstance(entry, Ensemble) else ())
    return row


def _summary(name: str) -> dict[str, Any]:
    """The row of one method or ensemble in the list."""
    entry = registry.get_entry(name)
    figures = entry.reported  # `esrjax method check` verifies them
    if not {"params", "macs"} <= figures.keys():
        from esrjax.challenge.evaluate import method_cost

        figures = vars(method_cost(name))
    if isinstance(entry, Ensemble):
        weights: list[str] = []
        pretrained = all(registry.get_method(member).pretrained for member in entry.members)
    else:
        weights, pretrained = list(entry.weights), entry.pretrained is not None
    return {
        "name": name,
        "team": entry.team,
        "scales": _scales(entry),
        "params": int(figures["params"]),
        "macs": int(figures["macs"]),
        "weights": weights,
        "pretrained": pretrained,
    }


def _scales(entry: Method | Ensemble) -> list[int]:
    return [entry.scale] if isinstance(entry, Ensemble) else [*entry.scales]


@app.command()
def show(name: options.MethodArgument, as_json: options.JsonOption = False) -> None:
    """Show a method: description, paper, hyperparameters, reported figures and weights."""
    entry, package = registry.get_entry(name), registry.distribution_of(name)
    if as_json:
        details = {"package": package, "paper": entry.paper, "description": entry.description}
        print_json({**_summary(name), **details})
        return
    scales = ", ".join(f"x{scale}" for scale in _scales(entry))
    head = f"[bold]{name}[/bold]  ({scales}, {escape(entry.team)}; from {package})\n"
    print_unwrapped(head, markup=True)
    if entry.description:
        print_unwrapped(f"{entry.description.strip()}\n")
    facts = _ensemble_facts(entry) if isinstance(entry, Ensemble) else _method_facts(entry)
    show_facts({"paper": {"source": entry.paper, "license": entry.license}, **facts}, width=18)


def _method_facts(method: Method) -> dict[str, dict[str, Any]]:
    weights = {
        key: ("" if w.url else "no download URL, ") + f"{w.form} form, sha256 {w.sha256}"
        for key, w in method.weights.items()
    }
    return {
        "hyperparameters": method.default_hparams(),
        "reported": dict(method.reported),
        "published weights (`esrjax weights get`)": weights,
        "excluded from the official cost": dict(method.cost_options.excluded),
        "included in the official cost though unused": dict(method.cost_options.included),
    }


def _ensemble_facts(ensemble: Ensemble) -> dict[str, dict[str, str]]:
    """How members are run and fused."""
    is_weighted = ensemble.fusion == "mean"
    members = {
        name: _describe_member(member) + f", weight {member.weight:g}" * is_weighted
        for name, member in ensemble.members.items()
    }
    return {"members": members, "fusion": {ensemble.fusion: FUSIONS[ensemble.fusion]}}


def _describe_member(member: Member) -> str:
    parts = ["x8 self-ensemble" if member.self_ensemble else "single pass"]
    if member.windows:
        sides = ", ".join(f"{side} ({weight:g})" for side, weight in member.windows.items())
        parts.append(f"windows of {sides} pixels")
    if member.pad_multiple:
        parts.append(f"reflect-padded to a multiple of {member.pad_multiple}")
    return ", ".join(parts)


@app.command()
def check(
    name: options.MethodArgument,
    hparams: options.HparamsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Run the checks that every method must pass; exit code 1 if one fails."""
    from esrjax.testing import run_checks

    method = registry.get_method(name)
    values = options.parse_hparams(hparams) or method.get_test_hparams()
    results = run_checks(method, **values)
    num_passed = sum(not result.error for result in results)
    if as_json:
        print_json([{"check": r.check, "passed": not r.error, "error": r.error} for r in results])
    else:
        for result in results:
            mark = "[red]failed[/red]" if result.error else "[green]passed[/green]"
            print_unwrapped(f"{mark}  {escape(result.check)}", markup=True)
            if result.error:
                print_unwrapped(f"        {result.error}")
        text = ", ".join(f"{key}={value}" for key, value in values.items())
        note = f" (with {text}; reported figures with the defaults)" if values else ""
        print_unwrapped(f"{name}: {num_passed} of {len(results)} checks passed{note}")
    raise typer.Exit(num_passed < len(results))


@app.command()
def new(name: str, output: Annotated[Path | None, options.output("./NAME")] = None) -> None:
    """Create a package with a new method: network, recipe, test, README, CI, pyproject.toml.

    Args:
        name (NAME): The method's name, a Python identifier.
        output: A new or empty folder.
    """
    _check_name(name)
    folder = output or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UnwritableFile(
            f"{str(folder)!r} already exists",
            rule="a new package is written to a new or empty folder; nothing is overwritten",
            remedy="choose another folder with -o",
        )
    network = "".join(part.capitalize() for part in name.split("_"))
    values = {"name": name, "package": f"esrjax_{name}", "network": network}
    names = [template.format(**values) for template in FILES]
    with atomic_write(folder) as partial:
        for file, text in zip(names, FILES.values(), strict=True):
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            (partial / file).write_text(Template(text.lstrip("\n")).substitute(values))
    for file in names:
        typer.echo(folder / file)
    typer.echo(f"\nNext: pip install -e {folder} && esrjax method check {name}")


def _check_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise InvalidArgument(
            f"Invalid method name {name!r}",
            rule="a method name is a Python identifier in lower case",
            remedy="use letters, digits and underscores, for example my_net",
        )
    if name in registry.names():
        raise InvalidArgument(
            f"The method {name!r} already exists, in {registry.distribution_of(name)}",
            rule="names of methods are unique",
            remedy="choose another name",
        )


@app.command()
def cost(
    name: options.MethodArgument,
    image_size: str = "256",
    checkpoint: Annotated[
        list[str] | None, options.checkpoints("none: the deploy form without weights")
    ] = None,
    hparams: options.HparamsOption = None,
    per_module: bool = False,
    as_json: options.JsonOption = False,
) -> None:
    """Count parameters, MACs, activations and convolutions: as the challenge does, and in full.

    official: what the counters of the challenge see. full: all operations and parameters that the
    output depends on, those that the counters miss included.

    Args:
        image_size (N|HxW): Size of the LR image, pixels; N is a square.
        per_module: Also list the cost of every module.
    """
    from esrjax.challenge.evaluate import method_cost

    size, kwargs = options.parse_image_size(image_size), options.parse_hparams(hparams)
    files = options.parse_checkpoints(checkpoint, [name])
    cost = method_cost(name, image_size=size, files=files, hparams=kwargs)
    figures = {"method": name, **vars(cost)}
    ops = figures.pop("ops")
    if as_json:
        print_json({**figures, "modules": ops} if per_module else figures)
        return
    if per_module:
        columns = ("path", "op", "macs", "macs_full", "activations", "convs")
        show_table([vars(op) for op in ops], columns)
        print_unwrapped("")
    print_unwrapped(f"[bold]{name}[/bold]", markup=True)
    rows = {
        "parameters": (cost.params, cost.params_full),
        f"MACs at {size[0]}x{size[1]}": (cost.macs, cost.macs_full),
        "activations": (cost.activations, None),
        "convolutions": (cost.convs, None),
    }
    show_table([{"": title, "official": a, "full": b} for title, (a, b) in rows.items()])


LIBRARIES = ("esrjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
EXTRAS = {  # extra -> the library that shows whether it is installed
    "torch": "torch",
    "cpu": "openvino",
    "export": "onnxruntime",
    "demo": "scikit-image",
    "log": "tensorboardX",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "clip": "onnxruntime",
    "dev": "pytest",
}
VARIABLES = ("ESRJAX_REFERENCE", "ESRJAX_DATA", "ESRJAX_PLUGINS", "JAX_COMPILATION_CACHE_DIR")


def doctor(as_json: options.JsonOption = False) -> None:
    """Show the environment: versions, devices, methods, kernels, extras and folders."""
    show = print_json if as_json else show_facts
    show(environment())


def environment() -> dict[str, dict[str, str]]:
    """Return groups of named facts about this machine and installation."""
    import jax

    from esrjax.nn import ops
    from esrjax.runtime import uses_huge_pages

    precision = jax.default_matmul_precision.value
    kernels = {name: _kernel(name) for name in sorted(entry_points_by_name(ops.KERNEL_GROUP))}
    return {
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in LIBRARIES}},
        "device": {
            "platform": jax.default_backend(),
            "devices": ", ".join(device.device_kind for device in jax.devices()),
            "matmul precision": str(precision or "default (TF32 on recent GPUs)"),
            "float64": "enabled" if jax.enable_x64.value else "disabled",
            "memory": "huge pages" if uses_huge_pages() else "default page size",
        },
        "methods": {name: _method(name) for name in registry.names()},
        "kernels": kernels or {"none": "every operation runs its reference implementation"},
        "extras": {extra: _version(library) for extra, library in EXTRAS.items()},
        "folders": {key: os.environ.get(key, "not set") for key in VARIABLES},
    }


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _method(name: str) -> str:
    """The distribution of a method, or why the method cannot be used."""
    try:
        registry.get_entry(name)
    except UserError as error:
        return error.problem
    return registry.distribution_of(name)


def _kernel(name: str) -> str:
    """The platform of a kernel, or why the implementation "auto" does not use it."""
    from esrjax.nn import ops

    try:
        kernel = ops.find_kernel(name)
    except UserError as error:
        return error.problem
    assert kernel is not None  # it has an entry point
    if reason := kernel.wrong_platform_reason():
        return reason
    reason = kernel.disabled_reason()
    return f"for {kernel.platform}" + (f"; not used by auto: {reason}" if reason else "")


# --- weights -----------------------------------------------------------------------------------


@weights_app.command("list")
def list_weights(as_json: options.JsonOption = False) -> None:
    """List the published weights of every method, and the local file if downloaded."""
    rows: list[dict[str, Any]] = []
    for name, entry in registry.iter_entries(print_error):
        for key, weights in entry.weights.items() if isinstance(entry, Method) else ():
            row = {"method": name, "weights": key, "form": weights.form, "sha256": weights.sha256}
            rows.append({**row, "url": weights.url, "file": hub.find_local(weights)})
    if as_json:
        print_json(rows)
        return
    for row in rows:
        missing = "not downloaded" if row["url"] else "no download URL"
        row |= {"sha256": f"{row['sha256'][:12]}…", "local file": row["file"] or missing}
    show_table(rows, ("method", "weights", "form", "sha256", "local file"))


@weights_app.command()
def get(
    name: options.MethodArgument,
    key: Annotated[str | None, Option(show_default="the first")] = None,
    output: Annotated[
        Path | None, options.output("$ESRJAX_DATA/weights, or the user's cache")
    ] = None,
) -> None:
    """Download the published weights of a method; an interrupted download is resumed.

    Args:
        key: Key of the weights: the column `weights` of `esrjax weights list`.
        output: The folder to download into.
    """
    weights = hub.find_weights(name, registry.get_method(name), key)
    with download_bar() as on_progress:
        path = hub.download(name, weights, output, on_progress)
    typer.echo(f"{path}: sha256 {weights.sha256} verified")


@weights_app.command()
def convert(
    name: options.MethodArgument,
    checkpoint: Path,
    output: Annotated[Path, options.output()],
    to: Annotated[
        Literal["safetensors", "torch"] | None,
        Option(show_default="safetensors by that suffix, else torch"),
    ] = None,
    form: Literal["same", "deploy"] = "same",
    hparams: options.HparamsOption = None,
) -> None:
    """Check a checkpoint against its method and write it as .safetensors or .pth.

    Args:
        checkpoint (CHECKPOINT): A .pth or .safetensors file, or a run directory.
        output: The file to write.
        to: The format to write.
        form: same: as in the checkpoint; deploy: with its branches fused (reparameterized).
    """
    from esrjax.interop import convert as conversion

    to = conversion.checkpoint_format(output, to)
    kwargs = options.parse_hparams(hparams)
    result = conversion.convert(name, checkpoint, output, to=to, form=form, hparams=kwargs)
    typer.echo(
        f"{output}: {name}, {result.form} form, {result.num_tensors} tensors, "
        f"{result.num_params} parameters"
    )


# The files that `method new` writes.
FILES = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "esrjax-$name"
version = "0.1.0"
description = "$network, a method for esrjax"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["esrjax"]

[project.entry-points."esrjax.methods"]
$name = "$package:METHOD"

[project.entry-points."esrjax.recipes"]
$name = "$package"

[tool.setuptools]
packages = ["$package"]

[tool.setuptools.package-data]
$package = ["*.safetensors", "*.toml"]
""",
    "README.md": """
# $name

$network, a method for esrjax: describe it in a sentence.

    pip install -e .                             # esrjax first, and PyTorch for .pth files
    esrjax method check $name                    # shapes, gradients, fusion, padding, conversion
    esrjax train ${name}_small -o runs/small     # T91 and BSD200 under ESRJAX_DATA, or --set
    esrjax eval $name --checkpoint runs/small --data Set5
    pytest

Weights in PyTorch's format are compared with `esrjax parity $name --torch network.py:$network`.
""",
    "{package}/{name}_small.toml": """
# $network in minutes on two CPU cores: a start, to be changed.
# Hardware: any
# Run: esrjax train ${name}_small -o runs/small

method = "$name"
seed = 1

[[stage]]
name = "small"
init_from = "scratch"
steps = 2000
loss = { l1 = 1.0 }
optimizer = { name = "adam", learning_rate = 1e-3 }
schedule = { name = "cosine" }
ema = 0.99
ema_warmup = true

[stage.data]
datasets = ["T91", "BSD200"]
hr_patch_sizes = [[128, 128]]
batch_size = 8
augment = ["hflip", "rot90"]
undersized = "skip"
""",
    ".github/workflows/test.yml": """
name: test
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.12"}
      - run: pip install -e . pytest   # esrjax from its repository, where no index has it
      - run: pytest
""",
    "{package}/__init__.py": '''
"""$network: describe the method in three sentences.

Three convolutions and a pixel shuffle on top of nearest-neighbour upsampling: change them.
"""

import jax
import jax.numpy as jnp
from esrjax.method import Method
from esrjax.nn.layers import Conv2d
from esrjax.nn.functional import pixel_shuffle
from flax import nnx


class $network(nnx.Module):
    """`(N, h, w, 3) -> (N, scale·h, scale·w, 3)`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 16, scale: int = 4):
        self.scale = scale
        self.head = Conv2d(3, channels, rngs=rngs)
        self.body = Conv2d(channels, channels, rngs=rngs)
        self.tail = Conv2d(channels, 3 * scale**2, rngs=rngs)

    def __call__(self, x):
        residual = self.tail(jax.nn.relu(self.body(jax.nn.relu(self.head(x)))))
        nearest = jnp.repeat(x, self.scale**2, axis=-1)
        return pixel_shuffle(nearest + residual, self.scale)


METHOD = Method(
    network=$network,
    team="my team",
    paper="title and URL",
    license="Apache-2.0",
    scales=(2, 3, 4),
    description=__doc__,
    api=1,
)
''',
    "tests/test_{name}.py": """
from esrjax import registry
from esrjax.testing import check_method
from esrjax.training import recipe_loader


def test_method_passes_all_checks():
    check_method(registry.get_method("$name"))


def test_recipe_is_valid():
    recipe = recipe_loader.load("${name}_small")
    assert recipe.method == "$name"
""",
}
