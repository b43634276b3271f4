"""Comparison of a JAX network with a live PyTorch network: outputs, modules, gradients, PSNR.

`jax_*` names values of JAX and optax, `torch_*` those of PyTorch; arrays are in PyTorch's layout
(N, C, H, W) and under PyTorch's names. The architecture, gradients and optimizer steps are compared
in float64, where rounding cannot hide an error, and the network as it is used in float32, with the
kernels that users get.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax import registry
from esrjax.data.datasets import Pair, lr_source
from esrjax.errors import TorchModelError, list_some
from esrjax.evaluation import upscale
from esrjax.evaluation.metrics import NTIRE, psnr
from esrjax.interop import array_diff, torch_model, torch_optim, trace
from esrjax.interop.array_diff import Array, ArrayDiff, Comparison, Implementation, OptimizerPair
from esrjax.interop.torch_model import TorchModel
from esrjax.interop.trace import LayerReport
from esrjax.loading import load_network
from esrjax.method import Form, Method
from esrjax.nn.checkpoint_io import Checkpoint, StateDict
from esrjax.nn.compilation import FAST_COMPILE, jit
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, cast, named_parameters, perturb_weights, to_state_dict

NhwcForward = Callable[[Any], Any]  # (N, h, w, 3) -> (N, s·h, s·w, 3), in [0, data_range]

MIN_SIDE = 16  # smallest side of the random inputs, LR pixels
INPUT_NAMES = ("image", "noise")
# A network may amplify rounding beyond FLOAT32_RTOL, most of all for noise. PyTorch's own distance
# between float32 and float64 measures that, and this multiple of it is tolerated.
ROUNDING_FACTOR = 10
WEIGHT_ROUNDING_RTOL = 8 * float(np.finfo(np.float64).eps)  # of a weight: rounding of `w + update`
GRAD_FLOOR = 1e-3  # of the largest gradient of all: smaller gradients are compared with this
MAX_PSNR_DIFF_MDB = 1.0  # largest difference of the mean PSNR that passes, mdB

_float64_diff = functools.partial(ArrayDiff.of, precision="float64")


# --- the two networks ---


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelPair:
    """A JAX and a PyTorch network with the same weights.

    Attributes:
        name: Name of the method.
        method: The method.
        jax_net: The nnx network, in eval mode.
        form: Its form, "train" or "deploy".
        torch_model: The PyTorch network, in eval mode.
    """

    name: str
    method: Method
    jax_net: nnx.Module
    form: Form
    torch_model: TorchModel

    @property
    def key_map(self) -> KeyMap:
        """Map between nnx paths and PyTorch's names."""
        return KeyMap(self.method.torch_names)


def load_pair(
    name: str, model: TorchModel, hparams: Mapping[str, Any], checkpoint: Checkpoint
) -> ModelPair:
    """Load a checkpoint into both networks; it determines the JAX network's form.

    Args:
        name: Name of the method.
        model: The PyTorch network.
        hparams: Hyperparameters of the JAX network.
        checkpoint: The weights.

    Raises:
        UserError: If the weights do not fit one of the networks.
    """
    method = registry.get_method(name)
    loaded = load_network(name, method, checkpoint, hparams)
    torch_model.load_state_dict(
        model, loaded.checkpoint.state_dict, method.unused_torch_keys, str(checkpoint.path)
    )
    return ModelPair(
        name=name, method=method, jax_net=loaded.net, form=loaded.form, torch_model=model
    )


def random_pair(name: str, model: TorchModel, hparams: Mapping[str, Any], seed: int) -> ModelPair:
    """Give both networks random weights; the JAX network has the form that fits PyTorch's keys.

    Args:
        name: Name of the method.
        model: The PyTorch network.
        hparams: Hyperparameters of the JAX network.
        seed: Seed of the weights.

    Raises:
        UserError: If the PyTorch network has other weights than the JAX network in either form.
    """
    method = registry.get_method(name)
    net = perturb_weights(method.build(seed=seed, **hparams), seed=seed)
    net.eval()
    nets: dict[Form, nnx.Module] = {"deploy": deploy(net), "train": net}
    key_map, optional_keys = KeyMap(method.torch_names), method.unused_torch_keys
    state_dicts = {form: to_state_dict(net, key_map) for form, net in nets.items()}

    def num_mismatches(form: Form) -> int:
        return len(torch_model.state_dict_mismatches(model, state_dicts[form], optional_keys))

    form = min(nets, key=num_mismatches)
    location = f"random weights of {name} in {form} form"
    torch_model.load_state_dict(model, state_dicts[form], optional_keys, location)
    return ModelPair(name=name, method=method, jax_net=nets[form], form=form, torch_model=model)


def draw_inputs(method: Method, seed: int) -> Array:
    """Return a random smooth image with an edge, and white noise.

    Args:
        method: The method; its `min_side` and `data_range` apply.
        seed: Seed of the random numbers.

    Returns:
        `(2, h, w, 3)`, float32, values k / 255 · `data_range`.
    """
    side = max(MIN_SIDE, method.min_side)
    height, width = side + 5, side + 13  # differ from each other and from most channel counts
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


# --- the whole comparison ---


@dataclass(frozen=True, kw_only=True)
class QualityComparison:
    """Results of both networks on a dataset.

    Attributes:
        spec: Name of the metric spec.
        num_images: Number of images.
        jax_psnr: Mean PSNR of the JAX network, dB.
        torch_psnr: Mean PSNR of the PyTorch network, dB.
        num_changed_u8: uint8 values of the SR images that differ.
        num_values: All uint8 values of the SR images.
        lr_source: Where the LR images come from, see `datasets.lr_source`.
        notes: Name of a pair -> what reading its images has changed.
    """

    spec: str
    num_images: int
    jax_psnr: float
    torch_psnr: float
    num_changed_u8: int
    num_values: int
    lr_source: str
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def diff_mdb(self) -> float:
        """JAX's mean PSNR minus PyTorch's, mdB."""
        return 1000 * (self.jax_psnr - self.torch_psnr) if self.jax_psnr != self.torch_psnr else 0.0

    @property
    def passed(self) -> bool:
        """Whether the mean PSNR differs by at most `MAX_PSNR_DIFF_MDB`; NaN does not pass."""
        return abs(self.diff_mdb) <= MAX_PSNR_DIFF_MDB

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, `diff_mdb` and `passed` in plain types, for JSON."""
        return {**vars(self), "diff_mdb": self.diff_mdb, "passed": self.passed}


@dataclass(frozen=True, kw_only=True)
class LiveComparison(Comparison):
    """Results of comparing a JAX network with a live PyTorch network.

    `diffs` are those of outputs in float64 and float32, gradients, weights after optimizer steps.

    Attributes:
        form: Form of the JAX network, "train" or "deploy".
        layers: Comparison of all modules, in float64.
        quality: PSNR on a dataset, where one was given.
        notes: What was redirected to the CPU or could not be compared.
    """

    form: Form
    layers: LayerReport
    quality: QualityComparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def checks(self) -> dict[str, bool]:
        """Name of every check, and whether it passed."""
        checks = {f"{diff.name}, {diff.precision}": diff.passed for diff in self.diffs}
        checks["layers"] = self.layers.first_divergence is None
        return checks if self.quality is None else {**checks, "quality": self.quality.passed}

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `passed` in plain types, for JSON."""
        quality = self.quality and self.quality.as_dict()
        return {**super().as_dict(), "layers": self.layers.as_dict(), "quality": quality}


def compare(
    pair: ModelPair,
    x: Array,
    optimizers: Sequence[OptimizerPair] = (),
    image_pairs: Sequence[Pair] = (),
    implementation: Implementation = "auto",
) -> LiveComparison:
    """Compare both networks.

    In float64: outputs, inputs and outputs of every module, gradients, and weights after optimizer
    steps. In float32: outputs, and PSNR on a dataset.

    Args:
        pair: The networks.
        x: LR images `(2, h, w, 3)`, float32, from `draw_inputs`.
        optimizers: Optimizers of which steps are compared.
        image_pairs: LR and HR images of a dataset.
        implementation: Implementation of operations in float32; float64 uses the reference.

    Raises:
        TorchModelError: If the PyTorch network's code raises an error, or the outputs have
            different shapes.
    """
    float64_diffs, layers, torch_out = compare_float64(pair, x)
    training_diffs, notes = _compare_training(pair, x, torch_out, optimizers)
    graphdef, state = nnx.split(pair.jax_net)
    run = jit(lambda state, x: nnx.merge(graphdef, state)(x))  # pyright: ignore[reportCallIssue] # networks are callable
    forward = functools.partial(run, state)

    def torch_forward(x: Any) -> Any:
        return np.moveaxis(torch_optim.forward(pair.torch_model, x), 1, -1)

    quality = None
    with array_diff.full_precision(implementation):
        float32_diffs = _compare_float32(pair, forward, x, torch_out)
        if image_pairs:
            quality = compare_quality(forward, torch_forward, pair.method.data_range, image_pairs)
    return LiveComparison(
        method=pair.name,
        form=pair.form,
        diffs=(*float64_diffs, *float32_diffs, *training_diffs),
        layers=layers,
        quality=quality,
        notes=(*sorted(pair.torch_model.notes), *notes),
    )


def compare_float64(pair: ModelPair, x: Array) -> tuple[list[ArrayDiff], LayerReport, Array]:
    """Compare outputs and all modules in float64.

    Args:
        pair: The networks.
        x: LR images `(2, h, w, 3)`.

    Returns:
        Differences of the outputs, comparison of the modules, and PyTorch's output `(2, 3, H, W)`.

    Raises:
        TorchModelError: If the PyTorch network's code raises an error, or the outputs have
            different shapes.
    """
    x = x.astype(np.float64)
    hook_events = torch_optim.record_events(pair.torch_model, x)
    with array_diff.float64_reference():
        jax_calls = trace.record_calls(cast(pair.jax_net, np.float64), x)
    torch_out = hook_events[-1].arrays[0]
    jax_out = array_diff.to_channels_first(jax_calls[trace.ROOT, "out"][0][0])
    if jax_out.shape != torch_out.shape:
        raise TorchModelError(
            f"{pair.torch_model.source.class_name} returns {torch_out.shape}, "
            f"{pair.name} returns {jax_out.shape}",
            rule="both networks upscale an image (N, 3, h, w) by the same factor",
            location=str(pair.torch_model.source.file),
            remedy="check the constructor arguments (--torch-args) and --hparam scale",
        )
    diffs: list[ArrayDiff] = []
    for name, jax_sr, torch_sr in zip(INPUT_NAMES, jax_out, torch_out, strict=True):
        tolerance = array_diff.FLOAT64_RTOL * array_diff.value_range(torch_sr)
        diffs.append(_float64_diff(name, jax_sr, torch_sr, tolerance))
    events = trace.align(hook_events, jax_calls, pair.key_map)
    return diffs, trace.summarize(events, [path for path, _ in jax_calls]), torch_out


def _compare_float32(
    pair: ModelPair, forward: NhwcForward, x: Array, torch_out64: Array
) -> list[ArrayDiff]:
    """Compare outputs in float32; the tolerance grows with PyTorch's own rounding."""
    data_range, model = pair.method.data_range, pair.torch_model
    jax_out = array_diff.to_channels_first(np.asarray(forward(x)))
    images = zip(INPUT_NAMES, jax_out, torch_optim.forward(model, x), torch_out64, strict=True)
    diffs: list[ArrayDiff] = []
    for name, jax_sr, torch_sr, torch_sr64 in images:
        torch_rounding = _max_abs(torch_sr - torch_sr64)
        max_value = max(data_range, array_diff.value_range(torch_sr))
        tolerance = max(array_diff.FLOAT32_RTOL * max_value, ROUNDING_FACTOR * torch_rounding)
        num_changed_u8 = array_diff.count_changed_u8(jax_sr, torch_sr, data_range)
        diffs.append(ArrayDiff.of(name, jax_sr, torch_sr, tolerance, num_changed_u8=num_changed_u8))
    return diffs


def compare_quality(
    jax_forward: NhwcForward, torch_forward: NhwcForward, data_range: float, pairs: Sequence[Pair]
) -> QualityComparison:
    """Score both networks with the challenge's metric (`metrics.NTIRE`).

    Args:
        jax_forward: The JAX network, `(1, h, w, 3) -> (1, s·h, s·w, 3)`.
        torch_forward: The PyTorch network, likewise.
        data_range: Value of white in both networks.
        pairs: LR and HR images.
    """
    upscalers = [
        upscale.uint8_upscaler(upscale.single_pass(forward, data_range))
        for forward in (jax_forward, torch_forward)
    ]
    psnrs: list[list[float]] = []
    num_changed = num_values = 0
    notes: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        images = pair.read()
        notes |= {pair.name: images.notes} if images.notes else {}
        jax_sr, torch_sr = (upscaler(images.lr) for upscaler in upscalers)
        psnrs.append([psnr(sr, images.hr, NTIRE) for sr in (jax_sr, torch_sr)])
        num_changed += int(np.sum(jax_sr != torch_sr))
        num_values += jax_sr.size
    jax_mean, torch_mean = np.mean(psnrs, axis=0)
    return QualityComparison(
        spec=NTIRE.name,
        num_images=len(pairs),
        jax_psnr=float(jax_mean),
        torch_psnr=float(torch_mean),
        num_changed_u8=num_changed,
        num_values=num_values,
        lr_source=lr_source(pairs),
        notes=notes,
    )


# --- gradients and optimizer steps ---


def _compare_training(
    pair: ModelPair, x: Array, torch_out: Array, optimizers: Sequence[OptimizerPair]
) -> tuple[list[ArrayDiff], list[str]]:
    """Compare gradients and optimizer steps; return notes on weights without PyTorch gradients."""
    x, key_map = x.astype(np.float64), pair.key_map
    target = np.random.RandomState(1).random_sample(torch_out.shape) * pair.method.data_range
    torch_grads = torch_optim.gradients(pair.torch_model, x, target)
    with array_diff.float64_reference():
        jax_net = cast(pair.jax_net, np.float64)
        jax_grads = jax_gradients(jax_net, key_map, x, target)
        diffs = compare_gradients(jax_grads, torch_grads)
        for optimizer in optimizers:
            diffs += compare_optimizer(to_state_dict(jax_net, key_map), torch_grads[1], optimizer)
    params = [path for path, var in named_parameters(jax_net) if isinstance(var, nnx.Param)]
    jax_only = sorted(set(map(key_map.to_torch, params)) - set(torch_grads[1]))
    uncompared = [key for key in jax_only if jax_grads[1][key].any()]
    note = f"PyTorch has no gradient for {list_some(uncompared, 3)}: not compared"
    return diffs, [note] if uncompared else []


def jax_gradients(
    net: nnx.Module, key_map: KeyMap, x: Array, target: Array
) -> tuple[Array, StateDict]:
    """Return JAX's gradients of the mean squared error with respect to input and weights.

    Args:
        net: The network.
        key_map: Maps nnx paths to PyTorch's names.
        x: LR images `(N, h, w, 3)`.
        target: HR images `(N, 3, H, W)`.

    Returns:
        Gradients of the input `(N, 3, h, w)` and of the weights, in PyTorch's layout and names.
    """
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def loss(params: Any, x: Any, rest: Any, target: Any) -> Any:
        y = nnx.merge(graphdef, params, rest)(x)  # pyright: ignore[reportCallIssue] # networks are callable
        return jnp.square(y - target).mean()

    run = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=FAST_COMPILE)
    params_grad, x_grad = run(params, x, rest, np.moveaxis(target, 1, -1))
    # `rest` (batch statistics) has values here, not gradients; PyTorch has none for them, so that
    # `compare_gradients` skips them.
    grads = nnx.merge(graphdef, params_grad, rest)
    return array_diff.to_channels_first(np.asarray(x_grad)), to_state_dict(grads, key_map)


def compare_gradients(
    jax_grads: tuple[Array, StateDict], torch_grads: tuple[Array, StateDict]
) -> list[ArrayDiff]:
    """Compare the input's gradient, and the gradients of all weights that both sides have.

    Args:
        jax_grads: JAX's gradients of input and weights, from `jax_gradients`.
        torch_grads: PyTorch's, from `torch_optim.gradients`.

    Returns:
        The difference of the input's gradient; and, if there are common weights, that of the
        weight with the largest ratio of difference to tolerance.
    """
    (jax_x_grad, jax_params), (torch_x_grad, torch_params) = jax_grads, torch_grads
    rtol = array_diff.FLOAT64_RTOL
    max_grads = {key: _max_abs(grad) for key, grad in torch_params.items()}
    floor = GRAD_FLOOR * max(max_grads.values(), default=0.0)
    tolerances = {key: rtol * max(max_grad, floor) for key, max_grad in max_grads.items()}
    return [
        _float64_diff("gradient, input", jax_x_grad, torch_x_grad, rtol * _max_abs(torch_x_grad)),
        *_worst_diff("gradient, weights", jax_params, torch_params, tolerances),
    ]


def compare_optimizer(
    weights: StateDict, grads: StateDict, optimizer: OptimizerPair
) -> list[ArrayDiff]:
    """Compare the weights after the same optimizer steps in optax and `torch.optim`.

    Both sides use the same gradients, so that a wrong gradient is not reported twice.

    Args:
        weights: Weights before the steps, float64, in PyTorch's layout.
        grads: Their gradients; weights without one are skipped.
        optimizer: The optimizer in both frameworks.

    Returns:
        The difference of the weight with the largest ratio of difference to tolerance; an empty
        list if the optimizer updates none of the weights, or this PyTorch does not have it.
    """
    params = {
        key: value
        for key, value in weights.items()
        if key in grads and (value.ndim == 2 or not optimizer.only_2d)
    }
    if not params or not torch_optim.has_optimizer(optimizer.torch_name):
        return []
    jax_params = _optax_steps(params, grads, optimizer)
    torch_params = torch_optim.optimizer_steps(optimizer, params, grads)
    max_step = max(_max_abs(torch_params[key] - params[key]) for key in params)
    tolerances = {
        key: array_diff.FLOAT64_RTOL * max_step + WEIGHT_ROUNDING_RTOL * _max_abs(weight)
        for key, weight in torch_params.items()
    }
    name = f"weights after {optimizer.torch_name}"
    return _worst_diff(name, jax_params, torch_params, tolerances)


def _optax_steps(weights: StateDict, grads: StateDict, optimizer: OptimizerPair) -> StateDict:
    """Return the weights after the steps of optax."""
    params: dict[str, Any] = {key: jnp.asarray(value) for key, value in weights.items()}
    update: Any = optimizer.optax_tx.update  # typed as a Protocol over pytrees
    opt_state = optimizer.optax_tx.init(params)
    for scale in optimizer.grad_scales:
        scaled_grads = {key: jnp.asarray(scale * grads[key]) for key in params}
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int and float
            updates, opt_state = update(scaled_grads, opt_state, params)
        params = {key: value + updates[key] for key, value in params.items()}
    return {key: np.asarray(value) for key, value in params.items()}


def _worst_diff(
    name: str, jax_values: StateDict, torch_values: StateDict, tolerances: Mapping[str, float]
) -> list[ArrayDiff]:
    """Return the largest difference relative to its tolerance, of the keys that both have."""
    diffs = [
        _float64_diff(name, jax_values[key], value, tolerances[key], worst_key=key)
        for key, value in torch_values.items()
        if key in jax_values
    ]
    ratios = [array_diff.ratio(diff.max_abs_diff, diff.tolerance) for diff in diffs]
    return [diffs[ratios.index(max(ratios))]] if diffs else []


def _max_abs(array: Array) -> float:
    return float(np.abs(array).max())
