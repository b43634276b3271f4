"""Image losses, distillation losses, and the adapters that match the channels of features.

Image losses are means over batches `(N, h, w, 3)` of values in [0, 1]; distillation losses compare
student and teacher, by their output images or by intermediate features.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax.errors import RecipeError
from esrjax.nn.layers import uniform_init

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


# --- distillation ---

# (sr, teacher_sr) -> scalar
IMAGE_TERMS = {"teacher_l1": l1, "teacher_mse": mse, "teacher_edges": laplacian}

_EPS = 1e-12  # added to squared norms: zero vectors stay zero


def affinity(student: Sequence[Array], teacher: Sequence[Array]) -> Array:
    """Return the mean of `|A - A'|` over pairs of features, A the affinity matrix of an image.

    `A (h·w, h·w)` has the cosine similarity of the features of every two pixels. The report's Eq.
    12 (NTIRE 2026, VARH-AI) leaves the scale of A unspecified; cosines do not depend on the number
    of channels, and are those of FAKD (He et al., ICIP 2020), whose loss it is.

    Args:
        student: Features `(N, h, w, C)` of each tap.
        teacher: Features `(N, h, w, C')` of each tap.

    Returns:
        A scalar.

    Raises:
        RecipeError: Features of a tap differ in N, h or w.
    """
    _check_shapes(student, teacher)
    return jnp.mean(jnp.stack([*map(_affinity, student, teacher)]))


def _affinity(student: Array, teacher: Array) -> Array:
    s, t = _l2_normalize(student), _l2_normalize(teacher)

    # A has (h·w)² entries per image, 1 GiB in float32 for 128x128 pixels. It is computed for one
    # image row at a time, (N, w, h, w): the similarities of the w pixels of that row to all pixels
    # of their image. jax.checkpoint recomputes the slice in the backward pass, since lax.map would
    # save all of them as residuals. All rows have equally many entries, so the mean of their means
    # is the mean over A.
    @jax.checkpoint
    def row_loss(row: tuple[Array, Array]) -> Array:
        return jnp.mean(jnp.abs(_cosine_similarity(row[0], s) - _cosine_similarity(row[1], t)))

    return jnp.mean(lax.map(row_loss, (s.swapaxes(0, 1), t.swapaxes(0, 1))))


def _l2_normalize(features: Array) -> Array:
    """Normalize the features of every pixel to length 1; all-zero features stay zero."""
    return features * lax.rsqrt(jnp.square(features).sum(-1, keepdims=True) + _EPS)


def _cosine_similarity(row: Array, features: Array) -> Array:
    """Return the products of a row with all pixels, `(N, w, C), (N, h, w, C) -> (N, w, h, w)`.

    They are cosines of normalized features. Precision is "highest" because the default on a GPU may
    be TF32, whose rounding would be part of `|A - A'|`.
    """
    return jnp.einsum("nic,nyxc->niyx", row, features, precision="highest")


def features(
    student: Sequence[Array], teacher: Sequence[Array], adapters: Sequence[Array | None]
) -> Array:
    """Return the mean of `(f·K - f')²` over pairs of features, K the adapter of the pair.

    The report (NTIRE 2026, MDAP) leaves unspecified which features are compared and how 40 channels
    are matched to 28. Ours are the taps of the recipe, and a learned 1x1 kernel on the student's
    side, as in FitNets (Romero et al., ICLR 2015): on the teacher's side it could minimize the loss
    by discarding the teacher's information.

    Args:
        student: Features `(N, h, w, C)` of each tap.
        teacher: Features `(N, h, w, C')` of each tap.
        adapters: Kernel `(C, C')` of each tap, None where C = C'.

    Returns:
        A scalar.

    Raises:
        RecipeError: Features of a tap differ in N, h or w.
    """
    _check_shapes(student, teacher)
    adapted = [
        f if kernel is None else jnp.einsum("nyxc,cd->nyxd", f, kernel, precision="highest")
        for f, kernel in zip(student, adapters, strict=True)
    ]
    return jnp.mean(jnp.stack([*map(mse, adapted, teacher)]))


def init_adapters(key: Array, channels: Iterable[tuple[int, int]]) -> tuple[Array | None, ...]:
    """Return the initial adapters of `features`.

    Args:
        key: PRNG key.
        channels: (C, C') of each tap: channels of the student's and of the teacher's features.

    Returns:
        A kernel `(C, C')` for each tap, initialized like a PyTorch convolution; None where C = C'.
    """
    rngs = nnx.Rngs(key)
    return tuple(
        None if student == teacher else uniform_init(rngs, (student, teacher), student)
        for student, teacher in channels
    )


def _check_shapes(student: Sequence[Array], teacher: Sequence[Array]) -> None:
    shapes = [(tuple(f.shape), tuple(g.shape)) for f, g in zip(student, teacher, strict=True)]
    mismatches = [
        f"{f} and {g}" for f, g in shapes if len(f) != 4 or len(g) != 4 or f[:-1] != g[:-1]
    ]
    if mismatches:
        raise RecipeError(
            f"{len(mismatches)} of {len(shapes)} taps cannot be compared: {'; '.join(mismatches)}",
            rule="student and teacher features are (N, h, w, C), equal in all but C",
            location="teacher.taps",
            remedy="tap submodules that work at the same resolution",
        )
