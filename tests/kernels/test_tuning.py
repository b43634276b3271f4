"""Reasons why a kernel is not supported or not enabled, and tuned configurations."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from esrjax_kernels import tuning

from esrjax.errors import NotFound
from esrjax.nn import ops
from esrjax.testing.kernels import operand_arrays, operand_shapes

NAME, DIMS = "gated_residual", (1, 8, 8, 32)


def unsupported_reason(name=NAME, dims=DIMS, dtype=jnp.float32):
    return ops.find_kernel(name).unsupported_reason(*operand_shapes(name, dims, dtype))


@pytest.mark.parametrize(
    "operands, fragment",
    [
        (dict(dims=(1, 8, 8, 65)), "up to 64 channels, not 65"),
        (dict(dims=(0, 8, 8, 32)), "empty"),
        (dict(dims=(1, 8192, 8192, 32)), "2^31 elements, not 2147483648"),
        (dict(dtype=jnp.float16), "float32 and bfloat16, not float16"),
        (
            dict(name="window_attention", dims=(1, 1, 1, 4, 4, 65, False)),
            "4 queries and 4 keys of 65 elements in float32 need 295936 bytes",
        ),
        (
            dict(name="selective_scan", dims=(1, 4, 4, 65)),
            "up to 64 states per channel, not 65",
        ),
        (dict(name="spab", dims=(1, 8, 8, 33)), "33 channels in float32 need 417088 bytes"),
        (
            dict(name="gated_spab", dims=(1, 8, 8, 49), dtype=jnp.bfloat16),
            "need 267104 bytes of shared memory, the limit is 232448",
        ),
        (dict(name="spab", dims=(1, 0, 8, 32)), "empty"),
    ],
)
def test_unsupported_operands_are_reported(operands, fragment):
    assert fragment in unsupported_reason(**operands)


def test_operands_of_several_dtypes_are_unsupported():
    x, f, w, b = operand_shapes(NAME, DIMS, jnp.float32)
    bf16_w = jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)
    assert "bfloat16, float32" in ops.find_kernel(NAME).unsupported_reason(x, f, bf16_w, b)


def test_tf32_kernels_are_unsupported_at_the_highest_matmul_precision():
    with jax.default_matmul_precision("highest"):
        assert "multiplies float32 in TF32" in unsupported_reason("spab")
        assert unsupported_reason("spab", dtype=jnp.bfloat16) is None
    assert unsupported_reason("spab") is None


@pytest.mark.parametrize("channels, dtype", [(33, "float32"), (49, "bfloat16")])
def test_unsupported_shared_memory_size_does_not_compile(channels, dtype):
    operands = operand_shapes("spab", (1, 8, 8, channels), dtype)
    assert "bytes of shared memory" in unsupported_reason("spab", (1, 8, 8, channels), dtype)
    with pytest.raises(ValueError, match="exceeds available shared memory"):
        jax.jit(ops.find_kernel("spab").call).trace(*operands).lower(lowering_platforms=("cuda",))


def test_mask_may_have_any_dtype():
    *operands, mask = operand_shapes("spab", (1, 8, 8, 32, True), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct(mask.shape, jnp.float32)
    assert ops.find_kernel("spab").unsupported_reason(*operands, mask) is None


@pytest.mark.parametrize(
    "capability, is_supported", [("8.0", False), ("gfx90a", False), ("9.0", True), ("10.3", True)]
)
def test_hopper_is_the_oldest_supported_device(monkeypatch, capability, is_supported):
    gpu = SimpleNamespace(device_kind="a GPU", compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    reason = unsupported_reason()
    assert is_supported == (reason is None)
    assert is_supported or ("9.0" in reason and capability in reason)


def test_wgmma_kernels_need_hopper_itself(monkeypatch):
    for capability in ("9.0", "10.0"):
        gpu = SimpleNamespace(device_kind="a GPU", compute_capability=capability)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda gpu=gpu: [gpu])
        reasons = unsupported_reason(), unsupported_reason("spab")
    assert reasons[0] is None and "9.x (Hopper), this is 10.0" in reasons[1]


@pytest.fixture
def tune(monkeypatch):
    """Return a function that sets the kernel's entry for this device in the tuning table."""

    def set_entry(**entry):
        monkeypatch.setattr(tuning, "_table", lambda: {NAME: {jax.devices()[0].device_kind: entry}})

    return set_entry


def test_untuned_and_slower_kernels_are_disabled(tune):
    assert "not been tuned on cpu" in ops.find_kernel(NAME).disabled_reason()
    tune(speedup=0.9, rows=128)
    assert "slower than the reference on cpu" in ops.find_kernel(NAME).disabled_reason()
    tune(speedup=1.1, rows=256)
    assert ops.find_kernel(NAME).disabled_reason() is None


def test_config_is_the_tuned_one_or_the_first_choices(tune):
    config_space = {"rows": (128, 256), "block_k": (8, 4)}
    assert tuning.get_config(NAME, config_space) == {"rows": 128, "block_k": 8}
    tune(speedup=1.1, rows=256, block_k=4)
    assert tuning.get_config(NAME, config_space) == {"rows": 256, "block_k": 4}


def test_cuda_program_contains_the_kernel_only_when_tuned(tune):
    def has_kernel(height):  # another height each time, because traces are cached
        operands = operand_shapes(NAME, (1, height, 8, 32), jnp.float32)
        traced = jax.jit(lambda *operands: ops.gated_residual(*operands)).trace(*operands)
        return "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()

    before = has_kernel(18)
    tune(speedup=1.1, rows=128)
    assert (before, has_kernel(19)) == (False, True)


def test_forced_kernel_on_a_cpu_names_the_platform():
    with ops.implementation("kernel"), pytest.raises(NotFound, match=r"cuda.*cpu"):
        ops.gated_residual(*operand_arrays(NAME, DIMS, "float32"))


def test_doctor_reports_why_a_kernel_is_not_used(esrjax, monkeypatch):
    reason = esrjax("doctor", "--json").json["kernels"][NAME]
    assert "cuda" in reason and "cpu" in reason
    monkeypatch.setattr(ops, "platform", lambda: "cuda")
    reason = esrjax("doctor", "--json").json["kernels"][NAME]
    assert "cuda" in reason and "not been tuned on cpu: run tools/tune.py" in reason
