"""The budget in docs/kernels.md is what tools/traffic.py finds, and that is what must move."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import traffic  # noqa: E402

SIDE = (339, 510)
PIXELS = 339 * 510


def words(name, scheme):
    """Numbers that move, by channel and pixel; weights are left out by rounding."""
    _, channels = traffic.BLOCKS_OF[name]
    found = sum(each.numbers for each in traffic.operations(name, SIDE, scheme))
    return round(found / (PIXELS * channels), 1)


def test_a_block_in_pieces_moves_what_every_operation_reads_and_writes():
    assert words("span's block", traffic.PLAIN) == 3 * 2 + 2 * 2 + 3 + 2 + 2 + 3
    assert words("spanv2's block", traffic.PLAIN) == 3 * 2 + 2 * 2 + 3 + 2 + 3


def test_a_whole_block_reads_its_halo_and_fills_its_channels_up():
    columns, lines = 64 / 56, 22 / 16
    assert words("spanv2's block", "whole blocks") == pytest.approx(1 + columns * lines, abs=0.1)
    filled = 32 / 28 * (1 + columns * lines) + 2 * (1 + 32 / 28)
    assert words("span's block", "whole blocks") == pytest.approx(filled, abs=0.1)


@pytest.mark.parametrize("name, macs", [("span", 25.9), ("spanv2", 24.0)])
def test_what_must_be_done_is_what_the_network_costs(name, macs):
    (whole,) = traffic.operations(name, SIDE, "whole network")
    plain = traffic.operations(name, SIDE, traffic.PLAIN)
    assert whole.macs == sum(each.macs for each in plain)
    assert round(whole.macs / 1e9, 1) == macs
    assert round(whole.numbers / PIXELS) == 3 + 48 + 1  # LR, SR, and weights by pixel


def test_the_documents_show_what_the_tool_prints():
    text = (ROOT / "docs/kernels.md").read_text()
    shown = re.search(r"<!-- traffic: .*? -->\n(.*?)\n<!-- end of traffic -->", text, re.S)
    assert shown and shown[1].strip() == traffic.table()
