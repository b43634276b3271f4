"""What is wrong with a kernel is found, and said."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.network import ops
from esrjax.network.ops import Kernel
from esrjax.testing import check_kernel
from esrjax.testing.kernels import NoSamples


def cubed(x, w):
    """An operation of somebody else's."""
    return w * x**3


CUBED = ops.op(cubed)
SAMPLES = [[np.arange(1.0, n), np.full(n - 1, 2.0)] for n in (4, 9)]


def exact(x, w):
    return w * x * x * x


def refusing(x, w):
    kinds = {x.dtype.name, w.dtype.name}
    return None if kinds in ({"float32"}, {"bfloat16"}) else f"not of {kinds}"


def later(x, w):
    return refusing(x, w) if x.size > 3 else "not so few"


GOOD = Kernel(call=exact, platform="cpu", why_not=refusing)


def check(kernel, **said):
    check_kernel(kernel, CUBED, samples=SAMPLES, **said)


def test_a_good_kernel_passes():
    check(GOOD)


def test_a_good_one_of_one_type_passes():
    check(GOOD, close={"bfloat16": 2e-2})
    only = replace(GOOD, why_not=lambda x, w: refusing(x, w) if x.dtype == jnp.bfloat16 else "no")
    check(only)


def test_operands_may_be_integers_and_results_zero():
    picked = ops.op(lambda x, at: 0 * x[at])
    kernel = replace(GOOD, call=lambda x, at: 0 * x[at], why_not=lambda x, at: refusing(x, x))
    check_kernel(kernel, picked, samples=[[np.arange(4.0), np.array([2, 1])]])


def test_an_operation_of_ours_may_be_given_itself():
    kernel = Kernel(
        call=ops.gated_residual, platform="cpu", why_not=lambda x, f, w, b: refusing(x, b)
    )
    check_kernel(kernel, ops.gated_residual)


def test_one_that_brings_its_own_gradient_passes():
    check(replace(GOOD, differentiable=True))


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(platform="cude"), "'cude' is none of cpu, cuda"),
        (dict(why_not=lambda x, w: ""), "gives ''"),
        (dict(unproved=lambda: False), "gives False"),
        (dict(why_not=lambda x, w: "not today"), "refuses all: not today"),
        (dict(call=lambda x, w: exact(x, w).at[-1].add(1)), "of the largest number away"),
        (dict(call=lambda x, w: exact(x, w)[:-1]), "gives float32[2], the reference float32[3]"),
        (dict(call=lambda x, w: exact(x, w).astype(jnp.float32)), "the reference bfloat16[3]"),
        (dict(call=lambda x, w: lax_only_for(x)), "this shape never"),
        (dict(why_not=lambda x, w: None, call=lambda x, w: halved(x, w)), "float16[3]"),
        (dict(differentiable=True, call=lambda x, w: flat(x, w)), "by operand 0 it is"),
        (dict(call=lambda x, w: large(x, w)), "for bfloat16[8], bfloat16[8] it is"),
        (dict(differentiable=True, why_not=later, call=lambda x, w: flat(x, w)), "by operand 0"),
    ],
)
def test_a_bad_one_is_told_why(wrong, said):
    with pytest.raises(AssertionError, match="the kernel breaks") as caught:
        check(replace(GOOD, **wrong))
    assert said in str(caught.value)


def lax_only_for(x):
    raise NotImplementedError("this shape never")


def halved(x, w):
    """Right in all types but half precision."""
    return exact(x, w) / (2 if x.dtype == jnp.float16 else 1)


def large(x, w):
    """Right, but for large operands in halves."""
    return exact(x, w) * (5 if x.dtype == jnp.bfloat16 and x.size > 3 else 1)


def flat(x, w):
    """Right numbers, wrong slopes."""
    return exact(jax.lax.stop_gradient(x), w)


def test_numbers_are_asked_where_the_kernel_can_run():
    wrong = replace(GOOD, call=lambda x, w: exact(x, w) + 1, platform="cuda")
    check(wrong)  # on a CPU nobody can tell
    with pytest.raises(AssertionError, match="away"):
        check(wrong, call=wrong.call)


@pytest.mark.parametrize("operation, name", [(CUBED, "cubed"), ("gated_residue", "gated_residue")])
def test_an_operation_without_samples_is_asked_for_them(operation, name):
    with pytest.raises(NoSamples, match=f"no samples of operands for '{name}'"):
        check_kernel(GOOD, operation)
