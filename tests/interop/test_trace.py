"""Modules of both networks are aligned, whatever their boundaries and layouts."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from esrjax.interop import trace
from esrjax.interop.array_diff import candidate_layouts
from esrjax.interop.draws import Case, image_sizes
from esrjax.interop.torch_compare import JaxRuns, compare_case
from esrjax.interop.torch_model import TorchModel, TorchSource
from esrjax.interop.torch_optim import record_events
from esrjax.interop.torch_watch import Exercise
from esrjax.interop.trace import summarize
from esrjax.nn.layers import Conv2d
from esrjax.nn.state_dict import KeyMap, to_state_dict

nn, functional = torch.nn, torch.nn.functional

KEY_MAP = KeyMap({"body.conv.{leaf}": "body.{leaf}"})
X = np.random.default_rng(0).random((2, 5, 7, 3), np.float32)


class JaxNet(nnx.Module):
    """Two calls of one convolution, a ReLU outside of it, and another convolution."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body, self.tail = Conv2d(3, 3, rngs=rngs), Conv2d(3, 4, 1, rngs=rngs)

    def __call__(self, x):
        x = self.body(self.body(x))
        return self.tail(jnp.maximum(x, 0))


class Body(torch.nn.Module):
    """A convolution with the ReLU inside, which is applied in every second call."""

    def __init__(self):
        super().__init__()
        self.conv, self.runs = torch.nn.Conv2d(3, 3, 3, padding=1), 0

    def forward(self, x):
        self.runs += 1
        return functional.relu(self.conv(x)) if self.runs % 2 == 0 else self.conv(x)


class TorchNet(torch.nn.Module):
    """The same network; `fault` is added in place to the tail's input after the tail has run."""

    def __init__(self, fault=0.0, scale=1.0):
        super().__init__()
        self.body, self.tail = Body(), torch.nn.Conv2d(3, 4, 1)
        self.fault, self.scale = fault, scale

    def forward(self, x):
        x = self.body(self.body(x))
        y = self.tail(x)
        x += self.fault
        return self.scale * y


@pytest.fixture
def compare_modules(tmp_path):
    """Compare the modules of both networks: `compare_modules(scale=2.0) -> LayerReport`."""

    def run(modify=lambda net: None, **kwargs):
        jax_net, torch_net = JaxNet(), TorchNet(**kwargs)
        state_dict = {
            key: torch.tensor(np.array(v)) for key, v in to_state_dict(jax_net, KEY_MAP).items()
        }
        torch_net.load_state_dict(state_dict)
        modify(torch_net)
        source = TorchSource(file=tmp_path / "net.py", class_name="TorchNet")
        hook_events = record_events(TorchModel(module=torch_net, source=source, notes=set()), X)
        jax_calls = trace.record_calls(jax_net, X)
        events = [
            ignore_float32_rounding(event) for event in trace.align(hook_events, jax_calls, KEY_MAP)
        ]
        return summarize(events, [path for path, _ in jax_calls])

    return run


def ignore_float32_rounding(event):
    """Set differences to 0 that rounding in float32 explains."""
    if event.diff is None or event.diff.max_abs_diff > 1e-5 * event.diff.value_range:
        return event
    return trace.TraceEvent(
        **{**vars(event), "diff": trace.MaxDiff(**{**vars(event.diff), "max_abs_diff": 0.0})}
    )


def test_different_module_boundaries_are_distinguished_from_a_fault(compare_modules):
    layers = compare_modules()
    assert layers.first_divergence is None
    assert layers.boundary_diffs == ("body (Body)",) and layers.hidden_diffs == ()
    assert (layers.torch_only, layers.jax_only, layers.shape_mismatch) == ((), (), ())
    assert (
        layers.num_compared == 12
    )  # two calls of two modules, one of tail and network; inputs and outputs


def test_fault_after_the_last_module_is_located_at_the_end(compare_modules):
    divergence = compare_modules(scale=2.0).first_divergence
    assert (
        divergence.cause,
        divergence.torch_path,
        divergence.last_agreeing,
        divergence.enclosing,
    ) == ("code", "", "tail", "")
    assert (
        divergence.location
        == "in the forward of the network, after tail, before the end of the network"
    )


def test_arrays_modified_in_place_later_are_compared_as_they_were(compare_modules):
    assert compare_modules(fault=1.0).first_divergence is None


def test_fault_in_the_second_call_is_reported_with_its_index(compare_modules):
    def add_fault(net):
        original, calls = net.body.conv.forward, []

        def forward(x):
            calls.append(x)
            return original(x) + (len(calls) == 2)

        net.body.conv.forward = forward

    divergence = compare_modules(add_fault).first_divergence
    assert divergence.location == "in body.conv (Conv2d, JAX body), call 2"
    assert divergence.call_index == 2


def test_nan_is_a_difference(compare_modules):
    divergence = compare_modules(scale=float("nan")).first_divergence
    assert divergence.torch_path == "" and np.isnan(divergence.diff.torch_value)


@pytest.mark.parametrize(
    ("jax_shape", "torch_shape"),
    [
        ((2, 5, 7, 4), (2, 4, 5, 7)),
        ((2, 5, 7, 4), (2, 5, 7, 4)),
        ((2, 5, 7, 4), (2, 35, 4)),
        ((2, 5, 7, 4), (2, 4, 35)),
        ((2, 35, 4), (2, 4, 5, 7)),
        ((2, 35, 4), (2, 4, 35)),
        ((2, 4), (2, 4)),
        ((2, 5, 7, 4), (2, 3, 5, 7)),
    ],
)
def test_candidate_layouts(jax_shape, torch_shape):
    array = np.arange(np.prod(jax_shape)).reshape(jax_shape)
    layouts = candidate_layouts(array, torch_shape)
    assert layouts and all(layout.shape == torch_shape for layout in layouts)
    assert all(layout.flat[0] == 0 and len(np.unique(layout)) == layout.size for layout in layouts)
    first_channel = array.reshape(2, -1, jax_shape[-1])[0, :, 0]
    assert any(
        set(first_channel) == set(np.take(layout[0], 0, axis).flat)
        for layout in layouts
        for axis in (0, -1)
    )


def test_arrays_without_common_layout_are_not_compared():
    assert candidate_layouts(np.zeros((2, 5, 7, 4)), (2, 4, 10, 14)) == []
    assert trace.max_diff(np.zeros((2, 5, 7, 4)), np.zeros((2, 3, 5, 7))) is None


# --- The first module where two networks differ is located, for faults of several kinds ---


def compare_first_case(pair):
    case = Case(draw=pair.draws[0], image_size=image_sizes(pair.method)[0])
    return compare_case(JaxRuns(pair), case, Exercise())


def wrong_padding(net):
    net.pipeline[0].slkab.slka.conv3_13.padding_mode = "zeros"


def tanh_gelu(net):
    net.blocks[0].ffn[1] = nn.GELU("tanh")


def small_eps(net):
    net.block_3.mamba_gate.norm.eps = 1e-6


def transposed_kernel(net):
    def forward(self, x):
        return functional.conv2d(x, self.weight.mT, self.bias, padding=1)

    conv = net.block_2.c2_r.eval_conv
    conv.forward = types.MethodType(forward, conv)


def swapped_concat(net):
    def forward(self, x):
        u = x
        for i in range(1, 6):
            u = getattr(self, f"block_{i}")(u)
        both = torch.cat([u, self.conv_near(x)], 1)
        return functional.pixel_shuffle(self.pointwise_conv(self.depthwise_conv(both)), 4)

    net.forward = types.MethodType(forward, net)


class Shuffle(nn.Module):
    """Pixel shuffle in TensorFlow's order: within a block, the channel varies fastest."""

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.reshape(n, 4, 4, c // 16, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // 16, 4 * h, 4 * w)


def wrong_shuffle(net):
    net.upsampler[1] = Shuffle()


def detached_activation(net):
    def forward(self, u):
        f = self.c3(functional.relu(self.c2(functional.relu(self.c1(u)).detach())))
        return (u + f) * self.guidance_map_conv(f)

    block = net.block_3
    block.forward = types.MethodType(forward, block)


FAULTS = {  # name -> method, function that applies the fault, location that is reported
    "padding mode": (
        "hfenet",
        wrong_padding,
        "in pipeline.0.slkab.slka.conv3_13 (Conv2d)",
    ),
    "tanh GELU": (
        "safmn_deep15",
        tanh_gelu,
        "in the forward of blocks.0.ffn, after blocks.0.ffn.0, before blocks.0.ffn.2; "
        "only PyTorch has blocks.0.ffn.1 (GELU) there",
    ),
    "LayerNorm eps": ("mambagate_sr", small_eps, "in block_3.mamba_gate.norm (LayerNorm)"),
    "transposed kernel": (
        "span",
        transposed_kernel,
        "in block_2.c2_r.eval_conv (Conv2d, JAX block_2.c2)",
    ),
    "swapped concat": (
        "spanv2",
        swapped_concat,
        "in the forward of the network, after conv_near, before depthwise_conv",
    ),
    "pixel-shuffle order": (
        "span",
        wrong_shuffle,
        "in the forward of the network, after upsampler.0, before the end of the network; "
        "only PyTorch has upsampler.1 (Shuffle) there",
    ),
}


def test_fault_of_the_backward_pass_is_located(make_pair):
    pair = make_pair("spanv2")
    detached_activation(pair.torch_model.module)
    result = compare_first_case(pair)
    divergence = result.layers.first_divergence
    assert divergence.location == "in the backward pass of block_3, after block_3.c1 (ConvLayer)"
    assert divergence.description.startswith("gradient of the output at [")
    assert [diff.passed for diff in result.diffs[:2]] == [True, True]  # outputs


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_located(make_pair, fault):
    name, apply_fault, location = FAULTS[fault]
    pair = make_pair(name)
    apply_fault(pair.torch_model.module)
    result = compare_first_case(pair)
    divergence = result.layers.first_divergence
    assert divergence is not None and divergence.location == location
    diff = divergence.diff
    assert (
        diff.max_abs_diff == pytest.approx(abs(diff.jax_value - diff.torch_value)) and diff.differs
    )
    assert not result.diffs[0].passed and not result.passed


@pytest.mark.parametrize(("name", "form"), [("span", "train"), ("rfdn_span", "deploy")])
def test_equal_networks_have_no_divergence(make_pair, name, form):
    result = compare_first_case(make_pair(name, form))
    layers = result.layers
    assert result.passed and all(diff.passed for diff in result.diffs)
    assert (layers.first_divergence, layers.hidden_diffs, layers.jax_only) == (None, (), ())
    assert layers.num_compared > 80
    assert set(layers.shape_mismatch) == {"upsampler (Sequential)"}
    assert "upsampler.1 (PixelShuffle)" in layers.torch_only


@pytest.mark.parametrize("name", ["hat", "mambairv2"])
def test_attention_and_scan_are_compared_module_by_module(make_pair, name):
    result = compare_first_case(make_pair(name))
    layers = result.layers
    assert result.passed
    assert (layers.first_divergence, layers.hidden_diffs, layers.shape_mismatch) == (None, (), ())
    assert all(path.endswith(".steps") for path in layers.jax_only)  # in PyTorch, the head itself
    assert layers.num_compared > 130
