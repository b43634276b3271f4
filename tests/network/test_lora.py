"""Adapters: nothing at first, then a kernel in PyTorch's order, and nothing left when deployed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.network.layers import Conv2d
from esrjax.network.lora import LoRAConv2d, NothingToAdapt, adapt
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import cast, leaves, tensors


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def adapter(rank=2, alpha=6.0, **options):
    conv = Conv2d(4, 8, options.pop("kernel", 3), rngs=nnx.Rngs(0), **options)
    return cast(LoRAConv2d(conv, rank=rank, alpha=alpha, rngs=nnx.Rngs(1)), jnp.float64)


def moved(net):
    """`net`, its adapters no longer at rest."""
    net = nnx.clone(net)
    for path, leaf in leaves(net):
        if path.endswith("lora_B"):
            leaf.set_value(drawn(*leaf.get_value().shape))
    return net


def test_an_adapter_at_rest_changes_nothing():
    conv = adapter()
    np.testing.assert_array_equal(conv.kernel(), conv.weight[...])
    assert np.ptp(conv.lora_A[...]) > 0


def test_the_product_is_a_kernel_in_memory_order():
    rank, out, wide, k = 2, 8, 4, 3
    conv = moved(adapter(rank=rank, alpha=6.0))
    product = np.asarray(conv.lora_B[...] @ conv.lora_A[...])
    assert product.shape == (out * k, wide * k)
    update = np.asarray(conv.kernel() - conv.weight[...])
    for o, i, u, v in [(0, 0, 0, 0), (0, 1, 2, 0), (3, 2, 1, 2), (7, 3, 2, 2)]:
        row, column = divmod((i * k + u) * k + v, wide * k)
        wanted = 6.0 / rank * product[o * k + row, column]
        np.testing.assert_allclose(update[u, v, i, o], wanted, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [dict(), dict(groups=2), dict(stride=2), dict(dilation=2), dict(bias=False, padding=0),
     dict(kernel=(1, 3)), dict(kernel=1)],
)  # fmt: skip
def test_it_merges_into_an_ordinary_convolution(options):
    conv = moved(adapter(**options))
    merged, x = deploy(conv), drawn(1, 7, 8, 4)
    assert type(merged) is Conv2d
    np.testing.assert_allclose(merged(x), conv(x), rtol=0, atol=1e-11)
    assert not np.allclose(merged.weight[...], conv.weight[...])


def test_it_merges_inside_of_other_blocks_too():
    net = cast(registry.method("span").build(channels=4), jnp.float64)
    where = ["block_?.c1.conv.1", "conv_cat", "upsampler.0"]
    net = moved(adapt(net, where, rank=1, alpha=1, rngs=nnx.Rngs(2)))
    x = jnp.abs(drawn(1, 5, 6, 3))
    y = net(x)
    assert sum(path.endswith("lora_A") for path, _ in leaves(net)) == 8
    np.testing.assert_allclose(deploy(net)(x), y, rtol=0, atol=1e-9 * float(jnp.ptp(y)))


def test_adapt_keeps_the_names_of_weights_and_leaves_the_network_alone():
    net = registry.method("span").build(channels=4)
    before = tensors(net, Naming({}))
    after = tensors(adapt(net, ["conv_cat"], rank=1, alpha=1, rngs=nnx.Rngs(2)), Naming({}))
    assert set(after) - set(before) == {"conv_cat.lora_A", "conv_cat.lora_B"}
    assert set(tensors(net, Naming({}))) == set(before)


def test_a_glob_that_matches_nothing_is_an_error():
    net = registry.method("span").build(channels=4)
    with pytest.raises(NothingToAdapt, match="'blok_1' matches no convolution"):
        adapt(net, ["conv_cat", "blok_1"], rank=1, alpha=1, rngs=nnx.Rngs(2))
