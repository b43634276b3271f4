"""Names go to PyTorch and back, for tensors and for modules."""

import pytest
from flax import nnx

from esrjax import registry
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import leaves

PAIRS = [
    # a template, a torch name, the Flax path
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
# What a template looks like but does not fit keeps its name.
STRANGERS = [
    ("body.{i}.{leaf}:blocks.{i}.{leaf}", "body.x.weight"),  # not a number
    ("body.{i}.{leaf}:blocks.{i}.{leaf}", "body.1.conv.weight"),  # a field is one part
    ("head.{leaf}:first.{leaf}", "my.head.weight"),  # the whole name, not its end
    ("head.{leaf}:first.{leaf}", "headXweight"),  # a dot is a dot
]


def named(*templates):
    return Naming(dict(template.split(":") for template in templates))


@pytest.mark.parametrize("template, torch, flax", PAIRS)
def test_a_template_reads_both_ways(template, torch, flax):
    naming = named(template)
    assert (naming.to_flax(torch), naming.to_torch(flax)) == (flax, torch)


@pytest.mark.parametrize("template, name", STRANGERS)
def test_what_no_template_fits_keeps_its_name(template, name):
    assert named(template).to_flax(name) == name


def test_the_first_template_that_fits_is_used():
    narrow, wide = "body.0.{leaf}:head.{leaf}", "body.{i}.{leaf}:blocks.{i}.{leaf}"
    assert named(narrow, wide).to_flax("body.0.bias") == "head.bias"
    assert named(narrow, wide).to_flax("body.1.bias") == "blocks.1.bias"
    assert named(wide, narrow).to_flax("body.0.bias") == "blocks.0.bias"


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("name", ["span", "spanv2"])
def test_every_name_of_a_method_comes_back(name, form):
    method = registry.method(name)
    shape = {"train": lambda net: net, "deploy": deploy}[form]
    net = nnx.eval_shape(lambda: shape(method.build()))
    parts = [".".join(map(str, path)) for path, _ in nnx.iter_modules(net) if path]
    naming = Naming(method.torch_names)
    for paths in ([path for path, _ in leaves(net)], parts):
        torch = [naming.to_torch(path) for path in paths]
        assert len(set(torch)) == len(torch)
        assert [naming.to_flax(key) for key in torch] == paths
