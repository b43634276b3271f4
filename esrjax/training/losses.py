"""Image losses: means over batches `(N, h, w, 3)` of values in [0, 1]."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from esrjax.training.recipe import ImageTerm

Loss = Callable[[Array, Array], Array]  # (sr, hr) -> scalar

CHARBONNIER_EPS = 1e-3


def l1(sr: Array, hr: Array) -> Array:
    """Return the mean of `|sr - hr|`."""
    return jnp.mean(jnp.abs(sr - hr))


def mse(sr: Array, hr: Array) -> Array:
    """Return the mean of `(sr - hr)²`."""
    return jnp.mean(jnp.square(sr - hr))


def charbonnier(sr: Array, hr: Array) -> Array:
    """Return the mean of `√((sr - hr)² + ε²)`, ε = 1e-3 (Lai et al., LapSRN, CVPR 2017, Eq. 4)."""
    return jnp.mean(jnp.sqrt(jnp.square(sr - hr) + CHARBONNIER_EPS**2))


def fft(sr: Array, hr: Array) -> Array:
    """Return the mean of `(|Re| + |Im|) / 2` of the unnormalized 2-D FFT of `sr - hr`."""
    spectrum = jnp.fft.rfft2(sr - hr, axes=(1, 2))
    return (jnp.mean(jnp.abs(spectrum.real)) + jnp.mean(jnp.abs(spectrum.imag))) / 2


def gradient(sr: Array, hr: Array) -> Array:
    """Return the mean of `|∇(sr - hr)|`: vertical plus horizontal finite differences, in L1."""
    error = sr - hr
    rows, columns = jnp.diff(error, axis=1), jnp.diff(error, axis=2)
    return jnp.mean(jnp.abs(rows)) + jnp.mean(jnp.abs(columns))


def laplacian(sr: Array, hr: Array) -> Array:
    """Return the mean of `|Δ(sr - hr)|`, with the 4-neighbour Laplacian and without the border.

    This is the "Laplacian frequency" of MDAP and the edge loss of CUIT HTT (NTIRE 2026 report),
    whose operator and norm are unspecified: ours are the simplest operator, and L1, the norm of
    the term next to it.
    """
    error = sr - hr
    rows = error[:, :-2, 1:-1] + error[:, 2:, 1:-1]
    columns = error[:, 1:-1, :-2] + error[:, 1:-1, 2:]
    return jnp.mean(jnp.abs(rows + columns - 4 * error[:, 1:-1, 1:-1]))


TERMS: Mapping[ImageTerm, Loss] = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
    "fft": fft,
    "gradient": gradient,
    "laplacian": laplacian,
}
