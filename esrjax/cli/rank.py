"""The commands `rank` and `report`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from esrjax import registry
from esrjax.cli import options
from esrjax.cli.output import (
    markdown_table,
    number_text,
    print_json,
    print_lr_source,
    print_note,
    print_notes,
    progress_bar,
)
from esrjax.errors import InvalidArgument
from esrjax.io import check_outputs

if TYPE_CHECKING:
    from esrjax.challenge.published_table import CellDiff, TableDiff
    from esrjax.challenge.rank import BaselineSource, Figures, Ranking
    from esrjax.challenge.report.content import SRSource
    from esrjax.challenge.results import Row
    from esrjax.challenge.sensitivity import Margin, RankChange, RankStability, Scenario
    from esrjax.data.datasets import Pair
    from esrjax.inference import Model

NUM_IMAGES, CROP_SIZE = 4, 320  # of `report`: images that are shown, and HR pixels of each
_NO_BOOTSTRAP = (
    "No bootstrap: the runtimes are not means over images. `esrjax eval ... -o ... "
    "--protocol-timing` measures such runtimes, and `esrjax rank --protocol-timing` scores them."
)


def rank(
    source: options.SourceArgument,
    rules: options.RulesOption = options.DEFAULT_RULES,
    baseline: options.BaselineOption = "measured",
    figures: options.FiguresOption = "exact",
    format: options.TableFormatOption = "md",
    ignore_thresholds: options.IgnoreThresholdsOption = False,
    protocol_timing: options.ProtocolTimingOption = False,
    what_if: list[str] | None = None,
    sensitivity: bool = False,
    against: Path | None = None,
    as_json: options.JsonOption = False,
) -> None:
    """Score and rank results by the rules of a challenge.

    Args:
        what_if (METHOD:FIGURE=NUMBER): Change runtime (ms), params (M), flops (G) or psnr (dB)
            before ranking, e.g. span:runtime=-0.5; a number with a sign is added. Repeatable.
        sensitivity: Also show how stable the ranks are, and what would change them.
        against (TABLE.csv): Also compare with a published table, and explain every cell that
            differs.
    """
    from esrjax.challenge import published_table, table
    from esrjax.challenge import sensitivity as what_ifs
    from esrjax.challenge.rank import rerank

    options.check_table_format(format, as_json)
    if format == "latex" and (what_if or sensitivity or against):
        others, rule = "--what-if, --sensitivity or --against", "only the table is written in LaTeX"
        raise options.excludes("--format latex", others, rule)
    changes = what_ifs.parse_changes(what_if or ())
    published = None if against is None else published_table.read_table(against, print_note)
    rows, before = _rank(source, rules, baseline, figures, ignore_thresholds, protocol_timing)
    ranking, scenario = before, None
    if changes:
        ranking = rerank(before, rows=what_ifs.apply_changes(rows, changes, before.rules))
        scenario = what_ifs.what_if_scenario(changes, before, ranking)
    comparison = None if published is None else published_table.diff_tables(ranking, published)
    if as_json:
        report: dict[str, Any] = {
            "rows": [entry.as_dict() for entry in ranking.entries],
            "apply_thresholds": ranking.apply_thresholds,
            "notes": ranking.notes,
        }
        if scenario:
            report["what_if"] = scenario
        if sensitivity:
            report["sensitivity"] = sensitivity_json(ranking)
        if comparison:
            report["against"] = comparison_json(comparison)
        print_json(report)
        return
    typer.echo(table.latex(ranking) if format == "latex" else table.markdown(ranking))
    if scenario:
        typer.echo(f"{scenario_text(scenario)}\n")
    if sensitivity:
        typer.echo(f"{sensitivity_text(ranking)}\n")
    if comparison and against:
        typer.echo(f"{comparison_text(comparison, against.name)}\n")


def _rank(
    source: Path,
    rules: str,
    baseline: BaselineSource,
    figures: Figures,
    ignore_thresholds: bool,
    protocol_timing: bool,
) -> tuple[tuple[Row, ...], Ranking]:
    """Return the rows of a source, with exact figures, and their ranking."""
    from esrjax.challenge import rank, results
    from esrjax.challenge.rules import load_rules

    loaded_rules = load_rules(rules)
    rows = results.read_rows(
        source, loaded_rules, protocol_timing=protocol_timing, on_note=print_note
    )
    ranking = rank.rank(
        rows,
        loaded_rules,
        baseline_source=baseline,
        figures=figures,
        apply_thresholds=not ignore_thresholds,
    )
    return rows, ranking


# --- further output of `rank`: what-if, sensitivity, differences from a published table ---------


def scenario_text(scenario: Scenario) -> str:
    """`- **without ...**: main: A 8 → 7, B 9 → 8; runtime: ...`."""
    from esrjax.challenge.rank import TRACKS
    from esrjax.challenge.table import escape_markdown

    tracks = {t: [c for c in scenario.rank_changes if c.track == t] for t in TRACKS[::-1]}
    texts = [f"{track}: {', '.join(map(_change, cs))}" for track, cs in tracks.items() if cs]
    return f"- **{escape_markdown(scenario.name)}**: {'; '.join(texts) or 'none'}"


def _change(change: RankChange) -> str:
    from esrjax.challenge.table import escape_markdown

    before, after = change.before or "unranked", change.after or "unranked"
    return f"{escape_markdown(change.team)} {before} → {after}"


def sensitivity_text(ranking: Ranking) -> str:
    """Return who passes by rounding, what changes ranks, their stability, and margins."""
    from esrjax.challenge.sensitivity import all_scenarios, compute_margins, rank_stability

    stability, margins = rank_stability(ranking), compute_margins(ranking)
    parts = [
        _passes_by_rounding(ranking, margins),
        "Changes of ranks\n\n" + "\n".join(map(scenario_text, all_scenarios(ranking))),
        _stability_table(stability) if stability else _NO_BOOTSTRAP,
        _margins_table(margins),
    ]
    return "\n\n".join(parts)


def sensitivity_json(ranking: Ranking) -> dict[str, Any]:
    """Return what `sensitivity_text` prints, for `print_json`."""
    from esrjax.challenge.sensitivity import all_scenarios, compute_margins, rank_stability

    return {
        "scenarios": all_scenarios(ranking),
        "bootstrap": rank_stability(ranking),
        "margins": compute_margins(ranking),
    }


def _passes_by_rounding(ranking: Ranking, margins: Iterable[Margin]) -> str:
    from esrjax.challenge.table import escape_markdown

    thresholds = ranking.rules.psnr_thresholds
    rounding = f"is rounded to {thresholds.decimals} decimals"
    rounded: list[str] = []
    for margin in margins:
        for split in sorted(margin.passes_by_rounding):
            lowest = getattr(thresholds, split) - 0.5 * 10**-thresholds.decimals
            psnr = lowest + margin.psnr_margin_mdb[split] / 1000
            rounded.append(f"{escape_markdown(margin.team)} ({split}: {psnr:.4f} dB)")
    if not rounded:
        return f"No method reaches a PSNR threshold only because its PSNR {rounding}."
    names = ", ".join(rounded)
    return f"{len(rounded)} reach a PSNR threshold only because their PSNR {rounding}: {names}."


def _stability_table(stability: Iterable[RankStability]) -> str:
    cells = [["rank", "team", "runtime, ms", "95 % interval", "95 % of main ranks", "same rank"]]
    for row in stability:
        is_certain = row.best_rank == row.worst_rank
        ranks = str(row.best_rank) if is_certain else f"{row.best_rank} to {row.worst_rank}"
        interval = f"[{row.low_ms:.3f}, {row.high_ms:.3f}]"
        runtime, fraction = f"{row.runtime_ms:.3f}", f"{row.same_rank_fraction:.1%}"
        cells.append([str(row.rank), row.team, runtime, interval, ranks, fraction])
    title = "Stability of ranks: bootstrap over images, the same images for all methods"
    return markdown_table(cells, title)


def _margins_table(margins: Iterable[Margin]) -> str:
    from esrjax.challenge.sensitivity import STEP_MS

    head = [f"score for -{STEP_MS} ms", "to the next rank, ms", "slack to the rank below, ms"]
    cells = [["team", *head, "PSNR margin on valid, mdB", "on test, mdB"]]
    cells += [
        [
            margin.team,
            number_text(margin.score_drop and -100 * margin.score_drop, "+.2f", " %"),
            number_text(margin.speedup_to_next_ms and -margin.speedup_to_next_ms, "+.3f"),
            number_text(margin.slack_ms, "+.3f"),
            *(
                number_text(margin.psnr_margin_mdb.get(split), "+.1f")
                for split in ("valid", "test")
            ),
        ]
        for margin in margins
    ]
    title = (
        f"Margins: the change of the main score when a method is {STEP_MS} ms faster, and the "
        "distance to the next rank by runtime alone.\nPSNR is not scored; below 0 mdB it misses "
        "the threshold"
    )
    return markdown_table(cells, title)


def comparison_text(comparison: TableDiff, source: str) -> str:
    """Return how many cells agree, then every cell that differs, with numbered reasons.

    Args:
        comparison: The differences.
        source: The file name of the published table.
    """
    from esrjax.challenge.table import escape_markdown

    equal, total = (sum(counts[k] for counts in comparison.agreement.values()) for k in (0, 1))
    counts = ", ".join(f"{column} {n}/{of}" for column, (n, of) in comparison.agreement.items())
    reasons = list(dict.fromkeys(r for diff in comparison.cell_diffs for r in diff.reasons))
    parts = [f"Against {source}: {equal} of {total} cells agree as printed ({counts})."]
    if comparison.unmatched_teams:
        teams = ", ".join(map(escape_markdown, comparison.unmatched_teams))
        parts.append(f"Only in one of the two tables, so ranks are not compared: {teams}.")
    if comparison.cell_diffs:
        head = ["team", "cell", "computed", source, "difference", "reasons"]
        cells = [head, *(_diff_cells(diff, reasons) for diff in comparison.cell_diffs)]
        title = "Cells that differ, each with the fewest reasons that explain it"
        parts.append(markdown_table(cells, title))
    parts += [f"({number}) {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n\n".join(parts)


def _diff_cells(diff: CellDiff, reasons: list[str]) -> list[str]:
    labels = " ".join(sorted(f"({1 + reasons.index(reason)})" for reason in diff.reasons))
    relative = None if diff.column.startswith("rank") else diff.relative_difference
    percent = number_text(relative and 100 * relative, "+.2f", " %")
    computed, published = diff.computed or "unranked", diff.published or "unranked"
    explanation = labels or "not explained"
    return [diff.team, diff.column, computed, published, percent, explanation]


def comparison_json(comparison: TableDiff) -> dict[str, Any]:
    """Return the differences from a published table, for `print_json`."""
    diffs = [
        {**vars(diff), "relative_difference": diff.relative_difference}
        for diff in comparison.cell_diffs
    ]
    return {**vars(comparison), "cell_diffs": diffs}


# --- the report --------------------------------------------------------------------------------


def report(
    source: options.SourceArgument,
    output: Annotated[Path, options.output()] = Path("report.html"),
    data: str | None = None,
    images: list[str] | None = None,
    checkpoint: list[str] | None = None,
    num_images: Annotated[int, Option(min=1)] = NUM_IMAGES,
    crop_size: Annotated[int, Option(min=64, max=1024)] = CROP_SIZE,
    rules: options.RulesOption = options.DEFAULT_RULES,
    baseline: options.BaselineOption = "measured",
    figures: options.FiguresOption = "exact",
    ignore_thresholds: options.IgnoreThresholdsOption = False,
    protocol_timing: options.ProtocolTimingOption = False,
) -> None:
    """Write one HTML page: ranking, quality against cost, PSNR per image, visual comparison.

    Args:
        output: The HTML file to write.
        data (DATASET): A dataset whose images are shown: its name, its folder, or tfds:NAME.
        images (NAME=FOLDER): A folder of upscaled images of the dataset, and the name to show them
            under. Repeatable.
        checkpoint ([LABEL=]FILE): A checkpoint to upscale the dataset with, under the name of its
            row, as in `esrjax eval`. Repeatable.
        num_images: Number of images to show.
        crop_size: Side of the crop shown of each image, HR pixels.
    """
    from esrjax.challenge.report import check_page, content, write_page
    from esrjax.data import datasets
    from esrjax.evaluation.metrics import get_spec

    check_page(output)
    check_outputs([output], source.glob("*.json") if source.is_dir() else [source])
    if data is None and (texts := [*(images or ()), *(checkpoint or ())]):
        rule = "--images and --checkpoint show images of the dataset of --data"
        raise options.needs(repr(texts[0]), "--data", rule)
    if data is None and (num_images, crop_size) != (NUM_IMAGES, CROP_SIZE):
        option = "--num-images" if num_images != NUM_IMAGES else "--crop-size"
        raise options.needs(option, "--data", f"{option} is of the images of --data")
    rows, ranking = _rank(source, rules, baseline, figures, ignore_thresholds, protocol_timing)
    pairs = () if data is None else content.evenly_spaced(datasets.list_pairs(data), num_images)
    if data is not None:
        print_lr_source(data, pairs)
    sources = sr_sources(images or [], checkpoint or [], pairs, rows)
    spec = get_spec(rows[0].spec or ranking.rules.psnr_thresholds.spec)
    comparisons = [
        content.compare_image(pair, sources, spec, crop_size)
        for pair in progress_bar("images")(pairs)
    ]
    print_notes({comparison.name: comparison.notes for comparison in comparisons})
    version, today = metadata.version("esrjax"), datetime.now(UTC)
    footer = f"Written by esrjax {version} on {today:%Y-%m-%d}."
    write_page(output, content.build_content(ranking, source.name, comparisons, footer))
    typer.echo(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")


def sr_sources(
    images: list[str], checkpoints: list[str], pairs: Sequence[Pair], rows: Sequence[Row]
) -> dict[str, SRSource]:
    """The methods to show: how each upscales, read from a folder or run now."""
    from esrjax.challenge.report import content
    from esrjax.challenge.rules import check_scale
    from esrjax.cli import evaluate
    from esrjax.inference import Model

    folders = [_folder(text) for text in images]
    specs = evaluate.parse_models([], checkpoints) if checkpoints else []
    names = [spec.label or str(spec.checkpoint) for spec in specs]
    for spec in specs:
        if spec.label and spec.method is None and spec.label not in [row.method for row in rows]:
            registry.get_method(spec.label)  # raises, with a suggestion
    columns = [content.BICUBIC, content.ORIGINAL, *(name for name, _ in folders), *names]
    if duplicates := sorted({name for name in columns if columns.count(name) > 1}):
        raise InvalidArgument(
            f"Duplicate name: {', '.join(map(repr, duplicates))}",
            rule=f"images are shown by name; {columns[0]!r} and {columns[1]!r} are always shown",
            remedy="give each --images and --checkpoint a name of its own",
        )
    sources = content.folder_sources(dict(folders), pairs)
    for label, model in evaluate.open_models(specs, [], {}).items():
        if isinstance(model, Model):
            check_scale(label, model.scale, "leave out its --checkpoint")
            _check_weights(label, model, rows)
            title = label if model.origin == "official" else f"{label}, {model.origin} weights"
            sources[title] = content.upscaling_source(model)
    return sources


def _check_weights(label: str, model: Model, rows: Sequence[Row]) -> None:
    """Raise `InvalidArgument` if the row of that name was measured with other weights."""
    from esrjax.nn import checkpoint_io

    checkpoint = model.checkpoint
    hashes = {checkpoint.sha256, checkpoint_io.source_sha256(checkpoint)}
    for row in rows:
        if row.method == label and row.weights_sha256 not in (None, *hashes):
            raise InvalidArgument(
                f"{checkpoint.path} are other weights of {label!r} than those of the results",
                rule=f"one name is one network; the results have sha256 {row.weights_sha256}, the "
                f"file {checkpoint.sha256}",
                location=str(checkpoint.path),
                remedy="give the checkpoint of the results, or another label: "
                f"--checkpoint LABEL:{model.name}=FILE",
            )


def _folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not (name and folder):
        rule = "it is NAME=FOLDER: the name to show the images under, and their folder"
        raise options.invalid("--images", text, rule, f"mine={text}")
    return name, Path(folder)
