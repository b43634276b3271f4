"""JAX networks and their PyTorch twins: outputs and all gradients are equal in float64.

A twin is a PyTorch implementation of the paper, written for these tests. It loads the official
weights under the official keys and reproduces the official outputs, so that it can stand in for the
official code.
"""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from twins.drawn import random_state_dict

from esrjax import registry
from esrjax.data.datasets import list_pairs
from esrjax.evaluation import metrics, upscale
from esrjax.evaluation.score import score
from esrjax.inference import open_method
from esrjax.interop.torch_compare import compare_quality
from esrjax.nn.checkpoint_io import read_checkpoint
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, cast, load_state_dict, to_state_dict
from esrjax.testing import FAST_COMPILE

FLOAT64_RTOL = 1e-9  # of the largest value
GOLDEN_RTOL = 2e-5  # the float32 golden files are up to 1.3e-5 from float64
OFFICIAL = {  # method -> checkpoint, golden files
    "span": ("team00_SPAN.pth", ["span.npz"]),
    "spanv2": ("team22_spanv2_c2.pth", ["spanv2.npz"]),
    "rfdn_span": ("team09_RFDN_SPAN.pth", ["rfdn_span.npz"]),
    "hfenet": ("team10_HFENet.pth", ["hfenet.npz"]),
    "safmn_deep15": ("team21_SAFMN_Deep15.pth", ["safmn_deep15.npz"]),
    "mambagate_sr": (
        "team05_mambagate_sr_seed0.pth",
        ["mambagate_sr.npz", "mambagate_sr_acts.npz"],
    ),
}
TINY = {  # random weights of the official classes, in place of trained ones
    "hat": ("hat_tiny.safetensors", ["hat.npz"]),
    "mambairv2": ("mambairv2_tiny.safetensors", ["mambairv2.npz"]),
}
WINDOWS = {"channels": 8, "num_groups": 1, "depth": 2, "num_heads": 2, "window_size": 4}
MAMBAIRV2 = {**WINDOWS, "d_state": 3, "num_tokens": 5, "inner_rank": 2}
CASES = [  # method, form, hparams, (h, w) of the inputs
    ("span", "train", {"channels": 6}, (7, 9)),
    ("span", "deploy", {"channels": 6}, (7, 9)),
    ("spanv2", "deploy", {"channels": 8}, (7, 9)),
    ("rfdn_span", "deploy", {"channels": 8}, (7, 9)),
    ("hfenet", "deploy", {"channels": 9, "num_blocks": 1}, (11, 14)),
    ("safmn_deep15", "deploy", {"channels": 12, "num_blocks": 1}, (13, 9)),
    ("mambagate_sr", "train", {"channels": 5, "d_state": 3}, (5, 6)),
    ("mambagate_sr", "deploy", {"channels": 5, "d_state": 3}, (5, 6)),
    ("hat", "deploy", {**WINDOWS, "squeeze_factor": 4}, (7, 9)),
    ("mambairv2", "deploy", MAMBAIRV2, (7, 9)),
]


def make_twin(name, form, **hparams):
    """The PyTorch network of a method; only SPAN's weights differ between the forms."""
    kwargs = {"form": form} if name == "span" else {}
    return importlib.import_module(f"twins.{name}").Twin(**hparams, **kwargs).train(form == "train")


# --- twins equal the official networks ---------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL | TINY)
def test_twin_equals_the_official_network(reference, name):
    file, goldens = (OFFICIAL | TINY)[name]
    method = registry.get_method(name)
    (weights,) = method.weights.values()
    state_dict = read_checkpoint(reference / "weights" / file).state_dict
    net = make_twin(name, "deploy", **weights.hparams)
    net.load_state_dict({key: torch.tensor(v) for key, v in state_dict.items()}, strict=True)
    key_map = KeyMap(method.torch_names)
    for golden in goldens:
        with np.load(reference / "golden" / golden) as golden_file:
            assert_reproduces(net, key_map, dict(golden_file))


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_weights_have_the_set5_psnr_of_pytorch(reference, name):
    """Mean PSNR within 1 mdB: full images, rounded to uint8, the challenge's metric."""
    model = open_method(name, reference / "weights" / OFFICIAL[name][0])
    state_dict = to_state_dict(model.net, KeyMap(model.method.torch_names))
    net = make_twin(name, "deploy")
    net.load_state_dict({key: torch.from_numpy(np.array(v)) for key, v in state_dict.items()})

    def torch_forward(lr):
        with torch.no_grad():
            y = net(torch.from_numpy(np.array(lr)).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).numpy()

    quality = compare_quality(
        model.forward, torch_forward, model.method.data_range, list_pairs("Set5")
    )
    assert quality.num_images == 5 and abs(quality.diff_mdb) <= 1.0, quality


@pytest.mark.slow
def test_self_ensemble_gain_on_set5_equals_pytorch(reference):
    """SPAN with official weights; PyTorch uses a transpose and flips, esrjax quarter rotations."""
    model = open_method("span", reference / "weights" / OFFICIAL["span"][0])
    net = make_twin("span", "deploy")
    state_dict = to_state_dict(model.net, KeyMap(model.method.torch_names))
    net.load_state_dict({key: torch.from_numpy(np.array(v)) for key, v in state_dict.items()})
    flips = [(), (3,), (2,), (2, 3)]

    @torch.no_grad()
    def torch_upscaler(lr, transposes=(False, True), flips=flips):
        x = torch.from_numpy(np.array(lr)).permute(2, 0, 1)[None].float() / 255
        views = [(is_transposed, axes) for is_transposed in transposes for axes in flips]
        ys = [net((x.mT if t else x).flip(axes)).flip(axes) for t, axes in views]
        total = sum(y.mT if t else y for y, (t, _) in zip(ys, views, strict=True))
        return (total / len(views))[0].permute(1, 2, 0).numpy()

    torch_single_pass = functools.partial(torch_upscaler, transposes=[False], flips=[()])
    upscalers = [
        model.upscaler(),
        model.upscaler(self_ensemble=True),
        torch_single_pass,
        torch_upscaler,
    ]
    jax_psnr, jax_ensemble_psnr, torch_psnr, torch_ensemble_psnr = (
        score(upscale.uint8_upscaler(upscaler), list_pairs("Set5"), metrics.NTIRE).mean.psnr
        for upscaler in upscalers
    )
    print(f"JAX {jax_psnr:.4f} -> {jax_ensemble_psnr:.4f} dB")
    print(f"PyTorch {torch_psnr:.4f} -> {torch_ensemble_psnr:.4f} dB")
    assert jax_ensemble_psnr - jax_psnr > 0.02
    assert abs((jax_ensemble_psnr - jax_psnr) - (torch_ensemble_psnr - torch_psnr)) < 0.002


def assert_reproduces(net, key_map, golden):
    """Compare the network in float64 with a golden file, which is float32 of another CPU.

    Its `y0_2x` is the image of scale 2 for x0, the output of a further head.

    In float32 the result would depend on the CPU: oneDNN takes Winograd's algorithm on some.
    """
    net = net.double()
    activations = {}  # for x0, the first input
    for path, module in net.named_modules():
        module.register_forward_hook(
            lambda *args, path=path: keep_first(activations, path, args[-1])
        )
    with torch.no_grad():
        for key in sorted(key for key in golden if key.startswith("x")):
            y = net(torch.tensor(golden[key]).double())
            if f"y{key[1:]}" in golden:
                assert_close(y.numpy(), golden[f"y{key[1:]}"], GOLDEN_RTOL)
    for key in (key for key in golden if key.startswith(("act_", "y0_"))):
        path, _, output = key.removeprefix("act_").replace("__", ".").partition(".out")
        path = key_map.to_torch(f"head_{path[3:]}") if path.startswith("y0_") else path
        activation = activations[path]
        activation = activation[int(output or 0)] if isinstance(activation, tuple) else activation
        # Some official code has tokens (N, h·w, C) where the twin has images (N, h, w, C).
        assert_close(activation.numpy().reshape(golden[key].shape), golden[key], GOLDEN_RTOL)


def keep_first(activations, path, output):
    """Store the first output. Returns None: a hook's return value would replace the output."""
    activations.setdefault(path, output)


# --- JAX networks equal the twins --------------------------------------------------------------


@pytest.mark.parametrize(
    "name, form, hparams, image_size",
    CASES,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outputs_and_gradients_equal_the_twin(name, form, hparams, image_size):
    torch_net = make_twin(name, form, **hparams).double()
    shapes = {key: tuple(value.shape) for key, value in torch_net.state_dict().items()}
    state_dict = random_state_dict(shapes, seed=1)
    torch_net.load_state_dict({key: torch.tensor(value) for key, value in state_dict.items()})
    x = np.random.default_rng(0).random((2, 3, *image_size))
    (jax_arrays, jax_grads), (torch_arrays, torch_grads) = (
        jax_outputs(name, form, hparams, state_dict, x),
        torch_outputs(torch_net, x),
    )
    for key in torch_arrays:
        assert_close(jax_arrays[key], torch_arrays[key], FLOAT64_RTOL)
    assert jax_grads.keys() <= torch_grads.keys()
    largest = max(np.abs(grad).max() for grad in torch_grads.values())
    for key, grad in jax_grads.items():
        np.testing.assert_allclose(grad, torch_grads[key], rtol=0, atol=FLOAT64_RTOL * largest)


def torch_outputs(net, x):
    """Output, and gradients of sum(sin(output)) with respect to the input and the weights."""
    x = torch.tensor(x, requires_grad=True)
    y = net(x)
    torch.sin(y).sum().backward()
    zeros_like = torch.zeros_like  # for parameters that the network does not read in this form
    param_grads = {
        key: (zeros_like(param) if param.grad is None else param.grad).numpy()
        for key, param in net.named_parameters()
    }
    return {"y": y.detach().numpy(), "x": x.grad.numpy()}, param_grads


def jax_outputs(name, form, hparams, state_dict, x):
    """The same of the JAX network with these weights, in PyTorch's layout and names."""
    method = registry.get_method(name)
    key_map, net = KeyMap(method.torch_names), method.build(**hparams)
    net.eval()
    with jax.enable_x64(True):
        net = cast(net if form == "train" else deploy(net), jnp.float64)
        net = load_state_dict(
            net, {key: state_dict[key] for key in to_state_dict(net, key_map)}, key_map
        )
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)

        @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
        def run(params, rest, x):
            forward = lambda params, x: nnx.merge(graphdef, params, rest)(x)  # noqa: E731
            y, vjp = jax.vjp(forward, params, x)
            return y, *vjp(jnp.cos(y))

        y, param_grads, x_grad = run(params, rest, jnp.asarray(x.transpose(0, 2, 3, 1)))
        param_grads = to_state_dict(nnx.merge(graphdef, param_grads, rest), key_map)
    arrays = {"y": y, "x": x_grad}
    return {
        key: np.asarray(value).transpose(0, 3, 1, 2) for key, value in arrays.items()
    }, param_grads


def assert_close(actual, expected, rtol):
    """Compare with a tolerance relative to the largest expected value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


# --- golden files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL | TINY)
def test_golden_file_equals_the_twin(request, name):
    with np.load(request.path.parent / "goldens" / f"{name}.npz") as file:
        golden = dict(file)
    about = json.loads(str(golden["about"]))
    net = make_twin(name, about["form"], **about["hparams"]).double()
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    state_dict = random_state_dict(shapes, about["seed"])
    net.load_state_dict({key: torch.tensor(value) for key, value in state_dict.items()})
    arrays, _ = torch_outputs(net, golden["x0"].astype(np.float64))
    assert_close(arrays["y"], golden["y0"], 1e-12)
    assert_close(arrays["x"], golden["g0"], 1e-10)
