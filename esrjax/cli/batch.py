"""A batch of jobs on image files, of which some may fail; used by `upscale` and `fuse`."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import typer

from esrjax.errors import IncompleteBatch, UnwritableFile, UserError, error_summary, list_some


class Batch:
    """Runs jobs on images; one that fails does not stop the others.

    Args:
        num_images: Number of images of the command, with those for which no job is run.
        notes: What is printed before the first job.
        failures: What has failed before the first job -> the error.
    """

    def __init__(
        self,
        num_images: int,
        notes: Iterable[str] = (),
        failures: Mapping[Path, Exception] | None = None,
    ):
        self._num_images, self._num_written = num_images, 0
        self._failures = dict(failures or {})
        self._source_of: dict[tuple[int, int], Path] = {}  # identity of an output -> its input
        _print_notes(notes)

    def run(self, source: Path, target: Path, job: Callable[[], Iterable[str]]) -> None:
        """Run the job that writes `target`, and print the notes that it returns."""
        try:
            self._check_unwritten(target)
            notes = job()
            status = target.lstat()
        except Exception as error:
            self._failures[source] = error
            return
        self._source_of[status.st_dev, status.st_ino] = source
        self._num_written += 1
        _print_notes(notes)

    def _check_unwritten(self, target: Path) -> None:
        """Raise if `target` was written: two names are one file where case is ignored."""
        if not os.path.lexists(target):
            return
        status = target.lstat()
        if source := self._source_of.get((status.st_dev, status.st_ino)):
            raise UnwritableFile(
                f"Cannot write '{target}': it is the output of '{source}'",
                rule="every image has an output of its own, on a file system that ignores case too",
                remedy="upscale it to another folder",
            )

    def end(self, outcome: str) -> None:
        """Print how many images were written; raise if others failed."""
        count, failures = self._num_written, self._failures
        if failures and self._num_images == 1:
            raise next(iter(failures.values()))
        typer.echo(f"{count} image{'s' * (count != 1)} {outcome}")
        if failures:
            raise _incomplete_batch(failures, self._num_images)


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        typer.echo(note, err=True)


def _incomplete_batch(failures: Mapping[Path, Exception], num_images: int) -> IncompleteBatch:
    lines, remedies = [f"{len(failures)} of {num_images} failed:"], dict[str, None]()
    for path, error in failures.items():
        problem = error.problem if isinstance(error, UserError) else error_summary(error)
        lines.append(f"    {path}: {problem.removeprefix(f'Cannot read {str(path)!r}: ')}")
        remedies |= {error.remedy: None} if isinstance(error, UserError) else {}
    return IncompleteBatch(
        "\n".join(lines),
        rule="every image is processed alone; the others were written",
        remedy=list_some(remedies, 3, "; ") or "process these images alone to see the error",
    )
