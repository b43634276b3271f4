"""The command `demo`: train a network on photographs, then score, time, rank and show it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from esrjax import registry
from esrjax.bench import timing as clock
from esrjax.bench.timing import forward_fn
from esrjax.challenge import rank, results, rules, table
from esrjax.cli.output import TrainingBar, show_table
from esrjax.data import datasets, image_io, resize, visualize
from esrjax.data.image_io import Pixels
from esrjax.errors import MissingExtra
from esrjax.evaluation.metrics import NTIRE
from esrjax.evaluation.score import Scores, score
from esrjax.inference import Model, open_method
from esrjax.method import Method
from esrjax.nn.cost import cost
from esrjax.nn.reparam import deploy
from esrjax.training import recipe_loader, train

# Photographs of scikit-image in the public domain or under CC0; no scene is in both splits.
TRAIN = "astronaut brick camera chelsea grass gravel moon retina rocket".split()
HELD_OUT = "coffee hubble_deep_field immunohistochemistry".split()

CROP_SIZE = 160  # side of the crop shown of each image, HR pixels
_CONSOLE = Console(soft_wrap=True, highlight=False)


def run(folder: Path, minutes: float) -> None:
    """Run the demo in six steps; all files go to `folder`.

    Args:
        folder: The folder for images, run directory, ranking and comparisons.
        minutes: The training time, minutes.
    """
    _print_step(1, f"writing photographs of scikit-image to {folder / 'data'}")
    data = _photographs(folder / "data")
    _print_step(2, f"training SPANV2 from scratch, about {minutes:g} min")
    model = _train(folder, data, minutes)
    _print_step(3, f"scoring on {len(HELD_OUT)} held-out images with the metric of the challenge")
    scores = _scores(model, data / "held-out")
    _CONSOLE.print(_psnr_table(scores))
    _print_step(4, "timing it interleaved with SPAN, the baseline of the challenge, at 256x256")
    ratio = _runtime_ratio(model)
    _print_step(5, "ranking it within the published Table 1")
    ranking = _ranked(model, scores["trained here"], ratio)
    table_rows = [_table_row(entry) for entry in ranking.entries]
    show_table(table_rows, list(table_rows[0]))
    (folder / "ranking.md").write_text(
        f"```\n{_psnr_table(scores)}\n```\n\n{table.markdown(ranking)}"
    )
    _print_step(6, f"writing side-by-side images to {folder}")
    for path in _comparisons(model, data / "held-out", folder):
        _CONSOLE.print(f"  {path}")


def _print_step(step: int, title: str) -> None:
    _CONSOLE.print(f"\n[bold][{step}/6][/bold] {title}")


def _photographs(folder: Path) -> Path:
    """Write the images as `train/*.png` and `held-out/*.png`."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtra(
            "The demo needs scikit-image for its photographs",
            rule="scikit-image is an optional dependency",
            remedy='pip install "esrjax[demo]"',
        ) from error
    for split, names in (("train", TRAIN), ("held-out", HELD_OUT)):
        for name in names:
            pixels = np.asarray(getattr(data, name)())
            rgb = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=-1)
            image_io.write_image(folder / split / f"{name}.png", resize.mod_crop(rgb, 4))
        _CONSOLE.print(f"  {split}: {', '.join(names)}")
    return folder


def _train(folder: Path, data: Path, minutes: float) -> Model:
    """Train the recipe `quick` for as many steps as fit into the time, by a measured step time."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    overrides = [
        f"stage.0.data.datasets=['{data / 'train'}']",
        f"stage.0.validation={{dataset='{data / 'held-out'}', every=400}}",
    ]
    _CONSOLE.print("  compiling, then measuring the time of a step")
    seconds = train.measure_step_time(recipe_loader.load("quick", overrides))
    steps = max(20, round(60 * minutes / seconds / 10) * 10)
    _CONSOLE.print(f"  {1 / seconds:.1f} steps/s on this machine: {steps} steps")
    recipe = recipe_loader.load("quick", [*overrides, f"stage.0.steps={steps}"])
    with TrainingBar(recipe.total_steps) as bar:
        train.run(recipe, run, on_report=bar.log)
    return open_method(recipe.method, run)


def _scores(model: Model, held_out: Path) -> dict[str, Scores]:
    """The scores of bicubic, the trained network and every method that ships weights."""
    shipped = {
        f"{name} (shipped)": open_method(name)
        for name in registry.names()
        if isinstance(method := registry.get_entry(name), Method) and method.pretrained
    }
    bicubic: Callable[[Pixels], Pixels] = lambda lr: resize.bicubic_upscale(lr, 4)  # noqa: E731
    upscalers = {"bicubic": bicubic, "trained here": model, **shipped}
    pairs = datasets.list_folder_pairs(held_out, 4)
    return {name: score(upscale, pairs, NTIRE) for name, upscale in upscalers.items()}


def _psnr_table(scores: Mapping[str, Scores]) -> str:
    """The PSNR of every held-out image, with the gain over bicubic."""
    bicubic = scores["bicubic"]
    lines = ["", f"{'PSNR, dB':<28}" + "".join(f"{name:>24}" for name in scores)]
    for image in bicubic.images:
        values = [score.images[image].psnr for score in scores.values()]
        lines.append(f"{image:<28}" + "".join(_psnr_cell(v, values[0]) for v in values))
    means = [score.mean.psnr for score in scores.values()]
    return "\n".join([*lines, f"{'mean':<28}" + "".join(_psnr_cell(v, means[0]) for v in means)])


def _psnr_cell(value: float, bicubic: float) -> str:
    return f"{value:24.2f}" if value == bicubic else f"{value:16.2f} ({value - bicubic:+.2f})"


def _runtime_ratio(model: Model) -> float:
    """The runtime of the trained network over that of the baseline, timed interleaved."""
    name = rules.load_rules("ntire2026").baseline.method
    baseline = deploy(registry.get_method(name).build())
    forwards = {name: forward_fn(baseline), model.name: forward_fn(model.net)}
    timings = clock.time_networks(forwards, (1, 256, 256, 3), budget_s=5.0)
    for method, timing in timings.items():
        interval = f"[{timing.low_ms:.1f}, {timing.high_ms:.1f}]"
        _CONSOLE.print(
            f"  {method:<8}{timing.median_ms:8.1f} ms  {interval}, "
            f"compiled in {timing.compile_s:.1f} s"
        )
    return timings[model.name].median_ms / timings[name].median_ms


def _table_row(entry: rank.RankedEntry) -> dict[str, Any]:
    """The columns of a ranked method that fit a terminal."""
    row = entry.row
    psnr = [value for value in (row.psnr_valid, row.psnr_test) if value is not None]
    return {
        "rank": entry.ranks["main"] if entry.ranks else None,
        "team": row.team,
        "method": row.method,
        "PSNR valid / test": " / ".join(f"{value:.2f}" for value in psnr) or None,
        "runtime, ms": row.runtime_ms,
        "params, M": row.params_m,
        "FLOPs, G": f"{row.flops_g:.2f}",
        "main score": table.format_score(entry.score("main")),
    }


def _ranked(model: Model, scores: Scores, ratio: float) -> rank.Ranking:
    """The published table with the trained network added.

    Its runtime is the measured ratio to the baseline times the published runtime of the baseline,
    since the scores are functions of ratios.
    """
    challenge = rules.load_rules("ntire2026")
    counts = cost(model.net)
    trained = results.Row(
        team="trained here",
        method=model.name,
        psnr_other={"held-out (3)": scores.mean.psnr},
        runtime_ms=ratio * challenge.baseline.runtime_ms,
        params_m=counts.params / 1e6,
        flops_g=counts.macs / 1e9,
    )
    methods = {n: m for n in registry.names() if isinstance(m := registry.get_entry(n), Method)}
    table_rows = [*results.published_rows(methods), trained]
    return rank.rank(table_rows, challenge, baseline_source="published", figures="printed")


def _comparisons(model: Model, held_out: Path, folder: Path) -> list[Path]:
    """Write bicubic, trained and original: the most detailed crop of every held-out image."""
    paths: list[Path] = []
    for pair in datasets.list_folder_pairs(held_out, 4):
        lr, hr = pair.load()
        images = {
            "bicubic x4": resize.bicubic_upscale(lr, 4),
            "trained here": model(lr),
            "original": hr,
        }
        top, left = visualize.most_detailed_crop(hr, CROP_SIZE)
        crops = {name: visualize.crop_square(p, top, left, CROP_SIZE) for name, p in images.items()}
        image_io.write_image(folder / f"{pair.name}.png", visualize.side_by_side(crops, zoom=2))
        paths.append(folder / f"{pair.name}.png")
    return paths
