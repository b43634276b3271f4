"""Benchmark cases: each combination of method, engine, op implementation and precision."""

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


class SkipBackend(Exception):
    """Raised when an engine cannot run the network, by its factory; the other cases still run."""


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """One row of a benchmark at each image size.

    Attributes:
        method: Name of the method.
        engine: What runs it, such as `jax-cpu` or `pytorch`.
        implementation: Implementation of ops (`auto`, `reference`, `kernel`); None for engines
            without that choice.
        precision: Dtype of weights and images.
    """

    method: str
    engine: str
    implementation: str | None = None
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class CompiledCase:
    """A network bound to one input image, ready to be called.

    Attributes:
        call: Runs one forward pass.
        compile_s: Compilation time, s; None where nothing was compiled.
        executable_mib: Memory of arguments, outputs and temporaries as the compiler plans it, MiB;
            None where no compiler reports it.
    """

    call: Callable[[], Any]
    compile_s: float | None = None
    executable_mib: float | None = None


# Takes one LR image (1, h, w, 3) as a NumPy array in the precision of the case.
Factory = Callable[[Any], CompiledCase]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An engine that runs deployed networks.

    Attributes:
        factory: Name, method and network -> factory of its compiled case.
        supports_variants: Whether it runs every implementation and precision that is benchmarked;
            otherwise it runs one case, in float32.
    """

    factory: Callable[[str, Method, nnx.Module], Factory]
    supports_variants: bool = False


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Op implementations and precisions to benchmark, in all combinations."""

    implementations: Sequence[str] = ("auto",)
    precisions: Sequence[Precision] = ("float32",)


def jax_backend() -> dict[str, Backend]:
    """Return JAX on its default platform, by its engine name (`jax-cpu`, `jax-gpu`)."""
    return {f"jax-{jax.default_backend()}": Backend(factory=_jax_factory, supports_variants=True)}


def bench_cases(
    name: str,
    method: Method,
    net: nnx.Module,
    backends: Mapping[str, Backend],
    variants: Variants,
) -> Iterator[tuple[BenchCase, Factory]]:
    """Yield the benchmark cases of one deployed network, each with its factory.

    Args:
        name: Name of the method.
        method: The method itself.
        net: Its network in deploy form, in float32.
        backends: Engine name -> backend.
        variants: Implementations and precisions, for backends that support them.
    """
    for engine, backend in backends.items():
        if backend.supports_variants:
            for implementation, precision in itertools.product(
                variants.implementations, variants.precisions
            ):
                case = BenchCase(
                    method=name, engine=engine, implementation=implementation, precision=precision
                )
                yield case, backend.factory(name, method, cast(net, precision))
        else:
            yield BenchCase(method=name, engine=engine), backend.factory(name, method, net)


def _jax_factory(name: str, method: Method, net: nnx.Module) -> Factory:
    def compile_case(image: Any) -> CompiledCase:
        lr = jax.device_put(image)
        compiled = clock.compile_forward(clock.forward_fn(net), lr)
        call = functools.partial(compiled.call, lr)
        return CompiledCase(
            call=call, compile_s=compiled.compile_s, executable_mib=compiled.executable_mib
        )

    return compile_case
