"""The command `rank`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from esrjax.cli.options import (
    BadOption,
    BaselineOption,
    FiguresOption,
    IgnoreThresholdsOption,
    JsonOption,
    ProtocolTimingOption,
    RulesOption,
    SourceArgument,
    print_json,
)


def rank(
    source: SourceArgument,
    rules: RulesOption = "ntire2026",
    baseline: BaselineOption = "measured",
    figures: FiguresOption = "exact",
    format: Annotated[
        Literal["md", "latex"], typer.Option(help="Format of the table: Markdown or LaTeX.")
    ] = "md",
    ignore_thresholds: IgnoreThresholdsOption = False,
    protocol_timing: ProtocolTimingOption = False,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            help="Change runtime (ms), params (M), flops (G) or psnr (dB) before ranking, e.g. "
            "span:runtime=-0.5; a number with a sign is added. Repeatable.",
            metavar="METHOD:FIGURE=NUMBER",
        ),
    ] = None,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity", help="Also show how stable the ranks are, and what would change them."
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Also compare with a published table, and explain every cell that differs.",
            metavar="TABLE.csv",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score and rank results by the rules of a challenge."""
    from esrjax.cli import rankings
    from esrjax.contest import disagreements, prints, results, table, whatif
    from esrjax.contest import rank as ranks
    from esrjax.contest import rules as challenge_rules

    if format == "latex" and (what_if or sensitivity or against):
        raise _only_the_table_in_latex()
    changes = whatif.parse_changes(what_if or ())
    published = None if against is None else prints.read_table(against)
    loaded_rules = challenge_rules.load_rules(rules)
    rows = results.read_rows(source, loaded_rules, protocol_timing=protocol_timing)
    before = ranks.rank(
        rows,
        loaded_rules,
        baseline_source=baseline,
        figures=figures,
        apply_thresholds=not ignore_thresholds,
    )
    ranking = ranks.rerank(before, rows=whatif.apply_changes(rows, changes, loaded_rules))
    extras = rankings.RankExtras(
        ranking=ranking,
        scenario=whatif.what_if_scenario(changes, before, ranking) if changes else None,
        sensitivity=sensitivity,
        comparison=None if published is None else disagreements.diff_tables(ranking, published),
        source="" if against is None else against.name,
    )
    if as_json:
        print_json(
            {
                "rows": [entry.as_dict() for entry in ranking.entries],
                "apply_thresholds": ranking.apply_thresholds,
                "notes": ranking.notes,
                **extras.as_dict(),
            }
        )
    else:
        typer.echo(table.latex(ranking) if format == "latex" else table.markdown(ranking))
        for text in extras.texts():
            typer.echo(f"{text}\n")


def _only_the_table_in_latex() -> BadOption:
    return BadOption(
        "--format latex cannot be combined with --what-if, --sensitivity or --against",
        rule="only the ranked table can be written in LaTeX",
        remedy="leave --format out, or leave the other options out",
    )
