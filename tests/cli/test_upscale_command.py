"""The command `upscale` over files and folders, with a stub for the network."""

import os
import random
import re
import shutil
from functools import partial
from pathlib import Path

import file_trees
import numpy as np
import pytest
from file_trees import SCALE, Case
from PIL import Image

from esrjax.cli import upscale as command
from esrjax.data.image_search import NO_IMAGES
from esrjax.errors import run_and_report_errors
from esrjax.interop import engines

NUM_TREES = 10_000
# Pillow warns of damaged EXIF data, in the rules of file_trees too.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class StubModel:
    """Repeats every pixel; fails for images of 1 x 1 pixel if it is told so."""

    name, scale = "stub", SCALE

    def upscaler(self, tile_size=None, **strategy):
        return lambda lr: np.float32(lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1) / 255)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(engines, "open_model", lambda *args: StubModel())


def write(path: Path, size=(2, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (size[0] % 256, 9, 9)).save(path)
    return path


# --- examples ----------------------------------------------------------------------------------


def test_bad_files_do_not_end_a_folder(esrjax, stub, tmp_path):
    for name in "12345":
        write(tmp_path / f"in/{name}.png")
    (tmp_path / "in/3.png").write_bytes((tmp_path / "in/3.png").read_bytes()[:50])
    (tmp_path / "in/4.png").write_text("no image")
    result = esrjax("upscale", tmp_path / "in", "-o", tmp_path / "out")
    assert result.code == 2 and result.out.startswith("3 images written")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}x4.png" for name in "125"
    ]
    assert "2 of 5 failed" in result.err
    assert all(str(tmp_path / f"in/{name}.png") in result.err for name in "34")


def test_error_of_the_network_fails_one_image(esrjax, stub, monkeypatch, tmp_path):
    def upscaler(self, tile_size=None, **strategy):
        def run(lr):
            if lr.shape[:2] == (7, 7):
                raise MemoryError("out of memory")
            return np.zeros((4 * lr.shape[0], 4 * lr.shape[1], 3), np.float32)

        return run

    monkeypatch.setattr(StubModel, "upscaler", upscaler)
    write(tmp_path / "in/a.png"), write(tmp_path / "in/b.png", (7, 7))
    result = esrjax("upscale", tmp_path / "in", "-o", tmp_path / "out")
    assert result.code == 2 and "1 of 2 failed" in result.err and "MemoryError" in result.err
    with pytest.raises(MemoryError):  # alone, with its traceback
        esrjax("upscale", tmp_path / "in/b.png", "-o", tmp_path / "out")


def test_skipped_and_untaken_files_are_counted(esrjax, stub, tmp_path):
    for name in ("a.png", "b.png", "sub/c.png"):
        write(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").touch()
    args = ["upscale", tmp_path / "in", "-o", tmp_path / "out"]
    result = esrjax(*args)
    assert result.code == 0 and "2 images written" in result.out
    assert "notes.txt" in result.err and "sub" in result.err and "--recursive" in result.err
    result = esrjax(*args, "--recursive", "--skip-existing")
    assert result.code == 0 and "1 image written" in result.out and "2 skipped" in result.out
    assert (tmp_path / "out/sub/cx4.png").is_file()
    result = esrjax(*args, "--recursive", "--skip-existing", "--format", "webp", "--suffix", "")
    assert "3 images written" in result.out and (tmp_path / "out/sub/c.webp").is_file()


def test_outputs_that_are_one_file_are_not_overwritten(esrjax, stub, monkeypatch, tmp_path):
    """Where a file system ignores case, `A` and `a` are one file, which only writing shows."""
    write(tmp_path / "in/a.png"), write(tmp_path / "in/b.png", (5, 5))

    def name(self, source):
        return "out.png" if source.stem == "a" else "./sub/../OUT.png".lower()

    monkeypatch.setattr("esrjax.evaluation.upscale_files._check_unique", lambda targets: None)
    monkeypatch.setattr("esrjax.evaluation.upscale_files.OutputNames.name", name)
    (tmp_path / "out/sub").mkdir(parents=True)
    result = esrjax("upscale", tmp_path / "in", "-o", tmp_path / "out")
    assert result.code == 2 and "it is the output of" in result.err
    with Image.open(tmp_path / "out/out.png") as image:
        assert image.size == (8, 12)


def test_interruption_says_how_many_images_are_written(esrjax, stub, monkeypatch, tmp_path):
    def upscaler(self, tile_size=None, **strategy):
        def run(lr):
            if lr.shape[:2] == (7, 7):
                raise KeyboardInterrupt
            return np.zeros((4 * lr.shape[0], 4 * lr.shape[1], 3), np.float32)

        return run

    monkeypatch.setattr(StubModel, "upscaler", upscaler)
    write(tmp_path / "in/a.png"), write(tmp_path / "in/b.png", (7, 7)), write(tmp_path / "in/c.png")
    result = esrjax("upscale", tmp_path / "in", "-o", tmp_path / "out")
    assert result.code != 0 and "1 of 3 images written" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ax4.png"]


def test_names_that_are_no_text_are_printed(esrjax, stub, tmp_path):
    folder = tmp_path / os.fsdecode(b"in\xff")
    write(folder / os.fsdecode(b"a\xfe.png"))
    (folder / os.fsdecode(b"b\xfe.png")).write_bytes(b"no image")
    result = esrjax("upscale", folder, "-o", tmp_path / os.fsdecode(b"out\xff"))
    assert result.code == 2 and "1 of 2 failed" in result.err and "1 image written" in result.out


def test_checkpoint_is_not_overwritten(esrjax, stub, tmp_path):
    weights = tmp_path / "weights.png"
    shutil.copy(write(tmp_path / "a.png"), weights)
    args = ["--method", "spanv2", "--checkpoint", weights]
    result = esrjax("upscale", tmp_path / "a.png", "-o", weights, *args)
    assert result.code == 2 and "would be overwritten" in result.err


def test_fusion_names_what_it_leaves_out_and_goes_on(esrjax, tmp_path):
    for folder in ("x", "y"):
        for name in ("a.png", "b.png"):
            write(tmp_path / folder / name)
    (tmp_path / "x/notes.txt").touch()
    data = (tmp_path / "y/a.png").read_bytes()
    (tmp_path / "y/a.png").write_bytes(data[:-30])  # its header is whole
    result = esrjax("fuse", tmp_path / "x", tmp_path / "y", "-o", tmp_path / "out")
    assert result.code == 2 and "1 of 2 failed" in result.err and "notes.txt" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]
    result = esrjax("fuse", tmp_path / "x/a.png", tmp_path / "x/b.png", "-o", tmp_path / "c.heic")
    assert result.code == 2 and "'.heic'" in result.err


# --- drawn trees -------------------------------------------------------------------------------


def check_case(case: Case, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a case, compare with what must come of it, and return a word for it."""
    targets, reasons = file_trees.expected_targets(case), file_trees.refusal_reasons(case)
    untaken = {path for path, _, is_image in file_trees.searched_entries(case) if not is_image}
    untaken -= targets.keys()
    existing = {t for t in targets.values() if case.options["skip_existing"] and t.exists()}
    expected = {source: file_trees.decode(source) for source in targets}
    before = file_trees.snapshot(case.root)
    run = partial(command.upscale, case.inputs, case.output, "stub", **case.options)
    code, (out, err) = run_and_report_errors(run), capsys.readouterr()
    after = file_trees.snapshot(case.root)

    changed = {path for path in before | after if before.get(path) != after.get(path)}
    written = {target.parent.resolve() / target.name for target in targets.values()}
    assert changed <= written.union(*(path.parents for path in written))
    assert all(before.get(source) == after.get(source) for source in targets)
    assert not any(".partial" in path.name for path in after)
    if reasons:
        assert code == 2 and not changed and "rule:" in err and "remedy:" in err, reasons
        return "refused"
    counts = {reason: int(n) for n, reason in re.findall(r"(\d+) not taken \((.*?)\)", err)}
    counts.pop(NO_IMAGES, None)
    assert sum(counts.values()) == len(untaken), (counts, untaken)
    failures = set()
    for source, target in targets.items():
        size = file_trees.header_size(source)
        if target in existing and size is not None:
            assert target not in changed
            if file_trees.header_size(target) != (SCALE * size[0], SCALE * size[1]):
                failures.add(source)
        elif expected[source] is None:
            assert target not in changed
            failures.add(source)
        else:
            check_output(source, target, expected[source])
    assert code == (2 if failures else 0), err
    assert all(str(s) in err or str(t) in err for s, t in targets.items() if s in failures)
    if len(targets) > 1 or not failures:
        num_written = len(changed & written)
        assert out.startswith(f"{num_written} image"), out
    return "failures" if failures else "done"


def check_output(source: Path, target: Path, lr: np.ndarray) -> None:
    """Compare an output with the pixels of its input, repeated."""
    sr = file_trees.decode(target)
    assert sr is not None, (source, target)
    repeated = lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    assert sr.shape == repeated.shape
    tolerance = 40 if target.suffix == ".jpg" else 2
    assert np.abs(sr.astype(int) - repeated).mean() <= tolerance, (source, target)


def run_campaign(num_trees: int, folder: Path, capsys, first_seed: int = 0) -> dict[str, int]:
    outcomes = {"done": 0, "failures": 0, "refused": 0}
    for seed in range(first_seed, first_seed + num_trees):
        root = folder / str(seed)
        root.mkdir()
        try:
            outcomes[check_case(file_trees.draw_case(root, random.Random(seed)), capsys)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        shutil.rmtree(root)
    return outcomes


def test_drawn_trees(stub, monkeypatch, tmp_path, capsys):
    outcomes = run_campaign(100, tmp_path, capsys)
    assert all(count > 10 for count in outcomes.values()), outcomes


@pytest.mark.slow
def test_many_drawn_trees(stub, tmp_path, capsys):
    outcomes = run_campaign(NUM_TREES, tmp_path, capsys, first_seed=1000)
    with capsys.disabled():
        print(outcomes)
