"""`check_kernel` finds and reports what is wrong with a kernel."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.errors import PluginError
from esrjax.nn import ops
from esrjax.nn.ops import Kernel
from esrjax.testing import check_kernel


def cubed(x, w):
    """A third-party operation."""
    return w * x**3


CUBED = ops.op(cubed)
SAMPLES = [[np.arange(1.0, n), np.full(n - 1, 2.0)] for n in (4, 9)]


def cube(x, w):
    return w * x * x * x


def one_float_dtype(x, w):
    dtypes = {x.dtype.name, w.dtype.name}
    return None if dtypes in ({"float32"}, {"bfloat16"}) else f"not of {dtypes}"


def one_float_dtype_and_not_small(x, w):
    return one_float_dtype(x, w) if x.size > 3 else "not so few"


GOOD_KERNEL = Kernel(call=cube, platform="cpu", unsupported_reason=one_float_dtype)


def check(kernel, **kwargs):
    check_kernel(kernel, CUBED, samples=SAMPLES, **kwargs)


def test_correct_kernel_passes():
    check(GOOD_KERNEL)


def test_correct_kernel_of_one_dtype_passes():
    check(GOOD_KERNEL, rtol={"bfloat16": 2e-2})
    bfloat16_only = replace(
        GOOD_KERNEL,
        unsupported_reason=lambda x, w: one_float_dtype(x, w) if x.dtype == jnp.bfloat16 else "no",
    )
    check(bfloat16_only)


def test_operands_may_be_integers_and_results_zero():
    gather = ops.op(lambda x, at: 0 * x[at])
    kernel = replace(
        GOOD_KERNEL,
        call=lambda x, at: 0 * x[at],
        unsupported_reason=lambda x, at: one_float_dtype(x, x),
    )
    check_kernel(kernel, gather, samples=[[np.arange(4.0), np.array([2, 1])]])


def test_operation_may_be_given_as_a_function():
    kernel = Kernel(
        call=ops.gated_residual,
        platform="cpu",
        unsupported_reason=lambda x, f, w, b: one_float_dtype(x, b),
    )
    check_kernel(kernel, ops.gated_residual)


def test_differentiable_kernel_passes():
    check(replace(GOOD_KERNEL, differentiable=True))


@pytest.mark.parametrize(
    "changes, fragment",
    [
        (dict(platform="cude"), "'cude'"),
        (dict(unsupported_reason=lambda x, w: ""), "''"),
        (dict(disabled_reason=lambda: False), "False"),
        (dict(unsupported_reason=lambda x, w: "not today"), "not today"),
        (dict(call=lambda x, w: cube(x, w).at[-1].add(1)), "1.9e-02"),
        (dict(call=lambda x, w: cube(x, w)[:-1]), "float32[2]"),
        (dict(call=lambda x, w: cube(x, w).astype(jnp.float32)), "bfloat16[3]"),
        (dict(call=lambda x, w: not_implemented(x)), "this shape never"),
        (
            dict(unsupported_reason=lambda x, w: None, call=lambda x, w: wrong_in_float16(x, w)),
            "float16[3]",
        ),
        (dict(differentiable=True, call=lambda x, w: without_gradient(x, w)), "operand 0"),
        (dict(call=lambda x, w: wrong_for_large_bfloat16(x, w)), "bfloat16[8]"),
        (
            dict(
                differentiable=True,
                unsupported_reason=one_float_dtype_and_not_small,
                call=lambda x, w: without_gradient(x, w),
            ),
            "operand 0",
        ),
    ],
)
def test_defect_of_a_kernel_is_reported(changes, fragment):
    with pytest.raises(AssertionError) as caught:
        check(replace(GOOD_KERNEL, **changes))
    assert fragment in str(caught.value)


def not_implemented(x):
    raise NotImplementedError("this shape never")


def wrong_in_float16(x, w):
    """Right in all dtypes but half precision."""
    return cube(x, w) / (2 if x.dtype == jnp.float16 else 1)


def wrong_for_large_bfloat16(x, w):
    """Right, except for large bfloat16 operands."""
    return cube(x, w) * (5 if x.dtype == jnp.bfloat16 and x.size > 3 else 1)


def without_gradient(x, w):
    """Right values, wrong gradients."""
    return cube(jax.lax.stop_gradient(x), w)


def test_values_are_checked_where_the_kernel_can_run():
    wrong_kernel = replace(GOOD_KERNEL, call=lambda x, w: cube(x, w) + 1, platform="cuda")
    check(wrong_kernel)  # a CUDA kernel cannot run on a CPU
    with pytest.raises(AssertionError, match=re.escape("1.9e-02")):
        check(wrong_kernel, call=wrong_kernel.call)


@pytest.mark.parametrize("operation, name", [(CUBED, "cubed"), ("gated_residue", "gated_residue")])
def test_operation_without_samples_is_reported(operation, name):
    with pytest.raises(PluginError, match=repr(name)):
        check_kernel(GOOD_KERNEL, operation)
