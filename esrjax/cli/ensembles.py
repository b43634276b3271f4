"""What verbs say and ask of ensembles."""

from pathlib import Path
from typing import Any

from esrjax.cli.options import BadOption

FUSIONS = {
    "mean": "the weighted mean of floats",
    "adaptive": "bytes weighted by closeness to their mean, rounded down; of two, a half each",
}


def is_ensemble(name: str) -> bool:
    """Whether an ensemble is registered as `name`."""
    from esrjax import registry
    from esrjax.method import Ensemble

    return isinstance(registry.method(name), Ensemble)


def facts(ensemble: Any) -> dict[str, dict[str, str]]:
    """How members are run and fused, for the card."""
    weighs = ensemble.fusion == "mean"
    members = {
        key: _how(how) + f", weight {how.weight:g}" * weighs
        for key, how in ensemble.members.items()
    }
    return {"members": members, "fusion": {ensemble.fusion: FUSIONS[ensemble.fusion]}}


def _how(member: Any) -> str:
    runs = ["mean over the eight flips and turns" if member.self_ensemble else "one pass"]
    if member.windows:
        sides = ", ".join(f"{side} ({weight:g})" for side, weight in member.windows.items())
        runs.append(f"windows of {sides} pixels")
    if member.mirrored:
        runs.append(f"mirrored to the next multiple of {member.mirrored}")
    return ", ".join(runs)


def parity(
    name: str, files: dict[str, Path], sizes: dict[str, Any], golden: Path | None, body: Any
) -> Any:
    """What an ensemble makes of the stored pictures, beside what PyTorch made of them."""
    if golden is None:
        raise BadOption(
            f"{name!r} is an ensemble, and not compared by --golden alone",
            rule="an ensemble is compared with stored pictures: its branches and what they are "
            "fused to; a PyTorch network beside ours, a set, a certificate are of one network",
            remedy="give --golden FILE.npz alone, or name one of its members",
        )
    from esrjax.bridge import ensemble
    from esrjax.model import open_model

    fusion: Any = open_model(name, files, sizes)
    return ensemble.parity(fusion, golden, body)
