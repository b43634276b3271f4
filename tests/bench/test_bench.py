"""Benchmark: methods, image sizes, implementations and engines, and the keys of its rows."""

import itertools
import time

import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.bench import timing
from esrjax.bench.bench import (
    PROBE_SIZES,
    Backend,
    CompiledCase,
    SkipBackend,
    Variants,
    bench,
    jax_backend,
)
from esrjax.errors import ImageTooSmall, InvalidArgument, NotFound
from esrjax.nn import ops


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    """Probes of the machine's peaks that take no time."""
    monkeypatch.setitem(PROBE_SIZES, "cpu", (2**16, 64))


@pytest.fixture
def methods(crumbs):
    return {name: registry.get_method(name) for name in ("crumb", "loaf")}


def test_one_row_for_each_image_size_and_method(methods):
    result = bench(methods, [(16, 8), (6, 6)], {}, seconds=0.01)
    assert result["device"] == timing.machine_info()["device"]
    rows = [(row["image_size"], row["method"]) for row in result["rows"]]
    assert rows == [("16x8", "crumb"), ("16x8", "loaf"), ("6x6", "crumb"), ("6x6", "loaf")]
    for row in result["rows"]:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["peak_mib"] > 0


def test_larger_images_need_more_memory(methods):
    small, large = bench({"crumb": methods["crumb"]}, [(8, 8), (64, 64)], {}, 0.01)["rows"]
    assert large["peak_mib"] > 10 * small["peak_mib"]


def test_hparams_reach_the_network(methods):
    crumb = {"crumb": methods["crumb"]}
    assert bench(crumb, [(8, 8)], {"kernel_size": 5}, 0.01)["rows"]
    with pytest.raises(InvalidArgument, match="width"):
        bench(crumb, [(8, 8)], {"width": 5}, 0.01)


def test_too_small_image_size_is_rejected_before_anything_runs(methods):
    with pytest.raises(ImageTooSmall, match=r"crumb .*\b6\b"):
        bench(methods, [(64, 64), (64, 5)], {}, 0.01)


def test_one_row_for_each_implementation_and_precision(methods):
    crumb = {"crumb": methods["crumb"]}
    variants = Variants(implementations=("reference", "auto"), precisions=("float32", "bfloat16"))
    result = bench(crumb, [(64, 64)], {}, 0.01, variants=variants)
    expected = itertools.product(variants.implementations, variants.precisions)
    rows = [(row["implementation"], row["precision"]) for row in result["rows"]]
    assert rows == list(expected)
    f32, bf16 = result["rows"][:2]
    assert bf16["peak_mib"] < 0.6 * f32["peak_mib"] and bf16["bytes"] == f32["bytes"] / 2
    assert set(result["peaks"]) == {"float32", "bfloat16"}
    assert result["machine"]["implementation"] == "reference,auto"


def test_each_image_size_is_compiled_once_with_its_implementation(methods):
    implementations = []

    def recording(name, method, net):
        def compile_case(image):
            implementations.append(ops.implementation.value)
            return jax_factory(name, method, net)(image)

        return compile_case

    jax_factory = next(iter(jax_backend().values())).factory
    backends = {"recording": Backend(factory=recording, supports_variants=True)}
    variants = Variants(implementations=("auto", "reference"))
    crumb = {"crumb": methods["crumb"]}
    rows = bench(crumb, [(8, 8), (8, 9)], {}, 0.01, backends, variants=variants)["rows"]
    assert implementations == ["auto", "reference"] * 2
    assert [row["compilations"] for row in rows] == [1] * 4
    assert all(row["compile_s"] > 0 for row in rows)


def test_networks_are_in_eval_mode():
    modules = []

    def recording(name, method, net):
        modules.extend(m for _, m in nnx.iter_modules(net) if hasattr(m, "deterministic"))
        return lambda image: CompiledCase(call=lambda: 0)

    dan = registry.get_method("dan")
    backends = {"fake": Backend(factory=recording)}
    bench({"dan": dan}, [(16, 16)], dan.test_hparams, 0.01, backends)
    assert modules and all(module.deterministic for module in modules)


def test_implementation_without_a_kernel_is_an_error():
    spanv2 = {"spanv2": registry.get_method("spanv2")}
    variants = Variants(implementations=("reference", "kernel"))
    with pytest.raises(NotFound):
        bench(spanv2, [(8, 8)], {"channels": 4}, 0.01, variants=variants)


@pytest.fixture
def factory_taking(monkeypatch):
    """`factory_taking(20)` is a factory of a case that takes 20 s, by a clock that jumps ahead."""
    real, offset = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: real() + offset[0])

    def skip(seconds: float) -> None:
        offset[0] += seconds

    return lambda seconds: lambda image: CompiledCase(call=lambda: skip(seconds))


def test_ratios_to_eager_pytorch_are_those_of_paired_rounds(methods, factory_taking):
    backends = {"ours": Backend(factory=lambda *network: factory_taking(20))}
    torch_factories = {
        "crumb": {"pytorch": factory_taking(40), "pytorch-channels-last": factory_taking(10)}
    }
    rows = bench(methods, [(8, 8)], {}, 0.01, backends, torch_factories=torch_factories)["rows"]
    ratios = {(row["method"], row["engine"]): row["torch_eager_ratio"] for row in rows}
    assert list(ratios) == [
        ("crumb", "ours"),
        ("crumb", "pytorch"),
        ("crumb", "pytorch-channels-last"),
        ("loaf", "ours"),
    ]
    assert ratios["crumb", "ours"] == pytest.approx(0.5, rel=0.01)
    assert ratios["crumb", "pytorch-channels-last"] == pytest.approx(0.25, rel=0.01)
    assert ratios["crumb", "pytorch"] is ratios["loaf", "ours"] is None
    row, per_round = rows[0], np.divide(*(row["samples_ms"] for row in rows[:2]))
    assert row["torch_eager_ratio"] == np.median(per_round)
    assert row["torch_eager_ratio_low"] <= row["torch_eager_ratio"] <= row["torch_eager_ratio_high"]
    assert all(row["torch_compile_ratio"] is None for row in rows)


def test_ratios_to_torch_compile(methods, factory_taking):
    backends = {"ours": Backend(factory=lambda *network: factory_taking(20))}
    torch_factories = {
        "crumb": {"pytorch": factory_taking(40), "pytorch-compiled": factory_taking(10)}
    }
    crumb = {"crumb": methods["crumb"]}
    ours, eager, compiled = bench(
        crumb, [(8, 8)], {}, 0.01, backends, torch_factories=torch_factories
    )["rows"]
    assert ours["torch_compile_ratio"] == pytest.approx(2, rel=0.01)
    assert eager["torch_compile_ratio"] == pytest.approx(4, rel=0.01)
    assert compiled["torch_eager_ratio"] == pytest.approx(0.25, rel=0.01)
    assert compiled["torch_compile_ratio"] is None


def test_cases_that_cannot_run_are_skipped_with_a_note(methods):
    def unavailable(image):
        raise SkipBackend("no compiler")

    torch_factories = {"crumb": {"pytorch-compiled": unavailable}}
    crumb = {"crumb": methods["crumb"]}
    result = bench(crumb, [(8, 8), (9, 9)], {}, 0.01, torch_factories=torch_factories)
    assert [row["engine"] for row in result["rows"]] == ["jax-cpu"] * 2
    (note,) = result["notes"]
    assert all(word in note for word in ("crumb", "pytorch-compiled", "no compiler"))


def test_roofline_fraction_is_the_minimum_over_the_median(methods):
    (row,) = bench({"crumb": methods["crumb"]}, [(16, 16)], {}, 0.01)["rows"]
    assert row["macs"] == 9 * 3 * 16 * 16
    assert row["roofline_fraction"] == pytest.approx(row["min_time_ms"] / row["median_ms"])
    assert row["roofline_fraction"] > 0
