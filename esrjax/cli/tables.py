"""What verbs print: tables, cards, bars."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from esrjax.cli import ensembles

Item = TypeVar("Item")
_PIPED = 1000  # characters a line, where no terminal says how wide it is


def progress(items: Sequence[Item], title: str) -> Iterable[Item]:
    """Pass the items on and show a bar on standard error while it is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as bar:
        yield from bar.track(items, description=title)


def say(text: Any = "", *, markup: bool = False) -> None:
    """One line, or one table, on standard output; lines are left as long as they are."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED)
    console.print(text, markup=markup, highlight=False, soft_wrap=isinstance(text, str))


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """One line for each row; numbers to the right with thousands apart."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numeric = any(isinstance(row[column], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(escape(_text(row[column])) for column in columns))
    say(table)


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3f}"
        case list():
            return ", ".join(map(str, value)) or "-"  # pyright: ignore[reportUnknownArgumentType]
        case None:
            return "-"
        case _:
            return str(value)


def show_card(name: str, method: Any, origin: str) -> None:
    """A method's own words, then its facts."""
    say(
        f"[bold]{name}[/bold]  (x{method.scale}, {escape(method.team)}; from {origin})\n",
        markup=True,
    )
    if method.card:
        say(f"{method.card.strip()}\n")
    for title, facts in _facts(method).items():
        if facts:
            say(f"[bold]{title}[/bold]", markup=True)
            for key, value in facts.items():
                say(f"  {key:<18} {_text(value)}")


def _facts(method: Any) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {
        "paper": {"source": method.paper, "license": method.license}
    }
    if not hasattr(method, "network"):
        return {**facts, **ensembles.facts(method)}
    weights = {
        key: ("" if w.url else "no address, ") + f"{w.form} form, sha256 {w.sha256}"
        for key, w in method.weights.items()
    }
    return {
        **facts,
        "sizes": method.sizes(),
        "reported": dict(method.reported),
        "published weights (`esrjax weights get`)": weights,
        "not counted by the organisers": dict(method.uncounted),
        "counted though not needed": dict(method.counted),
    }


def show_verdicts(name: str, outcome: Sequence[Any], sizes: Mapping[str, Any]) -> None:
    """One line for each law, and at which sizes they were asked."""
    for verdict in outcome:
        mark = "[red]broken[/red]" if verdict.broken else "[green]holds[/green] "
        say(f"{mark}  {escape(verdict.law)}", markup=True)
        if verdict.broken:
            say(f"        {verdict.broken}")
    kept = sum(not verdict.broken for verdict in outcome)
    at = ", ".join(f"{size}={value}" for size, value in sizes.items())
    asked = f" (at {at}; figures at the default sizes)" if sizes else ""
    say(f"{name}: {kept} of {len(outcome)} laws hold{asked}")


def show_facts(groups: Mapping[str, Mapping[str, str]]) -> None:
    """Groups of named facts."""
    for title, facts in groups.items():
        say(f"[bold]{title}[/bold]", markup=True)
        for key, value in facts.items():
            say(f"  {key:<26} {value}")


def show_parity(outcome: Any) -> None:
    """One line for each compared array, and the verdict."""
    rows = [
        {
            "case": case.case,
            "shape": "x".join(map(str, case.shape)),
            "max |difference|": f"{case.max_abs:.2e}",
            "allowed": f"{case.allowed:.2e}",
            "8-bit changes": case.changed,
            "precision": case.precision,
            "passed": case.passed,
        }
        for case in outcome.cases
    ]
    show_table(rows, list(rows[0]))
    for case in (case for case in outcome.cases if case.changed_as_is is not None):
        say(f"{case.case}: a tie; LR moved by one rounding ({case.changed_as_is:,} without)")
    if outcome.unchecked:
        say(f"not compared: {', '.join(outcome.unchecked)}")
    verdict = "[green]equal[/green]" if outcome.passed else "[red]not equal[/red]"
    say(f"{outcome.method}: {verdict} to PyTorch", markup=True)


def show_cost(name: str, counted: Any, side: int, parts: bool) -> None:
    """The organisers' count beside the honest one; with `parts`, every piece of work."""
    if parts:
        pieces = [{k: v for k, v in vars(w).items() if k != "needed"} for w in counted.work]
        show_table(pieces, ("path", "word", "macs", "activations", "convs"))
        say()
    rows = [
        {"": "parameters", "official": counted.params, "honest": counted.params_honest},
        {"": f"MACs at {side}x{side}", "official": counted.macs, "honest": counted.macs_honest},
        {"": "activations", "official": counted.activations, "honest": None},
        {"": "convolutions", "official": counted.convs, "honest": None},
    ]
    say(f"[bold]{name}[/bold]", markup=True)
    show_table(rows, ("", "official", "honest"))


def show_export(target: Any, card: Any) -> None:
    """What was written, and how far it is from JAX in every precision that was tried."""
    sizes = ", ".join(f"{h}x{w}" for h, w in card.checks[card.dtype].sizes)
    say(f"{target}: {card.method}, {card.dtype}, {card.layout}, white at {card.data_range:g}")
    rows = [
        {
            "precision": dtype,
            "max |difference|": f"{check.max_abs:.1e} of white",
            "PSNR": "equal" if check.psnr is None else f"{check.psnr:.1f} dB",
            "fit": "written" if dtype == card.dtype else check.keeps(dtype),
        }
        for dtype, check in card.checks.items()
    ]
    show_table(rows, list(rows[0]))
    say(f"against JAX in float32, at {sizes}")


def scores_text(names: Sequence[str], scored: Sequence[Any], style: str) -> str:
    """PSNR / SSIM of every picture and the mean, a column for each method."""
    cells = [["picture", *names]]
    for image in scored[0].images:
        cells.append([image, *(_quality(scores.images[image], style) for scores in scored)])
    cells.append(["mean", *(_quality(scores.mean, style) for scores in scored)])
    spec = f"PSNR [dB] / SSIM under the metric spec {scored[0].spec!r}"
    return _latex(cells, spec) if style == "latex" else grid(cells, spec)


def _quality(quality: Any, style: str) -> str:
    return f"{quality.psnr:.4f} / {quality.ssim:.4f}"


def runtimes_text(results: Sequence[Any]) -> str:
    """Runtimes of results, the median in turn beside the organisers' mean where that was taken."""
    head = ["method", "median, ms", "95 % interval", "baseline in turn, ms"]
    head += ["compiled in, s", "first call, ms"]
    more = ["set", "harness mean, ms", "its first picture, ms", "sizes", "compiled in, s"]
    rows = [[*_medians(result), *run] for result in results for run in _harnesses(result)]
    width = len(head + more) if any(result.harness for result in results) else len(head)
    cells = [line[:width] for line in [head + more, *rows]]
    time = results[0].runtime
    return grid(cells, f"Runtime on {time.device}, {time.conditions}, body {time.body}")


def _medians(result: Any) -> list[str]:
    time, beside = result.runtime, result.baseline
    base = f"{beside.runtime.median_ms:.3f} ({beside.method})" if beside else "-"
    bounds = f"[{time.low_ms:.3f}, {time.high_ms:.3f}]"
    apart = [f"{time.compile_s:.1f}", f"{time.first_ms:.3f}"]
    return [result.method, f"{time.median_ms:.3f}", bounds, base, *apart]


def _harnesses(result: Any) -> list[list[str]]:
    """A line for each set that was timed as the organisers do, else one that is empty."""
    return [
        [name, f"{run.mean_ms:.3f}", f"{run.first_ms:.3f}", str(run.shapes), f"{run.compile_s:.1f}"]
        for name, run in result.harness.items()
    ] or [["-"] * 5]


def grid(cells: Sequence[Sequence[str]], title: str) -> str:
    """A Markdown table below its title; the first line of cells is the heading."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([f"{title}\n", lines[0], rule, *lines[1:]])


def _latex(cells: list[list[str]], title: str) -> str:
    head, *body = [" & ".join(cell.replace("_", r"\_") for cell in row) + r" \\" for row in cells]
    columns = "l" + "c" * (len(cells[0]) - 1)
    return "\n".join(
        [
            f"% {title}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body[:-1],
            r"\midrule",
            body[-1],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
