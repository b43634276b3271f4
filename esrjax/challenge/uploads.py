"""Uploads: the SR images of a split as the evaluation server takes them, written, read and scored.

An upload is a zip with the SR images and `readme.txt`, without folders, or a folder of the same.
"""

import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from esrjax.challenge.record import ResultsEntry
from esrjax.challenge.rules import SCALE, Rules, UploadFormat
from esrjax.data.datasets import Images, Pair, Progress
from esrjax.data.image_io import Pixels, read_image, read_image_size, write_image
from esrjax.errors import InvalidOutput, RankingError, SubmissionError, UserError
from esrjax.evaluation.metrics import get_spec
from esrjax.evaluation.score import Scores, score
from esrjax.io import atomic_write, open_regular, read_bytes, sha256_file
from esrjax.schema import bullet_list

README = "readme.txt"
_MAX_IMAGE_BYTES = 256 << 20  # of one SR image, unpacked
_MAX_FILES = 10_000
_MAX_PROBLEMS = 20  # that are listed
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # of every file, so that equal images give equal zips

Upscale = Callable[[Pixels], Pixels]
Files = Mapping[str, Callable[[], bytes]]  # file name -> its content, read when it is called


def image_names(images: Images, upload: UploadFormat) -> dict[str, str]:
    """Return file name in an upload -> name of the image."""
    return {upload.image_name.format(name=image.name): image.name for image in images}


# --- writing ---


def write_upload(
    path: Path,
    images: Images,
    upscale: Upscale,
    upload: UploadFormat,
    readme: str,
    progress: Progress = iter,
) -> None:
    """Write the zip of a split, atomically; equal images and readme give equal bytes.

    Args:
        path: The zip.
        images: The images of the split; LR is read.
        upscale: The network, (h, w, 3) uint8 -> (4·h, 4·w, 3) uint8.
        upload: Names in the zip.
        readme: Text of `readme.txt`.
        progress: Wraps the images, for example in a progress bar.

    Raises:
        InvalidOutput: An SR image has another size than 4 x LR.
        UnwritableFile: The zip cannot be written.
    """
    with (
        TemporaryDirectory() as folder,
        atomic_write(path) as partial,
        zipfile.ZipFile(partial, "w") as archive,
    ):
        for image in progress(images):  # pyright: ignore[reportArgumentType] # typed for pairs
            lr = image.load_lr()
            sr = upscale(lr)
            _check_size(image.name, lr.shape[:2], sr.shape[:2])
            file = Path(folder) / "sr.png"
            write_image(file, sr)
            _add(archive, upload.image_name.format(name=image.name), file.read_bytes())
        _add(archive, README, readme.encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _ZIP_DATE)
    info.external_attr, info.create_system = 0o644 << 16, 3  # a file of Unix, on any machine
    archive.writestr(info, content)  # stored: PNG is compressed already


def _check_size(name: str, lr_size: tuple[int, ...], sr_size: tuple[int, ...]) -> None:
    (h, w), (height, width) = lr_size, sr_size
    if (height, width) != (SCALE * h, SCALE * w):
        raise InvalidOutput(
            f"the SR image is {height}x{width} for an LR image of {h}x{w} (height x width)",
            location=name,
            rule=f"an SR image is {SCALE} x the LR size",
            remedy="check the network",
        )


def readme_text(
    upload: UploadFormat, runtime_ms: float, device: str, *, extra_data: str, description: str
) -> str:
    """Return the text of `readme.txt`.

    Args:
        upload: Its form.
        runtime_ms: Mean runtime of an image, ms.
        device: The device of the runtime, as `esrjax.bench` names it: a CPU with its cores.
        extra_data: "1" if data was used that the challenge does not provide, else "0".
        description: A line about the solution.
    """
    return upload.readme.format(
        runtime_s=f"{runtime_ms / 1000:.6f}",
        is_cpu=int(device.endswith(" cores")),
        extra_data=extra_data,
        description=" ".join(description.split()),
    )


# --- reading ---


@contextmanager
def open_upload(path: Path) -> Generator[Files]:
    """Yield the files of a zip or a folder, hidden ones and folders left out.

    Raises:
        SubmissionError: It is neither, the zip is damaged, or one of its files has too many bytes.
    """
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
        yield {f.name: lambda f=f: read_bytes(f, _MAX_IMAGE_BYTES) for f in files if f.is_file()}
        return
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            yield _zip_files(archive, path)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def _zip_files(archive: zipfile.ZipFile, path: Path) -> Files:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    names = [info.filename for info in infos]
    if len(names) > _MAX_FILES or len(set(names)) < len(names):
        raise _unreadable(path, f"it has {len(names)} files, {len(set(names))} different names")
    large = [info.filename for info in infos if info.file_size > _MAX_IMAGE_BYTES]
    if large:
        raise _unreadable(path, f"{large[0]} has more than {_MAX_IMAGE_BYTES:,} bytes")
    return {info.filename: lambda info=info: archive.read(info) for info in infos}


def _unreadable(path: Path, reason: str) -> SubmissionError:
    return SubmissionError(
        f"Cannot read the upload '{path}': {reason}",
        rule="an upload is a zip of SR images, or a folder of them",
        location=str(path),
        remedy="check the path; `esrjax submit build` writes such a zip",
    )


def check_upload(path: Path, images: Images, upload: UploadFormat) -> None:
    """Check that an upload has exactly the SR images of a split, each of the right size.

    Args:
        path: The zip or folder.
        images: The images of the split.
        upload: Names in the upload.

    Raises:
        SubmissionError: Images are missing, not expected, unreadable or of another size; all are
            listed with their names.
    """
    with open_upload(path) as files:
        _check_files(files, path, images, upload)


def _check_files(files: Files, path: Path, images: Images, upload: UploadFormat) -> None:
    names, lr_sizes = image_names(images, upload), {image.name: image.lr_size() for image in images}
    problems = [f"{file} is missing" for file in names if file not in files]
    problems += [f"{file} {_extra(file)}" for file in files if file not in (*names, README)]
    for file in (file for file in names if file in files):
        height, width = (SCALE * side for side in lr_sizes[names[file]])
        try:
            size = read_image_size(files[file](), file)
        except UserError as error:
            problems.append(f"{file} is no image: {error.problem}")
            continue
        if size != (height, width):
            problems.append(f"{file} is {size[0]}x{size[1]}, not {height}x{width} (height x width)")
    if not problems:
        return
    example = upload.image_name.format(name="NAME")
    raise SubmissionError(
        f"Invalid upload of {len(images)} images: "
        + bullet_list(problems, "problem", _MAX_PROBLEMS),
        rule=f"an upload has one SR image {example} for every image NAME of the split, of "
        f"{SCALE} x its LR size, {README}, and no other files or folders",
        location=str(path),
        remedy="correct the listed files; the form of names is [upload] image_name of the rules",
    )


def _extra(file: str) -> str:
    folder = "/" in file
    return "is in a folder, not at the top level of the zip" if folder else "is not expected"


# --- scoring ---


def score_upload(path: Path, pairs: Sequence[Pair], rules: Rules, progress: Progress) -> Scores:
    """Return the scores of uploaded SR images, with the metric of the thresholds.

    Args:
        path: The zip or folder.
        pairs: The images of the split, with HR.
        rules: Rules with the metric and the names in uploads.
        progress: Wraps the pairs, for example in a progress bar.

    Raises:
        SubmissionError: As `check_upload`.
        RankingError: An SR image is the HR image itself: its PSNR is infinite.
    """
    spec, notes = get_spec(rules.psnr_thresholds.spec), dict[str, tuple[str, ...]]()
    with open_upload(path) as files:
        _check_files(files, path, pairs, rules.upload)
        names = image_names(pairs, rules.upload)

        def read_next(_: Pixels) -> Pixels:  # `score` asks for the images in the order of the pairs
            file = next(remaining)
            image = read_image(files[file](), file, apply_profile=False)
            notes[file] = image.notes
            return image.pixels

        remaining = iter(names)
        scores = score(read_next, pairs, spec, progress)
    exact = [name for name, metrics in scores.images.items() if metrics.psnr == float("inf")]
    if exact:
        raise RankingError(
            f"The PSNR is infinite: {', '.join(exact[:5])}",
            rule="an SR image that equals HR to the last bit is no output of a network",
            location=str(path),
            remedy="ask the team how it was made",
        )
    read = {file: texts for file, texts in notes.items() if texts}
    return replace(scores, notes={**scores.notes, **read})


def scored_entry(
    entry: ResultsEntry, split: str, scores: Scores, upload: Path, *, team: str, measured_by: str
) -> ResultsEntry:
    """Return an entry with the PSNR of uploaded images on one split.

    Args:
        entry: The other figures, as the team reports them.
        split: `valid` or `test`.
        scores: The scores of the images.
        upload: The zip or folder of the images.
        team: Name of the team.
        measured_by: Who measured runtime and cost.

    Raises:
        SubmissionError: The entry has runtimes of another number of images.
    """
    psnr, runtimes = [m.psnr for m in scores.images.values()], getattr(entry, f"{split}_runtime")
    if len(runtimes) not in (0, len(psnr)):
        raise SubmissionError(
            f"The entry has {len(runtimes)} runtimes on {split}, the dataset {len(psnr)} images",
            rule="an entry has runtime and PSNR of the same images",
            remedy=f"give the dataset that the runtimes on {split} were measured on",
        )
    sha256 = "" if upload.is_dir() else f" (sha256 {sha256_file(upload)[:16]})"
    source = f"computed from the SR images in {upload.name}{sha256}"
    figures = {f"{split}_psnr": tuple(psnr), f"{split}_ave_psnr": scores.mean.psnr}
    known = [s for s in ("valid", "test") if getattr(entry, f"{s}_ave_psnr") is not None]
    sources = {**dict.fromkeys(known, f"reported by {team}"), **entry.psnr_source, split: source}
    return replace(entry, **figures, team=team, measured_by=measured_by, psnr_source=sources)
