"""What a student learns from a teacher: its picture, and the features of its parts."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax.errors import UserError
from esrjax.network.layers import uniform
from esrjax.training.losses import Loss, l1, laplacian, mse
from esrjax.training.recipe import Lesson

PICTURES: Mapping[Lesson, Loss] = {  # (sr, what the teacher made) -> a number
    "teacher_l1": l1,
    "teacher_mse": mse,
    "teacher_edges": laplacian,
}

_TINY = 1e-12  # the square of a feature vector that counts as none

Widths = tuple[int, int]  # channels of a part of the student, and of the teacher's


class UnlikeFeatures(UserError):
    """Features of student and teacher that cannot be compared pixel by pixel."""


def affinity(ours: Sequence[Array], theirs: Sequence[Array]) -> Array:
    """Mean of `|A - A'|` over pairs of features `(N, h, w, C)` and `(N, h, w, C')`.

    `A (h·w, h·w)` is how alike any two pixels of a picture are: the cosine between their features.
    The report's Eq. 12 (NTIRE 2026, VARH-AI) leaves the scale of A unsaid; cosines do not depend on
    the widths of the networks, and are those of FAKD (He et al., ICIP 2020), whose loss it is. `A`
    is never held whole: its rows are made for one row of pixels at a time, forward and backward.
    """
    _require_alike(ours, theirs)
    return _mean([_affinity(*pair) for pair in zip(ours, theirs, strict=True)])


def _affinity(ours: Array, theirs: Array) -> Array:
    a, b = _directions(ours), _directions(theirs)

    @jax.checkpoint
    def of_row(row: tuple[Array, Array]) -> Array:
        return jnp.mean(jnp.abs(_cosines(row[0], a) - _cosines(row[1], b)))

    return jnp.mean(lax.map(of_row, (a.swapaxes(0, 1), b.swapaxes(0, 1))))


def _directions(features: Array) -> Array:
    """Every pixel's features at length 1; where there are none, the zeros that they are."""
    return features * lax.rsqrt(jnp.square(features).sum(-1, keepdims=True) + _TINY)


def _cosines(row: Array, all_: Array) -> Array:
    """`(N, w, C), (N, h, w, C) -> (N, w, h, w)`."""
    return jnp.einsum("nic,nyxc->niyx", row, all_, precision="highest")


def features(
    ours: Sequence[Array], theirs: Sequence[Array], adapters: Sequence[Array | None]
) -> Array:
    """Mean of `(f·K - f')²` over pairs of features, K the pair's adapter, where it has one.

    Unsaid in the report (NTIRE 2026, MDAP) are the features and how 40 channels meet 28. Ours are
    the taps of the recipe, and a learned 1x1 kernel on the student's side, as in FitNets (Romero et
    al., ICLR 2015): on the teacher's it could learn to agree by forgetting what the teacher said.
    """
    _require_alike(ours, theirs)
    pairs = zip(ours, theirs, adapters, strict=True)
    return _mean([mse(_adapted(f, kernel), taught) for f, taught, kernel in pairs])


def _adapted(features: Array, kernel: Array | None) -> Array:
    if kernel is None:
        return features
    return jnp.einsum("nyxc,cd->nyxd", features, kernel, precision="highest")


def adapters(key: Array, widths: Sequence[Widths]) -> tuple[Array | None, ...]:
    """A kernel `(C, C')` for every pair of widths, as PyTorch starts one; None where they agree."""
    rngs = nnx.Rngs(key)
    return tuple(
        None if student == teacher else uniform(rngs, (student, teacher), student)
        for student, teacher in widths
    )


def _mean(values: Sequence[Array]) -> Array:
    return jnp.mean(jnp.stack(values))


def _require_alike(ours: Sequence[Array], theirs: Sequence[Array]) -> None:
    pairs = [(tuple(f.shape), tuple(g.shape)) for f, g in zip(ours, theirs, strict=True)]
    unlike = [f"{f} and {g}" for f, g in pairs if len(f) != 4 or len(g) != 4 or f[:-1] != g[:-1]]
    if unlike:
        raise UnlikeFeatures(
            f"{len(unlike)} of {len(pairs)} taps cannot be compared: {'; '.join(unlike)}",
            rule="student and teacher have features (N, h, w, C) there, of one size but for C",
            place="teacher.taps",
            remedy="tap parts that work at the same size",
        )
