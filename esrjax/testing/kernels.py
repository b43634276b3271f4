"""What every kernel must satisfy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrjax.errors import UserError
from esrjax.network import ops
from esrjax.network.kernel import Kernel
from esrjax.network.words import PREFIX
from esrjax.testing.operands import SMALL, numbers
from esrjax.testing.verdict import judged, require

PLATFORMS = ("cpu", "cuda", "tpu")
CLOSE = {"float32": 1e-5, "bfloat16": 2e-2}  # of the largest number
Operands = Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What every law works on. call: how the kernel runs here; None where it cannot."""

    kernel: Kernel
    operation: Callable[..., Array]
    samples: Sequence[Operands]
    call: Callable[..., Array] | None
    close: Mapping[str, float]

    def reference(self, *operands: Any) -> Array:
        """What the operation means."""
        with ops.body("reference"):
            return self.operation(*operands)

    def served(self) -> list[Operands]:
        """Samples in every type that the kernel is to be close in, as far as it serves them."""
        given = [_cast(sample, name) for sample in self.samples for name in self.close]
        return [operands for operands in given if self.kernel.why_not(*operands) is None]

    def apart(self, found: Any, wanted: Any, dtype: Any, slack: float = 1) -> float | None:
        """How much of the largest number they differ by, if that is more than the type may."""
        found, wanted = (np.asarray(each, np.float64) for each in (found, wanted))
        gap = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))
        allowed = slack * self.close.get(dtype.name, max(self.close.values()))
        return None if gap <= allowed else gap

    def wrong(self, operands: Operands) -> str | None:
        """How the kernel's numbers are not the reference's, if so."""
        assert self.call is not None
        found = self.call(*operands)
        wanted = jax.eval_shape(self.reference, *operands)
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            return f"gives {_said(found)}, the reference {_said(wanted)}"
        with jax.enable_x64(True):
            gap = self.apart(found, self.reference(*_cast(operands, "float64")), found.dtype)
        return None if gap is None else f"is {gap:.1e} of the largest number away"


class NoSamples(UserError):
    """Nobody says what an operation may be given."""


def check_kernel(
    kernel: Kernel,
    operation: str | Callable[..., Array],
    *,
    samples: Sequence[Operands] | None = None,
    call: Callable[..., Array] | None = None,
    close: Mapping[str, float] = CLOSE,
) -> None:
    """Raise AssertionError, naming every broken law, unless `kernel` keeps them all.

    operation: one of `esrjax.network.ops` by name, or your own. samples: what it may be given, the
    smallest first; needed for an operation of your own. call: how the kernel runs where its
    platform is not, in an interpreter for instance; without it, laws about numbers are asked on
    its platform alone. close: share of the largest number that it may be away, by type.
    """
    name = operation if isinstance(operation, str) else operation.__name__.removeprefix(PREFIX)
    if samples is None and name not in SMALL:
        raise _sampleless(name)
    bench = _Bench(
        kernel=kernel,
        operation=getattr(ops, operation) if isinstance(operation, str) else operation,
        samples=[numbers(name, sizes) for sizes in SMALL[name]] if samples is None else samples,
        call=call or (None if kernel.misplaced() else kernel.call),
        close=close,
    )
    require("the kernel", [judged(law, bench) for law in LAWS])


# --- the laws ----------------------------------------------------------------------------------


def _names_a_platform(bench: _Bench) -> None:
    """Its platform is one that JAX makes programs for."""
    known = ", ".join(PLATFORMS)
    assert bench.kernel.platform in PLATFORMS, f"{bench.kernel.platform!r} is none of {known}"


def _gives_reasons(bench: _Bench) -> None:
    """`why_not`, by shapes and types alone, and `unproved` give None or a reason in words."""
    said = [bench.kernel.why_not(*_shapes(each)) for each in _all(bench)]
    for reason in (*said, bench.kernel.unproved()):
        assert reason is None or (isinstance(reason, str) and reason), f"gives {reason!r}"


def _serves_something(bench: _Bench) -> None:
    """It serves some of the samples."""
    reasons = {bench.kernel.why_not(*_shapes(each)) for each in _all(bench)}
    assert bench.served(), f"refuses all: {'; '.join(map(str, reasons))}"


def _becomes_code(bench: _Bench) -> None:
    """What it does not refuse becomes code for its platform."""
    for operands in (*bench.served(), *_unrefused_oddities(bench)):
        traced = jax.jit(bench.kernel.call).trace(*_shapes(operands))
        traced.lower(lowering_platforms=(bench.kernel.platform,))


def _gives_the_references_numbers(bench: _Bench) -> None:
    """What it does not refuse it makes into the reference's numbers, in their shape and type."""
    if bench.call is None:
        return
    for operands in (*bench.served(), *_unrefused_oddities(bench)):
        wrong = bench.wrong(operands)
        assert wrong is None, f"for {', '.join(map(_said, operands))} it {wrong}"


def _has_the_references_gradient(bench: _Bench) -> None:
    """Its gradient is the reference's, borrowed or its own, at the first sample that it serves."""
    operands = next(iter(bench.served()), None)
    if bench.call is None or operands is None:
        return
    real = [n for n, each in enumerate(operands) if jnp.issubdtype(each.dtype, jnp.floating)]
    fast = ops.with_gradient(bench.call, None if bench.kernel.differentiable else bench.reference)

    def slopes(body: Callable[..., Array], given: Operands) -> Sequence[Array]:
        loss = lambda *given: jnp.sum(jnp.sin(body(*given)))  # noqa: E731
        return jax.grad(loss, real)(*given)

    with jax.default_matmul_precision("highest"):
        found = slopes(fast, operands)
    with jax.enable_x64(True):
        wanted = slopes(bench.reference, _cast(operands, "float64"))
    for number, ours, theirs in zip(real, found, wanted, strict=True):
        gap = bench.apart(ours, theirs, ours.dtype, slack=10)
        assert gap is None, f"by operand {number} it is {gap:.1e} of the largest number away"


LAWS = (
    _names_a_platform,
    _gives_reasons,
    _serves_something,
    _becomes_code,
    _gives_the_references_numbers,
    _has_the_references_gradient,
)


# --- what they are made of ---------------------------------------------------------------------


def _sampleless(name: str) -> NoSamples:
    return NoSamples(
        f"there are no samples of operands for {name!r}",
        rule=f"samples are known of {', '.join(SMALL)}",
        remedy="name one of these, or give samples, the smallest first",
    )


def _all(bench: _Bench) -> list[Operands]:
    plain = [_cast(sample, name) for sample in bench.samples for name in bench.close]
    return [*plain, *_oddities(bench)]


def _oddities(bench: _Bench) -> list[Operands]:
    """What a kernel refuses, or serves all the same: half precision, several types."""
    first = bench.samples[0]
    mixed = [*_cast(first[:1], "float32"), *_cast(first[1:], "bfloat16")]
    return [_cast(first, "float16"), mixed]


def _unrefused_oddities(bench: _Bench) -> list[Operands]:
    return [each for each in _oddities(bench) if bench.kernel.why_not(*each) is None]


def _cast(operands: Operands, dtype: str) -> list[Any]:
    """Real numbers in another type, others as they are."""
    return [
        jnp.asarray(np.asarray(each, np.float64), dtype)
        if jnp.issubdtype(each.dtype, jnp.floating)
        else jnp.asarray(each)
        for each in operands
    ]


def _shapes(operands: Operands) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in operands]


def _said(array: Any) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
