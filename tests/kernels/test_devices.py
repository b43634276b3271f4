"""What a kernel says of itself is true of the device, the types and the sizes that it meets."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from esrjax_kernels import devices

from esrjax.network import kernel, ops
from esrjax.testing.operands import arrays, shapes

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
        (dict(name="spab", sizes=(1, 8, 8, 33)), "33 channels in float32 need 386496 bytes"),
        (
            dict(name="gated_spab", sizes=(1, 8, 8, 49), dtype=jnp.bfloat16),
            "need 338496 bytes of shared memory, of 232448",
        ),
        (dict(name="spab", sizes=(1, 0, 8, 32)), "nothing to do"),
    ],
)
def test_what_a_kernel_does_not_take_it_says(said, reason):
    assert reason in why_not(**said)


def test_operands_of_several_types_are_refused():
    x, f, w, b = shapes(NAME, SIZES, jnp.float32)
    half = jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)
    assert "one type, these are bfloat16, float32" in ops.kernel(NAME).why_not(x, f, half, b)


def test_tensor_cores_are_refused_where_the_highest_precision_is_asked_for():
    with jax.default_matmul_precision("highest"):
        assert "multiplies float32 in TF32" in why_not("spab")
        assert why_not("spab", dtype=jnp.bfloat16) is None
    assert why_not("spab") is None


@pytest.mark.parametrize("channels, dtype", [(33, "float32"), (49, "bfloat16")])
def test_where_there_is_said_to_be_no_room_there_is_none(channels, dtype):
    given = shapes("spab", (1, 8, 8, channels), dtype)
    assert "bytes of shared memory" in why_not("spab", (1, 8, 8, channels), dtype)
    with pytest.raises(ValueError, match="exceeds available shared memory"):
        jax.jit(ops.kernel("spab").call).trace(*given).lower(lowering_platforms=("cuda",))


def test_a_mask_may_be_of_any_type():
    *given, mask = shapes("spab", (1, 8, 8, 32, True), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct(mask.shape, jnp.float32)
    assert ops.kernel("spab").why_not(*given, mask) is None


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


def test_the_instructions_of_hopper_are_its_own(monkeypatch):
    for capability in ("9.0", "10.0"):
        gpu = SimpleNamespace(device_kind="a GPU", compute_capability=capability)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda gpu=gpu: [gpu])
        reasons = why_not(), why_not("spab")
    assert reasons == (None, "it is for Hopper (compute capability 9.0) alone, this is 10.0")


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
    monkeypatch.setattr(kernel, "platform", lambda: "cuda")
    assert esrjax("doctor", "--json").json["kernels"][NAME] == (
        "for cuda; not by itself: it has not been measured on cpu: tools/tune.py does"
    )
