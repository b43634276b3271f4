"""Image losses and their gradients, compared with NumPy references."""

import jax
import numpy as np
import pytest

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
    assert set(REFERENCES) == set(losses.TERMS)


@pytest.mark.parametrize("name", REFERENCES)
def test_value(name):
    sr, hr = make_images()
    with jax.enable_x64(True):
        assert float(losses.TERMS[name](sr, hr)) == pytest.approx(
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
        grad = np.sum(np.asarray(jax.grad(losses.TERMS[name])(sr, hr)) * direction)
    assert grad == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_equal_images_have_zero_loss_and_finite_gradients(name):
    sr, _ = make_images()
    with jax.enable_x64(True):
        value, grad = jax.value_and_grad(losses.TERMS[name])(sr, sr)
    assert float(value) == pytest.approx(1e-3 if name == "charbonnier" else 0.0, abs=1e-12)
    assert np.isfinite(np.asarray(grad)).all()
