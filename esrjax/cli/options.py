"""Words that several verbs share."""

import ast
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from esrjax.errors import UserError


class BadOption(UserError):
    """An option whose value says nothing."""


Name = Annotated[str, typer.Argument(help="A method, as `esrjax list` names it.")]
Names = Annotated[list[str], typer.Argument(help="Methods, as `esrjax list` names them.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="A .pth, a .safetensors or a run directory.", show_default="shipped weights"),
]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help="FILE, or NAME=FILE for one of several methods or of an ensemble's members.",
        show_default="shipped weights",
    ),
]
Size = Annotated[
    list[str] | None,
    typer.Option(
        "--size", help="A size of the network, key=value, e.g. channels=48.", metavar="K=V"
    ),
]
Results = Annotated[
    Path, typer.Argument(help="A folder of our results, a results.json, or a table (.csv).")
]
RulesName = Annotated[str, typer.Option("--rules", help="Shipped rules, or a TOML file.")]
Base = Annotated[
    Literal["own", "published"],
    typer.Option(help="Relative to the baseline in SOURCE, or to its published figures."),
]
Figures = Annotated[
    Literal["exact", "printed"],
    typer.Option(help="Score what was measured, or what the contest prints of it."),
]
WithoutFloors = Annotated[
    bool, typer.Option("--without-floors", help="Rank by score alone, whatever the PSNR is.")
]
Harnessed = Annotated[
    bool, typer.Option("--harness", help="Of our results, score the runtime that --harness took.")
]
SelfEnsemble = Annotated[
    bool, typer.Option("--self-ensemble", help="Mean over the eight flips and turns.")
]
Windows = Annotated[
    str | None,
    typer.Option(
        "--windows",
        help="Mean over cuts into windows of these sides, LR pixels.",
        metavar="SIDE[:WEIGHT],...",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Body = Annotated[
    Literal["auto", "reference", "kernel"],
    typer.Option(help="Which bodies operations run with."),
]
Engine = Annotated[
    Literal["auto", "jax", "onnxruntime"],
    typer.Option(help="What runs it; auto: the fastest that is installed, as measured here."),
]


def bar(title: str) -> Any:
    """What passes items on and shows a bar of them while it is a terminal."""
    from esrjax.cli.tables import progress

    return lambda items: progress(items, title)


def sizes(given: list[str] | None) -> dict[str, Any]:
    """`["channels=48"] -> {"channels": 48}`; values are Python literals, or words."""
    return dict(_pair(text) for text in given or [])


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise BadOption(
            f"--size {text!r} is not key=value",
            rule="a size names an argument of the network and its value",
            remedy="write for instance --size channels=48",
        )
    try:
        return key, ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError):
        return key, value


def windows(given: str | None) -> dict[int, float]:
    """`"100,300:1.2" -> {100: 1.0, 300: 1.2}`."""
    pairs = [text.strip().partition(":") for text in given.split(",")] if given is not None else []
    try:
        found = {int(side): float(weight) if colon else 1.0 for side, colon, weight in pairs}
    except ValueError:
        found = {}
    if len(found) == len(pairs):
        return found
    raise BadOption(
        f"--windows is {given!r}",
        rule="it lists sides of windows in LR pixels, each once, with a weight where it is not 1",
        remedy="write for instance --windows 100,200,300:1.2",
    )


def by_name(given: list[str] | None, names: list[str]) -> dict[str, Path]:
    """`["span=a.pth"] -> {"span": Path("a.pth")}`; a bare file belongs to the only method.

    NAME may also be a member of an ensemble among `names`.
    """
    networks = _networks(names) if given else []
    return dict(_checkpoint(text, networks, bare=networks == names) for text in given or [])


def _networks(names: list[str]) -> list[str]:
    """The methods, with ensembles as their members."""
    from esrjax import registry
    from esrjax.method import Ensemble

    networks: list[str] = []
    for name in names:
        method = registry.method(name)
        networks += method.members if isinstance(method, Ensemble) else [name]
    return list(dict.fromkeys(networks))


def _checkpoint(text: str, networks: list[str], *, bare: bool) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if equals and name in networks:
        return name, Path(file)
    if bare and len(networks) == 1:
        return networks[0], Path(text)
    raise BadOption(
        f"--checkpoint {text!r} does not say whose it is",
        rule=f"of several networks it is NAME=FILE, with NAME one of {', '.join(networks)}",
        remedy=f"write for instance --checkpoint {networks[0]}={file or text}",
    )


def print_json(value: Any) -> None:
    """One JSON document on standard output; what is no finite number is null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(held) for key, held in value.items()}
        case list() | tuple():
            return [_finite(held) for held in value]
        case _:
            return value
