"""What a training minimises: named terms, means over pictures `(N, h, w, 3)`, white at 1."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from esrjax.training.recipe import Term

Loss = Callable[[Array, Array], Array]  # (sr, hr) -> a number

CHARBONNIER_EPS = 1e-3


def l1(sr: Array, hr: Array) -> Array:
    """Mean of `|sr - hr|`."""
    return jnp.mean(jnp.abs(sr - hr))


def mse(sr: Array, hr: Array) -> Array:
    """Mean of `(sr - hr)²`."""
    return jnp.mean(jnp.square(sr - hr))


def charbonnier(sr: Array, hr: Array) -> Array:
    """Mean of `√((sr - hr)² + ε²)` with ε = 1e-3 (Lai et al., LapSRN, CVPR 2017, Eq. 4)."""
    return jnp.mean(jnp.sqrt(jnp.square(sr - hr) + CHARBONNIER_EPS**2))


def fft(sr: Array, hr: Array) -> Array:
    """Mean of `|Re| + |Im|`, halved, of the spectrum of `sr - hr`: rows and columns, unscaled."""
    spectrum = jnp.fft.rfft2(sr - hr, axes=(1, 2))
    return (jnp.mean(jnp.abs(spectrum.real)) + jnp.mean(jnp.abs(spectrum.imag))) / 2


def gradient(sr: Array, hr: Array) -> Array:
    """Mean of `|∂(sr - hr)|`, differences of neighbours in a row and in a column."""
    error = sr - hr
    rows, columns = jnp.diff(error, axis=1), jnp.diff(error, axis=2)
    return jnp.mean(jnp.abs(rows)) + jnp.mean(jnp.abs(columns))


TERMS: Mapping[Term, Loss] = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
    "fft": fft,
    "gradient": gradient,
}


def weighted(weights: Mapping[Term, float]) -> Loss:
    """The sum of the terms, each times its weight."""

    def loss(sr: Array, hr: Array) -> Array:
        return sum((w * TERMS[name](sr, hr) for name, w in weights.items()), jnp.zeros(()))

    return loss
