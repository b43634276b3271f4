"""Two methods of a handful of parameters and their ensemble, as a stranger would write them."""

import jax.numpy as jnp
from flax import nnx

from esrjax.method import Ensemble, Member, Method
from esrjax.network.layers import Conv2d, parameter
from esrjax.network.words import pixel_shuffle

AUTHORS = {"team": "Bakery", "paper": "unpublished", "license": "MIT"}


class Crumb(nnx.Module):
    """A 3x3 filter for each colour, then nearest-neighbour upsampling."""

    def __init__(self, *, rngs: nnx.Rngs, side: int = 3):
        self.filter = Conv2d(3, 3, side, groups=3, rngs=rngs)

    def __call__(self, x):
        return pixel_shuffle(jnp.repeat(self.filter(x), 16, -1), 4)


class Loaf(nnx.Module):
    """Contrast about the mean colour of the whole picture, then nearest-neighbour upsampling."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.gain = parameter(jnp.ones(3))

    def __call__(self, x):
        mean = x.mean((1, 2), keepdims=True)
        contrast = mean + self.gain[...][None, None, None, :] * (x - mean)
        return pixel_shuffle(jnp.repeat(contrast, 16, -1), 4)


CRUMB = Method(network=Crumb, min_side=6, pretrained="crumbs:crumb.safetensors", **AUTHORS)
LOAF = Method(network=Loaf, whole_picture=True, pretrained="crumbs:loaf.safetensors", **AUTHORS)
CRUMBS = Ensemble(
    members={"crumb": Member(self_ensemble=True, weight=3.0), "loaf": Member()},
    card="Crumb over the eight flips and turns, and a quarter of loaf.",
    **AUTHORS,
)
