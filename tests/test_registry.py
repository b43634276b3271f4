"""Whoever is installed is found, and a bad package spoils its own names only."""

import json
import subprocess
import sys

import pytest

from esrjax import registry
from esrjax.method import Ensemble, Method
from esrjax.registry import AmbiguousMethod, BrokenPlugin, UnknownMethod

GOOD = """
from esrjax.method import Ensemble, Member, Method

METHOD = Method(network=dict, team="theirs", paper="unsaid", license="MIT")
SMT = Ensemble(members={"span": Member()}, team="theirs", paper="unsaid", license="MIT")
"""


@pytest.fixture
def install(package):
    """Puts a package of methods on the path: `install(name, source, entries)`."""
    registry._load.cache_clear()
    yield lambda name, source, entries, place="site": package(
        name, source, registry.GROUP, entries, place
    )
    registry._load.cache_clear()


def test_our_own_methods_come_through_the_same_door():
    assert {"span", "spanv2"} <= set(registry.names())
    assert registry.names() == tuple(sorted(registry.names()))
    assert isinstance(registry.method("span"), Method)
    assert registry.origin("span").startswith("esrjax ")


def test_a_package_of_others_is_found(install):
    install("theirs", GOOD, {"new": "METHOD", "mix": "SMT"})
    assert {"new", "mix", "span"} <= set(registry.names())
    assert registry.method("new").team == "theirs"
    assert isinstance(registry.method("mix"), Ensemble)
    assert registry.origin("new") == "theirs 1.0"
    assert registry.method("new") is registry.method("new")


def test_an_unknown_name_is_answered_with_the_nearest(monkeypatch):
    monkeypatch.setenv(registry.LIMIT, "span,spanv2")
    with pytest.raises(UnknownMethod) as caught:
        registry.method("spam")
    assert str(caught.value) == (
        "no method is called 'spam'\n"
        "  rule:   a method is an entry point of the group 'esrjax.methods'; installed, limited "
        "by ESRJAX_PLUGINS: span, spanv2\n"
        "  remedy: did you mean 'span'?"
    )


def test_an_unknown_name_near_to_none_is_to_be_installed():
    with pytest.raises(UnknownMethod) as caught:
        registry.origin("zzzzzz")
    assert "limited" not in caught.value.rule
    assert caught.value.remedy.startswith("install the package that registers it")


def test_two_packages_of_one_name_are_ambiguous_in_that_name_alone(install):
    install("first", GOOD, {"contested": "METHOD", "calm": "METHOD"})
    install("second", GOOD, {"contested": "METHOD"})
    assert {"contested", "calm"} <= set(registry.names())
    assert isinstance(registry.method("calm"), Method)
    with pytest.raises(AmbiguousMethod) as caught:
        registry.method("contested")
    assert caught.value.problem == "the method 'contested' is registered more than once"
    claims = {"first 1.0 (fake_first:METHOD)", "second 1.0 (fake_second:METHOD)"}
    assert set(caught.value.place.split(" and ")) == claims


def test_one_package_seen_twice_on_the_path_counts_once(install):
    for place in ("site", "again"):
        install("theirs", GOOD, {"new": "METHOD"}, place)
    assert isinstance(registry.method("new"), Method)


@pytest.mark.parametrize(
    "source, what",
    [
        ("import no_such_module", "importing it raised ModuleNotFoundError: No module named"),
        ("METHOD = 1 / 0", "importing it raised ZeroDivisionError: division by zero"),
        ("METHODS = 1", "importing it raised AttributeError: "),
        ("METHOD = 3", "it holds a int"),
    ],
)
def test_a_broken_package_is_named_and_spoils_no_other(install, source, what):
    install("broken", source, {"bad": "METHOD"})
    assert "bad" in registry.names()
    with pytest.raises(BrokenPlugin) as caught:
        registry.method("bad")
    assert caught.value.problem.startswith(f"the plugin 'bad' cannot be loaded: {what}")
    assert caught.value.place == "fake_broken:METHOD, of broken 1.0"
    assert isinstance(registry.method("span"), Method)


def test_discovery_can_be_limited(install, monkeypatch):
    install("theirs", GOOD, {"new": "METHOD"})
    monkeypatch.setenv(registry.LIMIT, "new, span")
    assert registry.names() == ("new", "span")
    with pytest.raises(UnknownMethod, match="limited by ESRJAX_PLUGINS: new, span"):
        registry.method("spanv2")


def imported(expression):
    """The packages that are imported after `expression` was asked of a fresh registry."""
    code = (
        f"import json, sys; from esrjax import registry; {expression}; "
        "print(json.dumps(list(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(run.stdout)}


def test_names_imports_neither_jax_nor_a_plugin():
    heavy = {"jax", "flax", "numpy", "torch", "esrjax_plugins", "esrjax_kernels"}
    assert not imported("registry.names(), registry.origin('span')") & heavy


def test_method_imports_the_one_package_that_holds_it():
    found = imported("registry.method('span')")
    assert "esrjax_plugins" in found and "torch" not in found
