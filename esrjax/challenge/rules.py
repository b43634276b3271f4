"""Rules of a challenge: PSNR thresholds, score, baseline, timing and data policy.

Also their loader from TOML, and the check of training datasets against the data policy.
"""

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from importlib import resources
from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.data.datasets import dataset_info
from esrjax.errors import NotFound, RankingError, RulesError
from esrjax.io import MAX_TOML_BYTES, matches_any, parse_toml, read_bytes
from esrjax.schema import STRICT, NonNegativeInt, PositiveFloat, bullet_list, format_errors

SCALE = 4  # of the challenges, and of result files
# Consecutive image names, first and last: `0801-0900`.
NameRange = Annotated[str, Field(pattern=r"^\d+-\d+$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PsnrThresholds:
    """Mean PSNR that a method must reach on both splits to be ranked.

    Attributes:
        valid: Threshold on the validation split, dB.
        test: Threshold on the test split, dB.
        decimals: Decimals to which a mean PSNR is rounded before it is compared.
        num_images: Number of images in either split; a mean over fewer is not compared.
        spec: Metric specification that the PSNR must be computed with, such as `ntire`.
    """

    valid: PositiveFloat
    test: PositiveFloat
    decimals: NonNegativeInt
    num_images: NonNegativeInt
    spec: str

    @property
    def by_split(self) -> dict[str, float]:
        """Split (`valid`, `test`) -> threshold, dB."""
        return {"valid": self.valid, "test": self.test}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Waiver:
    """A team that is ranked even below a PSNR threshold, and why."""

    team: str
    reason: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Note:
    """A remark on a published figure of a team.

    Attributes:
        team: Team that the figure belongs to.
        flops_g: The published figure, 10⁹ multiply-adds; the note is shown with rows that have it.
        corrected_flops_g: The figure it should be, 10⁹ multiply-adds, if it is known.
        text: The remark itself.
    """

    team: str
    flops_g: PositiveFloat
    corrected_flops_g: PositiveFloat | None = None
    text: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScoreWeights:
    """Weights of the three scores in the main score."""

    runtime: PositiveFloat
    flops: PositiveFloat
    params: PositiveFloat


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Decimals:
    """Decimals of published runtimes (ms), parameters (10⁶) and FLOPs (10⁹ multiply-adds)."""

    runtime: NonNegativeInt
    params: NonNegativeInt
    flops: NonNegativeInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScoreFormula:
    """`exp(factor · value / baseline value)` of each figure, and their weighted sum."""

    factor: PositiveFloat
    weights: ScoreWeights
    decimals: Decimals


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Baseline:
    """The organisers' own entry with its published figures.

    Attributes:
        team: Name of the baseline's team in the published table.
        method: Name of its method in esrjax.
        runtime_ms: Published runtime, ms.
        params_m: Published parameters, 10⁶.
        flops_g: Published FLOPs, 10⁹ multiply-adds.
        device: GPU on which `runtime_ms` was measured.
    """

    team: str
    method: str
    runtime_ms: PositiveFloat
    params_m: PositiveFloat
    flops_g: PositiveFloat
    device: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ForbiddenDatasets:
    """Case-insensitive glob patterns of datasets that no network may be trained on, and why."""

    datasets: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataPolicy:
    """Which datasets a network may be trained on.

    Attributes:
        challenge_datasets: Datasets that the challenge provides.
        extra_data_allowed: Whether external data, all other datasets, may be used too.
        forbidden: Datasets that may not be used in any case.
    """

    challenge_datasets: tuple[str, ...]
    extra_data_allowed: bool
    forbidden: tuple[ForbiddenDatasets, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TimingProtocol:
    """Warm-up of the organisers' test program, before its timed loop over the images.

    Attributes:
        lr_side: Side of the square LR image of the warm-up passes, pixels.
        warmup_passes: Team -> number of warm-up passes; none of teams that are not listed.
    """

    lr_side: NonNegativeInt
    warmup_passes: Mapping[str, NonNegativeInt]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PublishedRuntimes:
    """Published runtimes are means over `runs` runs, each of them rounded to `decimals`."""

    runs: NonNegativeInt
    decimals: NonNegativeInt


README_FIELDS = ("runtime_s", "is_cpu", "extra_data", "description")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UploadFormat:
    """What the evaluation server takes: a zip of the SR images and `readme.txt`, without folders.

    Attributes:
        image_name: File name of an SR image; `{name}` is the name of the image.
        readme: Text of `readme.txt`; `{runtime_s}` are the seconds per image, `{is_cpu}` and
            `{extra_data}` are 1 or 0, `{description}` is a line about the solution.
    """

    image_name: str = "{name}x4.png"
    readme: str = (
        "runtime per image [s] : {runtime_s}\n"
        "CPU[1] / GPU[0] : {is_cpu}\n"
        "Extra Data [1] / No Extra Data [0] : {extra_data}\n"
        "Other description : {description}\n"
    )

    def __post_init__(self) -> None:
        for text, names in ((self.image_name, ("name",)), (self.readme, README_FIELDS)):
            try:
                text.format(**dict.fromkeys(names, ""))
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                fields = ", ".join(f"{{{name}}}" for name in names)
                raise ValueError(f"{text!r} has other fields than {fields}: {error}") from error
        is_plain = "/" not in self.image_name and "\\" not in self.image_name
        if "{name}" not in self.image_name or not self.image_name.endswith(".png") or not is_plain:
            raise ValueError(f"image_name should be like {{name}}x4.png, found {self.image_name!r}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rules:
    """Rules by which a challenge filters, scores and ranks its entries.

    Attributes:
        name: Name of the challenge.
        ties: Entries of one score share the better rank, and the next rank is skipped.
        psnr_thresholds: PSNR that an entry must reach to be ranked.
        score: Formula of the scores.
        baseline: Entry that scores are relative to.
        waivers: Teams that are ranked even below a threshold.
        notes: Remarks on published figures.
        data_policy: What may be trained on; None where the challenge has no such rule.
        timing: Warm-up of the organisers' test program; None if it has none.
        published_runtimes: How published runtimes were averaged and rounded, if it is known.
        upload: What the evaluation server takes.
        teams: Model number in the organisers' results.json -> team.
        image_order: Split (`valid`, `test`) -> ranges of image names in the organisers' order.
    """

    name: str
    ties: Literal["shared, next skipped"]
    psnr_thresholds: PsnrThresholds
    score: ScoreFormula
    baseline: Baseline
    waivers: tuple[Waiver, ...] = ()
    notes: tuple[Note, ...] = ()
    data_policy: DataPolicy | None = None
    timing: TimingProtocol | None = None
    published_runtimes: PublishedRuntimes | None = None
    upload: UploadFormat = UploadFormat()
    teams: Mapping[str, str]
    image_order: Mapping[str, tuple[NameRange, ...]] = field(
        default_factory=dict[str, tuple[str, ...]]
    )

    def num_warmup_passes(self, team: str) -> int:
        """Return the number of passes that the organisers' program runs before a team's loop."""
        return self.timing.warmup_passes.get(team, 0) if self.timing else 0

    def image_names(self, split: str) -> tuple[str, ...]:
        """Return the image names of a split in the organisers' order; empty if unknown."""
        return _expand_ranges(self.image_order.get(split, ()))

    def waiver_reason(self, team: str) -> str | None:
        """Return why a team is ranked even below a threshold, or None if it is not."""
        return next((waiver.reason for waiver in self.waivers if waiver.team == team), None)

    def notes_for(self, team: str, flops_g: float) -> tuple[str, ...]:
        """Return the remarks on a team's FLOPs (10⁹), matched at the published precision."""
        decimals = self.score.decimals.flops
        return tuple(
            note.text
            for note in self.notes
            if note.team == team and round(note.flops_g, decimals) == round(flops_g, decimals)
        )


@functools.lru_cache(maxsize=16)
def _expand_ranges(ranges: tuple[str, ...]) -> tuple[str, ...]:
    """Image names of ranges: 0801-0803 -> 0801, 0802, 0803; once, not for each row."""
    return tuple(
        str(number).zfill(len(first))
        for first, last in (names.split("-") for names in ranges)
        for number in range(int(first), int(last) + 1)
    )


def check_scale(name: str, scale: int, remedy: str) -> None:
    """Check that a model upscales as the challenge requires.

    Args:
        name: Name of the model.
        scale: Its upscaling factor.
        remedy: What the user can do where it is another one.

    Raises:
        RankingError: It is another one.
    """
    if scale != SCALE:
        raise RankingError(
            f"{name!r} is a network for x{scale}",
            rule=f"the rules of challenges, results and submissions are for x{SCALE}",
            remedy=remedy,
        )


def load_rules(source: str | Path) -> Rules:
    """Load the rules of a challenge.

    Args:
        source: Name of shipped rules (`ntire2026`) or path of a TOML file.

    Raises:
        NotFound: `source` is neither.
        RulesError: The file is not TOML, or does not match `Rules`.
    """
    shipped = resources.files("esrjax_configs") / f"{source}.toml"
    file = shipped if os.path.isfile(str(shipped)) else Path(source)
    if not os.path.isfile(str(file)):
        raise NotFound(
            f"Unknown rules {str(source)!r}",
            rule="the name of shipped rules, such as ntire2026, or the path of a TOML file",
            remedy="check the name or the path",
        )
    try:
        content = parse_toml(read_bytes(Path(str(file)), MAX_TOML_BYTES).decode())
        # Through JSON: strict pydantic accepts a list for a tuple only when it parses JSON.
        return TypeAdapter(Rules).validate_json(json.dumps(content, default=str))
    except ValidationError as error:  # it is a ValueError
        messages = format_errors(error)
    except ValueError as error:
        messages = [f"is not TOML: {error}"]
    raise RulesError(
        f"Invalid challenge rules: {bullet_list(messages)}",
        rule="every field of esrjax.challenge.rules.Rules with its type, and no other",
        location=file.name,
        remedy="correct the listed fields; ntire2026.toml is a complete example",
    )


def data_policy_violations(rules: Rules, datasets: Sequence[str]) -> list[str]:
    """Return one sentence for each dataset that a network may not be trained on.

    Args:
        rules: Rules of the challenge; without a data policy everything is allowed.
        datasets: Names or folders of the training datasets; repeated ones are reported once.

    Returns:
        `NAME: reason` for each violation, in the order of `datasets`.
    """
    reasons = {name: _violation(rules, name) for name in datasets}
    return [f"{name}: {reason}" for name, reason in reasons.items() if reason]


def _violation(rules: Rules, dataset: str) -> str | None:
    """Return why a dataset may not be trained on, or None if it may."""
    policy = rules.data_policy
    if policy is None:
        return None
    # Lower-case names of the dataset: its last folder, and its last two (`DIV2K/valid`).
    folders = PurePath(dataset.lower()).parts
    aliases = {"/".join(folders[-count:]) for count in (1, 2)}
    # `valid` alone may be DIV2K's; `LSDIR/valid` is not.
    names = {"/".join(folders[-2:])} if dataset_info(dataset) else aliases
    for entry in policy.forbidden:
        globs = [glob.lower() for glob in entry.datasets]
        if any(matches_any(name, globs) for name in names):
            return entry.reason
    if policy.extra_data_allowed or aliases & {name.lower() for name in policy.challenge_datasets}:
        return None
    return f"{rules.name} allows {', '.join(policy.challenge_datasets)} only"


def extra_datasets(rules: Rules, datasets: Sequence[str]) -> list[str]:
    """Return the datasets that the challenge does not provide; none if it has no data policy.

    Args:
        rules: Rules of the challenge.
        datasets: Names or folders; one that begins with the name of a provided dataset, such as
            `data/DIV2K_train_HR`, is that dataset.
    """
    if rules.data_policy is None:
        return []
    pattern = "|".join(map(re.escape, rules.data_policy.challenge_datasets))
    begins = re.compile(rf"(^|.*[/\\:])({pattern})(?![a-z0-9])", re.IGNORECASE)
    return [name for name in datasets if not begins.match(name)]
