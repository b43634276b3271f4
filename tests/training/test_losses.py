"""Each loss against a NumPy statement of its own, in value and, by finite differences, in slope."""

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
    """The transform as the two matrices of cosines and sines that it is."""
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
    """The operator as a 3x3 kernel, slid over every place where it fits."""
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    windows = np.lib.stride_tricks.sliding_window_view(sr - hr, (3, 3), (1, 2))
    return np.abs(np.einsum("nyxcij,ij->nyxc", windows, kernel)).mean()


STATEMENTS = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
    "fft": fft,
    "gradient": gradient,
    "laplacian": laplacian,
}


def pictures() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(5)
    return draw.random((2, 6, 8, 3)), draw.random((2, 6, 8, 3))


def test_every_term_has_a_statement():
    assert set(STATEMENTS) == set(losses.TERMS)


@pytest.mark.parametrize("name", STATEMENTS)
def test_value(name):
    sr, hr = pictures()
    with jax.enable_x64(True):
        assert float(losses.TERMS[name](sr, hr)) == pytest.approx(
            STATEMENTS[name](sr, hr), rel=1e-12
        )


@pytest.mark.parametrize("name", STATEMENTS)
def test_slope_by_finite_differences(name):
    sr, hr = pictures()
    way = np.random.default_rng(6).standard_normal(sr.shape)
    step = 1e-6
    statement = STATEMENTS[name]
    expected = (statement(sr + step * way, hr) - statement(sr - step * way, hr)) / (2 * step)
    with jax.enable_x64(True):
        slope = np.sum(np.asarray(jax.grad(losses.TERMS[name])(sr, hr)) * way)
    assert slope == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", STATEMENTS)
def test_equal_pictures_cost_nothing_and_finite_slopes(name):
    sr, _ = pictures()
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(losses.TERMS[name])(sr, sr)
    assert float(value) == pytest.approx(1e-3 if name == "charbonnier" else 0.0, abs=1e-12)
    assert np.isfinite(np.asarray(slope)).all()
