"""Methods are timed in turn, at every size, as they will be run."""

import itertools
import time

import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.contest import clock, roofline
from esrjax.contest.bench import bench
from esrjax.contest.lanes import Engine, LeftOut, Ready, Variants, jax_engine
from esrjax.method import BadSize
from esrjax.model import PictureTooSmall
from esrjax.network import ops
from esrjax.network.ops import NoKernel


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Ceilings that are measured in no time."""
    monkeypatch.setitem(roofline.SIZES, "cpu", (2**16, 64))


@pytest.fixture
def methods(crumbs):
    return {name: registry.plain(name) for name in ("crumb", "loaf")}


def test_a_row_for_every_method_and_size(methods):
    found = bench(methods, [(16, 8), (6, 6)], {}, seconds=0.01)
    assert found["device"] == clock.machine()["device"]
    rows = [(row["size"], row["method"]) for row in found["rows"]]
    assert rows == [("16x8", "crumb"), ("16x8", "loaf"), ("6x6", "crumb"), ("6x6", "loaf")]
    for row in found["rows"]:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["peak_mib"] > 0


def test_larger_pictures_need_more_memory(methods):
    small, large = bench({"crumb": methods["crumb"]}, [(8, 8), (64, 64)], {}, 0.01)["rows"]
    assert large["peak_mib"] > 10 * small["peak_mib"]


def test_sizes_reach_the_network(methods):
    crumb = {"crumb": methods["crumb"]}
    assert bench(crumb, [(8, 8)], {"side": 5}, 0.01)["rows"]
    with pytest.raises(BadSize, match="no such size: width"):
        bench(crumb, [(8, 8)], {"width": 5}, 0.01)


def test_a_size_that_a_method_does_not_accept_is_refused_before_anything_runs(methods):
    with pytest.raises(PictureTooSmall, match="crumb accepts pictures of at least 6"):
        bench(methods, [(64, 64), (64, 5)], {}, 0.01)


def test_every_body_and_precision_is_a_row_of_its_own(methods):
    crumb = {"crumb": methods["crumb"]}
    variants = Variants(bodies=("reference", "auto"), precisions=("float32", "bfloat16"))
    found = bench(crumb, [(64, 64)], {}, 0.01, variants=variants)
    asked = itertools.product(variants.bodies, variants.precisions)
    assert [(row["body"], row["precision"]) for row in found["rows"]] == list(asked)
    single, half = found["rows"][:2]
    assert half["peak_mib"] < 0.6 * single["peak_mib"] and half["bytes"] == single["bytes"] / 2
    assert set(found["ceilings"]) == {"float32", "bfloat16"}
    assert found["machine"]["body"] == "reference,auto"


def test_a_program_is_compiled_for_every_size_and_under_its_body(methods):
    seen = []

    def watched(name, method, net):
        return lambda picture: seen.append(ops.body.value) or jax_crumb(name, method, net)(picture)

    jax_crumb = next(iter(jax_engine().values())).start
    engine = {"watched": Engine(start=watched, varied=True)}
    variants = Variants(bodies=("auto", "reference"))
    crumb = {"crumb": methods["crumb"]}
    rows = bench(crumb, [(8, 8), (8, 9)], {}, 0.01, engine, variants=variants)["rows"]
    assert seen == ["auto", "reference"] * 2
    assert [row["compilations"] for row in rows] == [1] * 4
    assert all(row["compile_s"] > 0 for row in rows)


def test_networks_run_as_they_do_once_trained():
    seen = []

    def keeping(name, method, net):
        seen.extend(part for _, part in nnx.iter_modules(net) if hasattr(part, "deterministic"))
        return lambda picture: Ready(call=lambda: 0)

    dan = registry.plain("dan")
    bench({"dan": dan}, [(16, 16)], dan.small, 0.01, {"fake": Engine(start=keeping)})
    assert seen and all(part.deterministic for part in seen)


def test_a_body_that_no_kernel_serves_is_an_error():
    spanv2 = {"spanv2": registry.plain("spanv2")}
    variants = Variants(bodies=("reference", "kernel"))
    with pytest.raises(NoKernel):
        bench(spanv2, [(8, 8)], {"channels": 4}, 0.01, variants=variants)


@pytest.fixture
def skipping(monkeypatch):
    """What takes so many seconds by a clock that jumps ahead."""
    real, ahead = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: real() + ahead[0])

    def skip(seconds: float) -> None:
        ahead[0] += seconds

    return lambda seconds: lambda picture: Ready(call=lambda: skip(seconds))


def test_ours_are_compared_with_the_peer_of_their_method_in_paired_rounds(methods, skipping):
    engines = {"ours": Engine(start=lambda *network: skipping(20))}
    peers = {"crumb": {"pytorch": skipping(40), "pytorch-channels-last": skipping(10)}}
    rows = bench(methods, [(8, 8)], {}, 0.01, engines, peers=peers)["rows"]
    ratios = {(row["method"], row["engine"]): row["ratio"] for row in rows}
    assert list(ratios) == [
        ("crumb", "ours"),
        ("crumb", "pytorch"),
        ("crumb", "pytorch-channels-last"),
        ("loaf", "ours"),
    ]
    assert ratios["crumb", "ours"] == pytest.approx(0.5, rel=0.01)
    assert ratios["crumb", "pytorch-channels-last"] == pytest.approx(0.25, rel=0.01)
    assert ratios["crumb", "pytorch"] is ratios["loaf", "ours"] is None
    of_rounds = np.divide(*(row["samples_ms"] for row in rows[:2]))
    assert rows[0]["ratio"] == np.median(of_rounds)
    assert rows[0]["ratio_low"] <= rows[0]["ratio"] <= rows[0]["ratio_high"]
    assert all(row["compiled_ratio"] is None for row in rows)


def test_what_torch_compile_made_is_compared_with_too(methods, skipping):
    engines = {"ours": Engine(start=lambda *network: skipping(20))}
    peers = {"crumb": {"pytorch": skipping(40), "pytorch-compiled": skipping(10)}}
    crumb = {"crumb": methods["crumb"]}
    ours, eager, compiled = bench(crumb, [(8, 8)], {}, 0.01, engines, peers=peers)["rows"]
    assert ours["compiled_ratio"] == pytest.approx(2, rel=0.01)
    assert eager["compiled_ratio"] == pytest.approx(4, rel=0.01)
    assert compiled["ratio"] == pytest.approx(0.25, rel=0.01) and compiled["compiled_ratio"] is None


def test_what_cannot_run_is_left_out_with_a_note(methods):
    def never(picture):
        raise LeftOut("no compiler")

    peers = {"crumb": {"pytorch-compiled": never}}
    found = bench({"crumb": methods["crumb"]}, [(8, 8), (9, 9)], {}, 0.01, peers=peers)
    assert [row["engine"] for row in found["rows"]] == ["jax-cpu"] * 2
    assert found["notes"] == ["crumb: no pytorch-compiled, no compiler"]


def test_the_roofline_is_the_floor_over_the_median(methods):
    (row,) = bench({"crumb": methods["crumb"]}, [(16, 16)], {}, 0.01)["rows"]
    assert row["macs"] == 9 * 3 * 16 * 16
    assert row["roofline"] == pytest.approx(row["floor_ms"] / row["median_ms"])
    assert row["roofline"] > 0
