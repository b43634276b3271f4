"""The verb fuse."""

from pathlib import Path
from typing import Annotated, Any

import typer

from esrjax.cli.options import BadOption


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(fuse)


def fuse(
    places: Annotated[
        list[Path],
        typer.Argument(help="Folders of pictures of the same names, or pictures.", metavar="IN"),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A folder, or a file for single pictures.")
    ],
    weights: Annotated[
        str | None,
        typer.Option(help="One for each IN, parted by commas.", show_default="equal ones"),
    ] = None,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive",
            help="Weights by closeness to the mean, rounded down; of two pictures, a half each.",
        ),
    ] = False,
) -> None:
    """Fuse what several methods made of the same pictures."""
    from esrjax.cli.tables import progress
    from esrjax.pictures import fusion
    from esrjax.pictures.upscale.fusion import closest

    if adaptive and weights is not None:
        raise BadOption(
            "both --weights and --adaptive are given",
            rule="weights are given, or found for every picture",
            remedy="leave one of them out",
        )
    rule = closest if adaptive else _mean(weights, places)
    jobs = fusion.plan(places, output)
    fusion.require_sizes(jobs)
    for job in progress(jobs, "fuse"):
        fusion.run(job, rule)
    typer.echo(f"{len(jobs)} picture{'s' * (len(jobs) != 1)} in {output}")


def _mean(given: str | None, places: list[Path]) -> Any:
    from esrjax.pictures import fusion
    from esrjax.pictures.upscale.fusion import mean

    try:
        weights = [1.0] * len(places) if given is None else [float(w) for w in given.split(",")]
    except ValueError as error:
        raise BadOption(
            f"--weights is {given!r}",
            rule="weights are numbers parted by commas, one for each picture or folder",
            remedy="write for instance --weights 0.7,0.3",
        ) from error
    fusion.require_weights(weights, places)
    return lambda pictures: mean(pictures, weights)
