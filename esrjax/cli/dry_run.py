"""The output of `train --dry-run`, as text and as JSON, and summaries of recipes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from esrjax.challenge.rules import Rules, data_policy_violations, load_rules
from esrjax.cli.output import print_json, print_unwrapped, show_table
from esrjax.data.datasets import parse_name
from esrjax.errors import list_some
from esrjax.training import recipe_loader
from esrjax.training.dry_run import StagePlan, dry_run
from esrjax.training.recipe import InitFrom, LossWeight, Recipe, Stage, StageRun, recipe_notes
from esrjax.training.run_data import overlap_notes, summarize_data


def show_dry_run(
    name: str, overrides: Sequence[str], rules: str, *, list_params: bool, as_json: bool
) -> None:
    """Print the stages, their networks and cost, the datasets, and what is missing or forbidden.

    Args:
        name: A shipped recipe or a file.
        overrides: Changes of the recipe, such as `seed=5`.
        rules: Shipped rules or a TOML file: the challenge whose data policy applies.
        list_params: Whether to list every trainable parameter with its shape and optimizer.
        as_json: Whether to print JSON, which always has the parameters.
    """
    recipe = recipe_loader.load(name, overrides)
    plans, violations = dry_run(recipe), policy_violations(recipe, load_rules(rules))
    data = summarize_data(recipe, missing_ok=True)
    if as_json:
        print_json(
            {
                "method": recipe.method,
                "sha256": recipe.sha256,
                "total_steps": recipe.total_steps,
                "stages": [_plan_json(plan) for plan in plans],
                "datasets": {name: vars(summary) for name, summary in data.items()},
                "policy_violations": violations,
                "notes": [*recipe_notes(recipe), *overlap_notes(recipe)],
            }
        )
        return
    steps = f"{recipe.total_steps:,} steps" if recipe.total_steps else "epochs"
    head = f"[bold]{recipe.method}[/bold], seed {recipe.seed}, {steps}, {recipe.parallel}"
    print_unwrapped(head, markup=True)
    show_table([stage_summary(plan.run) for plan in plans])
    show_table([_network(plan) for plan in plans])
    if list_params:
        show_table([row for plan in plans for row in _params(plan)])
    missing = dict.fromkeys(line for plan in plans for line in plan.missing)
    print_unwrapped(
        *recipe_notes(recipe),
        *overlap_notes(recipe),
        *(f"dataset {name}: {summary}" for name, summary in data.items()),
        *(f"missing: {line}" for line in missing),
        *(f"not allowed: {line}" for line in violations),
        f"recipe sha256 {recipe.sha256[:16]}; dry run: nothing was trained or written",
    )


def _plan_json(plan: StagePlan) -> dict[str, Any]:
    params = plan.trainable_params.items()
    return {
        "name": plan.run.name,
        "form": plan.setup.model.form,
        "hparams": plan.setup.model.hparams,
        "num_trainable_params": plan.num_trained,
        "num_frozen_params": plan.num_frozen,
        "ema_initial_share": plan.run.stage.ema_initial_share,
        "macs_per_step": plan.step_estimate.macs,
        "memory_mib": plan.step_estimate.memory_mib,
        "params": {path: {"shape": shape, "optimizer": name} for path, (shape, name) in params},
        "missing": plan.missing,
    }


def stage_summary(run: StageRun) -> dict[str, Any]:
    """Return the settings of a stage by column: what the recipe specifies."""
    stage, optimizer = run.stage, run.stage.optimizer
    accumulation = f" in {stage.grad_accum_steps} steps" * (stage.grad_accum_steps > 1)
    sizes = [f"{h}x{w}" for h, w in stage.data.all_patch_sizes]
    return {
        "stage": run.name,
        "init from": _init(run),
        "length": f"{stage.steps:,} steps" if stage.steps else f"{stage.epochs} epochs",
        "batch size": f"{stage.data.batch_size}{accumulation}",
        "HR patches": list_some(sizes, 3),
        "loss": " + ".join(f"{_weight(weight)} {term}" for term, weight in stage.loss.items()),
        "optimizer": f"{optimizer.name} {optimizer.learning_rate:g}, {stage.schedule.name}",
        "EMA": None if stage.ema is None else _ema(stage),
    }


def _ema(stage: Stage) -> str:
    warmup = " with warm-up" * stage.ema_warmup
    share = f", {stage.ema_initial_share:.1%} of start left" if stage.steps else ""
    return f"{stage.ema:g}{warmup}{share}"


def _init(run: StageRun) -> str:
    stage, source = run.stage, run.stage.init_source
    if source == "previous" and run.index == 0:
        source = "scratch"
    if isinstance(source, InitFrom):
        source = source.checkpoint or f"stage {source.stage}"
    teacher = stage.teacher and (stage.teacher.stage or stage.teacher.checkpoint)
    return source + (f", distilled from {teacher}" if teacher else "")


def _weight(weight: LossWeight) -> str:
    if isinstance(weight, int | float):
        return f"{weight:g}"
    return "→".join(f"{value:g}" for _, value in weight)


def _network(plan: StagePlan) -> dict[str, Any]:
    """The network of a stage and the cost of a step, by column."""
    model = plan.setup.model
    optimizers = Counter(optimizer for _, optimizer in plan.trainable_params.values())
    gib = sum(plan.step_estimate.memory_mib.values()) / 1024
    return {
        "stage": plan.run.name,
        "form": model.form,
        "hparams": " ".join(f"{key}={value}" for key, value in model.hparams.items()),
        "trainable params": f"{plan.num_trained:,}",
        "frozen params": f"{plan.num_frozen:,}",
        "optimizer": ", ".join(f"{name} ({count} tensors)" for name, count in optimizers.items()),
        "GMAC/step": f"{plan.step_estimate.macs / 1e9:,.0f}",
        "memory": f"about {gib:.2f} GiB",
    }


def _params(plan: StagePlan) -> list[dict[str, str]]:
    stage, params = plan.run.name, plan.trainable_params.items()
    return [
        {"stage": stage, "parameter": path, "shape": "x".join(map(str, shape)), "optimizer": name}
        for path, (shape, name) in params
    ]


def policy_violations(recipe: Recipe, rules: Rules) -> list[str]:
    """Return a line for each training dataset that the rules forbid, with the reason."""
    names = [parse_name(name).dataset for name in training_datasets(recipe)]  # without "[:800]"
    return data_policy_violations(rules, names)


def training_datasets(recipe: Recipe) -> list[str]:
    """Return the names of the datasets, or of slices of them, of all stages."""
    return sorted({name for stage in recipe.stage for name in stage.data.dataset_weights})
