"""What a network must do is counted by hand, and what the machine does is measured."""

import pytest

from esrjax import registry
from esrjax.contest import roofline
from esrjax.contest.roofline import Ceilings, Probe, demand
from esrjax.network.reparam import deploy

ROUND = Ceilings(bytes_per_s=1e9, macs_per_s=2e9, samples_ms={})


def test_the_slower_ceiling_is_the_floor():
    assert ROUND.floor(macs=6_000_000, moved=1_000_000) == (3.0, "product")
    assert ROUND.floor(macs=1_000_000, moved=6_000_000) == (6.0, "copy")


def test_the_demand_of_a_filter_of_three_by_three(crumbs):
    method = registry.plain("crumb")
    asked = demand(method, deploy(method.build()), (8, 10))
    pixels = 8 * 10 * 3
    assert asked.macs == 9 * pixels
    weights = 3 * 9 + 3
    assert asked.elements == pixels + 16 * pixels + weights + 2 * pixels


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_product_and_a_copy_of_known_size_are_at_their_ceilings(monkeypatch, precision):
    moved, side = 2**16, 64
    monkeypatch.setitem(roofline.SIZES, "cpu", (moved, side))
    probe = Probe(precision)
    probe.measure(0.0)
    probe.measure(0.0)
    found = probe.ceilings()
    copies, products = found.samples_ms["copy"], found.samples_ms["product"]
    assert len(copies) == len(products) == 10
    assert found.floor(side**3, 0) == (pytest.approx(min(products)), "product")
    assert found.floor(0, 2 * moved) == (pytest.approx(min(copies)), "copy")
