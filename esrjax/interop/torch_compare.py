"""Comparison of a JAX network with a live PyTorch network: outputs, modules, gradients, PSNR.

`jax_*` names values of JAX and optax, `torch_*` those of PyTorch; arrays are in PyTorch's layout
(N, C, H, W) and under PyTorch's names. The architecture, gradients and optimizer steps are compared
in float64, where rounding cannot hide an error, and the network as it is used in float32, with the
kernels that users get. Each comparison is made for several draws of weights and images.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.data.datasets import Pair, lr_source
from esrjax.errors import TorchModelError, list_some
from esrjax.evaluation import upscale
from esrjax.evaluation.metrics import NTIRE, psnr
from esrjax.interop import array_diff, torch_optim, trace
from esrjax.interop.array_diff import Array, ArrayDiff, Comparison, Implementation, OptimizerPair
from esrjax.interop.draws import IMAGE_NAMES, Case, ModelPair, draw_images, image_sizes
from esrjax.interop.torch_watch import CountsReport, Exercise, ExerciseReport, compare_counts
from esrjax.interop.trace import JaxCalls, JaxGrads, LayerReport
from esrjax.method import Form
from esrjax.nn.checkpoint_io import StateDict
from esrjax.nn.compilation import FAST_COMPILE, call_network, jit
from esrjax.nn.state_dict import cast, named_parameters, to_state_dict

NhwcForward = Callable[[Any], Any]  # (N, h, w, 3) -> (N, s·h, s·w, 3), in [0, data_range]

# A network may amplify rounding beyond FLOAT32_RTOL, most of all for noise. PyTorch's own distance
# between float32 and float64 measures that, and this multiple of it is tolerated.
ROUNDING_FACTOR = 10
GRAD_FLOOR = 1e-3  # of the largest gradient of all: smaller gradients are compared with this
MAX_PSNR_DIFF_MDB = 1.0  # largest difference of the mean PSNR that passes, mdB


# --- runs of the JAX network ---


@dataclass(frozen=True, kw_only=True, eq=False)
class JaxRun:
    """Result of one forward and backward pass of the JAX network, in float64.

    Attributes:
        calls: Inputs and outputs of every module.
        x_grad: Gradient of the input `(N, 3, h, w)`, of `sum(sin(y))`, y the output.
        output_grads: Gradients of the outputs of every module.
        grads: Gradients of the weights, in PyTorch's layout and names.
    """

    calls: JaxCalls
    output_grads: JaxGrads
    x_grad: Array
    grads: StateDict

    @property
    def output(self) -> Array:
        """SR images `(N, 3, s·h, s·w)`."""
        return array_diff.to_channels_first(self.calls[trace.ROOT, "out"][0][0])


class JaxRuns:
    """Runs of the JAX networks of a pair, which do not depend on the PyTorch network.

    Args:
        pair: The networks.
        implementation: Implementation of operations in float32; float64 uses the reference.
    """

    def __init__(self, pair: ModelPair, implementation: Implementation = "auto"):
        self.pair = pair
        self.implementation: Implementation = implementation
        self._programs: dict[tuple[Any, str], Callable[..., Any]] = {}
        self._runs: dict[tuple[str, str], Any] = {}

    def share_programs(self, other: "JaxRuns") -> None:
        """Use the compiled programs of other runs of the same method, and add to them."""
        self._programs = other._programs

    def images(self, case: Case) -> Array:
        """Return the LR images `(N, h, w, 3)` of a case, float32."""
        return draw_images(self.pair.method, case.draw.seed, case.image_size)

    def float64(self, case: Case) -> JaxRun:
        """Return outputs of all modules and gradients."""
        return self._cached(case, "float64", self._run_float64)

    def float32(self, case: Case) -> Array:
        """Return the SR images `(N, 3, s·h, s·w)`, computed as for users."""
        return self._cached(case, "float32", self._run_float32)

    def forward(self, net: nnx.Module) -> NhwcForward:
        """Return the network in float32 as a function, compiled once for each image size."""
        graphdef, state = nnx.split(net)

        def make() -> Callable[..., Any]:
            return jit(lambda state, x: nnx.merge(graphdef, state)(x))  # pyright: ignore[reportCallIssue] # networks are callable

        return functools.partial(self._program(graphdef, "float32", make), state)

    def _cached(self, case: Case, precision: str, run: Callable[[Case], Any]) -> Any:
        key = str(case), precision
        if key not in self._runs:
            self._runs[key] = run(case)
        return self._runs[key]

    def _program(self, graphdef: Any, name: str, make: Callable[[], Any]) -> Callable[..., Any]:
        """Return a compiled function; draws of the same structure share it."""
        if (graphdef, name) not in self._programs:
            self._programs[graphdef, name] = make()
        return self._programs[graphdef, name]

    def _run_float32(self, case: Case) -> Array:
        with array_diff.full_precision(self.implementation):
            y = self.forward(case.draw.net)(self.images(case))
        return array_diff.to_channels_first(np.asarray(y))

    def is_stochastic(self, case: Case) -> bool:
        """Return whether the network draws random numbers, as of stochastic depth."""
        return self._cached(case, "stochastic", self._draws_random_numbers)

    def _draws_random_numbers(self, case: Case) -> bool:
        with array_diff.full_precision("reference"):
            net = case.net()
            jaxpr = str(jax.make_jaxpr(lambda x: call_network(net, x))(self.images(case)))
        return any(name in jaxpr for name in ("random_bits", "threefry", "rng_bit_generator"))

    def _run_float64(self, case: Case) -> JaxRun:
        with array_diff.float64_reference():
            graphdef, params, rest = nnx.split(cast(case.net(), np.float64), nnx.Param, ...)
            program = self._program(graphdef, "float64", lambda: _gradient_program(graphdef))
            x = self.images(case).astype(np.float64)
            calls, (params_grad, x_grad, output_grads) = program(params, x, rest)
            # `rest` (batch statistics) has values here, not gradients; PyTorch has none for them,
            # so that `compare_gradients` skips them.
            grads = to_state_dict(nnx.merge(graphdef, params_grad, rest), self.pair.key_map)
            calls, output_grads = jax.tree.map(np.asarray, (calls, output_grads))
        x_grad = array_diff.to_channels_first(np.asarray(x_grad))
        return JaxRun(calls=calls, output_grads=output_grads, x_grad=x_grad, grads=grads)


def _gradient_program(graphdef: Any) -> Callable[..., Any]:
    """Return a function of weights, images and other state: all calls, and gradients."""

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(params: Any, x: Any, rest: Any) -> Any:
        net = nnx.merge(graphdef, params, rest)
        zeros = trace.zero_perturbations(net, jax.ShapeDtypeStruct(x.shape, x.dtype))

        def forward(params: Any, x: Any, perturbations: Any) -> Any:
            return trace.call_traced(nnx.merge(graphdef, params, rest), x, perturbations)

        y, vjp, calls = jax.vjp(forward, params, x, zeros, has_aux=True)
        return calls, vjp(jnp.cos(y))

    return run


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

    `diffs` are those of outputs and gradients, the worst of all cases, and of weights after
    optimizer steps.

    Attributes:
        form: Form of the JAX network, "train" or "deploy".
        cases: What was compared: weights, image size, mode.
        layers: Comparison of all modules, in float64: of the first case in which they differ.
        exercise: What no case has exercised.
        counts: Parameters, multiply-adds and activations of both networks.
        quality: PSNR on a dataset, where one was given.
        notes: What was redirected to the CPU or could not be compared.
    """

    form: Form
    cases: tuple[str, ...]
    layers: LayerReport
    exercise: ExerciseReport
    counts: CountsReport
    quality: QualityComparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def checks(self) -> dict[str, bool]:
        """Name of every check, and whether it passed."""
        checks = {f"{diff.name}, {diff.precision}": diff.passed for diff in self.diffs}
        checks["layers"] = self.layers.first_divergence is None
        checks["exercise"] = self.exercise.passed
        return checks if self.quality is None else {**checks, "quality": self.quality.passed}

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `passed` in plain types, for JSON."""
        return {
            **super().as_dict(),
            "layers": self.layers.as_dict(),
            "exercise": self.exercise.as_dict(),
            "counts": self.counts.as_dict(),
            "quality": self.quality and self.quality.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Results of one case.

    Attributes:
        case: The case.
        diffs: Differences of outputs and gradients.
        layers: Comparison of all modules.
    """

    case: Case
    diffs: tuple[ArrayDiff, ...]
    layers: LayerReport

    @property
    def passed(self) -> bool:
        """Whether all arrays agree."""
        return self.layers.first_divergence is None and all(diff.passed for diff in self.diffs)


def compare(
    pair: ModelPair,
    optimizers: Sequence[OptimizerPair] = (),
    image_pairs: Sequence[Pair] = (),
    implementation: Implementation = "auto",
) -> LiveComparison:
    """Compare both networks.

    In float64: outputs, inputs and outputs of every module, and gradients, in eval mode at two
    image sizes and in train mode at one, for every draw; and weights after optimizer steps. In
    float32: outputs at one size, for every draw, and PSNR on a dataset.

    Args:
        pair: The networks.
        optimizers: Optimizers of which steps are compared, with the first draw.
        image_pairs: LR and HR images of a dataset, upscaled with the first draw.
        implementation: Implementation of operations in float32; float64 uses the reference.

    Raises:
        TorchModelError: If the PyTorch network's code raises an error, or the outputs have
            different shapes.
    """
    runs, exercise = JaxRuns(pair, implementation), Exercise()
    cases, notes = list_cases(runs)
    results = [compare_case(runs, case, exercise) for case in cases]
    first_draw = pair.draws[0]
    pair.load(first_draw)
    diffs = _worst_diffs(results)
    diffs += _compare_optimizers(pair, runs, cases[0], optimizers)
    quality = None
    if image_pairs:
        with array_diff.full_precision(implementation):
            quality = compare_quality(
                runs.forward(first_draw.net),
                lambda x: np.moveaxis(torch_optim.forward(pair.torch_model, x), 1, -1),
                pair.method.data_range,
                image_pairs,
            )
    return LiveComparison(
        method=pair.name,
        form=pair.form,
        diffs=tuple(diffs),
        cases=tuple(map(str, cases)),
        layers=_merge_layers(results),
        exercise=exercise.report(),
        counts=compare_counts(pair.method, first_draw.net, pair.torch_model, cases[0].image_size),
        quality=quality,
        notes=(*sorted(pair.torch_model.notes), *notes, *_gradient_notes(runs, cases[-1])),
    )


def list_cases(runs: JaxRuns) -> tuple[list[Case], list[str]]:
    """Return the cases of a comparison, and notes on what cannot be compared.

    Train mode is compared with random weights only: a checkpoint may lack the branches that the
    PyTorch network then runs.
    """
    pair, sizes = runs.pair, image_sizes(runs.pair.method)
    cases = [Case(draw=draw, image_size=size) for draw in pair.draws for size in sizes]
    random_draws = [draw for draw in pair.draws if draw.name != "checkpoint"]
    train_cases = [Case(draw=draw, image_size=sizes[0], training=True) for draw in random_draws]
    reason = _no_train_mode(runs, train_cases[0])
    if reason is not None:
        return cases, [f"train mode is not compared: {reason}"]
    return [*cases, *train_cases], []


def _no_train_mode(runs: JaxRuns, case: Case) -> str | None:
    """Return why the networks cannot be compared in train mode, or None."""
    pair, x = runs.pair, runs.images(case).astype(np.float64)
    pair.load(case.draw)
    params = dict(pair.torch_model.module.named_parameters())
    if unused_keys := sorted(params.keys() - case.draw.state_dict.keys()):
        return f"JAX has no {list_some(unused_keys, 2)} in {pair.form} form"
    if torch_optim.is_stochastic(pair.torch_model, x):
        return "PyTorch's output depends on random numbers"
    if runs.is_stochastic(case):
        return "JAX draws random numbers, PyTorch does not (a rate of 0 on one side only?)"
    return None


def compare_case(runs: JaxRuns, case: Case, exercise: Exercise) -> CaseResult:
    """Compare outputs, all modules and gradients in float64; outputs of each draw in float32.

    Args:
        runs: Runs of the JAX network.
        case: Weights, image size and mode.
        exercise: Receives what PyTorch has exercised.

    Raises:
        TorchModelError: If the PyTorch network's code raises an error, or the outputs have
            different shapes.
    """
    pair, x = runs.pair, runs.images(case)
    pair.load(case.draw)
    torch_run = torch_optim.run(
        pair.torch_model, x.astype(np.float64), exercise, training=case.training
    )
    jax_run = runs.float64(case)
    _check_shapes(pair, jax_run.output, torch_run.output)
    mode = ", train mode" * case.training
    diffs = [_compare_outputs(f"outputs{mode}", jax_run.output, torch_run.output, case)]
    if not case.training and case.image_size == image_sizes(pair.method)[0]:
        diffs.append(_compare_float32(runs, case, x, torch_run.output))
    jax_grads, torch_grads = (jax_run.x_grad, jax_run.grads), (torch_run.x_grad, torch_run.grads)
    diffs += [
        replace(diff, name=f"{diff.name}{mode}", case=str(case))
        for diff in compare_gradients(jax_grads, torch_grads)
    ]
    events = trace.align(torch_run.events, jax_run.calls, pair.key_map, jax_run.output_grads)
    layers = trace.summarize(events, [path for path, _ in jax_run.calls])
    return CaseResult(case=case, diffs=tuple(diffs), layers=layers)


def _check_shapes(pair: ModelPair, jax_out: Array, torch_out: Array) -> None:
    if jax_out.shape != torch_out.shape:
        raise TorchModelError(
            f"{pair.torch_model.source.class_name} returns {torch_out.shape}, "
            f"{pair.name} returns {jax_out.shape}",
            rule="both networks upscale an image (N, 3, h, w) by the same factor",
            location=str(pair.torch_model.source.file),
            remedy="check the constructor arguments (--torch-args) and --hparam scale",
        )


def _compare_outputs(name: str, jax_out: Array, torch_out: Array, case: Case) -> ArrayDiff:
    """Return the worst difference of the images in float64."""
    diffs = [
        array_diff.float64_diff(
            name,
            jax_sr,
            torch_sr,
            array_diff.FLOAT64_RTOL * array_diff.value_range(torch_sr),
            case=f"{case}, {image_name}",
        )
        for image_name, jax_sr, torch_sr in zip(IMAGE_NAMES, jax_out, torch_out, strict=True)
    ]
    return array_diff.worst(diffs)


def _compare_float32(runs: JaxRuns, case: Case, x: Array, torch_out64: Array) -> ArrayDiff:
    """Compare outputs in float32; the tolerance grows with PyTorch's own rounding."""
    data_range, model = runs.pair.method.data_range, runs.pair.torch_model
    jax_out, torch_out = runs.float32(case), torch_optim.forward(model, x)
    diffs: list[ArrayDiff] = []
    images = zip(IMAGE_NAMES, jax_out, torch_out, torch_out64, strict=True)
    for name, jax_sr, torch_sr, torch_sr64 in images:
        torch_rounding = array_diff.max_abs(torch_sr - torch_sr64)
        max_value = max(data_range, array_diff.value_range(torch_sr))
        tolerance = max(array_diff.FLOAT32_RTOL * max_value, ROUNDING_FACTOR * torch_rounding)
        num_changed_u8 = array_diff.count_changed_u8(jax_sr, torch_sr, data_range)
        fields = {"num_changed_u8": num_changed_u8, "case": f"{case}, {name}"}
        diffs.append(ArrayDiff.of("outputs", jax_sr, torch_sr, tolerance, **fields))
    return array_diff.worst(diffs)


def _worst_diffs(results: Sequence[CaseResult]) -> list[ArrayDiff]:
    """Return the worst difference of each kind, of all cases."""
    groups: dict[tuple[str, str], list[ArrayDiff]] = {}
    for result in results:
        for diff in result.diffs:
            groups.setdefault((diff.name, diff.precision), []).append(diff)
    return [array_diff.worst(diffs) for diffs in groups.values()]


def _merge_layers(results: Sequence[CaseResult]) -> LayerReport:
    """Return the report of the first case in which a module differs, counting all cases."""
    reports = [result.layers for result in results]
    differing = (report for report in reports if report.first_divergence is not None)
    first = next(differing, reports[0])
    return replace(first, num_compared=sum(report.num_compared for report in reports))


def _gradient_notes(runs: JaxRuns, case: Case) -> list[str]:
    """Return a note on the weights that JAX trains and PyTorch does not."""
    pair, grads = runs.pair, runs.float64(case).grads
    torch_params = pair.torch_model.module.named_parameters()
    torch_keys = {key for key, param in torch_params if param.requires_grad}
    params = [path for path, var in named_parameters(case.net()) if isinstance(var, nnx.Param)]
    jax_keys = set(map(pair.key_map.to_torch, params)) - torch_keys
    keys = sorted(key for key in jax_keys if grads[key].any())
    note = f"PyTorch has no gradient for {list_some(keys, 3)}: not compared"
    return [note] if keys else []


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


def _compare_optimizers(
    pair: ModelPair, runs: JaxRuns, case: Case, optimizers: Sequence[OptimizerPair]
) -> list[ArrayDiff]:
    """Compare optimizer steps with the gradients of a case."""
    grads = runs.float64(case).grads
    weights = {key: value.astype(np.float64) for key, value in case.draw.state_dict.items()}
    with array_diff.float64_reference():
        diffs = [torch_optim.compare_optimizer(weights, grads, o) for o in optimizers]
    return [diff for group in diffs for diff in group]


def compare_gradients(
    jax_grads: tuple[Array, StateDict], torch_grads: tuple[Array, StateDict]
) -> list[ArrayDiff]:
    """Compare the input's gradient, and the gradients of all weights that both sides have.

    Args:
        jax_grads: JAX's gradients of input and weights.
        torch_grads: PyTorch's.

    Returns:
        The difference of the input's gradient; and, if there are common weights, that of the
        weight with the largest ratio of difference to tolerance.
    """
    (jax_x_grad, jax_params), (torch_x_grad, torch_params) = jax_grads, torch_grads
    rtol = array_diff.FLOAT64_RTOL
    max_grads = {key: array_diff.max_abs(grad) for key, grad in torch_params.items()}
    floor = GRAD_FLOOR * max(max_grads.values(), default=0.0)
    tolerances = {key: rtol * max(max_grad, floor) for key, max_grad in max_grads.items()}
    x_tolerance = rtol * array_diff.max_abs(torch_x_grad)
    return [
        array_diff.float64_diff("gradient, input", jax_x_grad, torch_x_grad, x_tolerance),
        *array_diff.worst_of_keys("gradient, weights", jax_params, torch_params, tolerances),
    ]
