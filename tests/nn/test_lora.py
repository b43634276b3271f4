"""LoRA: no effect at first, updates in PyTorch's memory order, merged into the deploy form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.errors import RecipeError
from esrjax.nn.layers import Conv2d
from esrjax.nn.lora import LoRAConv2d, add_lora
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, cast, named_parameters, to_state_dict


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def random_array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def adapter(rank=2, alpha=6.0, **options):
    conv = Conv2d(4, 8, options.pop("kernel_size", 3), rngs=nnx.Rngs(0), **options)
    return cast(LoRAConv2d(conv, rank=rank, alpha=alpha, rngs=nnx.Rngs(1)), jnp.float64)


def with_random_updates(net):
    """Return a copy of `net` with random `lora_B`, which are 0 at first."""
    net = nnx.clone(net)
    for path, leaf in named_parameters(net):
        if path.endswith("lora_B"):
            leaf.set_value(random_array(*leaf.get_value().shape))
    return net


def test_new_adapter_changes_nothing():
    conv = adapter()
    np.testing.assert_array_equal(conv.effective_weight(), conv.weight[...])
    assert np.ptp(conv.lora_A[...]) > 0


def test_update_is_the_matmul_in_pytorchs_memory_order():
    rank, out_channels, in_channels, k = 2, 8, 4, 3
    conv = with_random_updates(adapter(rank=rank, alpha=6.0))
    product = np.asarray(conv.lora_B[...] @ conv.lora_A[...])
    assert product.shape == (out_channels * k, in_channels * k)
    update = np.asarray(conv.effective_weight() - conv.weight[...])
    for o, i, u, v in [(0, 0, 0, 0), (0, 1, 2, 0), (3, 2, 1, 2), (7, 3, 2, 2)]:
        row, column = divmod((i * k + u) * k + v, in_channels * k)
        expected = 6.0 / rank * product[o * k + row, column]
        np.testing.assert_allclose(update[u, v, i, o], expected, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [dict(), dict(groups=2), dict(stride=2), dict(dilation=2), dict(bias=False, padding=0),
     dict(kernel_size=(1, 3)), dict(kernel_size=1)],
)  # fmt: skip
def test_adapter_merges_into_a_plain_convolution(options):
    conv = with_random_updates(adapter(**options))
    merged, x = deploy(conv), random_array(1, 7, 8, 4)
    assert type(merged) is Conv2d
    np.testing.assert_allclose(merged(x), conv(x), rtol=0, atol=1e-11)
    assert not np.allclose(merged.weight[...], conv.weight[...])


def test_adapters_merge_inside_of_reparameterized_blocks():
    net = cast(registry.get_entry("span").build(channels=4), jnp.float64)
    target_modules = ["block_?.c1.conv.1", "conv_cat", "upsampler.0"]
    net = with_random_updates(add_lora(net, target_modules, rank=1, alpha=1, rngs=nnx.Rngs(2)))
    x = jnp.abs(random_array(1, 5, 6, 3))
    y = net(x)
    assert sum(path.endswith("lora_A") for path, _ in named_parameters(net)) == 8
    np.testing.assert_allclose(deploy(net)(x), y, rtol=0, atol=1e-9 * float(jnp.ptp(y)))


def test_add_lora_keeps_names_and_does_not_change_its_argument():
    net = registry.get_entry("span").build(channels=4)
    before = to_state_dict(net, KeyMap({}))
    after = to_state_dict(
        add_lora(net, ["conv_cat"], rank=1, alpha=1, rngs=nnx.Rngs(2)), KeyMap({})
    )
    assert set(after) - set(before) == {"conv_cat.lora_A", "conv_cat.lora_B"}
    assert set(to_state_dict(net, KeyMap({}))) == set(before)


def test_unmatched_target_module_is_reported():
    net = registry.get_entry("span").build(channels=4)
    with pytest.raises(RecipeError, match="'blok_1' matches no convolution"):
        add_lora(net, ["conv_cat", "blok_1"], rank=1, alpha=1, rngs=nnx.Rngs(2))
