"""What is timed side by side: which method, run by what, with which bodies, how precisely."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import nnx

from esrjax.contest import clock
from esrjax.method import Method
from esrjax.network.weights import cast

Precision = Literal["float32", "bfloat16"]


class LeftOut(Exception):
    """An engine cannot run this network here; the others still can."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """What a row is of. body: None where operations have no bodies to choose from."""

    method: str
    engine: str
    body: str | None = None
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A network and its picture, ready to run.

    compile_s: None where nothing was compiled. mib: arguments, outputs and temporaries, where a
    compiler planned them.
    """

    call: Callable[[], Any]
    compile_s: float | None = None
    mib: float | None = None


# From one LR picture (1, h, w, 3), in NumPy and in the precision of the lane.
Start = Callable[[Any], Ready]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What runs deployed networks.

    start: name, method and network -> what readies it. varied: it runs every body and precision
    that is asked for; else one network in float32.
    """

    start: Callable[[str, Method, nnx.Module], Start]
    varied: bool = False


@dataclass(frozen=True, kw_only=True)
class Variants:
    """The bodies and the precisions that are asked for, each with each."""

    bodies: Sequence[str] = ("auto",)
    precisions: Sequence[Precision] = ("float32",)


def jax_engine() -> dict[str, Engine]:
    """JAX on its default backend."""
    return {f"jax-{jax.default_backend()}": Engine(start=_jax, varied=True)}


def lanes(
    name: str,
    method: Method,
    net: nnx.Module,
    engines: Mapping[str, Engine],
    variants: Variants,
) -> Iterator[tuple[Lane, Start]]:
    """All that one deployed network is timed in, in order."""
    for label, engine in engines.items():
        if engine.varied:
            for body, precision in itertools.product(variants.bodies, variants.precisions):
                lane = Lane(method=name, engine=label, body=body, precision=precision)
                yield lane, engine.start(name, method, cast(net, precision))
        else:
            yield Lane(method=name, engine=label), engine.start(name, method, net)


def _jax(name: str, method: Method, net: nnx.Module) -> Start:
    def start(picture: Any) -> Ready:
        lr = jax.device_put(picture)
        program = clock.compiled(clock.forward(net), lr)
        call = functools.partial(program.call, lr)
        return Ready(call=call, compile_s=program.compile_s, mib=program.mib)

    return start
