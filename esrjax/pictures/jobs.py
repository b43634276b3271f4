"""From picture files to larger picture files: which goes where, on which canvas."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from esrjax.errors import UserError
from esrjax.pictures.files import SUFFIXES, find, read, size, write
from esrjax.pictures.upscale import Size, Upscaler, canvases, to_8_bits


class UnclearOutput(UserError):
    """An output that cannot hold what is asked for."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to make larger. size: its own; canvas: of the tiles that serve it; LR pixels."""

    source: Path
    target: Path
    size: Size
    canvas: Size


def plan(
    inputs: Sequence[Path], output: Path, scale: int, limit: int, *, turned: bool = False
) -> tuple[Job, ...]:
    """A job for every picture; sizes are read from the files' headers alone.

    turned: the pictures will be run turned as well, so that canvases serve both ways.
    """
    sources = find(inputs)
    targets = _targets(sources, output, scale, folder=any(path.is_dir() for path in inputs))
    sizes = [_size(source) for source in sources]
    canvas = canvases(sizes + [(w, h) for h, w in sizes] * turned, limit)
    return tuple(
        Job(source=source, target=target, size=size, canvas=canvas[size])
        for source, target, size in zip(sources, targets, sizes, strict=True)
    )


def run(job: Job, upscaler: Upscaler) -> tuple[str, ...]:
    """Make one larger picture; what was changed in reading it is returned."""
    picture = read(job.source)
    write(job.target, to_8_bits(upscaler)(picture.pixels))
    return picture.notes


def memory(make: Callable[[Size], Upscaler]) -> Callable[[Size], Upscaler]:
    """`make`, called once for each canvas."""
    return functools.cache(make)


def _size(source: Path) -> Size:
    """(h, w) as the picture will be read; of a damaged file, a guess: reading it will say what."""
    try:
        return size(source)
    except UserError:
        return 1, 1


def _targets(
    sources: tuple[Path, ...], output: Path, scale: int, *, folder: bool
) -> tuple[Path, ...]:
    """`output` itself for one picture, else `output/NAMExS.png` for each."""
    if not folder and len(sources) == 1 and output.suffix.lower() in SUFFIXES:
        return (output,)
    if output.suffix.lower() in set(Image.registered_extensions()) - set(SUFFIXES):
        raise _unclear(f"pictures are not written as {output.suffix!r}", output)
    if output.suffix.lower() in SUFFIXES:
        raise _unclear(f"{len(sources)} pictures cannot go into one file {output.name!r}", output)
    names = [f"{source.stem}x{scale}.png" for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _unclear(f"several pictures would be written as {', '.join(twice[:5])}", output)
    return tuple(output / name for name in names)


def _unclear(problem: str, output: Path) -> UnclearOutput:
    return UnclearOutput(
        problem,
        place=str(output),
        rule="one picture goes into a file or a folder, several into a folder under their names; "
        f"files end in {', '.join(SUFFIXES)}",
        remedy="name a folder with -o, or run them apart",
    )
