"""Stochastic depth, and PRNG keys derived from activations so that a network holds no RNG state."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

KEY_BITS = "image key bits"  # name of the saved residual, for `save_keys_policy`


def image_keys(x: Array) -> Array:
    """Return one PRNG key per image of `x (N, ...)`, derived from its values: `(N,)`.

    An image meets the same noise whatever else is in the batch. The bit patterns are summed as
    integers, because a sum of floats depends on its order. Rematerialization may change an
    activation in its last bit and with it the key, so the sums are saved for the backward pass
    instead of being recomputed: `save_keys_policy`.
    """
    values = lax.stop_gradient(x).reshape(len(x), -1).astype(jnp.float32)
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    return jax.vmap(jax.random.key)(checkpoint_name(bits.sum(-1, dtype=jnp.uint32), KEY_BITS))


save_keys_policy = jax.checkpoint_policies.save_only_these_names(KEY_BITS)


class StochasticDepth(nnx.Module):
    """Drop an image's residual branch `x (N, ...)` in training with probability `drop_prob`.

    What is not dropped is scaled by `1 / (1 − drop_prob)`. Source: arXiv:1603.09382, section 3
    (timm: DropPath).
    """

    def __init__(self, drop_prob: float):
        self.drop_prob: float | Array = drop_prob  # an array while `apply_blocks` scans over blocks
        self.deterministic = False

    def __call__(self, x: Array) -> Array:
        if self.deterministic or (isinstance(self.drop_prob, float) and not self.drop_prob):
            return x
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.drop_prob))(image_keys(x))
        keep = keep.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(keep, x / (1 - self.drop_prob), 0)


def drop_path_rates(max_rate: float, num_blocks: int) -> list[float]:
    """Return `num_blocks` rates that rise linearly from 0 to `max_rate`."""
    return [max_rate * i / max(1, num_blocks - 1) for i in range(num_blocks)]
