"""What a kernel says of itself is true of the device, the types and the sizes that it meets."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from esrjax_kernels import devices
from operands import arrays, shapes

from esrjax.network import ops

NAME, SIZES = "gated_residual", (1, 8, 8, 32)


def why_not(name=NAME, sizes=SIZES, dtype=jnp.float32):
    return ops.kernel(name).why_not(*shapes(name, sizes, dtype))


@pytest.mark.parametrize(
    "said, reason",
    [
        (dict(sizes=(1, 8, 8, 65)), "up to 64 channels, these are 65"),
        (dict(sizes=(0, 8, 8, 32)), "nothing to do"),
        (dict(sizes=(1, 8192, 8192, 32)), "up to 2^31 elements, here are 2147483648"),
        (dict(dtype=jnp.float16), "float32 or bfloat16, these are float16"),
        (
            dict(name="window_attention", sizes=(1, 1, 1, 4, 4, 65, False)),
            "heads of up to 64 elements, these have 65",
        ),
        (
            dict(name="selective_scan", sizes=(1, 4, 4, 65)),
            "up to 64 states a channel, these are 65",
        ),
    ],
)
def test_what_a_kernel_does_not_take_it_says(said, reason):
    assert reason in why_not(**said)


def test_operands_of_several_types_are_refused():
    x, f, w, b = shapes(NAME, SIZES, jnp.float32)
    half = jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)
    assert "one type, these are bfloat16, float32" in ops.kernel(NAME).why_not(x, f, half, b)


@pytest.mark.parametrize(
    "capability, serves", [("8.0", False), ("gfx90a", False), ("9.0", True), ("10.3", True)]
)
def test_hopper_is_the_oldest_that_serves(monkeypatch, capability, serves):
    gpu = SimpleNamespace(device_kind="a GPU", compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    reason = why_not()
    assert serves == (reason is None)
    assert serves or f"9.0 (Hopper), this is {capability}" in reason


@pytest.fixture
def told(monkeypatch):
    """Makes the table say what was measured of the kernel on this device."""

    def tell(**found):
        monkeypatch.setattr(
            devices, "_table", lambda: {NAME: {jax.devices()[0].device_kind: found}}
        )

    return tell


def test_auto_leaves_alone_what_was_not_measured_or_is_slower(told):
    assert "has not been measured on cpu" in ops.kernel(NAME).unproved()
    told(speedup=0.9, rows=128)
    assert "slower than the reference on cpu" in ops.kernel(NAME).unproved()
    told(speedup=1.1, rows=256)
    assert ops.kernel(NAME).unproved() is None


def test_the_block_is_the_measured_one_or_the_first(told):
    blocks = {"rows": (128, 256), "keys": (8, 4)}
    assert devices.block(NAME, blocks) == {"rows": 128, "keys": 8}
    told(speedup=1.1, rows=256, keys=4)
    assert devices.block(NAME, blocks) == {"rows": 256, "keys": 4}


def test_the_program_for_cuda_has_the_kernel_only_where_it_is_proved(told):
    def has_kernel(side):  # a side of its own: what was traced before is not traced again
        given = shapes(NAME, (1, side, 8, 32), jnp.float32)
        traced = jax.jit(lambda *given: ops.gated_residual(*given)).trace(*given)
        return "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()

    before = has_kernel(18)
    told(speedup=1.1, rows=128)
    assert (before, has_kernel(19)) == (False, True)


def test_body_kernel_on_a_cpu_names_the_platform():
    with ops.body("kernel"), pytest.raises(ops.NoKernel, match="needs cuda, this is cpu"):
        ops.gated_residual(*arrays(NAME, SIZES, "float32"))


def test_doctor_says_what_keeps_auto_from_a_kernel(esrjax, monkeypatch):
    assert esrjax("doctor", "--json").json["kernels"][NAME] == "it needs cuda, this is cpu"
    monkeypatch.setattr(ops, "platform", lambda: "cuda")
    assert esrjax("doctor", "--json").json["kernels"][NAME] == (
        "for cuda; not by itself: it has not been measured on cpu: tools/tune.py does"
    )
