"""Distillation losses and their gradients, compared with NumPy references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.training import distillation, losses

CHANNELS = [(3, 5), (4, 4)]


def make_features() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features of student and teacher at two taps, 2 images of 3 x 4 pixels."""
    rng = np.random.default_rng(7)
    features = ([rng.standard_normal((2, 3, 4, pair[i])) for pair in CHANNELS] for i in (0, 1))
    return tuple(features)  # pyright: ignore[reportReturnType]


def affinity(student, teacher):
    """Eq. 12, with the full affinity matrix of every image."""
    pairs = zip(student, teacher, strict=True)
    return np.mean([np.abs(cosine_similarity(s) - cosine_similarity(t)).mean() for s, t in pairs])


def cosine_similarity(features):
    pixels = features.reshape(len(features), -1, features.shape[-1])
    pixels = pixels / np.linalg.norm(pixels, axis=-1, keepdims=True)
    return np.stack([image @ image.T for image in pixels])


def features(student, teacher, kernels):
    pairs = zip(student, kernels, strict=True)
    adapted = [s if k is None else np.tensordot(s, k, 1) for s, k in pairs]
    return np.mean([((s - t) ** 2).mean() for s, t in zip(adapted, teacher, strict=True)])


KERNEL = np.random.default_rng(8).standard_normal((3, 5))
LOSSES = {  # name -> (loss, NumPy reference)
    "affinity": (distillation.affinity, affinity),
    "features": (
        lambda s, t: distillation.features(s, t, (jnp.asarray(KERNEL), None)),
        lambda s, t: features(s, t, (KERNEL, None)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value(name):
    loss, reference = LOSSES[name]
    with jax.enable_x64(True):
        value = float(loss(*make_features()))
    assert value == pytest.approx(reference(*make_features()), rel=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_finite_differences(name):
    loss, reference = LOSSES[name]
    student, teacher = make_features()
    direction = [np.random.default_rng(9).standard_normal(f.shape) for f in student]
    plus, minus = (
        [f + eps * d for f, d in zip(student, direction, strict=True)] for eps in (1e-6, -1e-6)
    )
    expected = (reference(plus, teacher) - reference(minus, teacher)) / 2e-6
    with jax.enable_x64(True):
        grads = jax.grad(loss)(student, teacher)
    derivative = sum(np.sum(np.asarray(g) * d) for g, d in zip(grads, direction, strict=True))
    assert derivative == pytest.approx(expected, rel=1e-6)


def test_gradient_of_an_adapter_by_finite_differences():
    student, teacher = make_features()
    direction = np.random.default_rng(10).standard_normal(KERNEL.shape)
    plus, minus = (
        features(student, teacher, (KERNEL + eps * direction, None)) for eps in (1e-6, -1e-6)
    )
    with jax.enable_x64(True):
        grad = jax.grad(lambda k: distillation.features(student, teacher, (k, None)))(KERNEL)
    assert np.sum(np.asarray(grad) * direction) == pytest.approx((plus - minus) / 2e-6, rel=1e-6)


def test_affinity_does_not_store_the_matrix():
    """Forward and backward pass of 32 x 32 pixels need less memory than one matrix of 1024²."""
    f = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    grad = jax.jit(jax.grad(lambda s, t: distillation.affinity([s], [t])))
    analysis = grad.lower(f, f).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * 1024**2


def test_zero_features_have_finite_gradients():
    zeros = [np.zeros((1, 2, 2, 3))]
    with jax.enable_x64(True):
        value, grad = jax.value_and_grad(distillation.affinity)(zeros, zeros)
    assert float(value) == 0 and np.isfinite(np.asarray(grad[0])).all()


def test_image_terms_use_the_losses_of_the_same_name():
    terms = {f"teacher_{name}": losses.TERMS[name] for name in ("l1", "mse")}
    terms["teacher_edges"] = losses.TERMS["laplacian"]
    assert terms == distillation.IMAGE_TERMS


def test_adapters_exist_where_channels_differ():
    kernel, none = distillation.init_adapters(jax.random.key(0), [(28, 40), (40, 40)])
    assert none is None and kernel is not None and kernel.shape == (28, 40)
    bound = 28**-0.5
    assert 0.9 * bound < float(jnp.abs(kernel).max()) <= bound


@pytest.mark.parametrize(
    "loss",
    [distillation.affinity, lambda s, t: distillation.features(s, t, (None, None))],
    ids=["affinity", "features"],
)
def test_features_of_different_sizes_are_reported(loss):
    student = [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))]
    teacher = [np.zeros((2, 4, 4, 3)), np.zeros((2, 2, 2, 3))]
    with pytest.raises(distillation.FeatureShapeMismatch) as error:
        loss(student, teacher)
    text = str(error.value)
    assert "1 of 2 taps" in text and "(2, 4, 4, 3) and (2, 2, 2, 3)" in text
    assert "teacher.taps" in text
