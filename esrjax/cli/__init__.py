"""The command line `esrjax`: the tree of commands, the entry point, the reporting of errors."""

import difflib
import io
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from esrjax.cli import (
    bench,
    data,
    evaluate,
    interop,
    methods,
    options,
    rank,
    submit,
    train,
    upscale,
)
from esrjax.cli.options import Command
from esrjax.errors import run_and_report_errors, set_verbosity
from esrjax.runtime import check_environment, enable_compilation_cache

# The panels of `esrjax --help`, in order, with their commands; a Typer is a group of commands.
PANELS: Mapping[str, Mapping[str, Callable[..., None] | typer.Typer]] = {
    "Run": {"demo": train.demo, "upscale": upscale.upscale, "fuse": upscale.fuse},
    "Train": {"train": train.train, "recipes": train.recipes},
    "Measure": {"eval": evaluate.evaluate, "bench": bench.bench, "metrics": data.metrics_app},
    "Challenge": {"rank": rank.rank, "submit": submit.app, "report": rank.report},
    "PyTorch and export": {"parity": interop.parity, "export": interop.export},
    "Methods and data": {
        "method": methods.app,
        "weights": methods.weights_app,
        "data": data.app,
        "doctor": methods.doctor,
    },
}

ANYWHERE = ("--quiet", "--verbose")


class RootGroup(TyperGroup):
    """The root of the commands: lists them as `PANELS` does, and suggests similar ones.

    The options of `ANYWHERE` may also follow the name of the command.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; options of `ANYWHERE`, up to a `--`, come first."""
        end = args.index("--") if "--" in args else len(args)
        moved = [arg for arg in args[:end] if arg in ANYWHERE]
        rest = [arg for arg in args[:end] if arg not in ANYWHERE]
        return super().parse_args(ctx, [*moved, *rest, *args[end:]])

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands in the order of `PANELS`."""
        return [name for commands in PANELS.values() for name in commands]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` begins with; suggest others where there is none."""
        name = args[0]
        if name not in self.commands:
            groups = self.commands.items()
            nested = [
                f"{group} {name}" for group, c in groups if name in getattr(c, "commands", ())
            ]
            if similar := nested or difflib.get_close_matches(name, self.commands):
                names = " or ".join(map(repr, similar))
                ctx.fail(f"No such command {name!r}. Did you mean {names}?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="esrjax",
    cls=RootGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"esrjax {metadata.version('esrjax')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print no notes and no progress. Also after a command.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            help="Print every compilation of JAX, and the traceback of an error. Also after a "
            "command.",
        ),
    ] = False,
) -> None:
    """Efficient super-resolution in JAX: run, train, measure, convert and rank networks."""
    if quiet and verbose:
        raise options.excludes("--quiet", "--verbose", "one of them asks for less, one for more")
    set_verbosity(quiet=quiet, verbose=verbose)
    check_environment()


for panel, commands in PANELS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            cls = interop.ParityCommand if name == "parity" else Command  # has `parity verify`
            app.command(name, cls=cls, rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):  # file names need not be valid text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    enable_compilation_cache()
    # The name under which shells complete it; also right for `python -m esrjax`.
    sys.exit(run_and_report_errors(partial(app, prog_name="esrjax")))
