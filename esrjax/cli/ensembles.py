"""Ensembles on the command line: their description, and their comparison with goldens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from esrjax.cli.options import BadOption

if TYPE_CHECKING:
    from esrjax.bridge.golden import GoldenComparison
    from esrjax.method import Ensemble, Member

FUSIONS = {
    "mean": "weighted mean in float32",
    "adaptive": "uint8 images weighted by closeness to their mean, rounded down; two images: "
    "half each",
}


def is_ensemble(name: str) -> bool:
    """Return whether `name` is a registered ensemble."""
    from esrjax import registry
    from esrjax.method import Ensemble

    return isinstance(registry.get_entry(name), Ensemble)


def describe(ensemble: Ensemble) -> dict[str, dict[str, str]]:
    """Return how members are run and fused, in groups of named facts."""
    is_weighted = ensemble.fusion == "mean"
    members = {
        name: _describe_member(member) + f", weight {member.weight:g}" * is_weighted
        for name, member in ensemble.members.items()
    }
    return {"members": members, "fusion": {ensemble.fusion: FUSIONS[ensemble.fusion]}}


def _describe_member(member: Member) -> str:
    parts = ["x8 self-ensemble" if member.self_ensemble else "single pass"]
    if member.windows:
        sides = ", ".join(f"{side} ({weight:g})" for side, weight in member.windows.items())
        parts.append(f"windows of {sides} pixels")
    if member.pad_multiple:
        parts.append(f"reflect-padded to a multiple of {member.pad_multiple}")
    return ", ".join(parts)


def compare_with_golden(
    name: str,
    files: dict[str, Path],
    hparams: dict[str, Any],
    golden: Path | None,
    implementation: Literal["auto", "reference", "kernel"],
) -> GoldenComparison:
    """Compare an ensemble with the images in a golden file: of every branch, and fused.

    Args:
        name: The ensemble.
        files: Checkpoints by member.
        hparams: Hyper-parameters of the members, by `MEMBER.KEY`.
        golden: The .npz file.
        implementation: Implementation of the operations.

    Raises:
        BadOption: `golden` is None.
    """
    if golden is None:
        raise BadOption(
            f"{name!r} is an ensemble: it can only be compared with --golden",
            rule="--torch, --data and -o compare single networks; an ensemble is compared with "
            "stored images of its branches and of their fusion",
            remedy="use --golden FILE.npz alone, or name one of the members",
        )
    from esrjax.bridge import ensemble
    from esrjax.model import open_model

    model: Any = open_model(name, files, hparams)
    return ensemble.compare(model, golden, implementation)
