"""The command `esrjax VERB`: from words to one call, and from its answer to the screen."""

import sys
from collections.abc import Callable

import typer

from esrjax.cache import keep_programs
from esrjax.cli import (
    bench,
    contest,
    data,
    export,
    fusion,
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
    data,
    pictures,
    bench,
    fusion,
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
    keep_programs()
    sys.exit(told(app))


def told(run: Callable[[], None]) -> int:
    """The exit code of `run`; a user's mistake is printed."""
    try:
        run()
    except UserError as error:
        return _say(f"esrjax: {error}", 2)
    except KeyboardInterrupt:
        return _say("esrjax: interrupted", 130)
    return 0


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code
