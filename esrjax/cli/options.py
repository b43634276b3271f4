"""Options and arguments that several commands share, and the parsers of their values."""

import ast
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from esrjax.errors import InvalidArgument

Item = TypeVar("Item")


CHECKPOINTS_HELP = (
    "A .pth or .safetensors file, a run directory, or the key of downloaded weights; with several "
    "methods, or for the members of an ensemble, METHOD=FILE. Repeatable."
)

MethodArgument = Annotated[
    str, typer.Argument(help="A method; see `esrjax method list`.", metavar="METHOD")
]
MethodsArgument = Annotated[
    list[str],
    typer.Argument(help="One or more methods; see `esrjax method list`.", metavar="METHOD"),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        help="A .pth or .safetensors file, a run directory, or the key of downloaded weights.",
        show_default="shipped weights",
    ),
]
CheckpointsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help=CHECKPOINTS_HELP,
        metavar="[METHOD=]FILE",
        show_default="shipped weights",
    ),
]
HparamsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--hparam",
        help="Set a hyperparameter of the network, e.g. channels=48. Repeatable.",
        metavar="KEY=VALUE",
    ),
]
SourceArgument = Annotated[
    Path,
    typer.Argument(
        help="A folder written by `esrjax eval -o`, the organisers' results.json, or a .csv table.",
        metavar="SOURCE",
    ),
]
RulesOption = Annotated[
    str,
    typer.Option(
        "--rules", help="The rules of a challenge: the name of shipped rules, or a TOML file."
    ),
]
BaselineOption = Annotated[
    Literal["measured", "published"],
    typer.Option(
        "--baseline",
        help="Score relative to the baseline measured in SOURCE, or to its published figures.",
    ),
]
FiguresOption = Annotated[
    Literal["exact", "printed"],
    typer.Option(
        help="Score the exact figures, or the figures rounded as the challenge prints them."
    ),
]
IgnoreThresholdsOption = Annotated[
    bool,
    typer.Option("--ignore-thresholds", help="Also rank methods below the PSNR thresholds."),
]
ProtocolTimingOption = Annotated[
    bool,
    typer.Option(
        "--protocol-timing",
        help="Score the runtimes that `esrjax eval --protocol-timing` measured.",
    ),
]
SelfEnsembleOption = Annotated[
    bool,
    typer.Option(
        "--self-ensemble", help="x8 geometric self-ensemble: the mean over flips and rotations."
    ),
]
WindowsOption = Annotated[
    str | None,
    typer.Option(
        "--windows",
        help="Run in windows, once for each of these sides (LR pixels), and average the results.",
        metavar="SIDE[:WEIGHT],...",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ImplementationOption = Annotated[
    Literal["auto", "reference", "kernel"],
    typer.Option(
        "--implementation",
        help="Implementation of the operations: reference (plain JAX), kernel (GPU kernels), or "
        "auto (kernels where they are supported).",
    ),
]
EngineOption = Annotated[
    Literal["auto", "jax", "onnxruntime"],
    typer.Option(
        "--engine", help="Inference engine; auto: JAX, or ONNX Runtime for an .onnx file."
    ),
]


def command_group(description: str) -> typer.Typer:
    """Return a group of commands that prints its help when it is run without a command."""
    return typer.Typer(help=description, no_args_is_help=True)


def parse_hparams(texts: list[str] | None) -> dict[str, Any]:
    """`["channels=48"] -> {"channels": 48}`; values are Python literals, or else strings."""
    return dict(_hparam(text) for text in texts or [])


def _hparam(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise InvalidArgument(
            f"Invalid --hparam {text!r}",
            rule="a hyperparameter is KEY=VALUE: an argument of the network and its value",
            remedy="for example --hparam channels=48",
        )
    try:
        return key, ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError):
        return key, value


def parse_image_size(text: str) -> tuple[int, int]:
    """`"256x256" -> (256, 256)` and `"256" -> (256, 256)`: height and width of an LR image."""
    sides = text.strip().split("x")
    if len(sides) > 2 or not all(n.isascii() and n.isdigit() and int(n) for n in sides):
        raise InvalidArgument(
            f"Invalid --image-size {text!r}",
            rule="an image size is HEIGHTxWIDTH, or one number for a square, in LR pixels",
            remedy="for example --image-size 256x256",
        )
    return int(sides[0]), int(sides[-1])


def parse_windows(text: str | None) -> dict[int, float]:
    """`"100,300:1.2" -> {100: 1.0, 300: 1.2}`: weights by side length in LR pixels."""
    if text is None:
        return {}
    pairs = [item.strip().partition(":") for item in text.split(",")]
    try:
        weights = {int(side): float(weight) if colon else 1.0 for side, colon, weight in pairs}
    except ValueError:
        weights = {}
    if len(weights) == len(pairs):
        return weights
    raise InvalidArgument(
        f"Invalid --windows {text!r}",
        rule="windows are a list of different side lengths in LR pixels, each with an optional "
        "weight (default 1)",
        remedy="for example --windows 100,200,300:1.2",
    )


def parse_checkpoints(texts: list[str] | None, names: list[str]) -> dict[str, Path]:
    """`["span=a.pth"] -> {"span": Path("a.pth")}`; a bare file belongs to the only method.

    The name may also be that of a member of an ensemble in `names`.
    """
    networks = _networks(names) if texts else []
    return dict(_checkpoint(text, networks, bare=networks == names) for text in texts or [])


def _networks(names: list[str]) -> list[str]:
    """The methods of `names`, ensembles replaced by their members."""
    from esrjax import registry
    from esrjax.method import Ensemble

    networks: list[str] = []
    for name in names:
        entry = registry.get_entry(name)
        networks += entry.members if isinstance(entry, Ensemble) else [name]
    return list(dict.fromkeys(networks))


def _checkpoint(text: str, networks: list[str], *, bare: bool) -> tuple[str, Path]:
    from esrjax import registry

    name, equals, file = text.partition("=")
    if equals and name in networks:
        return name, Path(file)
    is_other_method = bool(equals) and name in registry.names()
    if bare and len(networks) == 1 and not is_other_method:
        return networks[0], Path(text)
    raise InvalidArgument(
        f"--checkpoint {text!r} names a method that is not run: {name!r}"
        if is_other_method
        else f"--checkpoint {text!r} does not name its method",
        rule=f"METHOD in --checkpoint METHOD=FILE is one of {', '.join(networks)}; FILE alone is "
        "for a single method",
        remedy=f"for example --checkpoint {networks[0]}={file or text}",
    )


def print_json(value: Any) -> None:
    """Print one JSON document; infinities and NaN become null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
