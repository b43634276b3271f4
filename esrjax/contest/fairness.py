"""Check of the training datasets of a network against the data policy of a challenge."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import PurePath

from esrjax.contest.rules import Rules


def data_policy_violations(rules: Rules, datasets: Sequence[str]) -> list[str]:
    """Return one sentence for each dataset that a network may not be trained on.

    Args:
        rules: Rules of the challenge; without a data policy everything is allowed.
        datasets: Names or folders of the training datasets; repeated ones are reported once.

    Returns:
        `NAME: reason` for each violation, in the order of `datasets`.
    """
    return [
        f"{name}: {reason}"
        for name in dict.fromkeys(datasets)
        if (reason := _violation(rules, name))
    ]


def _violation(rules: Rules, dataset: str) -> str | None:
    """Return why a dataset may not be trained on, or None if it may."""
    policy = rules.data_policy
    if policy is None:
        return None
    aliases = _aliases(dataset)
    for entry in policy.forbidden:
        if any(fnmatch(alias, glob.lower()) for alias in aliases for glob in entry.datasets):
            return entry.reason
    if policy.extra_data_allowed or aliases & {name.lower() for name in policy.challenge_datasets}:
        return None
    return f"{rules.name} allows {', '.join(policy.challenge_datasets)} only"


def _aliases(dataset: str) -> set[str]:
    """Lower-case names of a dataset: its last folder, and its last two (`DIV2K/valid`)."""
    components = PurePath(dataset.lower()).parts
    return {"/".join(components[-count:]) for count in (1, 2)}
