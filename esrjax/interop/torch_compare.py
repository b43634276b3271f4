"""Comparison of gradients and of optimizer steps between JAX and PyTorch, in float64.

`jax_*` names values of JAX and optax, `torch_*` those of PyTorch; all are in PyTorch's layout and
under PyTorch's names.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.data.datasets import Pair
from esrjax.errors import TorchModelError
from esrjax.evaluation import upscale
from esrjax.evaluation.metrics import NTIRE, psnr
from esrjax.interop import torch_optim, trace
from esrjax.interop.array_diff import (
    FLOAT32_RTOL,
    FLOAT64_RTOL,
    Array,
    ArrayDiff,
    Implementation,
    OptimizerPair,
    count_changed_u8,
    to_channels_first,
)
from esrjax.interop.torch_model import TorchModel
from esrjax.interop.trace import LayerReport, summarize
from esrjax.method import Form, Method
from esrjax.nn import ops
from esrjax.nn.checkpoint_io import StateDict
from esrjax.nn.compilation import FAST_COMPILE, jit
from esrjax.nn.state_dict import KeyMap, cast, named_parameters, to_state_dict

WEIGHT_ROUNDING_RTOL = 8 * float(np.finfo(np.float64).eps)  # of a weight: rounding of `w + update`
GRAD_FLOOR = 1e-3  # of the largest gradient of all: smaller gradients are compared with this


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

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(params: Any, rest: Any, x: Any, target: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            y = nnx.merge(graphdef, params, rest)(x)  # pyright: ignore[reportCallIssue] # networks are callable
            return jnp.square(y - target).mean()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    with jax.default_matmul_precision("highest"):
        params_grad, x_grad = run(params, rest, x, np.moveaxis(target, 1, -1))
    # `rest` (batch statistics) has values here, not gradients; PyTorch has none for them, so that
    # `compare_gradients` skips them.
    return to_channels_first(np.asarray(x_grad)), to_state_dict(
        nnx.merge(graphdef, params_grad, rest), key_map
    )


def compare_gradients(
    jax_grads: tuple[Array, StateDict], torch_grads: tuple[Array, StateDict]
) -> list[ArrayDiff]:
    """Compare the input's gradient, and the gradients of all weights that both sides have.

    Args:
        jax_grads: JAX's gradients of input and weights, from `jax_gradients`.
        torch_grads: PyTorch's, from `pytorch.gradients`.

    Returns:
        The difference of the input's gradient; and, if there are common weights, that of the
        weight with the largest ratio of difference to tolerance.
    """
    torch_x_grad, torch_params_grad = torch_grads
    floor = GRAD_FLOOR * max(
        (np.abs(grad).max() for grad in torch_params_grad.values()), default=0.0
    )
    common = {
        key: (jax_grads[1][key], grad)
        for key, grad in torch_params_grad.items()
        if key in jax_grads[1]
    }
    x_diffs = [_grad_diff("gradient, input", jax_grads[0], torch_x_grad, 0.0)]
    params_diffs = [
        _grad_diff("gradient, weights", *pair, floor, key) for key, pair in common.items()
    ]
    return [*x_diffs, *_worst(params_diffs)]


def trainable_keys(net: nnx.Module, key_map: KeyMap) -> set[str]:
    """Return PyTorch's names of the JAX network's trainable parameters (`nnx.Param`)."""
    return {
        key_map.to_torch(path)
        for path, variable in named_parameters(net)
        if isinstance(variable, nnx.Param)
    }


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
    torch_params = torch_optim.optimizer_step(
        optimizer.torch_name, optimizer.torch_kwargs, params, grads, optimizer.grad_scales
    )
    largest_step = max(np.abs(torch_params[key] - params[key]).max() for key in params)
    diffs = [
        ArrayDiff(
            name=f"weights after {optimizer.torch_name}",
            shape=value.shape,
            max_abs_diff=float(np.abs(jax_params[key] - value).max()),
            tolerance=FLOAT64_RTOL * float(largest_step)
            + WEIGHT_ROUNDING_RTOL * float(np.abs(value).max()),
            precision="float64",
            worst_key=key,
        )
        for key, value in torch_params.items()
    ]
    return _worst(diffs)


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


def _grad_diff(
    name: str, jax_grad: Array, torch_grad: Array, floor: float, worst_key: str | None = None
) -> ArrayDiff:
    return ArrayDiff(
        name=name,
        shape=torch_grad.shape,
        max_abs_diff=float(np.abs(jax_grad - torch_grad).max()),
        tolerance=FLOAT64_RTOL * max(float(np.abs(torch_grad).max()), floor),
        precision="float64",
        worst_key=worst_key,
    )


def _worst(diffs: list[ArrayDiff]) -> list[ArrayDiff]:
    """Return the one with the largest ratio of difference to tolerance; NaN is largest."""

    def ratio(diff: ArrayDiff) -> float:
        value = (
            diff.max_abs_diff / diff.tolerance if diff.tolerance else float(diff.max_abs_diff > 0)
        )
        return np.inf if np.isnan(value) else value

    return [max(diffs, key=ratio)] if diffs else []


# --------------------------------------------------------------------------------------------------
# PSNR of the JAX and the PyTorch network on a dataset, and the uint8 values that differ.
# --------------------------------------------------------------------------------------------------


NhwcForward = Callable[[Any], Any]  # (1, h, w, 3) -> (1, s·h, s·w, 3), in [0, data_range]

MAX_PSNR_DIFF_MDB = 1.0  # largest difference of the mean PSNR that passes, mdB


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
    """

    spec: str
    num_images: int
    jax_psnr: float
    torch_psnr: float
    num_changed_u8: int
    num_values: int

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


def compare_quality(
    jax_forward: NhwcForward, torch_forward: NhwcForward, data_range: float, pairs: Sequence[Pair]
) -> QualityComparison:
    """Score both networks with the challenge's metric (`specs.NTIRE`).

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
    psnrs: list[tuple[float, ...]] = []
    num_changed, num_values = 0, 0
    for pair in pairs:
        lr, hr = pair.load()
        jax_sr, torch_sr = (upscaler(lr) for upscaler in upscalers)
        psnrs.append(tuple(psnr(sr, hr, NTIRE) for sr in (jax_sr, torch_sr)))
        num_changed, num_values = (
            num_changed + int(np.sum(jax_sr != torch_sr)),
            num_values + jax_sr.size,
        )
    jax_mean, torch_mean = np.mean(psnrs, axis=0)
    return QualityComparison(
        spec=NTIRE.name,
        num_images=len(pairs),
        jax_psnr=float(jax_mean),
        torch_psnr=float(torch_mean),
        num_changed_u8=num_changed,
        num_values=num_values,
    )


# --------------------------------------------------------------------------------------------------
# `compare`, the comparison of a JAX network with a live PyTorch network of the same weights.
#
# `jax_*` names values of the flax.nnx network, `torch_*` those of the PyTorch network; arrays are
# in PyTorch's layout (N, C, H, W). The architecture is compared in float64, where rounding cannot
# hide an error, and the network as it is used in float32, with the kernels that users get.
# --------------------------------------------------------------------------------------------------


MIN_SIDE = 16  # smallest side of the random inputs, LR pixels
# A network may amplify rounding beyond FLOAT32_RTOL, most of all for noise. PyTorch's own distance
# between float32 and float64 measures that, and this multiple of it is tolerated.
ROUNDING_FACTOR = 10
INPUT_NAMES = ("image", "noise")


@dataclass(frozen=True, kw_only=True)
class LiveComparison:
    """Results of comparing a JAX network with a live PyTorch network.

    Attributes:
        method: Name of the method.
        form: Form of the JAX network, "train" or "deploy".
        diffs: Outputs in float64 and float32, gradients, weights after optimizer steps.
        layers: Comparison of all modules, in float64.
        quality: PSNR on a dataset, where one was given.
        notes: What was redirected to the CPU or could not be compared.
    """

    method: str
    form: Form
    diffs: tuple[ArrayDiff, ...]
    layers: LayerReport
    quality: QualityComparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def checks(self) -> dict[str, bool]:
        """Name of every check, and whether it passed."""
        checks = {f"{diff.name}, {diff.precision}": diff.passed for diff in self.diffs}
        checks["layers"] = self.layers.first_divergence is None
        return checks if self.quality is None else {**checks, "quality": self.quality.passed}

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(self.checks.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `passed` in plain types, for JSON."""
        return {
            "method": self.method,
            "form": self.form,
            "passed": self.passed,
            "diffs": [diff.as_dict() for diff in self.diffs],
            "layers": self.layers.as_dict(),
            "quality": self.quality and self.quality.as_dict(),
            "notes": list(self.notes),
        }


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
        TorchModelError: If the PyTorch network's code raises an error.
        TorchModelError: If the outputs have different shapes.
    """
    float64_diffs, layers, torch_out = compare_float64(pair, x)
    training_diffs, notes = _compare_training(pair, x, torch_out, optimizers)
    forward = _jit_forward(pair.jax_net, implementation)
    float32_diffs = _compare_float32(pair, forward, x, torch_out)
    return LiveComparison(
        method=pair.name,
        form=pair.form,
        diffs=(*float64_diffs, *float32_diffs, *training_diffs),
        layers=layers,
        quality=_compare_dataset(pair, forward, image_pairs) if image_pairs else None,
        notes=(*sorted(pair.torch_model.notes), *notes),
    )


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


# --- float64 -----------------------------------------------------------------------------------


def compare_float64(pair: ModelPair, x: Array) -> tuple[list[ArrayDiff], LayerReport, Array]:
    """Compare outputs and all modules in float64.

    Args:
        pair: The networks.
        x: LR images `(2, h, w, 3)`.

    Returns:
        Differences of the outputs, comparison of the modules, and PyTorch's output `(2, 3, H, W)`.

    Raises:
        TorchModelError: If the PyTorch network's code raises an error.
        TorchModelError: If the outputs have different shapes.
    """
    hook_events = torch_optim.record_events(pair.torch_model, x.astype(np.float64))
    with _float64_reference():
        jax_calls = trace.record_calls(cast(pair.jax_net, np.float64), x.astype(np.float64))
    (torch_out, *_), (jax_out, *_) = hook_events[-1].arrays, jax_calls[trace.ROOT, "out"][0]
    jax_out = _check_same_shape(pair, to_channels_first(jax_out), torch_out)
    diffs = [
        _output_diff(
            name,
            jax_image,
            torch_image,
            FLOAT64_RTOL * trace.value_range(torch_image),
            precision="float64",
        )
        for name, jax_image, torch_image in zip(INPUT_NAMES, jax_out, torch_out, strict=True)
    ]
    trace_events = trace.align(hook_events, jax_calls, pair.key_map)
    return diffs, summarize(trace_events, [path for path, _ in jax_calls]), torch_out


def _compare_training(
    pair: ModelPair, x: Array, torch_out: Array, optimizers: Sequence[OptimizerPair]
) -> tuple[list[ArrayDiff], list[str]]:
    """Compare gradients and optimizer steps; return notes on weights without PyTorch gradients."""
    x, key_map = x.astype(np.float64), pair.key_map
    target = np.random.RandomState(1).random_sample(torch_out.shape) * pair.method.data_range
    torch_grads = torch_optim.gradients(pair.torch_model, x, target)
    with _float64_reference():
        jax_net = cast(pair.jax_net, np.float64)
        jax_grads = jax_gradients(jax_net, key_map, x, target)
        diffs = compare_gradients(jax_grads, torch_grads)
        for optimizer in optimizers:
            diffs += compare_optimizer(to_state_dict(jax_net, key_map), torch_grads[1], optimizer)
    jax_only = trainable_keys(pair.jax_net, key_map) - set(torch_grads[1])
    uncompared = sorted(key for key in jax_only if jax_grads[1][key].any())
    keys = ", ".join(uncompared[:3]) + f" and {len(uncompared) - 3} more" * (len(uncompared) > 3)
    return diffs, [f"PyTorch has no gradient for {keys}: not compared"] if uncompared else []


@contextlib.contextmanager
def _float64_reference() -> Generator[None]:
    """Allow float64, and use reference implementations: kernels do not support it."""
    with jax.enable_x64(True), ops.implementation("reference"):
        yield


# --- float32 -----------------------------------------------------------------------------------


def _compare_float32(
    pair: ModelPair, forward: Callable[[Any], Any], x: Array, torch_out64: Array
) -> list[ArrayDiff]:
    """Compare outputs in float32; the tolerance grows with PyTorch's own rounding."""
    data_range = pair.method.data_range
    outputs = to_channels_first(np.asarray(forward(x))), torch_optim.forward(pair.torch_model, x)
    diffs: list[ArrayDiff] = []
    for name, jax_image, torch_image, torch_image64 in zip(
        INPUT_NAMES, *outputs, torch_out64, strict=True
    ):
        torch_rounding = ROUNDING_FACTOR * float(np.abs(torch_image - torch_image64).max())
        tolerance = max(
            FLOAT32_RTOL * max(data_range, trace.value_range(torch_image)), torch_rounding
        )
        diffs.append(
            _output_diff(
                name,
                jax_image,
                torch_image,
                tolerance,
                num_changed_u8=count_changed_u8(jax_image, torch_image, data_range),
            )
        )
    return diffs


def _compare_dataset(
    pair: ModelPair, forward: Callable[[Any], Any], image_pairs: Sequence[Pair]
) -> QualityComparison:
    def torch_forward(x: Any) -> Any:
        return np.moveaxis(torch_optim.forward(pair.torch_model, x), 1, -1)

    return compare_quality(forward, torch_forward, pair.method.data_range, image_pairs)


def _jit_forward(net: nnx.Module, implementation: Implementation) -> Callable[[Any], Any]:
    """Return the compiled forward pass `(n, h, w, 3) -> (n, s·h, s·w, 3)`, without TF32."""
    graphdef, state = nnx.split(net)
    run = jit(lambda state, x: nnx.merge(graphdef, state)(x))  # pyright: ignore[reportCallIssue] # networks are callable

    def forward(x: Any) -> Any:
        with ops.implementation(implementation), jax.default_matmul_precision("highest"):
            return run(state, x)

    return forward


def _output_diff(
    name: str, jax_image: Array, torch_image: Array, tolerance: float, **fields: Any
) -> ArrayDiff:
    with np.errstate(invalid="ignore"):  # inf - inf
        max_abs_diff = float(np.abs(jax_image.astype(np.float64) - torch_image).max())
    return replace(
        ArrayDiff(
            name=name, shape=torch_image.shape, max_abs_diff=max_abs_diff, tolerance=tolerance
        ),
        **fields,
    )


def _check_same_shape(pair: ModelPair, jax_out: Array, torch_out: Array) -> Array:
    if jax_out.shape == torch_out.shape:
        return jax_out
    raise TorchModelError(
        f"{pair.torch_model.source.class_name} returns {torch_out.shape}, "
        f"{pair.name} returns {jax_out.shape}",
        rule=f"both networks upscale an image by {pair.method.scale}, (N, 3, h, w)",
        location=str(pair.torch_model.source.file),
        remedy="check the constructor arguments (--torch-args) and the scale",
    )
