"""Whether what a network is trained on is what a contest allows."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import PurePath

from esrjax.contest.rules import Rules


def fairness(rules: Rules, sets: Sequence[str]) -> list[str]:
    """A sentence for each of these sets, names or paths, that is not to be trained on."""
    return [
        f"{name}: {reason}" for name in dict.fromkeys(sets) if (reason := _why_not(rules, name))
    ]


def _why_not(rules: Rules, name: str) -> str | None:
    said = rules.fairness
    if said is None:
        return None
    spellings = _spellings(name)
    for rule in said.forbidden:
        if any(fnmatch(spelling, glob.lower()) for spelling in spellings for glob in rule.sets):
            return rule.reason
    if said.extra or spellings & {own.lower() for own in said.own}:
        return None
    return f"{rules.name} allows {', '.join(said.own)} alone"


def _spellings(name: str) -> set[str]:
    """A set may be called by its folder, or by that of its split: `DIV2K/valid`."""
    parts = PurePath(name.lower()).parts
    return {"/".join(parts[-count:]) for count in (1, 2)}
