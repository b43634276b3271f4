"""The memory-traffic budget: tools/traffic.py, and its table in docs/kernels.md."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import traffic  # noqa: E402

IMAGE_SIZE = (339, 510)  # LR
PIXELS = 339 * 510


def values_per_channel_and_pixel(name, fusion):
    """Values read or written, per channel and pixel; weights disappear by rounding."""
    _, channels = traffic.BLOCK_OPS[name]
    operations = traffic.list_operations(name, IMAGE_SIZE, fusion)
    num_values = sum(operation.num_values for operation in operations)
    return round(num_values / (PIXELS * channels), 1)


def test_unfused_block_moves_the_operands_of_every_operation():
    span = values_per_channel_and_pixel("span block", traffic.UNFUSED)
    spanv2 = values_per_channel_and_pixel("spanv2 block", traffic.UNFUSED)
    assert span == 3 * 2 + 2 * 2 + 3 + 2 + 2 + 3
    assert spanv2 == 3 * 2 + 2 * 2 + 3 + 2 + 3


def test_fused_block_reads_its_halo_and_pads_its_channels():
    columns, rows = 64 / 56, 33 / 27
    spanv2 = values_per_channel_and_pixel("spanv2 block", "blocks")
    assert spanv2 == pytest.approx(1 + columns * rows, abs=0.1)
    padded = 32 / 28 * (1 + columns * rows) + 2 * (1 + 32 / 28)
    assert values_per_channel_and_pixel("span block", "blocks") == pytest.approx(padded, abs=0.1)


@pytest.mark.parametrize("name, macs", [("span", 25.9), ("spanv2", 24.0)])
def test_macs_of_the_budget_are_the_cost_of_the_network(name, macs):
    (fused,) = traffic.list_operations(name, IMAGE_SIZE, "network")
    unfused = traffic.list_operations(name, IMAGE_SIZE, traffic.UNFUSED)
    assert fused.macs == sum(operation.macs for operation in unfused)
    assert round(fused.macs / 1e9, 1) == macs
    assert round(fused.num_values / PIXELS) == 3 + 48 + 1  # LR, SR, and weights per pixel


def test_table_in_the_docs_is_up_to_date():
    text = (ROOT / "docs/kernels.md").read_text()
    match = re.search(r"<!-- traffic: .*? -->\n(.*?)\n<!-- end of traffic -->", text, re.S)
    assert match and match[1].strip() == traffic.table()
