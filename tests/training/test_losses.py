"""Image losses and their gradients, compared with NumPy references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import registry
from esrjax.errors import RecipeError
from esrjax.training import losses


def l1(sr, hr):
    return np.abs(sr - hr).mean()


def mse(sr, hr):
    return ((sr - hr) ** 2).mean()


def charbonnier(sr, hr):
    return np.sqrt((sr - hr) ** 2 + 1e-6).mean()


def fft(sr, hr):
    """The Fourier transform as two matrix products."""
    _, h, w, _ = sr.shape
    rows = np.exp(-2j * np.pi * np.outer(np.arange(h), np.arange(h)) / h)
    columns = np.exp(-2j * np.pi * np.outer(np.arange(w // 2 + 1), np.arange(w)) / w)
    spectrum = np.einsum("ij,njkc,lk->nilc", rows, sr - hr, columns)
    return (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2


def gradient(sr, hr):
    error = sr - hr
    rows = np.abs(error[:, 1:] - error[:, :-1]).mean()
    return rows + np.abs(error[:, :, 1:] - error[:, :, :-1]).mean()


def laplacian(sr, hr):
    """The operator as a 3x3 kernel, without padding."""
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    windows = np.lib.stride_tricks.sliding_window_view(sr - hr, (3, 3), (1, 2))
    return np.abs(np.einsum("nyxcij,ij->nyxc", windows, kernel)).mean()


REFERENCES = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
    "fft": fft,
    "gradient": gradient,
    "laplacian": laplacian,
}


def make_images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.random((2, 6, 8, 3)), rng.random((2, 6, 8, 3))


def test_every_term_has_a_reference():
    assert set(REFERENCES) == set(registry.component_names(registry.LOSS_GROUP))


@pytest.mark.parametrize("name", REFERENCES)
def test_value(name):
    sr, hr = make_images()
    with jax.enable_x64(True):
        assert float(getattr(losses, name)(sr, hr)) == pytest.approx(
            REFERENCES[name](sr, hr), rel=1e-12
        )


@pytest.mark.parametrize("name", REFERENCES)
def test_gradient_by_finite_differences(name):
    sr, hr = make_images()
    direction = np.random.default_rng(6).standard_normal(sr.shape)
    step = 1e-6
    reference = REFERENCES[name]
    expected = (reference(sr + step * direction, hr) - reference(sr - step * direction, hr)) / (
        2 * step
    )
    with jax.enable_x64(True):
        grad = np.sum(np.asarray(jax.grad(getattr(losses, name))(sr, hr)) * direction)
    assert grad == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_equal_images_have_zero_loss_and_finite_gradients(name):
    sr, _ = make_images()
    with jax.enable_x64(True):
        value, grad = jax.value_and_grad(getattr(losses, name))(sr, sr)
    assert float(value) == pytest.approx(1e-3 if name == "charbonnier" else 0.0, abs=1e-12)
    assert np.isfinite(np.asarray(grad)).all()


# --- Distillation losses and their gradients, compared with NumPy references ---


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
    "affinity": (losses.affinity, affinity),
    "features": (
        lambda s, t: losses.features(s, t, (jnp.asarray(KERNEL), None)),
        lambda s, t: features(s, t, (KERNEL, None)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_distillation_loss_value(name):
    loss, reference = LOSSES[name]
    with jax.enable_x64(True):
        value = float(loss(*make_features()))
    assert value == pytest.approx(reference(*make_features()), rel=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_distillation_gradient_by_finite_differences(name):
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
        grad = jax.grad(lambda k: losses.features(student, teacher, (k, None)))(KERNEL)
    assert np.sum(np.asarray(grad) * direction) == pytest.approx((plus - minus) / 2e-6, rel=1e-6)


def test_affinity_does_not_store_the_matrix():
    """Forward and backward pass of 32 x 32 pixels need less memory than one matrix of 1024²."""
    f = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    grad = jax.jit(jax.grad(lambda s, t: losses.affinity([s], [t])))
    analysis = grad.lower(f, f).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * 1024**2


def test_zero_features_have_finite_gradients():
    zeros = [np.zeros((1, 2, 2, 3))]
    with jax.enable_x64(True):
        value, grad = jax.value_and_grad(losses.affinity)(zeros, zeros)
    assert float(value) == 0 and np.isfinite(np.asarray(grad[0])).all()


def test_image_terms_use_the_losses_of_the_same_name():
    terms = {f"teacher_{name}": getattr(losses, name) for name in ("l1", "mse")}
    terms["teacher_edges"] = losses.laplacian
    assert terms == losses.IMAGE_TERMS


def test_adapters_exist_where_channels_differ():
    kernel, none = losses.init_adapters(jax.random.key(0), [(28, 40), (40, 40)])
    assert none is None and kernel is not None and kernel.shape == (28, 40)
    bound = 28**-0.5
    assert 0.9 * bound < float(jnp.abs(kernel).max()) <= bound


@pytest.mark.parametrize(
    "loss",
    [losses.affinity, lambda s, t: losses.features(s, t, (None, None))],
    ids=["affinity", "features"],
)
def test_features_of_different_sizes_are_reported(loss):
    student = [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))]
    teacher = [np.zeros((2, 4, 4, 3)), np.zeros((2, 2, 2, 3))]
    with pytest.raises(RecipeError) as error:
        loss(student, teacher)
    text = str(error.value)
    assert "1 of 2 taps" in text and "(2, 4, 4, 3) and (2, 2, 2, 3)" in text
    assert "teacher.taps" in text
