"""`ModelPair`, two networks, and `Draw`, weights and images on which they are compared.

Random weights as networks are initialized hide mistakes: biases of 0, scales of 1, a squeeze layer
whose outputs are all negative before a ReLU, a sigmoid that is saturated. Here every convolution
and linear layer is scaled and shifted, from the first to the last, so that each of its outputs has
a standard deviation near 1 and a mean within it (layer-sequential unit variance,
arXiv:1511.06422).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax import registry
from esrjax.interop import torch_model
from esrjax.interop.array_diff import Array
from esrjax.interop.torch_model import TorchModel
from esrjax.loading import LoadedNetwork, load_network
from esrjax.method import Form, Method
from esrjax.nn import ops
from esrjax.nn.checkpoint_io import Checkpoint, StateDict
from esrjax.nn.compilation import FAST_COMPILE
from esrjax.nn.hooks import with_hooks
from esrjax.nn.layers import Conv2d, Linear
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, perturb_weights, to_state_dict

MIN_SIDE = 16  # smallest side of the random images, LR pixels
IMAGE_NAMES = ("image", "noise")
NUM_RANDOM_DRAWS = 3
PERTURBATION = 0.1  # standard deviation of the noise on weights that no layer is calibrated by
MAX_SHIFT = 0.4  # largest mean of an output, in its standard deviations

_AFFINE_LAYERS = (Conv2d, Linear, nnx.Conv, nnx.Linear)


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """Weights of one comparison, and the seed of its images.

    Attributes:
        name: "checkpoint", or "seed N".
        net: The JAX network with these weights, in eval mode and in the form that the PyTorch
            network has in eval mode.
        train_net: The JAX network in the form that the PyTorch network has in train mode.
        state_dict: The weights of both, in PyTorch's layout and names.
        seed: Seed of the images.
    """

    name: str
    net: nnx.Module
    train_net: nnx.Module
    state_dict: StateDict
    seed: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        draw: Its weights and seed.
        image_size: LR size (h, w).
        training: Whether both networks are in train mode.
    """

    draw: Draw
    image_size: tuple[int, int]
    training: bool = False

    def net(self) -> nnx.Module:
        """Return a copy of the JAX network, in its mode."""
        net = nnx.clone(self.draw.train_net if self.training else self.draw.net)
        net.train() if self.training else net.eval()
        return net

    def __str__(self) -> str:
        height, width = self.image_size
        return f"{self.draw.name}, {height}x{width}" + ", train mode" * self.training


# --- images ---


def image_sizes(method: Method) -> tuple[tuple[int, int], ...]:
    """Return two LR sizes (h, w): wide with odd sides, and high with even sides.

    The sides differ from each other and from most channel counts, so that axes cannot be confused;
    they are and are not multiples of usual windows, so that padding takes part.
    """
    side = max(MIN_SIDE, method.min_side)
    return (side + 1, side + 7), (side + 8, side + 2)


def draw_images(method: Method, seed: int, image_size: tuple[int, int]) -> Array:
    """Return a random smooth image with an edge, and white noise: `IMAGE_NAMES`.

    Args:
        method: The method; its `data_range` applies.
        seed: Seed of the random numbers.
        image_size: LR size (h, w).

    Returns:
        `(2, h, w, 3)`, float32, values k / 255 · `data_range`. With two images the outputs of
        global pooling vary too.
    """
    height, width = image_size
    rng = np.random.RandomState(seed)  # the only generator whose stream NumPy guarantees
    rows, columns = np.mgrid[:height, :width][..., None]
    waves = sum(
        np.sin(freq_y * rows + freq_x * columns + rng.uniform(0, 2 * np.pi, 3))
        for freq_y, freq_x in rng.uniform(-0.6, 0.6, (6, 2))
    )
    edge = rows + 2 * columns > height + width / 2
    image = np.rint(255 * np.clip(0.5 + waves / 12 + 0.2 * edge, 0, 1))
    noise = rng.randint(0, 256, image.shape)
    return np.stack([image, noise]).astype(np.float32) / np.float32(255 / method.data_range)


# --- weights ---


def random_net(method: Method, hparams: Mapping[str, Any], seed: int) -> nnx.Module:
    """Return a network in train form, in eval mode, whose random weights use every unit.

    Weights that no layer is calibrated by are the initial ones plus noise.

    Args:
        method: The method.
        hparams: Its hyperparameters.
        seed: Seed of the weights.

    Returns:
        The network. Factors are powers of two and biases multiples of 1/64, so that rounding on
        another CPU gives the same weights.
    """
    net = perturb_weights(method.build(seed=seed, **hparams), PERTURBATION, seed=seed)
    net.eval()
    rng = np.random.RandomState(seed)
    layers: dict[str, tuple[nnx.Param[Any], nnx.Param[Any] | None]] = {}  # kernel, bias
    means: dict[str, Array | None] = {}
    images = draw_images(method, seed, image_sizes(method)[0])
    called = _called_modules(net, images)
    for path, module in nnx.iter_modules(net):
        name = ".".join(map(str, path))
        if isinstance(module, _AFFINE_LAYERS) and name in called:
            kernel, bias = layers[name] = _weights(module)
            value = kernel.get_value()
            stddev = np.prod(value.shape[:-1]) ** -0.5  # keeps the variance of the input
            kernel.set_value(jnp.asarray(stddev * rng.standard_normal(value.shape), value.dtype))
            means[name] = None
            if bias is not None:
                means[name] = rng.uniform(-MAX_SHIFT, MAX_SHIFT, bias.get_value().shape)
                bias.set_value(jnp.zeros_like(bias.get_value()))
    for path, (factor, shift) in _calibrate(net, images, means).items():
        kernel, bias = layers[path]
        kernel.set_value(kernel.get_value() * jnp.asarray(factor, kernel.get_value().dtype))
        if bias is not None:
            bias.set_value(jnp.asarray(shift, bias.get_value().dtype))
    return net


def _called_modules(net: nnx.Module, images: Array) -> set[str]:
    """Return the paths of the modules that run; of others a function takes the weights alone."""
    paths: set[str] = set()
    hooked: Any = with_hooks(net, lambda path, output: paths.add(path))
    jax.eval_shape(hooked, images)
    return paths


def _weights(layer: Any) -> tuple[nnx.Param[Any], nnx.Param[Any] | None]:
    """Return kernel and bias of a layer of ours or of flax."""
    bias = layer.bias if isinstance(layer.bias, nnx.Param) else None
    return layer.weight if hasattr(layer, "weight") else layer.kernel, bias


def _calibrate(
    net: nnx.Module, images: Array, means: Mapping[str, Array | None]
) -> dict[str, tuple[Array, Array]]:
    """Return factor and shift of every layer that runs.

    They are found in one pass: each layer's output is scaled and shifted before the next layer
    sees it. A layer that runs several times is calibrated by its first call.

    Args:
        net: The network, whose layers have no bias yet.
        images: LR images `(N, h, w, 3)`.
        means: Layer -> wanted mean of every channel in its standard deviations; None of a layer
            without bias, whose shift is 0.
    """
    graphdef, state = nnx.split(net)
    with ops.implementation("reference"):
        results = _calibration_program(graphdef)(state, images, dict(means))
    return jax.tree.map(np.asarray, results)


@functools.lru_cache(maxsize=1)  # the draws of one comparison have the same structure
def _calibration_program(graphdef: Any) -> Callable[..., Any]:
    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(state: Any, x: Any, means: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        results: dict[str, tuple[Any, Any]] = {}

        def normalize(path: str, y: Any) -> Any:
            if path not in means:
                return None
            if path not in results:
                results[path] = _normalization(y, means[path])
            factor, shift = results[path]
            return y * factor + shift.reshape((1,) * (y.ndim - 1) + (-1,))

        with_hooks(nnx.merge(graphdef, state), normalize)(x)  # pyright: ignore[reportCallIssue] # networks are callable
        return results

    return run


def _normalization(y: Any, means: Any) -> tuple[Any, Any]:
    """Return a factor that makes the standard deviation of `y (..., C)` about 1, and a shift."""
    axes = tuple(range(y.ndim - 1))
    stddev = y.std(axes)
    factor = jnp.exp2(jnp.round(-jnp.log2(jnp.maximum(stddev.mean(), 1e-12))))
    if means is None:
        return factor, jnp.zeros_like(stddev)
    return factor, jnp.round(64 * factor * (means.astype(y.dtype) * stddev - y.mean(axes))) / 64


# --- the two networks ---


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelPair:
    """A PyTorch network, and the JAX networks that it is compared with.

    Attributes:
        name: Name of the method.
        method: The method.
        form: Form of the JAX network, "train" or "deploy".
        torch_model: The PyTorch network.
        draws: JAX networks with the weights to compare with.
    """

    name: str
    method: Method
    form: Form
    torch_model: TorchModel
    draws: tuple[Draw, ...]

    @property
    def key_map(self) -> KeyMap:
        """Map between nnx paths and PyTorch's names."""
        return KeyMap(self.method.torch_names)

    def load(self, draw: Draw) -> None:
        """Load the weights of a draw into the PyTorch network.

        Raises:
            TorchModelError: If they do not fit.
        """
        optional_keys = self.method.unused_torch_keys
        location = f"{draw.name}, as {self.name}"
        torch_model.load_state_dict(self.torch_model, draw.state_dict, optional_keys, location)


def make_pair(
    name: str,
    model: TorchModel,
    hparams: Mapping[str, Any],
    checkpoint: Checkpoint | None = None,
    seed: int = 0,
) -> ModelPair:
    """Return the networks with the weights of a checkpoint, if any, and with random weights.

    Args:
        name: Name of the method.
        model: The PyTorch network.
        hparams: Hyperparameters of the JAX network.
        checkpoint: Weights of the first draw. They determine the form of the JAX network.
        seed: Seed of the random weights.

    Raises:
        UserError: If the PyTorch network has other weights than the JAX network in either form, or
            the checkpoint does not fit one of the networks.
    """
    method = registry.get_method(name)
    loaded: LoadedNetwork | None = None
    if checkpoint is not None:
        loaded = load_network(name, method, checkpoint, hparams)
        torch_model.load_state_dict(
            model,
            loaded.checkpoint.state_dict,
            method.unused_torch_keys,
            str(checkpoint.path),
        )
        hparams = loaded.hparams
    seeds = [NUM_RANDOM_DRAWS * seed + i for i in range(NUM_RANDOM_DRAWS)]
    form, draws = _random_draws(method, model, hparams, seeds)
    if loaded is not None:
        draw = Draw(
            name="checkpoint",
            net=loaded.net,
            train_net=loaded.net,
            state_dict=loaded.checkpoint.state_dict,
            seed=seed,
        )
        form, draws = loaded.form, (draw, *draws)
    return ModelPair(name=name, method=method, form=form, torch_model=model, draws=draws)


def _random_draws(
    method: Method, model: TorchModel, hparams: Mapping[str, Any], seeds: Sequence[int]
) -> tuple[Form, tuple[Draw, ...]]:
    """Return random weights, in the forms whose keys fit PyTorch's best, and the form in eval mode.

    A PyTorch network may have both forms: branches in train mode, fused weights in eval mode.
    """
    draws: list[Draw] = []
    forms: tuple[Form, Form] | None = None  # in eval mode and in train mode
    key_map = KeyMap(method.torch_names)
    for seed in seeds:
        net = random_net(method, hparams, seed)
        nets: dict[Form, nnx.Module] = {"deploy": deploy(net), "train": net}
        state_dicts: dict[Form, StateDict] = {
            form: to_state_dict(net, key_map) for form, net in nets.items()
        }
        forms = forms or _forms(method, model, state_dicts)
        draw = Draw(
            name=f"seed {seed}",
            net=nets[forms[0]],
            train_net=nets[forms[1]],
            state_dict=state_dicts[forms[1]] | state_dicts[forms[0]],
            seed=seed,
        )
        draws.append(draw)
    assert forms is not None
    return forms[0], tuple(draws)


def _forms(
    method: Method, model: TorchModel, state_dicts: Mapping[Form, StateDict]
) -> tuple[Form, Form]:
    """Return the forms of the JAX network, in eval and in train mode, that fit PyTorch's keys."""

    def num_mismatches(forms: tuple[Form, Form]) -> int:
        state_dict = state_dicts[forms[0]] | state_dicts[forms[1]]
        optional_keys = {} if forms[0] != forms[1] else method.unused_torch_keys
        return len(torch_model.state_dict_mismatches(model, state_dict, optional_keys))

    choices: list[tuple[Form, Form]] = [
        ("deploy", "train"),
        ("deploy", "deploy"),
        ("train", "train"),
    ]
    return min(choices, key=num_mismatches)
