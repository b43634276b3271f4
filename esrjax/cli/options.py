"""Words that several verbs share."""

import ast
import json
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
        help="FILE, or NAME=FILE for one of several methods.",
        show_default="shipped weights",
    ),
]
Size = Annotated[
    list[str] | None,
    typer.Option(
        "--size", help="A size of the network, key=value, e.g. channels=48.", metavar="K=V"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Body = Annotated[
    Literal["auto", "reference", "kernel"],
    typer.Option(help="Which bodies operations run with."),
]


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
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def by_name(given: list[str] | None, names: list[str]) -> dict[str, Path | None]:
    """`["span=a.pth"] -> {"span": Path("a.pth")}`; a bare file belongs to the only method."""
    found: dict[str, Path | None] = dict.fromkeys(names)
    for text in given or []:
        name, equals, file = text.partition("=")
        if equals and name in found:
            found[name] = Path(file)
        elif len(names) == 1:
            found[names[0]] = Path(text)
        else:
            raise BadOption(
                f"--checkpoint {text!r} does not say whose it is",
                rule=f"of several methods it is NAME=FILE, with NAME one of {', '.join(names)}",
                remedy=f"write for instance --checkpoint {names[0]}={text}",
            )
    return found


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2))
