"""What a recipe would do, as text and as data."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from esrjax import registry
from esrjax.cli.tables import show_table
from esrjax.contest import rules
from esrjax.contest.fairness import fairness
from esrjax.errors import UserError
from esrjax.training import batches
from esrjax.training.recipe import Recipe, Run, Stage, Start
from esrjax.training.rehearsal import Rehearsed, rehearse


def show_plan(recipe: Recipe, contest: str, *, leaves: bool = False) -> None:
    """A table of the runs, their networks and costs; then the sets, and what is wrong."""
    rehearsed, out = rehearse(recipe), Console(soft_wrap=True, highlight=False)
    steps = f"{recipe.steps:,} steps" if recipe.steps else "epochs"
    out.print(f"[bold]{recipe.method}[/bold], seed {recipe.seed}, {steps}, {recipe.parallel}")
    show_table([said(each.run) for each in rehearsed], list(said(rehearsed[0].run)))
    show_table([_counted(each) for each in rehearsed], list(_counted(rehearsed[0])))
    if leaves:
        _show_leaves(rehearsed)
    for line in [*_sets(recipe), *_missing(rehearsed), *unfair(recipe, contest)]:
        out.print(line, markup=False)
    out.print(f"recipe sha256 {recipe.sha256[:16]}; nothing was started")


def as_data(recipe: Recipe, contest: str) -> dict[str, Any]:
    """The same for a program."""
    runs = [
        {
            "name": each.run.name,
            "form": each.form,
            "sizes": dict(each.sizes),
            "trained": each.trained,
            "frozen": each.frozen,
            "macs_per_step": each.step.macs,
            "memory_mib": dict(each.step.memory),
            "leaves": {
                path: {"shape": list(shape), "rule": rule}
                for path, (shape, rule) in each.leaves.items()
            },
            "missing": list(each.missing),
        }
        for each in rehearse(recipe)
    ]
    return {
        "method": recipe.method,
        "sha256": recipe.sha256,
        "steps": recipe.steps,
        "runs": runs,
        "unfair": unfair(recipe, contest),
    }


def said(run: Run) -> dict[str, Any]:
    """What the recipe says of a run."""
    stage = run.stage
    return {
        "run": run.name,
        "start": _start(stage),
        "length": f"{stage.steps:,}" if stage.steps else f"{stage.epochs} epochs",
        "batch": f"{stage.data.batch}" + f" in {stage.accumulate}" * (stage.accumulate > 1),
        "HR patches": _patches(stage),
        "loss": " + ".join(f"{_weight(weight)} {term}" for term, weight in stage.loss.items()),
        "optimiser": f"{stage.optimiser.name} {stage.optimiser.lr:g}, {stage.schedule.name}",
        "EMA": stage.ema if stage.ema is None else f"{stage.ema:g}",
    }


def _start(stage: Stage) -> str:
    origin = stage.origin
    name = origin if not isinstance(origin, Start) else origin.file or f"stage {origin.stage}"
    teacher = stage.teacher and (stage.teacher.stage or stage.teacher.weights)
    return name + (f", taught by {teacher}" if teacher else "")


def _patches(stage: Stage) -> str:
    shapes = [f"{h}x{w}" for h, w in stage.data.shapes]
    return ", ".join(shapes[:3]) + (f" +{len(shapes) - 3}" if len(shapes) > 3 else "")


def _weight(weight: Any) -> str:
    if isinstance(weight, int | float):
        return f"{weight:g}"
    return "→".join(f"{value:g}" for _, value in weight)


def _counted(each: Rehearsed) -> dict[str, Any]:
    """What the run's network is and costs."""
    rules = Counter(rule for _, rule in each.leaves.values())
    gib = sum(each.step.memory.values()) / 1024
    return {
        "run": each.run.name,
        "form": each.form,
        "sizes": " ".join(f"{key}={value}" for key, value in each.sizes.items()),
        "trained": f"{each.trained:,}",
        "frozen": f"{each.frozen:,}",
        "moved by": ", ".join(f"{rule} ({count} tensors)" for rule, count in rules.items()),
        "GMAC/step": f"{each.step.macs / 1e9:,.0f}",
        "memory": f"about {gib:.2f} GiB",
    }


def _show_leaves(rehearsed: Sequence[Rehearsed]) -> None:
    rows = [
        {"run": each.run.name, "weight": path, "shape": "x".join(map(str, shape)), "moved by": rule}
        for each in rehearsed
        for path, (shape, rule) in each.leaves.items()
    ]
    show_table(rows, list(rows[0]))


def _sets(recipe: Recipe) -> list[str]:
    scale = registry.plain(recipe.method).scale
    lines: list[str] = []
    for name in trained_on(recipe):
        try:
            lines.append(f"set {name}: {len(batches.find(name, scale))} pictures")
        except UserError:
            continue  # among what is missing
    return lines


def _missing(rehearsed: Sequence[Rehearsed]) -> list[str]:
    lines = dict.fromkeys(line for each in rehearsed for line in each.missing)
    return [f"missing: {line}" for line in lines]


def unfair(recipe: Recipe, contest: str) -> list[str]:
    """The sets that the contest forbids to train on, each with its reason."""
    names = [name.partition("[")[0] for name in trained_on(recipe)]
    return [f"not fair: {line}" for line in fairness(rules.load(contest), names)]


def trained_on(recipe: Recipe) -> list[str]:
    """The names of all sets, or parts of them, in all stages."""
    return sorted({name for stage in recipe.stage for name in stage.data.shares})
