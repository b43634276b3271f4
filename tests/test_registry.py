"""Discovery of methods: a broken package affects its own names only."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esrjax import registry
from esrjax.errors import NotFound, PluginError, UnwritableFile
from esrjax.method import Ensemble, Method

GOOD = """
from esrjax.method import Ensemble, Member, Method

METHOD = Method(network=dict, team="theirs", paper="none", license="MIT")
SMT = Ensemble(members={"span": Member()}, team="theirs", paper="none", license="MIT")
"""


@pytest.fixture
def install(package):
    """Return `install(name, source, entries)`, which puts a package of methods on the path."""
    return lambda name, source, entries, folder="site": package(
        name, source, registry.METHOD_GROUP, entries, folder
    )


def test_own_methods_are_entry_points_too():
    assert {"span", "spanv2"} <= set(registry.names())
    assert registry.names() == tuple(sorted(registry.names()))
    assert isinstance(registry.get_entry("span"), Method)
    assert registry.distribution_of("span").startswith("esrjax ")


def test_method_of_another_package_is_found(install):
    install("theirs", GOOD, {"new": "METHOD", "mix": "SMT"})
    assert {"new", "mix", "span"} <= set(registry.names())
    assert registry.get_entry("new").team == "theirs"
    assert isinstance(registry.get_entry("mix"), Ensemble)
    assert registry.distribution_of("new") == "theirs 1.0"
    assert registry.get_entry("new") is registry.get_entry("new")


def test_source_hash_changes_with_the_package_of_the_method_only(install, tmp_path):
    install("theirs", GOOD, {"new": "METHOD", "mix": "SMT"})
    hashes = {name: registry.source_hash(name) for name in ("new", "mix", "span")}
    assert len({*hashes.values()}) == 3
    assert registry.source_hash("new") == hashes["new"]
    (file,) = tmp_path.rglob("fake_theirs.py")
    file.write_text(GOOD + "\n# changed\n")
    assert registry.source_hash("new") != hashes["new"]
    assert registry.source_hash("span") == hashes["span"]


# --- the cache of what was computed from methods -------------------------------------------------


@pytest.fixture
def cache_file(install, tmp_path, monkeypatch) -> Path:
    """Where the cache has the value of `new`; its package has the ensemble `mix` too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    install("theirs", GOOD, {"new": "METHOD", "mix": "SMT"})
    return tmp_path / "cache/esrjax/methods/new.json"


VALUE = {"params": 12, "weights": ["a"], "exact": 0.1}


def test_cached_value_holds_for_later_processes_until_the_source_changes(cache_file, tmp_path):
    assert registry.MethodCache().find("new") is None
    registry.MethodCache().store("new", VALUE)
    assert registry.MethodCache().find("new") == VALUE
    assert registry.MethodCache().find("mix") is None
    (tmp_path / "site/fake_theirs.py").write_text(GOOD + "\n# changed\n")
    assert registry.MethodCache().find("new") is None
    registry.MethodCache().store("new", {"params": 13})
    assert registry.MethodCache().find("new") == {"params": 13}
    assert os.listdir(cache_file.parent) == ["new.json"]  # one for each name, no leftovers


def test_cached_value_of_an_ensemble_holds_while_its_members_do(cache_file, install, tmp_path):
    install("parts", GOOD, {"part": "METHOD"}, "other")
    registry.MethodCache().store("mix", VALUE, ["span", "part"])
    registry.MethodCache().store("new", VALUE)
    assert registry.MethodCache().find("mix") == VALUE
    (tmp_path / "other/fake_parts.py").write_text(GOOD + "\n")
    assert registry.MethodCache().find("mix") is None
    assert registry.MethodCache().find("new") == VALUE


def test_cached_value_is_dropped_when_a_distribution_changes_or_a_name_is_hidden(
    cache_file, tmp_path, monkeypatch
):
    registry.MethodCache().store("mix", VALUE, ["span"])
    assert registry.MethodCache().find("mix") == VALUE
    monkeypatch.setenv(registry.PLUGINS_ENV, "mix")  # without its member
    assert registry.MethodCache().find("mix") is None
    monkeypatch.delenv(registry.PLUGINS_ENV)
    assert registry.MethodCache().find("mix") == VALUE
    (tmp_path / "site/numerics-2.0.dist-info").mkdir()
    assert registry.MethodCache().find("mix") is None


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "other value": lambda text: text.replace("12", "13"),
    "other members": lambda text: text.replace("[]", '["span"]'),
    "members of another type": lambda text: text.replace("[]", "7"),
    "members that are no names": lambda text: text.replace("[]", "[[], {}]"),
    "a list": lambda text: f"[{text}]",
    "nested": lambda text: "[" * 100_000,
    "no text": lambda text: "\udcff",
    "large": lambda text: text + " " * 2_000_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_of_the_cache_is_computed_again(cache_file, damage):
    registry.MethodCache().store("new", VALUE)
    text = DAMAGE[damage](cache_file.read_text())
    cache_file.write_bytes(text.encode(errors="surrogateescape"))
    assert registry.MethodCache().find("new") is None
    registry.MethodCache().store("new", VALUE)
    assert registry.MethodCache().find("new") == VALUE


def test_cache_that_cannot_be_written_is_no_error(cache_file, monkeypatch):
    (cache_file / "a folder of this name").mkdir(parents=True)
    registry.MethodCache().store("new", VALUE)
    assert registry.MethodCache().find("new") is None

    def refuse(name: str) -> Path:
        raise UnwritableFile("There is no folder for a cache", rule="", remedy="")

    monkeypatch.setattr(registry, "cache_dir", refuse)
    registry.MethodCache().store("mix", VALUE)
    assert registry.MethodCache().find("mix") is None


# --- methods that cannot be used -----------------------------------------------------------------


def test_plugin_for_another_interface_is_refused_by_name(install):
    install(
        "theirs", GOOD.replace("Method(net", "Method(api=7, net"), {"new": "METHOD", "mix": "SMT"}
    )
    assert isinstance(registry.get_entry("mix"), Ensemble)
    with pytest.raises(PluginError) as caught:
        registry.get_entry("new")
    assert "'new'" in caught.value.problem and "version 7" in caught.value.problem
    assert "version 1" in caught.value.rule and "theirs 1.0" in str(caught.value.location)
    assert "install" in caught.value.remedy


def test_unknown_method_is_reported_with_the_closest_name(monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "span,spanv2")
    with pytest.raises(NotFound) as caught:
        registry.get_entry("spam")
    assert str(caught.value) == (
        "Unknown method 'spam'\n"
        "  rule:     a method is an entry point of the group 'esrjax.methods'; installed, limited "
        "by ESRJAX_PLUGINS: span, spanv2\n"
        "  remedy:   did you mean 'span'?"
    )


def test_unknown_method_without_a_close_name_is_to_be_installed():
    with pytest.raises(NotFound) as caught:
        registry.distribution_of("zzzzzz")
    assert "limited" not in caught.value.rule
    assert caught.value.remedy.startswith("install the package that registers it")


def test_ambiguous_name_does_not_affect_other_names(install):
    install("first", GOOD, {"contested": "METHOD", "calm": "METHOD"})
    install("second", GOOD, {"contested": "METHOD"})
    assert {"contested", "calm"} <= set(registry.names())
    assert isinstance(registry.get_entry("calm"), Method)
    with pytest.raises(PluginError) as caught:
        registry.get_entry("contested")
    assert caught.value.problem == "Method 'contested' is registered more than once"
    providers = {"first 1.0 (fake_first:METHOD)", "second 1.0 (fake_second:METHOD)"}
    assert set(caught.value.location.split(" and ")) == providers


def test_package_found_twice_on_the_path_counts_once(install):
    for folder in ("site", "again"):
        install("theirs", GOOD, {"new": "METHOD"}, folder)
    assert isinstance(registry.get_entry("new"), Method)


@pytest.mark.parametrize(
    "source, reason",
    [
        ("import no_such_module", "importing it raised ModuleNotFoundError: No module named"),
        ("METHOD = 1 / 0", "importing it raised ZeroDivisionError: division by zero"),
        ("METHODS = 1", "importing it raised AttributeError: "),
        ("METHOD = 3", "it is a int"),
        ("import sys; sys.exit(0)", "importing it raised SystemExit: 0"),
        ("import os; os._exit(0)", "importing it raised SystemExit: os._exit(0,)"),
    ],
)
def test_broken_package_is_reported_and_does_not_affect_others(install, source, reason):
    install("broken", source, {"bad": "METHOD"})
    assert "bad" in registry.names()
    with pytest.raises(PluginError) as caught:
        registry.get_entry("bad")
    assert caught.value.problem.startswith(f"Method 'bad' cannot be loaded: {reason}")
    assert caught.value.location == "fake_broken:METHOD, of broken 1.0"
    assert isinstance(registry.get_entry("span"), Method)


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ('team="theirs"', "team=None", "Method.team is None"),
        ("network=dict", "network=3", "network is 3"),
        ("network=dict", "network=lambda channels=4: None", "network is <function"),
        ("network=dict", "network=dict, scales=(4.0,)", "scales is (4.0,)"),
        ("network=dict", "network=dict, weights={'a': 'url'}", "weights is {'a': 'url'}"),
    ],
)
def test_wrong_field_is_reported_and_does_not_affect_the_package(install, old, new, problem):
    source = GOOD + "OTHER = " + GOOD.split("METHOD = ")[1].split("\n")[0].replace(old, new)
    install("theirs", source, {"good": "METHOD", "bad": "OTHER"})
    with pytest.raises(PluginError) as caught:
        registry.get_entry("bad")
    assert f"'bad' is invalid: {problem}" in caught.value.problem
    assert caught.value.location == "fake_theirs:OTHER, of theirs 1.0"
    assert isinstance(registry.get_entry("good"), Method)


@pytest.mark.parametrize("name", ["../up", "team/net", "nul", "a b", "x" * 101])
def test_name_that_is_no_file_name_is_refused(install, name):
    install("theirs", GOOD, {name: "METHOD", "good": "METHOD"})
    with pytest.raises(PluginError) as caught:
        registry.get_entry(name)
    assert name in caught.value.problem and "theirs 1.0" in str(caught.value.location)
    assert isinstance(registry.get_entry("good"), Method)


def test_what_a_plugin_prints_or_changes_does_not_reach_the_command(install, capsys, tmp_path):
    install(
        "theirs",
        f"import os\nprint('hello')\nos.chdir({str(tmp_path)!r})" + GOOD,
        {"new": "METHOD"},
    )
    cwd = os.getcwd()
    assert registry.get_entry("new").team == "theirs" and os.getcwd() == cwd
    assert capsys.readouterr() == ("", "hello\n")


def test_damaged_distribution_is_named_and_hides_no_other(install, tmp_path, caplog):
    install("theirs", GOOD, {"new": "METHOD"})
    damaged = tmp_path / "site" / "damaged-1.0.dist-info"
    damaged.mkdir()
    (damaged / "METADATA").write_text("Name: damaged\nVersion: 1.0\n")
    (damaged / "entry_points.txt").write_text("[esrjax.methods]\nno value\n")
    assert {"new", "span"} <= set(registry.names())
    assert "damaged-1.0.dist-info" in caplog.text


def test_discovery_can_be_limited(install, monkeypatch):
    install("theirs", GOOD, {"new": "METHOD"})
    monkeypatch.setenv(registry.PLUGINS_ENV, "new, span")
    assert registry.names() == ("new", "span")
    with pytest.raises(NotFound, match="limited by ESRJAX_PLUGINS: new, span"):
        registry.get_entry("spanv2")


def modules_after(expression):
    """Return the packages that a new process has imported after evaluating `expression`."""
    code = (
        f"import json, sys; from esrjax import registry; {expression}; "
        "print(json.dumps(list(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(run.stdout)}


def test_names_imports_neither_jax_nor_a_plugin():
    heavy = {"jax", "flax", "numpy", "torch", "esrjax_plugins", "esrjax_kernels"}
    assert not modules_after("registry.names(), registry.distribution_of('span')") & heavy


def test_get_entry_imports_one_plugin_only():
    modules = modules_after("registry.get_entry('span')")
    assert "esrjax_plugins" in modules and "torch" not in modules


def test_loss_that_is_no_function_is_refused(package):
    package("theirs", "THREE = 3", registry.LOSS_GROUP, {"three": "THREE"})
    with pytest.raises(PluginError) as caught:
        registry.get_component(registry.LOSS_GROUP, "three", "loss", Callable)
    assert "'three'" in caught.value.problem and "int" in caught.value.problem
    assert "Callable" in caught.value.rule and "theirs 1.0" in str(caught.value.location)
