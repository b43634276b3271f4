"""What the report and a recipe say of one thing, in the same words.

Each function takes what the report says, the run that it says it of, and the recipe, and gives a
pair: the report's word and the recipe's. `PAIRS` has one for every field of the transcript.
"""

import math
from fnmatch import fnmatchcase

import jax
import numpy as np

from esrjax import registry
from esrjax.training import muon, optim
from esrjax.training.recipe import Start

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
TURNS = {
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


def data(said, run, _):
    cuts = {"all": "", "20%": "[20%]", "first 10000": "[:10000]"}
    return {name + cuts[part] for name, part in said.items()}, set(run.stage.data.sets)


def hr_patch(said, run, _):
    shapes = run.stage.data.shapes
    if isinstance(said, int):
        return {(said, said)}, set(shapes)
    kind = {0: "square", 1: "portrait", -1: "landscape"}
    sides = [side for shape in shapes for side in shape]
    kinds = {kind[(h > w) - (h < w)] for h, w in shapes}
    report = (said["shapes"], said["from"], said["to"], set(said["kinds"]))
    return report, (len(set(shapes)), min(sides), max(sides), kinds)


def iterations(said, run, _):
    if isinstance(said, dict):
        return True, abs(run.stage.steps / said["about"] - 1) < 0.02
    return said, run.stage.steps


def times(said, run, recipe):
    return said, sum(each.stage.name == run.stage.name for each in recipe.runs)


def loss(said, run, _):
    weights = run.stage.loss
    if isinstance(said, list):
        return {TERMS[term] for term in said}, set(weights)
    steps = run.stage.steps
    lines = {t: (w["from"], w["to"]) if isinstance(w, dict) else (w, w) for t, w in said.items()}
    report = {
        f"{TERMS[term]} at {t}": float(np.interp(t, (0, steps), line))
        for term, line in lines.items()
        for t in (0, steps // 4, steps)
    }
    return report, {
        f"{term} at {t}": float(np.interp(t, *zip(*knots(weight), strict=True)))
        for term, weight in weights.items()
        for t in (0, steps // 4, steps)
    }


def knots(weight):
    return weight if isinstance(weight, tuple) else ((0, weight), (1, weight))


def rate(said, run, _):
    """The first rate, or the rates before and after all that the report says of them."""
    if not isinstance(said, dict):
        return {0: said}, rates(run, [0])
    first = said.get("from", run.stage.optimiser.lr)
    report = cosine(said, first, run) if "cosine" in said else stairs(said, first, run)
    return report, rates(run, report)


def rates(run, steps):
    """Step -> the rate of the config."""
    stage = run.stage
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        schedule = optim.schedule(stage.schedule, stage.optimiser.lr, length(run))
        return {t: float(schedule(t)) for t in steps}


def length(run):
    """Steps of the run; what an epoch is does not matter here."""
    return run.stage.steps or 1000 * run.stage.epochs


def cosine(said, first, run):
    """Half cosines; their floor and their restarts are the config's where the report has none."""
    ours, steps = run.stage.schedule, length(run)
    restarts = said.get("restarts", [])
    if "period" in said:
        restarts = [[t, 1.0] for t in range(said["period"], steps, said["period"])]
    if isinstance(restarts, str):
        weights = ours.restart_weights[1:] or (1.0,) * len(ours.restarts)
        restarts = list(zip(ours.restarts, weights, strict=True))
    begins, weights = [0, *(t for t, _ in restarts)], [1.0, *(w for _, w in restarts)]
    low, report = said.get("to", ours.end_lr), {}
    for w, begin, end in zip(weights, begins, [*begins[1:], steps], strict=True):
        for t in (begin, begin + (end - begin) // 3, (begin + end) // 2, end - 1):
            turn = math.pi * (t - begin) / (end - begin)
            report[t] = low + (w * first - low) * (1 + math.cos(turn)) / 2
    return {**report, steps: low}


def stairs(said, first, run):
    """Steps down; the factor is a half, or the config's where the report has none."""
    factor = run.stage.schedule.gamma if "lowered_at" in said else 0.5
    every = said.get("halved_every", 0)
    edges = said.get("halved_at", said.get("lowered_at", range(every, length(run), every or 1)))
    moments = {0, *edges, *(t - 1 for t in edges), length(run) - 1}
    return {t: first * factor ** sum(t >= edge for edge in edges) for t in sorted(moments)}


def start(said, run, recipe):
    origin = run.stage.origin
    if isinstance(origin, Start) and origin.file:
        return said.lower(), origin.method or recipe.method
    before = recipe.runs[run.index - 1].stage.name if run.index else None
    if isinstance(origin, Start):
        return said, "previous stage" if origin.stage == before else f"stage {origin.stage!r}"
    return said, "previous stage" if origin == "previous" and run.index else "scratch"


def teacher(said, run, recipe):
    ours = run.stage.teacher
    if ours is None or ours.stage is None:
        return said.lower(), ours and ours.method
    return said, f"stage {[stage.name for stage in recipe.stage].index(ours.stage) + 1}"


def teacher_width(said, run, _):
    ours = run.stage.teacher
    return said, {**registry.plain(ours.method).sizes(), **ours.sizes}["channels"]


def network(said, run, recipe):
    sizes = {**registry.plain(recipe.method).sizes(), **recipe.sizes_at(run)}
    found = {
        "width": lambda: sizes["channels"],
        "blocks": lambda: sizes["groups"] * sizes["blocks"],
        "tail_width": lambda: sizes["tail"],
    }
    return said, {name: found[name]() for name in said}


def adapters(said, run, _):
    lora = run.stage.lora
    return True, lora is not None and any(fnmatchcase("upsampler.0", glob) for glob in lora.where)


def newton_schulz(said, *_):
    return said, dict(zip("abc", muon.COEFFICIENTS, strict=True)) | {"iterations": muon.ITERATIONS}


PAIRS = {
    "data": data,
    "hr_patch": hr_patch,
    "lr_patch": lambda said, run, _: hr_patch(4 * said, run, _),
    "patch": hr_patch,
    "batch": lambda said, run, _: (said, run.stage.data.batch),
    "batch_per_gpu": lambda said, run, _: (0, run.stage.data.batch % said),
    "iterations": iterations,
    "epochs": lambda said, run, _: (said, run.stage.epochs),
    "times": times,
    "loss": loss,
    "loss_includes": lambda said, run, _: (True, TERMS[said] in run.stage.loss),
    "optimiser": lambda said, run, _: (said.lower(), run.stage.optimiser.name),
    "betas": lambda said, run, _: (said, [run.stage.optimiser.b1, run.stage.optimiser.b2]),
    "momentum": lambda said, run, _: (said, run.stage.optimiser.momentum),
    "newton_schulz": newton_schulz,
    "weight_decay": lambda said, run, _: (said, run.stage.optimiser.weight_decay),
    "rate": rate,
    "muon_rate": lambda said, run, _: (said, run.stage.optimiser.muon_lr),
    "ema": lambda said, run, _: (said, run.stage.ema),
    "augmentation": lambda said, run, _: (
        set().union(*(TURNS[turn] for turn in said)),
        set(run.stage.data.augment),
    ),
    "start": start,
    "network": network,
    "teacher": teacher,
    "teacher_width": teacher_width,
    "tapped_blocks": lambda said, run, _: (said, len(run.stage.teacher.taps)),
    "adapters": adapters,
}
