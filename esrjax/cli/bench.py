"""The verb bench: how long methods take, side by side."""

import functools
import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import typer

from esrjax.cli.options import BadOption, Json, Names, Size, print_json, sizes

BODIES = ("auto", "reference", "kernel")
PRECISIONS = ("float32", "bfloat16")
MODES = {"pytorch": "eager", "pytorch-channels-last": "channels-last"}
COMPILED = {"pytorch-compiled": "compiled"}


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(bench)


def bench(
    names: Names,
    sizes_given: Annotated[str, typer.Option("--sizes", help="LR sizes, HxW,HxW,...")] = "256x256",
    size: Size = None,
    body: Annotated[
        str, typer.Option(help="Bodies of operations: auto, reference, kernel; or several.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of weights and pictures: float32, bfloat16; or both.")
    ] = "float32",
    seconds: Annotated[float, typer.Option(help="Budget a row, seconds.")] = 2.0,
    engine: Annotated[
        Literal["jax", "onnxruntime", "both"],
        typer.Option(help="What runs them; `both` in turn, to compare."),
    ] = "jax",
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="A PyTorch network to run beside a method, in turn; its code is run.",
            metavar="[METHOD=]FILE.py:CLASS",
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="With --peer: also through torch.compile.")
    ] = False,
    as_json: Json = False,
) -> None:
    """How long methods take, in turn in one process: median, interval, compilation, memory."""
    shapes = [_shape(text) for text in sizes_given.split(",")]
    bodies, precisions = (
        _listed("--body", body, BODIES),
        _listed("--precision", precision, PRECISIONS),
    )
    if engine != "jax" and precisions != ["float32"]:
        raise _single(engine)
    if compiled and not peer:
        raise _pointless()
    from esrjax import registry
    from esrjax.cli.timings import show_bench
    from esrjax.contest import bench as contest
    from esrjax.contest.lanes import Variants

    methods = {name: registry.plain(name) for name in names}
    files = dict(_peer(text, names) for text in peer or [])
    asked = sizes(size)
    outcome = contest.bench(
        methods,
        shapes,
        asked,
        seconds,
        _engines(engine),
        variants=Variants(bodies=bodies, precisions=precisions),
        peers=_peers(files, methods, asked, MODES | (COMPILED if compiled else {})),
    )
    if as_json:
        print_json(outcome)
    else:
        show_bench(outcome)


# --- engines -----------------------------------------------------------------------------------


def _engines(asked: str) -> dict[str, Any]:
    """What `contest.bench` runs networks with, by the name that rows give it."""
    from esrjax.contest import lanes

    made: dict[str, Any] = {} if asked == "onnxruntime" else lanes.jax_engine()
    if asked != "jax":
        from esrjax.bridge.onnx import runtime

        made[f"onnxruntime-{runtime.device()}"] = lanes.Engine(start=_exported)
    return made


def _exported(name: str, method: Any, net: Any) -> Any:
    """A network in ONNX Runtime: exported once, for pictures of any size."""
    from esrjax.bridge import engine
    from esrjax.contest.lanes import Ready

    forward = functools.cache(lambda: engine.forward(name, method, net))

    def start(picture: Any) -> Any:
        begun = time.perf_counter()
        call = functools.partial(forward(), picture)
        return Ready(call=call, compile_s=time.perf_counter() - begun)

    return start


def _peers(
    files: dict[str, str], methods: dict[str, Any], asked: dict[str, Any], modes: dict[str, str]
) -> dict[str, Any]:
    """The user's PyTorch networks, built as the methods are, by method and engine."""
    if not files:
        return {}
    import jax

    if jax.default_backend() != "cpu":
        raise _elsewhere(jax.default_backend())
    from esrjax.bridge.onnx.runtime import require

    require("torch", "torch")
    from esrjax.bridge import peer

    built = {name: peer.build(peer.source(words, asked)) for name, words in files.items()}
    return {
        name: {row: _mode(theirs, methods[name].scale, mode) for row, mode in modes.items()}
        for name, theirs in built.items()
    }


def _mode(peer: Any, scale: int, mode: Any) -> Any:
    from esrjax.bridge import modes
    from esrjax.contest.lanes import LeftOut, Ready

    def start(picture: Any) -> Any:
        begun = time.perf_counter()
        try:
            call = modes.ready(peer, picture, scale, mode)
        except modes.NotCompiled as error:
            raise LeftOut(error.problem) from error
        took = time.perf_counter() - begun
        return Ready(call=call, compile_s=took if mode == "compiled" else None)

    return start


# --- options -----------------------------------------------------------------------------------


def _listed(option: str, given: str, known: Iterable[str]) -> list[Any]:
    """`"a,b" -> ["a", "b"]`, each of them known and there once."""
    words = [word.strip() for word in given.split(",")]
    if len(set(words)) < len(words) or not set(words) <= set(known):
        raise BadOption(
            f"{option} is {given!r}",
            rule=f"it is one of {', '.join(known)}, or several of them, each once",
            remedy=f"write for instance {option} {','.join(known)}",
        )
    return words


def _peer(text: str, names: list[str]) -> tuple[str, str]:
    """`METHOD=FILE.py:Class`; of a single method also without its name."""
    name, equals, words = text.partition("=")
    if equals and name in names:
        return name, words
    if len(names) == 1:
        return names[0], text
    raise BadOption(
        f"--peer {text!r} does not say whose it is",
        rule=f"of several methods it is METHOD=FILE.py:Class, METHOD one of {', '.join(names)}",
        remedy=f"write for instance --peer {names[0]}={words or text}",
    )


def _shape(text: str) -> tuple[int, int]:
    height, _, width = text.strip().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise BadOption(
            f"--sizes holds {text!r}",
            rule="a size is HxW in LR pixels, several are parted by commas",
            remedy="write for instance --sizes 256x256,339x510",
        )
    return int(height), int(width)


def _single(engine: str) -> BadOption:
    return BadOption(
        f"--precision is given with --engine {engine}",
        rule="ONNX Runtime runs exported networks in float32 alone",
        remedy="leave --precision out, or time JAX alone",
    )


def _pointless() -> BadOption:
    return BadOption(
        "--compiled is given without --peer",
        rule="--compiled says that the PyTorch networks of --peer also run through torch.compile",
        remedy="name a PyTorch network with --peer, or leave --compiled out",
    )


def _elsewhere(backend: str) -> BadOption:
    return BadOption(
        f"--peer is given where JAX runs on {backend!r}",
        rule="PyTorch networks run on the CPU here, and are timed beside JAX on the same device",
        remedy="set JAX_PLATFORMS=cpu",
    )
