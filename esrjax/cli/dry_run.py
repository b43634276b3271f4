"""The output of `train --dry-run`, as text and as JSON, and summaries of recipes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from esrjax.challenge.rules import Rules, data_policy_violations, load_rules
from esrjax.cli.output import print_json, print_unwrapped, show_table
from esrjax.data.datasets import parse_name
from esrjax.errors import list_some
from esrjax.training import recipe_loader
from esrjax.training.dry_run import StagePlan, dry_run
from esrjax.training.recipe import InitFrom, LossWeight, Recipe, Stage, StageRun
from esrjax.training.recipe_loader import recipe_notes
from esrjax.training.run_data import DataSummaries, overlap_notes, summarize_data
from esrjax.training.stage_trainer import device_lines


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
                "devices": device_lines(recipe),
                "notes": [*recipe_notes(recipe), *overlap_notes(recipe)],
            }
        )
        return
    steps = f"{recipe.total_steps:,} steps" if recipe.total_steps else "epochs"
    head = f"[bold]{recipe.method}[/bold], seed {recipe.seed}, {steps}, {recipe.parallel}"
    print_unwrapped(head, markup=True)
    show_table([stage_summary(plan.run) for plan in plans])
    show_table([_network(plan) for plan in plans])
    for stage in recipe.stage:
        print_unwrapped(f"stage {stage.name!r}:", *setting_lines(stage, data))
    if list_params:
        show_table([row for plan in plans for row in _params(plan)])
    missing = dict.fromkeys(line for plan in plans for line in plan.missing)
    print_unwrapped(
        *device_lines(recipe),
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
        "settings": _plain(plan.run.stage),
        "num_devices": plan.step_estimate.data_parallel.mesh.size,
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


# Settings that `setting_lines` shows although they have their default; others are not shown then.
ALWAYS_SHOWN = ("optimizer.b1", "optimizer.b2", "optimizer.weight_decay", "ema", "precision")
NOT_SHOWN = ("name", "unspecified", "save_every")


def setting_lines(stage: Stage, data: DataSummaries) -> list[str]:
    """Return the settings of a stage, a line for each table: all that have not their default.

    Args:
        stage: The stage.
        data: Summaries of the datasets, by name, of those that exist.
    """
    lines: list[str] = []
    single: list[str] = []
    for key, value in _plain(stage).items():
        table: dict[str, Any] = value if isinstance(value, dict) else {}
        defaults = _defaults_of(getattr(stage, key)) if table else _defaults_of(stage)
        shown = {
            name: item
            for name, item in (table or {key: value}).items()
            if item != defaults.get(name) or f"{key}.{name}" in ALWAYS_SHOWN or name in ALWAYS_SHOWN
        }
        if key == "data":
            shown["datasets"] = _dataset_shares(stage, data)
        texts = [f"{name} {_setting(item)}" for name, item in shown.items()]
        if table:
            lines += [f"    {key}: {'; '.join(texts)}"] if texts else []
        elif key not in NOT_SHOWN:
            single += texts
    return [f"    {'; '.join(single)}", *lines]


def _plain(stage: Stage) -> dict[str, Any]:
    """Return a stage as plain data."""
    return TypeAdapter(Stage).dump_python(stage, mode="json")


def _defaults_of(table: Any) -> dict[str, Any]:
    """Return the defaults of a dataclass as plain data; empty for a table of other keys."""
    if not is_dataclass(table):
        return {}
    values = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in fields(table)
    }
    return {
        name: [*value] if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType]
        for name, value in values.items()
    }


def _dataset_shares(stage: Stage, data: DataSummaries) -> list[str]:
    """Return the datasets of a stage with the share of patches that are drawn from each.

    That is of the images, or of the weights; unknown if a dataset does not exist.
    """
    weights = stage.data.dataset_weights
    if None in weights.values():
        weights = {name: float(data[name].num_images) if name in data else None for name in weights}
    if None in weights.values():
        return [f"{name} (by its number of images)" for name in weights]
    total = sum(filter(None, weights.values()))
    return [f"{name} {(weight or 0) / total:.1%}" for name, weight in weights.items()]


def _setting(value: Any) -> str:
    """Return a value of a setting: sizes as 64x64, breakpoints as [step, weight]."""
    match value:
        case [[int(), int()], *_]:
            return ", ".join(f"{h}x{w}" for h, w in value)
        case list():
            return ", ".join(str(item).replace("'", "") for item in value) or "none"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case dict():
            return ", ".join(f"{key} = {_setting(item)}" for key, item in value.items()) or "none"  # pyright: ignore[reportUnknownVariableType]
        case float():
            return f"{value:g}"
        case None:
            return "none"
        case _:
            return str(value)


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
        "network": f"{model.method}, {model.form}",
        "hparams": " ".join(f"{key}={value}" for key, value in model.hparams.items()),
        "trainable params": f"{plan.num_trained:,}",
        "frozen params": f"{plan.num_frozen:,}",
        "optimizer": ", ".join(f"{name} ({count} tensors)" for name, count in optimizers.items()),
        "GMAC/step": f"{plan.step_estimate.macs / 1e9:,.0f}",
        "memory/device": f"about {gib:.2f} GiB",
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
