"""The main job, whole: photographs in, a trained, scored, timed and ranked network out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from esrjax import registry
from esrjax.cli.progress import TrainingBar
from esrjax.cli.tables import show_table
from esrjax.contest import clock, rank, rows, rules, table
from esrjax.contest.clock import forward
from esrjax.method import Method
from esrjax.model import Model, open_method
from esrjax.network.archive import MissingExtra
from esrjax.network.cost import cost
from esrjax.network.reparam import deploy
from esrjax.pictures import files, panels, resize, sets
from esrjax.pictures.files import Pixels
from esrjax.pictures.score import Scores, score
from esrjax.pictures.specs import NTIRE
from esrjax.training import loop
from esrjax.training import recipe as recipes

# Photographs of scikit-image in the public domain or under CC0. No scene is on both sides.
TRAIN = "astronaut brick camera chelsea grass gravel moon retina rocket".split()
HELD_OUT = "coffee hubble_deep_field immunohistochemistry".split()

WINDOW = 160  # side of what is shown of a picture, HR pixels
_OUT = Console(soft_wrap=True, highlight=False)


def run(folder: Path, minutes: float) -> None:
    """Six steps, each said before it is done; everything is kept in `folder`."""
    _say(1, f"photographs of scikit-image -> {folder / 'data'}")
    data = _photographs(folder / "data")
    _say(2, f"training SPANV2 from scratch, about {minutes:g} min")
    model = _train(folder, data, minutes)
    _say(3, f"scoring on the {len(HELD_OUT)} held-out pictures, by the challenge's metric")
    scores = _scores(model, data / "held-out")
    _OUT.print(_quality(scores))
    _say(4, "timing it beside SPAN, the challenge's baseline, at 256x256")
    ratio = _runtime_ratio(model)
    _say(5, "ranking it beside the published Table 1")
    ranking = _ranked(model, scores["trained here"], ratio)
    show_table([_line(line) for line in ranking.lines], list(_line(ranking.lines[0])))
    (folder / "ranking.md").write_text(f"```\n{_quality(scores)}\n```\n\n{table.markdown(ranking)}")
    _say(6, f"pictures side by side -> {folder}")
    for path in _pictures(model, data / "held-out", folder):
        _OUT.print(f"  {path}")


def _say(step: int, what: str) -> None:
    _OUT.print(f"\n[bold][{step}/6][/bold] {what}")


def _photographs(folder: Path) -> Path:
    """Write the pictures as `train/*.png` and `held-out/*.png`."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtra(
            "the demo needs scikit-image for its photographs",
            rule="scikit-image is an optional dependency",
            remedy='pip install "esrjax[demo]"',
        ) from error
    for part, names in (("train", TRAIN), ("held-out", HELD_OUT)):
        for name in names:
            pixels = np.asarray(getattr(data, name)())
            colours = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=-1)
            files.write(folder / part / f"{name}.png", resize.crop(colours, 4))
        _OUT.print(f"  {part}: {', '.join(names)}")
    return folder


def _train(folder: Path, data: Path, minutes: float) -> Model:
    """As many steps of the recipe `quick` as fit into the time, measured before."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    changes = [
        f"stage.0.data.sets=['{data / 'train'}']",
        f"stage.0.validate={{set='{data / 'held-out'}', every=400}}",
    ]
    _OUT.print("  compiling, and measuring a step")
    seconds = loop.seconds_per_step(recipes.load("quick", changes))
    steps = max(20, round(60 * minutes / seconds / 10) * 10)
    _OUT.print(f"  {1 / seconds:.1f} steps/s here: {steps} steps")
    recipe = recipes.load("quick", [*changes, f"stage.0.steps={steps}"])
    with TrainingBar(recipe.steps) as bar:
        loop.run(recipe, run, tell=bar.tell)
    return open_method(recipe.method, run)


def _scores(model: Model, held_out: Path) -> dict[str, Scores]:
    """Bicubic, the trained network, and every method that ships weights."""
    shipped = {
        f"{name} (shipped)": open_method(name)
        for name in registry.names()
        if isinstance(method := registry.method(name), Method) and method.pretrained
    }
    bicubic: Callable[[Pixels], Pixels] = lambda lr: resize.upscale(lr, 4)  # noqa: E731
    runs = {"bicubic": bicubic, "trained here": model, **shipped}
    pairs = sets.pairs(held_out, 4)
    return {name: score(upscale, pairs, NTIRE) for name, upscale in runs.items()}


def _quality(scores: Mapping[str, Scores]) -> str:
    """PSNR of every held-out picture, and what is gained over bicubic."""
    base = scores["bicubic"]
    lines = ["", f"{'PSNR, dB':<28}" + "".join(f"{name:>24}" for name in scores)]
    for image in base.images:
        values = [each.images[image].psnr for each in scores.values()]
        lines.append(f"{image:<28}" + "".join(_gain(v, values[0]) for v in values))
    means = [each.mean.psnr for each in scores.values()]
    return "\n".join([*lines, f"{'mean':<28}" + "".join(_gain(v, means[0]) for v in means)])


def _gain(value: float, base: float) -> str:
    return f"{value:24.2f}" if value == base else f"{value:16.2f} ({value - base:+.2f})"


def _runtime_ratio(model: Model) -> float:
    """The runtime of the trained network over that of the baseline, timed in turn."""
    base = rules.load("ntire2026").baseline.method
    baseline = deploy(registry.plain(base).build())
    forwards = {base: forward(baseline), model.name: forward(model.net)}
    timings = clock.interleaved(forwards, (1, 256, 256, 3), budget_s=5.0)
    for name, timing in timings.items():
        _OUT.print(
            f"  {name:<8}{timing.median_ms:8.1f} ms  [{timing.low_ms:.1f}, {timing.high_ms:.1f}], "
            f"compiled in {timing.compile_s:.1f} s"
        )
    return timings[model.name].median_ms / timings[base].median_ms


def _line(line: rank.Line) -> dict[str, Any]:
    """What of a ranked method fits on a terminal's line."""
    row = line.row
    known = [value for value in (row.psnr_valid, row.psnr_test) if value is not None]
    return {
        "rank": line.ranks["main"] if line.ranks else None,
        "team": row.team,
        "method": row.method,
        "PSNR valid / test": " / ".join(f"{value:.2f}" for value in known) or None,
        "runtime, ms": row.runtime_ms,
        "params, M": row.params_m,
        "FLOPs, G": f"{row.flops_g:.2f}",
        "main score": table.printed(line.score("main")),
    }


def _ranked(model: Model, scores: Scores, ratio: float) -> rank.Ranking:
    """The published table with one row more.

    Its runtime is the ratio to the baseline here times the baseline's published runtime: scores are
    made of ratios.
    """
    said = rules.load("ntire2026")
    counted: Any = cost(model.net)
    ours = rows.Row(
        team="trained here",
        method=model.name,
        psnr_elsewhere={"held-out (3)": scores.mean.psnr},
        runtime_ms=ratio * said.baseline.runtime_ms,
        params_m=counted.params / 1e6,
        flops_g=counted.macs / 1e9,
    )
    methods = {n: m for n in registry.names() if isinstance(m := registry.method(n), Method)}
    field = [*rows.published(methods), ours]
    return rank.rank(field, said, base="published", figures="printed")


def _pictures(model: Model, held_out: Path, folder: Path) -> list[Path]:
    """Bicubic, trained, original: the busiest window of every held-out picture."""
    paths: list[Path] = []
    for pair in sets.pairs(held_out, 4):
        lr, hr = pair.load()
        every = {"bicubic x4": resize.upscale(lr, 4), "trained here": model(lr), "original": hr}
        top, left = panels.busiest(hr, WINDOW)
        shown = {name: panels.window(p, top, left, WINDOW) for name, p in every.items()}
        files.write(folder / f"{pair.name}.png", panels.side_by_side(shown, zoom=2))
        paths.append(folder / f"{pair.name}.png")
    return paths
