"""AMCANet's pooled attention head: its strides, and the rows that its pooling ignores."""

import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.amcanet import AMCA, AMCAHead
from flax import nnx


def test_strides_grow_by_four_up_to_sixteen():
    heads = AMCA(12, 6, rngs=nnx.Rngs(0)).heads
    assert [head.stride for head in heads] == [1, 4, 8, 12, 16, 16]


@pytest.mark.parametrize("size, num_seen", [(7, 7), (10, 7), (11, 11), (13, 11)])
def test_rows_after_the_last_pooling_window_are_ignored(size, num_seen):
    head = AMCAHead(4, 2, 4, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).random((1, size, size, 2)), jnp.float32)
    context = head.context(x)
    assert context.shape == x.shape
    np.testing.assert_array_equal(head.context(x.at[:, num_seen:].add(9)), context)
    assert jnp.any(head.context(x.at[:, num_seen - 1].add(9)) != context)
