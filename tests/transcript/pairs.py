"""Pairs of comparable values of the report and of a recipe, for every field of the transcript.

Each function takes the value of the report, the stage run, and the recipe, and returns the value of
the report and that of the recipe in the same form. `PAIRS` has one function for every field.
"""

import math
from fnmatch import fnmatchcase

import jax
import numpy as np
from flax import nnx

from esrjax import registry
from esrjax.io import matches_any
from esrjax.nn.state_dict import named_parameters
from esrjax.training import optim
from esrjax.training.recipe import InitFrom

TERMS = {
    "L1": "l1",
    "L2": "mse",
    "MSE": "mse",
    "Charbonnier": "charbonnier",
    "FFT": "fft",
    "frequency": "fft",
    "gradient": "gradient",
    "Laplacian frequency": "laplacian",
    "L1 to the teacher": "teacher_l1",
    "Laplacian edges to the teacher": "teacher_edges",
    "affinity to the teacher": "teacher_affinity",
    "features to the teacher, MSE": "teacher_features",
}
AUGMENTATIONS = {
    "horizontal flip": {"hflip"},
    "vertical flip": {"vflip"},
    "flips": {"hflip", "vflip"},
    "rotation": {"rot90"},
    "rotations": {"rot90"},
    "rotation by 90 degrees": {"rot90"},
    "rotations by 90 degrees": {"rot90"},
    "rotations by 90, 180, 270 degrees": {"hflip", "vflip", "rot90"},
    "eight-fold": {"hflip", "vflip", "rot90"},
}


def data(value, run, _):
    slices = {"all": "", "20%": "[20%]", "first 10000": "[:10000]"}
    return {name + slices[part] for name, part in value.items()}, set(run.stage.data.datasets)


def hr_patch_size(value, run, _):
    sizes = run.stage.data.all_patch_sizes
    if isinstance(value, int):
        return {(value, value)}, set(sizes)
    orientation = {0: "square", 1: "portrait", -1: "landscape"}
    sides = [side for size in sizes for side in size]
    orientations = {orientation[(h > w) - (h < w)] for h, w in sizes}
    report = (value["count"], value["from"], value["to"], set(value["orientations"]))
    return report, (len(set(sizes)), min(sides), max(sides), orientations)


def steps(value, run, _):
    if isinstance(value, dict):
        return True, abs(run.stage.steps / value["about"] - 1) < 0.02
    return value, run.stage.steps


def times(value, run, recipe):
    return value, sum(other.stage.name == run.stage.name for other in recipe.runs)


def loss(value, run, _):
    weights = run.stage.loss
    if isinstance(value, list):
        return {TERMS[term] for term in value}, set(weights)
    steps = run.stage.steps
    ramps = {t: (w["from"], w["to"]) if isinstance(w, dict) else (w, w) for t, w in value.items()}
    report = {
        f"{TERMS[term]} at {t}": float(np.interp(t, (0, steps), ramp))
        for term, ramp in ramps.items()
        for t in (0, steps // 4, steps)
    }
    return report, {
        f"{term} at {t}": float(np.interp(t, *zip(*breakpoints(weight), strict=True)))
        for term, weight in weights.items()
        for t in (0, steps // 4, steps)
    }


def breakpoints(weight):
    return weight if isinstance(weight, tuple) else ((0, weight), (1, weight))


def learning_rate(value, run, _):
    """Return the learning rate at step -> value, at the start and around all changes."""
    if not isinstance(value, dict):
        return {0: value}, schedule_values(run, [0])
    if "multistep" in value:
        return ("multistep", {0: value["from"]}), (
            run.stage.schedule.name,
            schedule_values(run, [0]),
        )
    first = value.get("from", run.stage.optimizer.learning_rate)
    report = (
        cosine_values(value, first, run) if "cosine" in value else step_values(value, first, run)
    )
    return report, schedule_values(run, report)


def schedule_values(run, steps):
    """Return step -> learning rate of the recipe."""
    stage = run.stage
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        schedule = optim.make_schedule(
            stage.schedule, stage.optimizer.learning_rate, num_steps(run)
        )
        return {t: float(schedule(t)) for t in steps}


def num_steps(run):
    """Return the steps of the run; the length of an epoch does not matter here."""
    return run.stage.steps or 1000 * run.stage.epochs


def cosine_values(value, first, run):
    """Return the values of half cosines; end and restarts are the recipe's if unspecified."""
    cfg, steps = run.stage.schedule, num_steps(run)
    restarts = value.get("restarts", [])
    if "period" in value:
        restarts = [[t, 1.0] for t in range(value["period"], steps, value["period"])]
    if isinstance(restarts, str):
        weights = cfg.restart_weights[1:] or (1.0,) * len(cfg.restarts)
        restarts = list(zip(cfg.restarts, weights, strict=True))
    starts, weights = [0, *(t for t, _ in restarts)], [1.0, *(w for _, w in restarts)]
    end_value, report = value.get("to", cfg.end_learning_rate), {}
    for w, start, end in zip(weights, starts, [*starts[1:], steps], strict=True):
        for t in (start, start + (end - start) // 3, (start + end) // 2, end - 1):
            angle = math.pi * (t - start) / (end - start)
            report[t] = end_value + (w * first - end_value) * (1 + math.cos(angle)) / 2
    return {**report, steps: end_value}


def step_values(value, first, run):
    """Return the values of a step schedule; the factor is 1/2, or the recipe's if unspecified."""
    factor = run.stage.schedule.gamma if "lowered_at" in value else 0.5
    every = value.get("halved_every", 0)
    milestones = range(every, num_steps(run), every or 1)
    milestones = value.get("halved_at", value.get("lowered_at", milestones))
    steps = {0, *milestones, *(t - 1 for t in milestones), num_steps(run) - 1}
    return {t: first * factor ** sum(t >= m for m in milestones) for t in sorted(steps)}


def init_from(value, run, recipe):
    init = run.stage.init_source
    if value.startswith("HAT-L"):
        plain = getattr(init, "hparams", {}) == {"extra_scales": []}
        checkpoint = getattr(init, "checkpoint", None)
        return ("HAT-L_SRx4_ImageNet-pretrain.pth", True), (checkpoint, plain)
    if isinstance(init, InitFrom) and init.checkpoint:
        return value.lower(), init.method or recipe.method
    before = recipe.runs[run.index - 1].stage.name if run.index else None
    if isinstance(init, InitFrom):
        return value, "previous stage" if init.stage == before else f"stage {init.stage!r}"
    return value, "previous stage" if init == "previous" and run.index else "scratch"


def teacher(value, run, recipe):
    cfg = run.stage.teacher
    if cfg is None or cfg.stage is None:
        return value.lower(), cfg and cfg.method
    stage = next(stage for stage in recipe.stage if stage.name == cfg.stage)
    if stage.ours:  # it trains what the report has
        return value.lower(), recipe.method_of(stage)
    stages = [other.name for other in recipe.stage if not other.ours]
    return value, f"stage {stages.index(cfg.stage) + 1}"


def teacher_channels(value, run, recipe):
    cfg = run.stage.teacher
    if cfg.stage:
        source = recipe.latest_run(run.index, cfg.stage)
        method, hparams = recipe.method_of(source.stage), recipe.hparams_at(source)
    else:
        method, hparams = cfg.method, cfg.hparams
    return value, {**registry.get_method(method).default_hparams(), **hparams}["channels"]


def hparams(value, run, recipe):
    defaults = registry.get_method(recipe.method).default_hparams()
    values = {**defaults, **recipe.hparams_at(run)}
    getters = {
        "channels": lambda: values["channels"],
        "blocks": lambda: values["num_groups"] * values["depth"],
        "tail_channels": lambda: values["tail_channels"],
    }
    return value, {name: getters[name]() for name in value}


def lora(value, run, _):
    cfg = run.stage.lora
    return True, cfg is not None and any(
        fnmatchcase("upsampler.0", glob) for glob in cfg.target_modules
    )


def lora_train(value, run, recipe):
    """Return the parameters of one axis, and those that are trained beside the adapters."""
    method, hparams = registry.get_method(recipe.method), recipe.hparams_at(run)
    net = nnx.eval_shape(lambda: method.build(seed=0, **hparams))
    shapes = {path: leaf.get_value().shape for path, leaf in named_parameters(net)}
    assert value == "tensors of one axis"
    report = {path for path, shape in shapes.items() if len(shape) == 1}
    return report, {path for path in shapes if matches_any(path, run.stage.lora.train)}


def loss_scales(value, run, recipe):
    """Return the scales of the outputs in the loss: those of the heads, and the network's own."""
    heads = {int(name.removeprefix("head_").removesuffix("x")) for name in run.stage.heads}
    return set(value), heads | {recipe.scale_at(run)}


def newton_schulz(value, *_):
    return value, dict(zip("abc", optim.NS_COEFFS, strict=True)) | {"iterations": optim.NS_STEPS}


PAIRS = {
    "data": data,
    "hr_patch_size": hr_patch_size,
    "lr_patch_size": lambda value, run, _: hr_patch_size(4 * value, run, _),
    "patch_size": hr_patch_size,
    "batch_size": lambda value, run, _: (value, run.stage.data.batch_size),
    "batch_size_per_gpu": lambda value, run, _: (0, run.stage.data.batch_size % value),
    "steps": steps,
    "epochs": lambda value, run, _: (value, run.stage.epochs),
    "times": times,
    "loss": loss,
    "loss_includes": lambda value, run, _: (True, TERMS[value] in run.stage.loss),
    "optimizer": lambda value, run, _: (value.lower(), run.stage.optimizer.name),
    "betas": lambda value, run, _: (value, [run.stage.optimizer.b1, run.stage.optimizer.b2]),
    "momentum": lambda value, run, _: (value, run.stage.optimizer.momentum),
    "newton_schulz": newton_schulz,
    "weight_decay": lambda value, run, _: (value, run.stage.optimizer.weight_decay),
    "learning_rate": learning_rate,
    "muon_learning_rate": lambda value, run, _: (value, run.stage.optimizer.muon_learning_rate),
    "ema": lambda value, run, _: (value, run.stage.ema),
    "augmentation": lambda value, run, _: (
        set().union(*(AUGMENTATIONS[name] for name in value)),
        set(run.stage.data.augment),
    ),
    "init_from": init_from,
    "hparams": hparams,
    "teacher": teacher,
    "teacher_channels": teacher_channels,
    "tapped_blocks": lambda value, run, _: (value, len(run.stage.teacher.taps)),
    "lora": lora,
    "lora_train": lora_train,
    "loss_scales": loss_scales,
}
