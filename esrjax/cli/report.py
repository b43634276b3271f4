"""The verb report: one page from results and pictures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from esrjax.cli.options import (
    BadOption,
    Base,
    Figures,
    Harnessed,
    Results,
    RulesName,
    WithoutFloors,
    by_name,
)


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(report)


def report(
    source: Results,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("report.html"),
    data: Annotated[
        str | None, typer.Option(help="A set's name or folder, to show pictures of.")
    ] = None,
    pictures: Annotated[
        list[str] | None,
        typer.Option(help="What a method made of that set: NAME=FOLDER.", metavar="NAME=FOLDER"),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="A method to run on that set: NAME=FILE.", metavar="NAME=FILE"),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many pictures are shown.", min=1)] = 4,
    window: Annotated[
        int, typer.Option(help="Side of what is shown of a picture, HR pixels.", min=64, max=1024)
    ] = 320,
    rules: RulesName = "ntire2026",
    base: Base = "own",
    figures: Figures = "exact",
    without_floors: WithoutFloors = False,
    harness: Harnessed = False,
) -> None:
    """One page of HTML: ranked table, quality against cost, every picture, side by side."""
    from esrjax.contest import rank as contest
    from esrjax.contest import results
    from esrjax.contest import rules as contest_rules
    from esrjax.contest.report import page
    from esrjax.contest.report.content import content

    page.require_place(output)
    said = contest_rules.load(rules)
    rows = results.read(source, said, harness=harness)
    ranking = contest.rank(rows, said, base=base, figures=figures, floors=not without_floors)
    spec = rows[0].spec or said.floors.spec
    shown = _comparisons(data, pictures or [], checkpoint or [], spec, limit, window)
    page.write(output, content(ranking, source.name, shown, _made()))
    typer.echo(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")


def _comparisons(
    data: str | None, given: list[str], files: list[str], spec: str, limit: int, window: int
) -> list[Any]:
    """What is shown of the set: each method's pictures, read or made now."""
    from esrjax.cli.tables import progress
    from esrjax.contest.report import comparison
    from esrjax.model import open_method
    from esrjax.pictures import sets, specs

    if data is None:
        return _nothing(given + files)
    folders = [_folder(text) for text in given]
    names = [text.partition("=")[0] for text in files]
    _require_apart([name for name, _ in folders] + names)
    checkpoints = by_name(files, names)
    pairs = comparison.spread(sets.select(data), limit)
    sources = comparison.stored(dict(folders), pairs)
    models = {name: open_method(name, checkpoints[name]) for name in names}
    sources |= {name: comparison.upscaled(model) for name, model in models.items()}
    chosen = specs.named(spec)
    return [comparison.compare(p, sources, chosen, window) for p in progress(pairs, "pictures")]


def _nothing(given: list[str]) -> list[Any]:
    if given:
        raise BadOption(
            f"{given[0]!r} is given, but not the set whose pictures it is about",
            rule="--pictures and --checkpoint show the pictures of a set",
            remedy="name the set, for instance --data Set5",
        )
    return []


def _folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not (name and folder):
        raise BadOption(
            f"--pictures {text!r} is not NAME=FOLDER",
            rule="a folder of upscaled pictures has the name under which they are shown",
            remedy=f"write for instance --pictures mine={text}",
        )
    return name, Path(folder)


def _require_apart(names: list[str]) -> None:
    from esrjax.contest.report.comparison import BICUBIC, ORIGINAL

    every = [BICUBIC, ORIGINAL, *names]
    if twice := sorted({name for name in every if every.count(name) > 1}):
        raise BadOption(
            f"two are called {', '.join(map(repr, twice))}",
            rule=f"pictures are told apart by name; {BICUBIC!r} and {ORIGINAL!r} are always there",
            remedy="give each of --pictures and --checkpoint a name of its own",
        )


def _made() -> str:
    from datetime import UTC, datetime
    from importlib import metadata

    return f"Written by esrjax {metadata.version('esrjax')} on {datetime.now(UTC):%Y-%m-%d}."
