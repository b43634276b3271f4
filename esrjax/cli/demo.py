"""The command `demo`: train a network on photographs, then score, time, rank and show it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from esrjax import io, registry
from esrjax.bench import timing
from esrjax.challenge import rank, results, table
from esrjax.challenge.report import content, write_page
from esrjax.challenge.report.content import crop_square, most_detailed_crop
from esrjax.challenge.rules import Rules, load_rules
from esrjax.cli.output import TrainingBar, print_unwrapped, show_table
from esrjax.data import datasets, image_io, resize
from esrjax.errors import UnwritableFile, import_extra
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

MIN_STEPS = 500  # 400 steps are 0.5 dB above bicubic, 180 are 0.1 to 0.9 dB below it
CROP_SIZE = 160  # side of the crop shown of each image, HR pixels
HEADER_HEIGHT = 24  # of the line with the label, pixels
GAP = 6  # between panels, pixels


def run(folder: Path, minutes: float) -> None:
    """Run the demo in six steps; all files go to `folder`.

    Args:
        folder: The folder for images, run directory, ranking, page and comparisons.
        minutes: The training time, minutes; longer where `MIN_STEPS` need more.
    """
    _remove_old_run(folder / "run", folder / "data")
    held_out, rules = folder / "data" / "held-out", load_rules("ntire2026")
    _print_step(1, f"writing photographs of scikit-image to {folder / 'data'}")
    _write_photographs(folder / "data")
    _print_step(2, f"training SPANV2 from scratch, about {minutes:g} min")
    model = _train(folder, minutes)
    _print_step(3, f"scoring on {len(HELD_OUT)} held-out images with the metric of the challenge")
    scores = _scores(model, held_out)
    psnr_table = _psnr_table(scores)
    print_unwrapped(psnr_table)
    _print_step(4, "timing it interleaved with SPAN, the baseline of the challenge, at 256x256")
    ratio = _runtime_ratio(model, rules.baseline.method)
    _print_step(5, "ranking it within the published Table 1")
    ranking = _ranked(model, scores["trained here"], ratio, rules)
    show_table([_table_row(entry) for entry in ranking.entries])
    print_unwrapped(_explanation(ratio, scores, rules))
    text = f"```\n{psnr_table}\n```\n\n{table.markdown(ranking)}"
    (folder / "ranking.md").write_text(text)
    _print_step(6, f"writing a page and side-by-side images to {folder}")
    pairs = datasets.list_folder_pairs(held_out, 4)
    for pair in pairs:
        _write_comparison(folder / f"{pair.name}.png", model, *pair.load())
    _write_page(folder / "report.html", model, ranking, pairs)
    print_unwrapped(_next_commands(folder))


def _print_step(step: int, title: str) -> None:
    print_unwrapped(f"\n[bold][{step}/6][/bold] {title}", markup=True)


def _write_photographs(folder: Path) -> None:
    """Write the images as `train/*.png` and `held-out/*.png`."""
    data = import_extra("skimage.data", "demo", "the demo, for its photographs,")
    for split, names in (("train", TRAIN), ("held-out", HELD_OUT)):
        for name in names:
            pixels = np.asarray(getattr(data, name)())
            rgb = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=-1)
            image_io.write_image(folder / split / f"{name}.png", resize.mod_crop(rgb, 4))
        print_unwrapped(f"  {split}: {', '.join(names)}")


def _train(folder: Path, minutes: float) -> Model:
    """Train the recipe `quick` for as many steps as fit into the time, by a measured step time."""
    data, run = folder / "data", folder / "run"
    overrides = [
        f"stage.0.data.datasets=['{data / 'train'}']",
        f"stage.0.validation={{dataset='{data / 'held-out'}', every=400}}",
    ]
    print_unwrapped("  compiling, then measuring the time of a step")
    seconds = train.measure_step_time(recipe_loader.load("quick", overrides))
    steps = max(MIN_STEPS, round(60 * minutes / seconds / 10) * 10)
    text = f"  {1 / seconds:.1f} steps/s on this machine: {steps} steps"
    if (needed := steps * seconds / 60) > 1.1 * minutes:
        text += f", about {needed:.0f} min: fewer may end below bicubic"
    print_unwrapped(text)
    recipe = recipe_loader.load("quick", [*overrides, f"stage.0.steps={steps}"])
    with TrainingBar(recipe.total_steps) as bar:
        train.run(recipe, run, on_report=bar.log)
    return open_method(recipe.method, run)


def _remove_old_run(run: Path, data: Path) -> None:
    """Remove the run of an earlier demo in this folder.

    Raises:
        UnwritableFile: The folder has anything else.
    """
    if not run.exists():
        return
    recipe = run / "recipe.json"
    if not recipe.is_file() or str(data / "train") not in recipe.read_text("utf-8", "replace"):
        raise UnwritableFile(
            f"'{run}' exists and is not the run of an earlier demo",
            rule="the demo replaces only what a demo wrote",
            remedy="choose another folder with -o",
        )
    io.remove(run)


def _scores(model: Model, held_out: Path) -> dict[str, Scores]:
    """The scores of bicubic, the trained network and every method that ships weights."""
    upscalers: dict[str, Any] = {"bicubic": resize.bicubic_upscale, "trained here": model}
    for name, method in _methods().items():
        if method.pretrained:
            upscalers[f"{name} (shipped)"] = open_method(name)
    pairs = datasets.list_folder_pairs(held_out, 4)
    return {name: score(upscale, pairs, NTIRE) for name, upscale in upscalers.items()}


def _methods() -> dict[str, Method]:
    """All installed methods, without ensembles."""
    return {name: entry for name, entry in registry.iter_entries() if isinstance(entry, Method)}


def _psnr_table(scores: Mapping[str, Scores]) -> str:
    """The PSNR of every held-out image and its mean, with the gain over bicubic."""
    rows = {
        image: [score.images[image].psnr for score in scores.values()]
        for image in scores["bicubic"].images
    }
    rows["mean"] = [score.mean.psnr for score in scores.values()]
    lines = ["", f"{'PSNR, dB':<28}" + "".join(f"{name:>24}" for name in scores)]
    for name, (bicubic, *others) in rows.items():
        cells = [f"{value:16.2f} ({value - bicubic:+.2f})" for value in others]
        lines.append(f"{name:<28}{bicubic:24.2f}" + "".join(cells))
    return "\n".join(lines)


def _runtime_ratio(model: Model, baseline: str) -> float:
    """The runtime of the trained network over that of the baseline, timed interleaved."""
    nets = {baseline: deploy(registry.get_method(baseline).build()), model.name: model.net}
    forwards = {name: timing.forward_fn(net) for name, net in nets.items()}
    timings = timing.time_networks(forwards, (1, 256, 256, 3), budget_s=5.0)
    for name, t in timings.items():
        interval = f"[{t.low_ms:.1f}, {t.high_ms:.1f}], compiled in {t.compile_s:.1f} s"
        print_unwrapped(f"  {name:<8}{t.median_ms:8.1f} ms  {interval}")
    return timings[model.name].median_ms / timings[baseline].median_ms


def _ranked(model: Model, scores: Scores, ratio: float, rules: Rules) -> rank.Ranking:
    """The published table with the trained network added.

    Its runtime is the measured ratio to the baseline times the published runtime of the baseline,
    since the scores are functions of ratios.
    """
    counts = cost(model.net)
    trained = results.Row(
        team="trained here",
        method=model.name,
        psnr_other={"held-out (3)": scores.mean.psnr},
        runtime_ms=ratio * rules.baseline.runtime_ms,
        params_m=counts.params / 1e6,
        flops_g=counts.macs / 1e9,
    )
    rows = [*results.published_rows(_methods()), trained]
    return rank.rank(rows, rules, baseline_source="published", figures="printed")


def _explanation(ratio: float, scores: Mapping[str, Scores], rules: Rules) -> str:
    """What the rank is made of, and where the network is no better than bicubic."""
    baseline = rules.baseline
    runtime = f"{ratio:.2f} (its time over SPAN's on this machine) x {baseline.runtime_ms:g} ms"
    bicubic, trained = scores["bicubic"].images, scores["trained here"].images
    worse = [name for name in bicubic if trained[name].psnr <= bicubic[name].psnr]
    lines = [
        f"  Its runtime is {runtime} (SPAN's in the report): scores are functions of such ratios.",
        "  It has no rank: that needs the PSNR on DIV2K and LSDIR, which the demo does not have.",
    ]
    if worse:
        lines.append(f"  It is no better than bicubic on {', '.join(worse)}: train it longer.")
    return "\n".join(lines)


def _write_page(
    path: Path, model: Model, ranking: rank.Ranking, pairs: Sequence[datasets.Pair]
) -> None:
    """Write the ranking and the images as the page that `esrjax report` writes."""
    sources = {"trained here": content.upscaling_source(model)}
    images = [content.compare_image(pair, sources, NTIRE, CROP_SIZE) for pair in pairs]
    write_page(path, content.build_content(ranking, "demo", images, "Written by `esrjax demo`."))
    print_unwrapped(f"  {path}")


def _next_commands(folder: Path) -> str:
    return f"""
Next:
  esrjax upscale IMAGE -o large.png --checkpoint {folder / "run"}   # your own image
  esrjax train quick -o runs/quick --set "stage.0.data.datasets=['FOLDER']"   # your own photographs
  esrjax method new mine   # a method of your own"""


def _table_row(entry: rank.RankedEntry) -> dict[str, Any]:
    """The columns of a ranked method that fit a terminal."""
    row = entry.row
    psnr = [value for value in (row.psnr_valid, row.psnr_test) if value is not None]
    return {
        "rank": entry.rank("main"),
        "team": row.team,
        "method": row.method,
        "PSNR valid / test": " / ".join(f"{value:.2f}" for value in psnr) or None,
        "runtime, ms": row.runtime_ms,
        "params, M": row.params_m,
        "FLOPs, G": f"{row.flops_g:.2f}",
        "main score": table.format_score(entry.score("main")),
    }


def _write_comparison(path: Path, model: Model, lr: image_io.Pixels, hr: image_io.Pixels) -> None:
    """Write bicubic, trained and original side by side: the most detailed crop of an image."""
    bicubic = resize.bicubic_upscale(lr)
    images = {"bicubic x4": bicubic, "trained here": model(lr), "original": hr}
    top, left = most_detailed_crop(hr, CROP_SIZE)
    crops = {name: crop_square(p, top, left, CROP_SIZE) for name, p in images.items()}
    image_io.write_image(path, side_by_side(crops, zoom=2))
    print_unwrapped(f"  {path}")


def side_by_side(images: Mapping[str, image_io.Pixels], zoom: int = 1) -> image_io.Pixels:
    """Return images in one row, each under its label.

    Args:
        images: Label -> (h, w, 3) uint8, all of the same height.
        zoom: Every pixel becomes a square of `zoom` pixels.

    Returns:
        (24 + zoom·h, W, 3) uint8, on white.
    """
    row: list[image_io.Pixels] = []
    for label, pixels in images.items():
        zoomed = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
        header = Image.new("RGB", (zoomed.shape[1], HEADER_HEIGHT), "white")
        ImageDraw.Draw(header).text((4, 4), label, fill="black", font=ImageFont.load_default(14))
        gap = np.full((HEADER_HEIGHT + zoomed.shape[0], GAP, 3), 255, np.uint8)
        row += [np.concatenate([np.asarray(header), zoomed]), gap]
    return np.concatenate(row[:-1], axis=1)
