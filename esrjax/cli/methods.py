"""The commands `method list | show | check | new | cost`, and `doctor`."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esrjax import registry
from esrjax.cli.options import (
    CHECKPOINTS_HELP,
    HparamsOption,
    JsonOption,
    MethodArgument,
    command_group,
    parse_checkpoints,
    parse_hparams,
    parse_image_size,
    print_json,
)
from esrjax.errors import InvalidArgument, UnwritableFile, UserError

if TYPE_CHECKING:
    from esrjax.nn.cost import Cost


app = command_group("Installed methods: list, inspect, check and create them, count their cost.")


@app.command("list")
def list_methods(as_json: JsonOption = False) -> None:
    """List the installed methods with their parameters, MACs (256x256 LR) and weights."""
    from esrjax import registry
    from esrjax.cli.output import show_table

    rows: list[dict[str, Any]] = []
    for name in registry.names():
        try:
            rows.append(_summary(name))
        except UserError as error:
            typer.echo(f"esrjax: {error}", err=True)
        except Exception as error:  # a broken network must not hide the other methods
            package = registry.distribution_of(name)
            typer.echo(f"esrjax: {name} ({package}): {type(error).__name__}: {error}", err=True)
    if as_json:
        print_json(rows)
    else:
        show_table(rows, ("name", "team", "scale", "params", "macs", "weights", "pretrained"))


def _summary(name: str) -> dict[str, Any]:
    """The row of one method or ensemble in the list."""
    from esrjax import registry
    from esrjax.method import Ensemble

    entry = registry.get_entry(name)
    row = {"name": name, "team": entry.team, "scale": entry.scale, **_params_and_macs(name)}
    if isinstance(entry, Ensemble):
        pretrained = all(registry.get_method(member).pretrained for member in entry.members)
        return {**row, "weights": [], "pretrained": pretrained}
    return {**row, "weights": list(entry.weights), "pretrained": entry.pretrained is not None}


def _params_and_macs(name: str) -> dict[str, int]:
    """The reported figures, which `esrjax method check` verifies, or else counted ones."""
    from esrjax import registry

    reported, keys = registry.get_entry(name).reported, ("params", "macs")
    if all(key in reported for key in keys):
        return {key: int(reported[key]) for key in keys}
    from esrjax.challenge.evaluate import method_cost

    cost = method_cost(name)
    return {key: getattr(cost, key) for key in keys}


@app.command()
def show(name: MethodArgument, as_json: JsonOption = False) -> None:
    """Show a method: description, paper, hyperparameters, reported figures and weights."""
    from esrjax import registry
    from esrjax.cli.output import show_method

    entry, package = registry.get_entry(name), registry.distribution_of(name)
    if as_json:
        details = {"package": package, "paper": entry.paper, "description": entry.description}
        print_json({**_summary(name), **details})
    else:
        show_method(name, entry, package)


@app.command()
def check(name: MethodArgument, hparams: HparamsOption = None, as_json: JsonOption = False) -> None:
    """Run the checks that every method must pass; exit code 1 if one fails."""
    from esrjax import registry
    from esrjax.cli.output import show_checks
    from esrjax.testing import run_checks

    method = registry.get_method(name)
    test_hparams = parse_hparams(hparams) or method.get_test_hparams()
    results = run_checks(method, **test_hparams)
    if as_json:
        print_json([{"check": r.check, "passed": not r.error, "error": r.error} for r in results])
    else:
        show_checks(name, results, test_hparams)
    raise typer.Exit(any(result.error for result in results))


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(help="The method's name, a Python identifier.", metavar="NAME")
    ],
    folder: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A new or empty folder.", show_default="./NAME"),
    ] = None,
) -> None:
    """Create a package with a new method: a network to start from, its test, pyproject.toml."""

    for path in write_package(name, folder or Path(name)):
        typer.echo(path)
    typer.echo(f"\nNext: pip install -e {folder or name} && esrjax method check {name}")


@app.command()
def cost(
    name: MethodArgument,
    image_size: Annotated[
        str, typer.Option(help="Size of the LR image, pixels; N is a square.", metavar="N|HxW")
    ] = "256",
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help=CHECKPOINTS_HELP,
            metavar="[METHOD=]FILE",
            show_default="none: the deploy form without weights",
        ),
    ] = None,
    hparams: HparamsOption = None,
    per_module: Annotated[
        bool, typer.Option("--per-module", help="Also list the cost of every module.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Count parameters, MACs, activations and convolutions: as the challenge does, and in full.

    official: what the counters of the challenge see. full: all operations and parameters that the
    output depends on, those that the counters miss included.
    """
    from esrjax.challenge.evaluate import method_cost
    from esrjax.cli.output import show_cost

    size, files = parse_image_size(image_size), parse_checkpoints(checkpoint, [name])
    cost = method_cost(name, image_size=size, files=files, hparams=parse_hparams(hparams))
    if as_json:
        print_json(_cost_json(name, cost, per_module))
    else:
        show_cost(name, cost, size, per_module=per_module)


def _cost_json(name: str, cost: Cost, per_module: bool) -> dict[str, Any]:
    figures = {"method": name, **vars(cost)}
    ops = figures.pop("ops")
    return {**figures, "modules": [vars(op) for op in ops]} if per_module else figures


def doctor(as_json: JsonOption = False) -> None:
    """Show the environment: versions, devices, methods, kernels, extras and folders."""
    from esrjax.cli.doctor import environment
    from esrjax.cli.output import show_facts

    groups = environment()
    if as_json:
        print_json(groups)
    else:
        show_facts(groups)


# --------------------------------------------------------------------------------------------------
# The package that `esrjax method new NAME` creates: a method, its test and pyproject.toml.
# --------------------------------------------------------------------------------------------------


def write_package(name: str, folder: Path) -> tuple[Path, ...]:
    """Write the package and return its files.

    Args:
        name: The method's name, a lower-case Python identifier.
        folder: A new or empty folder.

    Raises:
        InvalidArgument: The name is invalid, or a method has it.
        UnwritableFile: The folder is not empty.
    """
    _check_name(name)
    _check_empty(folder)
    values = {"name": name, "package": f"esrjax_{name}", "network": _class_name(name)}
    files = {path: Template(text).substitute(values) for path, text in FILES.items()}
    return tuple(_write(folder / path.format(**values), text) for path, text in files.items())


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.lstrip("\n"))
    return path


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _check_name(name: str) -> None:
    if name.isidentifier() and not keyword.iskeyword(name) and name == name.lower():
        if name not in registry.names():
            return
        raise InvalidArgument(
            f"The method {name!r} already exists, in {registry.distribution_of(name)}",
            rule="names of methods are unique",
            remedy="choose another name",
        )
    raise InvalidArgument(
        f"Invalid method name {name!r}",
        rule="a method name is a Python identifier in lower case",
        remedy="use letters, digits and underscores, for example my_net",
    )


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UnwritableFile(
            f"{str(folder)!r} already exists",
            rule="a new package is written to a new or empty folder; nothing is overwritten",
            remedy="choose another folder with -o",
        )


FILES = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "esrjax-$name"
version = "0.1.0"
dependencies = ["esrjax"]

[project.entry-points."esrjax.methods"]
$name = "$package:METHOD"

[tool.setuptools]
packages = ["$package"]

[tool.setuptools.package-data]
$package = ["*.safetensors"]
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
    description=__doc__,
)
''',
    "tests/test_{name}.py": """
from esrjax import registry
from esrjax.testing import check_method


def test_method_passes_all_checks():
    check_method(registry.get_method("$name"))
""",
}
