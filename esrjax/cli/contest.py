"""Verbs about the contest: rank."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from esrjax.cli.options import Json, print_json


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command()(rank)


def rank(
    source: Annotated[
        Path, typer.Argument(help="A folder of our results, a results.json, or a table (.csv).")
    ],
    rules: Annotated[str, typer.Option(help="Shipped rules, or a TOML file.")] = "ntire2026",
    base: Annotated[
        Literal["own", "published"],
        typer.Option(help="Relative to the baseline in SOURCE, or to its published figures."),
    ] = "own",
    figures: Annotated[
        Literal["exact", "printed"],
        typer.Option(help="Score what was measured, or what the contest prints of it."),
    ] = "exact",
    style: Annotated[
        Literal["md", "latex"], typer.Option("--format", help="How the table is written.")
    ] = "md",
    without_floors: Annotated[
        bool,
        typer.Option("--without-floors", help="Rank by score alone, whatever the PSNR is."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Score and rank results by the rules of a contest."""
    from esrjax.contest import rank as contest
    from esrjax.contest import results, table
    from esrjax.contest import rules as contest_rules

    said = contest_rules.load(rules)
    rows = results.read(source, said)
    ranking = contest.rank(rows, said, base=base, figures=figures, floors=not without_floors)
    if as_json:
        entries = [line.entry() for line in ranking.lines]
        print_json({"rows": entries, "floors": ranking.floors, "notes": ranking.notes})
    else:
        typer.echo(table.latex(ranking) if style == "latex" else table.markdown(ranking))
