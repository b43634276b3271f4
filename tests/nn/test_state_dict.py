"""Mapping of state-dict keys: both directions, for tensors and for modules."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.errors import WeightsMismatch
from esrjax.nn.checkpoint_io import read_checkpoint
from esrjax.nn.layers import Conv2d, Linear, Sequential, param
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, cast, load_state_dict, named_parameters, to_state_dict

PAIRS = [
    # template, torch key, Flax path
    (
        "block_{i}.c{j}_r.eval_conv.{leaf}:block_{i}.c{j}.{leaf}",
        "block_2.c1_r.eval_conv.bias",
        "block_2.c1.bias",
    ),
    (
        "block_{i}.c{j}_r.eval_conv.{leaf}:block_{i}.c{j}.{leaf}",
        "block_2.c1_r.eval_conv",
        "block_2.c1",
    ),
    ("body.{i}.{leaf}:blocks.{i}.{leaf}", "body.12.weight", "blocks.12.weight"),
    ("body.{i}.{leaf}:blocks.{i}.{leaf}", "body.12", "blocks.12"),
    ("head.{leaf}:first.{leaf}", "head.weight", "first.weight"),
    ("head.{leaf}:first.{leaf}", "head", "first"),
    ("{part}.alpha:{part}.gain", "tail.alpha", "tail.gain"),
    ("a{i}.b{j}.{leaf}:b{j}.a{i}.{leaf}", "a1.b2.weight", "b2.a1.weight"),
]
# Names that resemble the template but do not match it.
UNMATCHED = [
    ("body.{i}.{leaf}:blocks.{i}.{leaf}", "body.x.weight"),  # not a number
    ("body.{i}.{leaf}:blocks.{i}.{leaf}", "body.1.conv.weight"),  # a field is one component
    ("head.{leaf}:first.{leaf}", "my.head.weight"),  # the whole name, not its end
    ("head.{leaf}:first.{leaf}", "headXweight"),  # a dot is a dot
]


def key_map(*templates):
    return KeyMap(dict(template.split(":") for template in templates))


@pytest.mark.parametrize("template, torch, flax", PAIRS)
def test_template_maps_both_ways(template, torch, flax):
    names = key_map(template)
    assert (names.to_flax(torch), names.to_torch(flax)) == (flax, torch)


@pytest.mark.parametrize("template, name", UNMATCHED)
def test_unmatched_name_is_unchanged(template, name):
    assert key_map(template).to_flax(name) == name


def test_first_matching_template_is_used():
    specific, general = "body.0.{leaf}:head.{leaf}", "body.{i}.{leaf}:blocks.{i}.{leaf}"
    assert key_map(specific, general).to_flax("body.0.bias") == "head.bias"
    assert key_map(specific, general).to_flax("body.1.bias") == "blocks.1.bias"
    assert key_map(general, specific).to_flax("body.0.bias") == "blocks.0.bias"


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("name", ["span", "spanv2"])
def test_names_of_a_method_round_trip(name, form):
    method = registry.get_entry(name)
    to_form = {"train": lambda net: net, "deploy": deploy}[form]
    net = nnx.eval_shape(lambda: to_form(method.build()))
    modules = [".".join(map(str, path)) for path, _ in nnx.iter_modules(net) if path]
    names = KeyMap(method.torch_names)
    for paths in ([path for path, _ in named_parameters(net)], modules):
        torch_keys = [names.to_torch(path) for path in paths]
        assert len(set(torch_keys)) == len(torch_keys)
        assert [names.to_flax(key) for key in torch_keys] == paths


# --- State dicts: export, strict loading, and the errors of a mismatch ---


KEY_MAP = KeyMap({"features.{i}.{leaf}": "body.{i}.{leaf}"})


class Net(nnx.Module):
    """One parameter of every sort."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.body = Sequential([Conv2d(2, 3, (1, 5), rngs=rngs), Linear(3, 4, rngs=rngs)])
        self.gain = param(jax.random.normal(rngs.params(), (1, 1, 1, 4)), (0, 3, 1, 2))
        self.count = nnx.BatchStat(jnp.array(seed))


def state_dict_of(seed=1):
    return to_state_dict(Net(seed), KEY_MAP)


def mismatch(state_dict, net=None, **options):
    with pytest.raises(WeightsMismatch) as caught:
        load_state_dict(net or Net(), state_dict, KEY_MAP, **options)
    return caught.value


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key, strict=True)


def test_state_dict_has_pytorchs_names_and_shapes():
    assert {key: value.shape for key, value in state_dict_of().items()} == {
        "features.0.weight": (3, 2, 1, 5),
        "features.0.bias": (3,),
        "features.1.weight": (4, 3),
        "features.1.bias": (4,),
        "gain": (1, 4, 1, 1),
        "count": (),
    }


@pytest.mark.parametrize("net", [Net(), nnx.eval_shape(Net)], ids=["built", "abstract"])
def test_state_dict_round_trip(net):
    assert_same(
        to_state_dict(load_state_dict(net, state_dict_of(), KEY_MAP), KEY_MAP), state_dict_of()
    )


def test_loading_keeps_the_dtypes_of_the_network():
    doubled = {key: value.astype(np.float64) for key, value in state_dict_of().items()}
    assert_same(to_state_dict(load_state_dict(Net(), doubled, KEY_MAP), KEY_MAP), state_dict_of())


def test_loading_does_not_change_its_argument():
    net = Net()
    load_state_dict(net, state_dict_of(1), KEY_MAP)
    assert_same(to_state_dict(net, KEY_MAP), state_dict_of(0))


def test_mismatch_lists_missing_unexpected_and_misshapen_keys():
    net, wrong = Net(), state_dict_of()
    del wrong["features.1.bias"]
    wrong["features.1.biases"] = np.zeros(4)
    wrong["gain"] = np.zeros((1, 1, 1, 4))
    wrong["ema.decay"] = np.zeros(())
    error = mismatch(wrong, net, location="net.pth")
    assert error.num_mismatches == 4
    assert error.problem == (
        "4 of 8 tensors do not match:\n"
        "    missing key: features.1.bias (4,) (did you mean features.1.biases?)\n"
        "    shape mismatch: gain is (1, 1, 1, 4), the network has (1, 4, 1, 1)\n"
        "    unexpected key: features.1.biases (4,)\n"
        "    unexpected key: ema.decay ()"
    )
    assert error.location == "net.pth" and "--hparam" in error.remedy
    assert_same(to_state_dict(net, KEY_MAP), state_dict_of(0))


def test_long_list_of_mismatches_is_shortened():
    wrong = {f"other.{i}": np.zeros(()) for i in range(30)}
    text = str(mismatch(wrong))
    assert text.startswith("36 of 36 tensors do not match")
    assert text.count("missing key") == 6
    assert text.count("unexpected key") == 10
    assert "\n    and 20 more\n" in text


def test_two_keys_of_one_parameter_are_a_mismatch():
    wrong = state_dict_of() | {"body.1.bias": np.zeros(4)}
    text = str(mismatch(wrong))
    assert "duplicate key: features.1.bias and body.1.bias" in text
    assert "1 of 6" in text


def test_unused_keys_are_ignored():
    more = state_dict_of() | {"mask.0": np.zeros(1), "body.mask": np.zeros(1), "other": np.zeros(1)}
    unused_keys = {"mask.*": "recomputed", "*.mask": "recomputed"}
    assert str(mismatch(more, unused_keys=unused_keys)).startswith("1 of 7")
    del more["other"]
    assert_same(
        to_state_dict(load_state_dict(Net(), more, KEY_MAP, unused_keys=unused_keys), KEY_MAP),
        state_dict_of(),
    )


def test_cast_returns_a_copy():
    net = Net()
    half = cast(net, jnp.bfloat16)
    assert {leaf.get_value().dtype.name for _, leaf in named_parameters(half)} == {"bfloat16"}
    assert_same(to_state_dict(net, KEY_MAP), state_dict_of(0))


@pytest.mark.parametrize(
    "name, file", [("span", "team00_SPAN.pth"), ("spanv2", "team22_spanv2_c2.pth")]
)
def test_official_weights_round_trip_bit_exactly(reference, name, file):
    method, checkpoint = registry.get_entry(name), read_checkpoint(reference / "weights" / file)
    weights = method.weights["ntire2026"]
    assert checkpoint.sha256 == weights.sha256
    assert checkpoint.sha256 == hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    to_form = deploy if weights.form == "deploy" else lambda net: net
    net = nnx.eval_shape(lambda: to_form(method.build(**weights.hparams)))
    key_map = KeyMap(method.torch_names)
    exported = to_state_dict(
        load_state_dict(net, checkpoint.state_dict, key_map, method.unused_torch_keys), key_map
    )
    assert_same(exported, checkpoint.state_dict)
