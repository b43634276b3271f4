"""`eval`: labelled checkpoints by datasets, whose weights they are, and what it refuses."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from esrjax import inference, registry
from esrjax.bench import Timing
from esrjax.challenge import evaluate as challenge
from esrjax.challenge import record
from esrjax.cli import evaluate
from esrjax.data.image_io import write_image
from esrjax.errors import UserError, WeightsMismatch

CAMPAIGN = 10_000  # draws of options
SAMPLE = 400


@pytest.fixture
def images(tmp_path):
    """Two datasets of one image each."""
    for k, name in enumerate(("One", "Two")):
        noise = np.random.default_rng(k).integers(0, 256, (32, 28, 3), np.uint8)
        write_image(tmp_path / f"{name}/im.png", noise)
    return tmp_path


@pytest.fixture
def files(crumbs, images):
    """Two checkpoints of the method crumb, one of loaf; the weights of `crumb-b` differ."""
    tensors = load_file(crumbs / "crumbs/crumb.safetensors")
    save_file(tensors, images / "a.safetensors")
    save_file({k: 0.5 * v for k, v in tensors.items()}, images / "b.safetensors")
    save_file(load_file(crumbs / "crumbs/loaf.safetensors"), images / "loaf-1.safetensors")
    return images


def rows_by_label(result):
    return {(row["label"], row["dataset"]): row for row in result.json}


# --- tables ------------------------------------------------------------------------------------


def test_checkpoints_by_datasets(esrjax, files):
    args = ["eval", "crumb", "--data", files / "One", "--data", files / "Two"]
    args += [f"--checkpoint=a={files}/a.safetensors", f"--checkpoint=b={files}/b.safetensors"]
    result = esrjax(*args, "--json")
    rows = rows_by_label(result)
    assert list(rows) == [("a", "One"), ("a", "Two"), ("b", "One"), ("b", "Two")]
    psnrs = {key: row["mean"]["psnr"] for key, row in rows.items()}
    assert len(set(psnrs.values())) == 4
    assert {row["weights_origin"] for row in rows.values()} == {"own"}
    for title in ("One", "Two"):  # the same numbers alone
        alone = esrjax("eval", "crumb", "--data", files / title, "--json", args[-1])
        assert alone.json["mean"]["psnr"] == psnrs["b", title]
    table = esrjax(*args).out.splitlines()
    assert table[2].split() == "| method | weights | One (1) | Two (1) |".split()
    for label, line in zip("ab", table[4:], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert cells[:2] == [f"{label} (crumb)", "own"]
        assert [cell.split()[0] for cell in cells[2:]] == [
            f"{psnrs[label, title]:.4f}" for title in ("One", "Two")
        ]


def test_checkpoint_tells_its_method(esrjax, files, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "crumb, loaf")
    args = [f"--checkpoint=x={files}/a.safetensors", f"--checkpoint=y={files}/loaf-1.safetensors"]
    rows = esrjax("eval", *args, "--data", files / "One", "--json").json
    assert [(row["label"], row["method"]) for row in rows] == [("x", "crumb"), ("y", "loaf")]
    result = esrjax("eval", "loaf", "crumb", args[1], "--data", files / "One", "--json")
    assert [(r["label"], r["weights_origin"]) for r in result.json] == [
        ("y", "own"),
        ("crumb", "shipped"),
    ]
    result = esrjax("eval", "loaf", "crumbs", args[0], "--data", files / "One")
    assert result.code == 2 and "'crumb'" in result.err


def test_each_model_is_opened_once(esrjax, files, monkeypatch):
    opened, open_method = [], inference.open_method
    monkeypatch.setattr(
        inference, "open_method", lambda *args: opened.append(args[0]) or open_method(*args)
    )
    esrjax("eval", "crumb", "loaf", "--data", files / "One", "--data", files / "Two")
    assert opened == ["crumb", "loaf"]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ("crumb crumb", ("'crumb'", "--checkpoint a=FILE")),
        ("crumb crumb --checkpoint crumb=A --checkpoint crumb=B", ("A", "B", "LABEL")),
        ("crumb --checkpoint a=A --checkpoint a:crumb=B", ("'a'", "LABEL")),
        ("crumb --checkpoint loaf:crumb=A", ("'loaf'", "label")),
        ("crumb --checkpoint loaf=A", ("'loaf=", "crumb=")),
        ("crumb --checkpoint =A", ("'=", "LABEL=FILE")),
        ("crumb --checkpoint a/b=A", ("a/b", "LABEL=FILE")),
        ("", ("METHOD", "--checkpoint")),
        ("crumb --data One", ("'One'", "two", "another name")),
        ("crumb --data copy/One", ("'One'", "another name")),
    ],
)
def test_ambiguous_models_and_datasets_are_errors(esrjax, files, args, parts):
    args = args.replace("=A", f"={files}/a.safetensors").replace("=B", f"={files}/b.safetensors")
    args = args.replace("--data ", f"--data {files}/")
    (files / "copy").mkdir()
    (files / "copy/One").symlink_to(files / "One")
    result = esrjax("eval", *args.split(), "--data", files / "One")
    assert (result.code, result.out) == (2, "")
    assert all(part.lower() in result.err.lower() for part in parts)


def test_equal_weights_are_noted(esrjax, files):
    args = [f"--checkpoint={label}={files}/a.safetensors" for label in ("x", "y")]
    result = esrjax("eval", "crumb", *args, "--data", files / "One")
    assert "x and y have the same weights" in result.err


# --- result files ------------------------------------------------------------------------------


def time_stub(forwards, shape):
    timing = Timing(
        **dict.fromkeys(("median_ms", "low_ms", "high_ms", "compile_s", "first_ms"), 8.0),
        num_runs=1,
        shape=shape,
        dtype="float32",
        precision="highest",
        device="NVIDIA RTX A6000",
    )
    return dict.fromkeys(forwards, timing)


def test_self_ensemble_and_windows_are_noted(esrjax, files):
    args = ["eval", "loaf", "--data", files / "One"]
    assert "self-ensemble" not in esrjax(*args).err
    result = esrjax(*args, "--self-ensemble", "--windows", "8:2")
    assert "x8 self-ensemble, windows 8:2" in result.out


def test_results_hold_label_origin_and_every_dataset(esrjax, files, monkeypatch):
    monkeypatch.setattr(challenge.timing, "time_networks", time_stub)
    args = ["eval", "crumb", "loaf", f"--checkpoint=mine:crumb={files}/b.safetensors"]
    args += ["--data", files / "One", "--data", files / "Two", "-o", files / "results"]
    assert esrjax(*args, "--no-baseline").code == 0
    mine, loaf = (record.load_result(files / f"results/{n}.json") for n in ("mine", "loaf"))
    assert (mine.method, mine.label, mine.weights_origin) == ("crumb", "mine", "own")
    assert (loaf.method, loaf.label, loaf.weights_origin) == ("loaf", None, "shipped")
    assert list(mine.quality) == ["One", "Two"]
    result = esrjax("rank", files / "results", "--baseline", "published", "--ignore-thresholds")
    cells = [line.split(" | ") for line in result.out.splitlines() if line.startswith("| ")]
    assert {tuple(map(str.strip, row[1:4])) for row in cells if "Bakery" in row[1]} == {
        ("own weights (Bakery)", "mine", "own"),
        ("shipped weights (Bakery)", "loaf", "shipped"),
    }
    (files / "elsewhere").mkdir()
    (files / "elsewhere/One").symlink_to(files / "Two")  # other images of the same name
    moved = ["eval", "loaf", "--data", files / "elsewhere/One", "-o", files / "results"]
    assert esrjax(*moved, "--no-baseline").code == 0
    result = esrjax("rank", files / "results", "--baseline", "published", "--ignore-thresholds")
    assert result.code == 2 and "images of One (1)" in result.err
    other = args.copy()
    other[3] = f"--checkpoint=mine:crumb={files}/a.safetensors"
    result = esrjax(*other, "--no-baseline")
    assert "mine.json is replaced" in result.err and "loaf.json is replaced" not in result.err


def test_infinite_psnr_is_printed_and_not_ranked(esrjax, files, monkeypatch):
    write_image(files / "Black/im.png", np.zeros((32, 32, 3), np.uint8))
    args = ["eval", "loaf", "--data", files / "Black"]
    result = esrjax(*args, "--json")
    assert result.json["mean"]["psnr"] == "inf" and float(result.json["images"]["im"]["psnr"])
    assert "| inf / 1.0000 |" in esrjax(*args).out
    result = esrjax(*args, "-o", files / "results")
    assert result.code == 2 and "im of Black by loaf" in result.err
    assert not (files / "results").exists()


# --- drawn options -----------------------------------------------------------------------------

METHODS = ("span", "spanv2", "pds")


def true_method(file: str) -> str:
    return Path(file).name.partition("-")[0]


def open_stub(method, checkpoint, hparams=None):
    """Open a model as `open_model` does, from the method in the name of the file."""
    if checkpoint is None:
        return SimpleNamespace(name=method, file=None)
    if method not in (None, true_method(checkpoint)):
        raise WeightsMismatch(f"{checkpoint} is not of {method}", rule="-", remedy="-")
    return SimpleNamespace(name=true_method(checkpoint), file=checkpoint)


def draw_options(rng: random.Random) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Names, and (label, method, file) of each checkpoint; "" where it is not given."""
    names = [rng.choice(METHODS) for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3]))]
    checkpoints = []
    for _ in range(rng.randint(0, 4)):
        method = rng.choice(names or METHODS) if rng.random() < 0.85 else rng.choice(METHODS)
        file = f"runs/{method}-{rng.randint(1, 30)}.pth"
        stated = method if rng.random() < 0.9 else rng.choice(METHODS)
        label = rng.choice(["a", "b", "c d", "ours+", "naïve", "epoch 10", "span-2"])
        form = rng.choice(["bare", "method", "label", "label", "both", "both", "clash", "bad"])
        checkpoints.append(
            {
                "bare": ("", "", file),
                "method": (stated, "", file),
                "label": (label, "", file),
                "both": (label, stated, file),
                "clash": (rng.choice(METHODS), stated, file),
                "bad": (rng.choice(["a/b", ".x", "-a", " a"]), "", file),
            }[form if form != "bad" or rng.random() < 0.2 else "label"]
        )
    return names, checkpoints


def expected_models(names, checkpoints):
    """Label -> (method, file), or None where the options contradict themselves or are ambiguous."""
    methods = {true_method(file) for _, _, file in checkpoints}
    without = [name for name in names if name not in methods]
    num_models = len(checkpoints) + len(without)
    models = [(name, name, None) for name in without]
    for label, method, file in checkpoints:
        actual = true_method(file)
        if label.startswith((".", "-", " ")) or "/" in label or (names and actual not in names):
            return None
        if (method and method != actual) or (label in METHODS and label != actual):
            return None
        if not label:
            if len(names) > 1:
                return None
            label = actual if num_models == 1 else Path(file).stem
        models.append((label, actual, file))
    labels = [label for label, _, _ in models]
    is_valid = bool(models) and all(len({*x}) == len(x) for x in (labels, names))
    return {label: (method, file) for label, method, file in models} if is_valid else None


def check_options(rng: random.Random) -> bool:
    names, checkpoints = draw_options(rng)
    texts = [
        f"{label}{':' * bool(method)}{method}{'=' * bool(label)}{file}"
        for label, method, file in checkpoints
    ]
    expected = expected_models(names, checkpoints)
    try:
        specs = evaluate.parse_models(names, texts)
        models = evaluate.open_models(specs, names, {})
    except UserError as error:
        assert expected is None, (names, texts, str(error))
        assert error.problem and error.rule and error.remedy
        return False
    assert {k: (m.name, m.file) for k, m in models.items()} == expected, (names, texts)
    order = [names.index(m.name) for m in models.values() if m.name in names]
    assert len(names) < 2 or len({*order}) == len(names)
    return True


@pytest.mark.parametrize(
    "draws", [SAMPLE, pytest.param(CAMPAIGN, marks=pytest.mark.slow)], ids=["sample", "campaign"]
)
def test_drawn_options_open_the_models_that_they_name(monkeypatch, draws):
    monkeypatch.setattr(inference, "open_model", open_stub)
    rng = random.Random(draws)
    num_opened = sum(check_options(rng) for _ in range(draws))
    print({"opened": num_opened, "refused": draws - num_opened})
    assert draws / 5 < num_opened < draws
