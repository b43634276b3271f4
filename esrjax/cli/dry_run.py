"""The output of `train --dry-run`, as text and as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from esrjax import registry
from esrjax.challenge import rules as challenge_rules
from esrjax.challenge.rules import data_policy_violations
from esrjax.cli.output import show_table
from esrjax.errors import UserError
from esrjax.training import loader
from esrjax.training.dry_run import StagePlan, dry_run
from esrjax.training.recipe import InitFrom, LossWeight, Recipe, Stage, StageRun


def show_dry_run(recipe: Recipe, rules: str, *, list_params: bool = False) -> None:
    """Print the stages, their networks and cost, the datasets, and what is missing or forbidden.

    Args:
        recipe: The recipe.
        rules: Shipped rules or a TOML file: the challenge whose data policy applies.
        list_params: Whether to list every trainable parameter with its shape and optimizer.
    """
    plans, console = dry_run(recipe), Console(soft_wrap=True, highlight=False)
    steps = f"{recipe.total_steps:,} steps" if recipe.total_steps else "epochs"
    console.print(f"[bold]{recipe.method}[/bold], seed {recipe.seed}, {steps}, {recipe.parallel}")
    summaries = [stage_summary(plan.run) for plan in plans]
    show_table(summaries, list(summaries[0]))
    networks = [_network(plan) for plan in plans]
    show_table(networks, list(networks[0]))
    if list_params:
        _show_params(plans)
    violations = [f"not allowed: {line}" for line in policy_violations(recipe, rules)]
    for line in [*_datasets(recipe), *_missing(plans), *violations]:
        console.print(line, markup=False)
    console.print(f"recipe sha256 {recipe.sha256[:16]}; dry run: nothing was trained or written")


def dry_run_json(recipe: Recipe, rules: str) -> dict[str, Any]:
    """Return what `show_dry_run` prints as plain data."""
    stages = [
        {
            "name": plan.run.name,
            "form": plan.form,
            "hparams": dict(plan.hparams),
            "num_trainable_params": plan.num_trained,
            "num_frozen_params": plan.num_frozen,
            "macs_per_step": plan.step_estimate.macs,
            "memory_mib": dict(plan.step_estimate.memory_mib),
            "params": {
                path: {"shape": list(shape), "optimizer": optimizer}
                for path, (shape, optimizer) in plan.trainable_params.items()
            },
            "missing": list(plan.missing),
        }
        for plan in dry_run(recipe)
    ]
    return {
        "method": recipe.method,
        "sha256": recipe.sha256,
        "total_steps": recipe.total_steps,
        "stages": stages,
        "policy_violations": policy_violations(recipe, rules),
    }


def stage_summary(run: StageRun) -> dict[str, Any]:
    """Return the settings of a stage by column: what the recipe specifies."""
    stage = run.stage
    accumulation = f" in {stage.grad_accum_steps} steps" * (stage.grad_accum_steps > 1)
    optimizer = f"{stage.optimizer.name} {stage.optimizer.learning_rate:g}"
    return {
        "stage": run.name,
        "init from": _init(stage),
        "length": f"{stage.steps:,} steps" if stage.steps else f"{stage.epochs} epochs",
        "batch size": f"{stage.data.batch_size}{accumulation}",
        "HR patches": _patch_sizes(stage),
        "loss": " + ".join(f"{_weight(weight)} {term}" for term, weight in stage.loss.items()),
        "optimizer": f"{optimizer}, {stage.schedule.name}",
        "EMA": stage.ema if stage.ema is None else f"{stage.ema:g}",
    }


def _init(stage: Stage) -> str:
    source = stage.init_source
    if isinstance(source, InitFrom):
        source = source.checkpoint or f"stage {source.stage}"
    teacher = stage.teacher and (stage.teacher.stage or stage.teacher.checkpoint)
    return source + (f", distilled from {teacher}" if teacher else "")


def _patch_sizes(stage: Stage) -> str:
    sizes = [f"{h}x{w}" for h, w in stage.data.all_patch_sizes]
    return ", ".join(sizes[:3]) + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else "")


def _weight(weight: LossWeight) -> str:
    if isinstance(weight, int | float):
        return f"{weight:g}"
    return "→".join(f"{value:g}" for _, value in weight)


def _network(plan: StagePlan) -> dict[str, Any]:
    """The network of a stage and the cost of a step, by column."""
    optimizers = Counter(optimizer for _, optimizer in plan.trainable_params.values())
    gib = sum(plan.step_estimate.memory_mib.values()) / 1024
    return {
        "stage": plan.run.name,
        "form": plan.form,
        "hparams": " ".join(f"{key}={value}" for key, value in plan.hparams.items()),
        "trainable params": f"{plan.num_trained:,}",
        "frozen params": f"{plan.num_frozen:,}",
        "optimizer": ", ".join(f"{name} ({count} tensors)" for name, count in optimizers.items()),
        "GMAC/step": f"{plan.step_estimate.macs / 1e9:,.0f}",
        "memory": f"about {gib:.2f} GiB",
    }


def _show_params(plans: Sequence[StagePlan]) -> None:
    rows = [
        {
            "stage": plan.run.name,
            "parameter": path,
            "shape": "x".join(map(str, shape)),
            "optimizer": optimizer,
        }
        for plan in plans
        for path, (shape, optimizer) in plan.trainable_params.items()
    ]
    show_table(rows, list(rows[0]))


def _datasets(recipe: Recipe) -> list[str]:
    scale = registry.get_method(recipe.method).scale
    lines: list[str] = []
    for name in training_datasets(recipe):
        try:
            lines.append(f"dataset {name}: {len(loader.find_pairs(name, scale))} images")
        except UserError:
            continue  # reported as missing
    return lines


def _missing(plans: Sequence[StagePlan]) -> list[str]:
    lines = dict.fromkeys(line for plan in plans for line in plan.missing)
    return [f"missing: {line}" for line in lines]


def policy_violations(recipe: Recipe, rules: str) -> list[str]:
    """Return a line for each training dataset that the rules forbid, with the reason."""
    names = [name.partition("[")[0] for name in training_datasets(recipe)]  # without "[:800]"
    return data_policy_violations(challenge_rules.load_rules(rules), names)


def training_datasets(recipe: Recipe) -> list[str]:
    """Return the names of the datasets, or of slices of them, of all stages."""
    return sorted({name for stage in recipe.stage for name in stage.data.dataset_weights})
