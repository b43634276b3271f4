"""How far a mean PSNR is from the floor of a contest, before and after rounding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from esrjax.contest.rules import Rules

Split = Literal["valid", "test"]
SPLITS: tuple[Split, ...] = ("valid", "test")
Verdict = Literal["passes", "passes by rounding alone", "waived", "misses", "not judged"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One floor and what came before it: a mean PSNR in dB over so many pictures.

    asked: how many pictures the floor speaks of. waived: why the team is ranked whatever its PSNR.
    """

    split: Split
    psnr: float
    pictures: int
    asked: int
    floor: float
    decimals: int
    waived: str | None = None

    @property
    def rounded_mdb(self) -> float:
        """From the floor to the PSNR as the contest rounds it, 0.001 dB; below 0 it misses."""
        return 1000 * round(round(self.psnr, self.decimals) - self.floor, self.decimals)

    @property
    def unrounded_mdb(self) -> float:
        """From the floor to the PSNR as it is, 0.001 dB."""
        return 1000 * (self.psnr - self.floor)

    @property
    def verdict(self) -> Verdict:
        """What the contest makes of it; nothing, where the set is not the contest's own."""
        if self.pictures != self.asked:
            return "not judged"
        if self.rounded_mdb < 0:
            return "waived" if self.waived else "misses"
        return "passes" if self.unrounded_mdb >= 0 else "passes by rounding alone"


def gates(means: Mapping[Split, tuple[float, int]], rules: Rules, team: str) -> tuple[Gate, ...]:
    """One for each set; means: the PSNR and the number of pictures."""
    said = rules.floors
    return tuple(
        Gate(
            split=split,
            psnr=psnr,
            pictures=pictures,
            asked=said.pictures,
            floor=said.valid if split == "valid" else said.test,
            decimals=said.decimals,
            waived=rules.waiver(team),
        )
        for split, (psnr, pictures) in means.items()
    )
