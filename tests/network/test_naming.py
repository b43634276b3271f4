"""Mapping of state-dict keys: both directions, for tensors and for modules."""

import pytest
from flax import nnx

from esrjax import registry
from esrjax.network.naming import KeyMap
from esrjax.network.reparam import deploy
from esrjax.network.weights import named_parameters

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
