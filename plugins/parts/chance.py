"""Chance in training: drawn from what the network sees, so that it keeps no state of its own."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

SEEN = "seen by chance"


def keys(x: Array) -> Array:
    """A key for every picture of `x (N, ...)`, made of its values: `(N,)`.

    The same picture meets the same noise, whatever was upscaled before or beside it: bits are
    summed, not numbers, whose sum hangs on the order. What is made again for a gradient may differ
    in a bit, so these sums are not made again but kept: `remembered`.
    """
    values = lax.stop_gradient(x).reshape(len(x), -1).astype(jnp.float32)
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    return jax.vmap(jax.random.key)(checkpoint_name(bits.sum(-1, dtype=jnp.uint32), SEEN))


remembered = jax.checkpoint_policies.save_only_these_names(SEEN)


class StochasticDepth(nnx.Module):
    """In training, nothing of a picture's `x (N, ...)` with probability `rate`, else more of it.

    What is left has the same mean. Source: arXiv:1603.09382, section 3.
    """

    def __init__(self, rate: float):
        self.rate: float | Array = rate  # an array where a scan runs over several
        self.deterministic = False

    def __call__(self, x: Array) -> Array:
        if self.deterministic or (isinstance(self.rate, float) and not self.rate):
            return x
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate))(keys(x))
        kept = kept.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(kept, x / (1 - self.rate), 0)


def rising(last: float, count: int) -> list[float]:
    """`count` rates in even steps from 0 to `last`."""
    return [last * i / max(1, count - 1) for i in range(count)]
