"""Each lesson against a NumPy statement of its own, in value and, by differences, in slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.training import distillation, losses

WIDTHS = [(3, 5), (4, 4)]


def maps() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features of student and teacher at two taps, 2 pictures of 3 x 4 pixels."""
    draw = np.random.default_rng(7)
    sides = ([draw.standard_normal((2, 3, 4, pair[i])) for pair in WIDTHS] for i in (0, 1))
    return tuple(sides)  # pyright: ignore[reportReturnType]


def affinity(ours, theirs):
    """Eq. 12: every pair of pixels of every picture, one by one."""
    return np.mean([np.abs(cosines(f) - cosines(g)).mean() for f, g in zip(ours, theirs)])  # noqa: B905


def cosines(features):
    pixels = features.reshape(len(features), -1, features.shape[-1])
    pixels = pixels / np.linalg.norm(pixels, axis=-1, keepdims=True)
    return np.stack([picture @ picture.T for picture in pixels])


def features(ours, theirs, kernels):
    adapted = [f if k is None else np.tensordot(f, k, 1) for f, k in zip(ours, kernels)]  # noqa: B905
    return np.mean([((f - g) ** 2).mean() for f, g in zip(adapted, theirs)])  # noqa: B905


KERNEL = np.random.default_rng(8).standard_normal((3, 5))
LESSONS = {
    "affinity": (distillation.affinity, affinity),
    "features": (
        lambda ours, theirs: distillation.features(ours, theirs, (jnp.asarray(KERNEL), None)),
        lambda ours, theirs: features(ours, theirs, (KERNEL, None)),
    ),
}


@pytest.mark.parametrize("name", LESSONS)
def test_value(name):
    lesson, statement = LESSONS[name]
    with jax.enable_x64(True):
        assert float(lesson(*maps())) == pytest.approx(statement(*maps()), rel=1e-11)


@pytest.mark.parametrize("name", LESSONS)
def test_slope_by_finite_differences(name):
    lesson, statement = LESSONS[name]
    ours, theirs = maps()
    way = [np.random.default_rng(9).standard_normal(f.shape) for f in ours]
    ahead, behind = ([f + s * w for f, w in zip(ours, way, strict=True)] for s in (1e-6, -1e-6))
    expected = (statement(ahead, theirs) - statement(behind, theirs)) / 2e-6
    with jax.enable_x64(True):
        slopes = jax.grad(lesson)(ours, theirs)
    found = sum(np.sum(np.asarray(s) * w) for s, w in zip(slopes, way, strict=True))
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_slope_of_an_adapter_by_finite_differences():
    ours, theirs = maps()
    way = np.random.default_rng(10).standard_normal(KERNEL.shape)
    ahead, behind = (features(ours, theirs, (KERNEL + s * way, None)) for s in (1e-6, -1e-6))
    with jax.enable_x64(True):
        slope = jax.grad(lambda k: distillation.features(ours, theirs, (k, None)))(KERNEL)
    assert np.sum(np.asarray(slope) * way) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)


def test_affinity_holds_no_whole_matrix():
    """Forward and backward of 32 x 32 pixels need less room than one matrix of 1024²."""
    f = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    program = jax.jit(jax.grad(lambda f, g: distillation.affinity([f], [g]))).lower(f, f).compile()
    analysis = program.memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * 1024**2


def test_features_that_are_nothing_have_finite_slopes():
    nothing = [np.zeros((1, 2, 2, 3))]
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(distillation.affinity)(nothing, nothing)
    assert float(value) == 0 and np.isfinite(np.asarray(slope[0])).all()


def test_pictures_are_compared_as_the_terms_of_the_same_kind():
    terms = {f"teacher_{name}": losses.TERMS[name] for name in ("l1", "mse")}
    terms["teacher_edges"] = losses.TERMS["laplacian"]
    assert terms == distillation.PICTURES


def test_adapters_stand_where_widths_differ():
    kernel, none = distillation.adapters(jax.random.key(0), [(28, 40), (40, 40)])
    assert none is None and kernel is not None and kernel.shape == (28, 40)
    bound = 28**-0.5
    assert 0.9 * bound < float(jnp.abs(kernel).max()) <= bound


@pytest.mark.parametrize(
    "lesson",
    [distillation.affinity, lambda f, g: distillation.features(f, g, (None, None))],
    ids=["affinity", "features"],
)
def test_features_of_other_sizes_are_refused(lesson):
    ours = [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))]
    theirs = [np.zeros((2, 4, 4, 3)), np.zeros((2, 2, 2, 3))]
    with pytest.raises(distillation.UnlikeFeatures) as error:
        lesson(ours, theirs)
    text = str(error.value)
    assert "1 of 2 taps" in text and "(2, 4, 4, 3) and (2, 2, 2, 3)" in text
    assert "teacher.taps" in text
