"""A fixed sample of the mutation campaign of the parity checker (`make parity-faults`)."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import torch
from parity_faults import __main__ as parity_faults
from parity_faults.__main__ import ALL_TWINS, CAUGHT, Campaign, sample, table
from parity_faults.mutants import Fault, find_faults, read_kinds

TWINS = {twin.name: twin for twin in ALL_TWINS}


@pytest.fixture(scope="module", params=["spanv2", "safmn_deep15"])
def campaign(request, tmp_path_factory):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small
    yield Campaign(TWINS[request.param], [0], tmp_path_factory.mktemp("faults"))
    torch.set_num_threads(num_threads)


def test_sampled_faults_are_caught_and_located(campaign):
    faults = sample(list(find_faults(campaign.twin)), 8)
    records = [record for fault in faults if (record := campaign.run(fault)) is not None]
    assert len(records) >= 6
    assert [record for record in records if record["outcome"] != CAUGHT] == []
    assert [record for record in records if not record["right"]] == []


def test_fault_without_effect_is_equivalent(campaign, monkeypatch):
    """The campaign can tell: a change of white space is not caught, and no miss."""
    monkeypatch.setattr(parity_faults, "NUM_EQUIVALENCE_DRAWS", 1)
    (fault, *_) = find_faults(campaign.twin)
    same = Fault(**{**vars(fault), "new": fault.old + " ", "instance": "all"})
    record = campaign.run(same)
    assert (record["outcome"], record["change"]) == ("equivalent", 0.0)


def test_every_kind_applies_to_a_twin():
    kinds = {fault.kind for twin in ALL_TWINS for fault in find_faults(twin)}
    assert kinds == set(read_kinds()) and len(kinds) >= 40


def test_missed_mutants_are_listed():
    record = {
        "kind": "clamp",
        "fault": "a -> b",
        "outcome": "missed",
        "right": False,
        "change": 5.0,
    }
    text = table([record])
    assert "| clamp | 1 | 0 | 0 | 0 | 1 |" in text and "a -> b: 5.0e+00 of the tolerance" in text
