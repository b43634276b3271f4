"""Methods are timed in turn, at every size, as they will be run."""

import pytest

from esrjax import registry
from esrjax.contest import clock
from esrjax.contest.bench import bench
from esrjax.method import BadSize
from esrjax.model import PictureTooSmall


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
