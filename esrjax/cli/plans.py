"""What a recipe would do, as text."""

from typing import Any

from rich.console import Console

from esrjax import registry
from esrjax.cli.tables import show_table
from esrjax.errors import UserError
from esrjax.training import batches
from esrjax.training.recipe import Recipe, Stage


def show_plan(recipe: Recipe) -> None:
    """A line for each stage, then what is missing."""
    method = registry.plain(recipe.method)
    method.require(recipe.sizes)
    sizes = "".join(f" {key}={value}" for key, value in recipe.sizes.items())
    out = Console(soft_wrap=True)
    out.print(f"[bold]{recipe.method}[/bold]{sizes}, seed {recipe.seed}, {recipe.steps:,} steps")
    show_table([_line(stage) for stage in recipe.stage], list(_line(recipe.stage[0])))
    for name in sorted({name for stage in recipe.stage for name in stage.data.sets}):
        out.print(f"set {name}: {_found(name, method.scale)}", markup=False, highlight=False)
    out.print(f"recipe sha256 {recipe.sha256[:16]}", highlight=False)


def _line(stage: Stage) -> dict[str, Any]:
    data, rate = stage.data, stage.optimiser.lr
    patches = ", ".join(f"{h}x{w}" for h, w in data.patches[:3])
    return {
        "stage": stage.name,
        "start": stage.start,
        "steps": stage.steps,
        "batch": data.batch,
        "HR patches": patches + (f" +{len(data.patches) - 3}" if len(data.patches) > 3 else ""),
        "loss": " + ".join(f"{weight:g} {term}" for term, weight in stage.loss.items()),
        "optimiser": f"{stage.optimiser.name} {rate:g}, {stage.schedule.name}",
        "EMA": stage.ema if stage.ema is None else f"{stage.ema:g}",
    }


def _found(name: str, scale: int) -> str:
    try:
        return f"{len(batches.find(name, scale))} pictures"
    except UserError as error:
        return f"missing ({error.problem})"
