"""The command `esrjax VERB`: from words to one call, and from its answer to the screen."""

import sys

import typer

from esrjax.cli import (
    contest,
    export,
    methods,
    metrics,
    parity,
    pictures,
    report,
    submission,
    training,
    weights,
)
from esrjax.errors import UserError

app = typer.Typer(
    name="esrjax",
    help="Efficient super-resolution in JAX: run, measure, convert and rank methods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
ROOMS = (
    training,
    pictures,
    metrics,
    methods,
    weights,
    parity,
    export,
    contest,
    submission,
    report,
)
for room in ROOMS:
    room.register(app)


def main() -> None:
    """Run the command line; a user's mistake is printed without a traceback, exit code 2."""
    try:
        app()
    except UserError as error:
        sys.exit(_say(f"esrjax: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_say("esrjax: interrupted", 130))


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code
