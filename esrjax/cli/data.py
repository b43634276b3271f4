"""Verbs about sets: data pack, data verify, data select."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from esrjax.cli.options import BadOption, Json, bar, print_json

Scale = Annotated[int, typer.Option(help="Of the LR pictures.", min=1)]

app = typer.Typer(help="Sets of pictures: pack them for training, verify them, choose from them.")


def register(outer: typer.Typer) -> None:
    """Add these verbs to the command."""
    outer.add_typer(app, name="data")


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help="A set's name or folder.", metavar="DIR")],
    name: Annotated[str, typer.Option(help="What the dataset is called: tfds:NAME.")],
    side: Annotated[int, typer.Option(help="Of a sub-image, HR pixels.", min=1)] = 480,
    step: Annotated[int, typer.Option(help="To the next sub-image, HR pixels.", min=1)] = 240,
    scale: Scale = 4,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where datasets lie.", show_default="$ESRJAX_DATA"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut a set into sub-images and write them as a TFDS dataset in ArrayRecord form."""
    from esrjax.pictures import packing, sets

    root, cut = _root(output), packing.Cut(side=side, step=step)
    packing.require_place(root, name)
    packed = packing.pack(sets.select(source, scale), name, root, cut, bar("packing"))
    if as_json:
        print_json({**vars(packed), "folder": str(packed.folder), "set": f"tfds:{name}"})
        return
    size = f"{packed.bytes / 2**20:,.1f} MiB"
    typer.echo(f"{packed.folder}: {packed.pieces:,} of {packed.pictures:,} pictures, {size}")
    typer.echo(f"In recipes and elsewhere it is tfds:{name}")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="A set's name or folder.", metavar="SET")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="A set that is not to be trained on; may be given again.", metavar="SET"),
    ] = None,
    tolerance: Annotated[
        int, typer.Option(help="Grey levels that LR may be off the bicubic one.", min=0)
    ] = 1,
    scale: Scale = 4,
    as_json: Json = False,
) -> None:
    """Look at every pair of a set; exit code 1 when something is wrong."""
    from esrjax.pictures import known, sets, verification

    pairs = sets.select(name, scale)
    others = [pair for each in against or () for pair in sets.select(each, scale)]
    verdict = verification.verify(
        pairs,
        against=others,
        known=known.known(name),
        tolerance=tolerance,
        progress=bar("looking"),
    )
    if as_json:
        print_json({"set": name, "right": not verdict.problems, **vars(verdict)})
    else:
        _show(name, verdict)
    raise typer.Exit(bool(verdict.problems))


@app.command()
def select(
    names: Annotated[list[str], typer.Argument(help="Sets to choose from.", metavar="SET")],
    like: Annotated[str, typer.Option(help="A set that they are to be like.", metavar="SET")],
    count: Annotated[int, typer.Option(help="How many.", min=1)],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new set, of links.")],
    features: Annotated[
        str,
        typer.Option(
            help="What is compared: coarse colours, or what CLIP sees.",
            metavar="thumbnail|clip:FILE.onnx",
        ),
    ] = "thumbnail",
    scale: Scale = 4,
    as_json: Json = False,
) -> None:
    """Choose the pictures of sets that are most like those of another; a set of links."""
    from esrjax.pictures import selection, sets

    seen = _features(features)
    pairs = selection.named([(sets.title(name), sets.select(name, scale)) for name in names])
    selection.require_links(pairs, output)
    chosen = selection.select(pairs, sets.select(like, scale), count, seen, bar("looking"))
    selection.link(chosen, output)
    if as_json:
        print_json([{"name": c.pair.name, "similarity": c.similarity} for c in chosen])
        return
    ends = f"{chosen[0].similarity:.3f} to {chosen[-1].similarity:.3f}"
    typer.echo(f"{output}: {len(chosen):,} of {len(pairs):,} pictures, similarity {ends}")


def _features(said: str) -> Any:
    """`thumbnail`, or the file of an encoder."""
    from esrjax.pictures.selection import thumbnail

    if said == "thumbnail":
        return thumbnail
    kind, _, file = said.partition(":")
    if kind != "clip" or not file:
        raise BadOption(
            f"--features is {said!r}",
            rule="features are `thumbnail`, or `clip:FILE.onnx` with CLIP's image encoder",
            remedy="write for instance --features clip:vit_b32_image.onnx",
        )
    from esrjax.bridge import clip

    return clip.encoder(Path(file))


def _show(name: str, verdict: Any) -> None:
    from esrjax.cli.tables import say, show_table

    size = verdict.smallest and "x".join(map(str, verdict.smallest))
    row = {
        "set": name,
        "pictures": verdict.pictures,
        "smallest HR": size,
        "LR off by": verdict.off,
        "problems": len(verdict.problems),
        "notes": len(verdict.notes),
    }
    show_table([row], list(row))
    for line in verdict.problems:
        say(f"wrong: {line}")
    for line in verdict.notes:
        say(f"note:  {line}")


def _root(output: Path | None) -> Path:
    """Where datasets are written."""
    if output is not None:
        return output
    if os.environ.get("ESRJAX_DATA"):
        return Path(os.environ["ESRJAX_DATA"])
    raise BadOption(
        "there is no place for the dataset",
        rule="it goes into $ESRJAX_DATA, where sets are looked for, or into --output",
        remedy="set ESRJAX_DATA, or name a folder with --output",
    )
