"""Two methods of a handful of parameters and their ensemble, as a third-party package defines
them.
"""

import jax.numpy as jnp
import optax
from flax import nnx

from esrjax.evaluation.metrics import MetricSpec
from esrjax.method import Ensemble, Member, Method
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, param

AUTHORS = {"team": "Bakery", "paper": "unpublished", "license": "MIT"}


class Crumb(nnx.Module):
    """A depthwise 3x3 filter, then nearest-neighbour upsampling."""

    def __init__(self, *, rngs: nnx.Rngs, kernel_size: int = 3, scale: int = 4):
        self.scale = scale
        self.filter = Conv2d(3, 3, kernel_size, groups=3, rngs=rngs)

    def __call__(self, x):
        return pixel_shuffle(jnp.repeat(self.filter(x), self.scale**2, -1), self.scale)


class Loaf(nnx.Module):
    """Contrast about the mean color of the whole image, then nearest-neighbour upsampling."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.gain = param(jnp.ones(3))

    def __call__(self, x):
        mean = x.mean((1, 2), keepdims=True)
        contrast = mean + self.gain[...][None, None, None, :] * (x - mean)
        return pixel_shuffle(jnp.repeat(contrast, 16, -1), 4)


CRUMB = Method(
    network=Crumb, scales=(2, 4), min_side=6, pretrained="crumbs:crumb.safetensors", **AUTHORS
)
LOAF = Method(network=Loaf, needs_full_image=True, pretrained="crumbs:loaf.safetensors", **AUTHORS)
CRUMBS = Ensemble(
    members={"crumb": Member(self_ensemble=True, weight=3.0), "loaf": Member()},
    description="Three quarters of crumb with x8 self-ensemble, and a quarter of loaf.",
    **AUTHORS,
)


def blurred_l1(sr, hr):
    """Return the mean absolute error of 2x2 means: a loss of this package."""
    error = sr - hr
    mean = (
        error[:, ::2, ::2] + error[:, 1::2, ::2] + error[:, ::2, 1::2] + error[:, 1::2, 1::2]
    ) / 4
    return jnp.mean(jnp.abs(mean))


def sign_sgd(cfg, lr_schedule):
    """Return the optimizer signSGD of this package."""
    return optax.sign_sgd(lr_schedule)


BORDER1 = MetricSpec("border1", "nobody", crop_border=1)
