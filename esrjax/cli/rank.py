"""The command `rank`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from esrjax.cli.options import (
    BaselineOption,
    FiguresOption,
    IgnoreThresholdsOption,
    JsonOption,
    ProtocolTimingOption,
    RulesOption,
    SourceArgument,
    parse_checkpoints,
    print_json,
)
from esrjax.errors import InvalidArgument

if TYPE_CHECKING:
    from esrjax.challenge.report.content import ImageComparison


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
    from esrjax.challenge import rank as ranks
    from esrjax.challenge import results, table
    from esrjax.challenge import rules as challenge_rules
    from esrjax.challenge import sensitivity as disagreements
    from esrjax.challenge import sensitivity as prints
    from esrjax.challenge import sensitivity as whatif
    from esrjax.cli import rank_output

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
    extras = rank_output.RankExtras(
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


def _only_the_table_in_latex() -> InvalidArgument:
    return InvalidArgument(
        "--format latex cannot be combined with --what-if, --sensitivity or --against",
        rule="only the ranked table can be written in LaTeX",
        remedy="leave --format out, or leave the other options out",
    )


# --------------------------------------------------------------------------------------------------
# The command `report`: one HTML page from results and images.
# --------------------------------------------------------------------------------------------------


def report(
    source: SourceArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    data: Annotated[
        str | None,
        typer.Option(
            help="A dataset whose images are shown: its name, its folder, or tfds:NAME.",
            metavar="DATASET",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder of upscaled images of the dataset, and the name to show them under. "
            "Repeatable.",
            metavar="NAME=FOLDER",
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="A method and its checkpoint, to upscale the dataset with. Repeatable.",
            metavar="METHOD=FILE",
        ),
    ] = None,
    num_images: Annotated[int, typer.Option(help="Number of images to show.", min=1)] = 4,
    crop_size: Annotated[
        int, typer.Option(help="Side of the crop shown of each image, HR pixels.", min=64, max=1024)
    ] = 320,
    rules: RulesOption = "ntire2026",
    baseline: BaselineOption = "measured",
    figures: FiguresOption = "exact",
    ignore_thresholds: IgnoreThresholdsOption = False,
    protocol_timing: ProtocolTimingOption = False,
) -> None:
    """Write one HTML page: ranking, quality against cost, PSNR per image, visual comparison."""
    from esrjax.challenge import rank, results
    from esrjax.challenge import rules as challenge_rules
    from esrjax.challenge.report import page
    from esrjax.challenge.report.content import build_content

    page.check_writable(output)
    loaded_rules = challenge_rules.load_rules(rules)
    rows = results.read_rows(source, loaded_rules, protocol_timing=protocol_timing)
    ranking = rank.rank(
        rows,
        loaded_rules,
        baseline_source=baseline,
        figures=figures,
        apply_thresholds=not ignore_thresholds,
    )
    spec = rows[0].spec or loaded_rules.psnr_thresholds.spec
    comparisons = _comparisons(data, images or [], checkpoint or [], spec, num_images, crop_size)
    page.write_page(output, build_content(ranking, source.name, comparisons, _footer()))
    typer.echo(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")


def _comparisons(
    data: str | None,
    images: list[str],
    checkpoints: list[str],
    spec: str,
    num_images: int,
    crop_size: int,
) -> list[ImageComparison]:
    """The images to show, each as every method upscales it: read from a folder, or run now."""
    from esrjax.challenge.report import content
    from esrjax.cli.output import progress
    from esrjax.data import datasets
    from esrjax.evaluation import metrics
    from esrjax.inference import open_method

    if data is None:
        _check_unused(images + checkpoints)
        return []
    folders = [_folder(text) for text in images]
    names = [text.partition("=")[0] for text in checkpoints]
    _check_unique([name for name, _ in folders] + names)
    files = parse_checkpoints(checkpoints, names)
    pairs = content.evenly_spaced(datasets.list_pairs(data), num_images)
    sources = content.folder_sources(dict(folders), pairs)
    models = {name: open_method(name, files[name]) for name in names}
    sources |= {name: content.upscaling_source(model) for name, model in models.items()}
    metric_spec = metrics.get_spec(spec)
    return [
        content.compare_image(pair, sources, metric_spec, crop_size)
        for pair in progress(pairs, "images")
    ]


def _check_unused(options: list[str]) -> None:
    """Raise `InvalidArgument` if there are images or checkpoints, but no dataset."""
    if options:
        raise InvalidArgument(
            f"{options[0]!r} needs a dataset",
            rule="--images and --checkpoint show images of the dataset of --data",
            remedy="name the dataset, for example --data Set5",
        )


def _folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not (name and folder):
        raise InvalidArgument(
            f"Invalid --images {text!r}",
            rule="it is NAME=FOLDER: the name to show the images under, and their folder",
            remedy=f"for example --images mine={text}",
        )
    return name, Path(folder)


def _check_unique(names: list[str]) -> None:
    """Raise `InvalidArgument` if two columns of images would have the same name."""
    from esrjax.challenge.report.content import BICUBIC, ORIGINAL

    columns = [BICUBIC, ORIGINAL, *names]
    if duplicates := sorted({name for name in columns if columns.count(name) > 1}):
        raise InvalidArgument(
            f"Duplicate name: {', '.join(map(repr, duplicates))}",
            rule=f"images are shown by name, and {BICUBIC!r} and {ORIGINAL!r} are always shown",
            remedy="give each --images and --checkpoint a name of its own",
        )


def _footer() -> str:
    from datetime import UTC, datetime
    from importlib import metadata

    return f"Written by esrjax {metadata.version('esrjax')} on {datetime.now(UTC):%Y-%m-%d}."
