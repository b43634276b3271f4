"""`compare`, the comparison of a JAX network with a live PyTorch network of the same weights.

`jax_*` names values of the flax.nnx network, `torch_*` those of the PyTorch network; arrays are in
PyTorch's layout (N, C, H, W). The architecture is compared in float64, where rounding cannot hide
an error, and the network as it is used in float32, with the kernels that users get.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from esrjax.bridge import pytorch, trace
from esrjax.bridge.case import (
    FLOAT32_RTOL,
    FLOAT64_RTOL,
    Array,
    ArrayDiff,
    Implementation,
    count_changed_u8,
)
from esrjax.bridge.divergence import LayerReport, summarize
from esrjax.bridge.gradients import (
    compare_gradients,
    compare_optimizer,
    jax_gradients,
    trainable_keys,
)
from esrjax.bridge.layouts import to_channels_first
from esrjax.bridge.peer import TorchModel, TorchModelMismatch
from esrjax.bridge.quality import QualityComparison, compare_quality
from esrjax.bridge.rule import OptimizerPair
from esrjax.data.datasets import Pair
from esrjax.method import Form, Method
from esrjax.network import ops
from esrjax.network.compilation import jit
from esrjax.network.naming import KeyMap
from esrjax.network.weights import cast, to_state_dict

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
        TorchCodeError: If the PyTorch network's code raises an error.
        TorchModelMismatch: If the outputs have different shapes.
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
        TorchCodeError: If the PyTorch network's code raises an error.
        TorchModelMismatch: If the outputs have different shapes.
    """
    hook_events = pytorch.record_events(pair.torch_model, x.astype(np.float64))
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
    torch_grads = pytorch.gradients(pair.torch_model, x, target)
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
    outputs = to_channels_first(np.asarray(forward(x))), pytorch.forward(pair.torch_model, x)
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
        return np.moveaxis(pytorch.forward(pair.torch_model, x), 1, -1)

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
    raise TorchModelMismatch(
        f"{pair.torch_model.source.class_name} returns {torch_out.shape}, "
        f"{pair.name} returns {jax_out.shape}",
        rule=f"both networks upscale an image by {pair.method.scale}, (N, 3, h, w)",
        location=str(pair.torch_model.source.file),
        remedy="check the constructor arguments (--torch-args) and the scale",
    )
