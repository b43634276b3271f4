"""Verbs about the contest: rank."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from esrjax.cli.options import (
    BadOption,
    Base,
    Figures,
    Harnessed,
    Json,
    Results,
    RulesName,
    WithoutFloors,
    print_json,
)


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command()(rank)


def rank(
    source: Results,
    rules: RulesName = "ntire2026",
    base: Base = "own",
    figures: Figures = "exact",
    style: Annotated[
        Literal["md", "latex"], typer.Option("--format", help="How the table is written.")
    ] = "md",
    without_floors: WithoutFloors = False,
    harness: Harnessed = False,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            help="Change a figure first: METHOD:runtime=-0.5 (also params, flops, psnr).",
            metavar="CHANGE",
        ),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also say what would change the ranks.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(help="Also list every cell that differs in a printed table (.csv), and why."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score and rank results by the rules of a contest."""
    from esrjax.cli import rankings
    from esrjax.contest import disagreements, prints, results, table, whatif
    from esrjax.contest import rank as contest
    from esrjax.contest import rules as contest_rules

    if style == "latex" and (what_if or sensitivity or against):
        raise _no_latex()
    changes = whatif.parse(what_if or ())
    printed = None if against is None else prints.read(against)
    said = contest_rules.load(rules)
    rows = results.read(source, said, harness=harness)
    before = contest.rank(rows, said, base=base, figures=figures, floors=not without_floors)
    ranking = contest.again(before, rows=whatif.changed(rows, changes, said))
    more = rankings.More(
        ranking=ranking,
        scenario=whatif.scenario(changes, before, ranking) if changes else None,
        sensitivity=sensitivity,
        comparison=None if printed is None else disagreements.compare(ranking, printed),
        source="" if against is None else against.name,
    )
    if as_json:
        entries = [line.entry() for line in ranking.lines]
        told = {"rows": entries, "floors": ranking.floors, "notes": ranking.notes}
        print_json({**told, **more.json()})
    else:
        typer.echo(table.latex(ranking) if style == "latex" else table.markdown(ranking))
        for part in more.texts():
            typer.echo(f"{part}\n")


def _no_latex() -> BadOption:
    return BadOption(
        "--format latex writes the table alone",
        rule="what --what-if, --sensitivity and --against add is written in Markdown or JSON",
        remedy="leave --format out for these, or ask for the LaTeX table by itself",
    )
