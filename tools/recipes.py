"""Generator of docs/recipes.md, every setting of the recipes of the report: `make recipes`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from transcript.marks import DEFAULTS, EXCLUDED_KEYS, Setting, stage_settings  # noqa: E402
from transcript.report import REPORT  # noqa: E402

from esrjax.training.recipe import Recipe  # noqa: E402
from esrjax.training.recipe_loader import load  # noqa: E402

HPARAM_NOTES = {  # what those of a whole recipe are for
    "rank": "the adapters are those of `lora` of the stages",
    "tail_rank": "the adapters are those of `lora` of the stages",
    "scan_layers": "same result, with less compile time",
    "remat": "same result, with less memory",
}
PAGE = ROOT / "docs/recipes.md"
INTRO = """# Recipes of the report

<!-- written by `make recipes`; do not edit -->

Every setting of every shipped recipe that follows a training of the NTIRE 2026 report, or of the
factsheet of a team, and what that document says of it:

| mark | meaning |
|---|---|
| stated | the document states the value |
| stated in part | it states the value, but not all that it means: the last column has the rest |
| implied | it leaves no other value without stating it: "fine-tuning" starts from some weights |
| unspecified | it does not give the value: ours (`unspecified` of the recipe) |
| ours | it does not have the stage, or the setting does not change what is trained |

Weights of a loss are relative: that of a single term, and of the first of several without weights,
does not matter. What a stage does not list is off or has its default, and no document mentions it
for that stage: no gradient clipping, warm-up, weight decay, frozen or reinitialized parameters,
moving average or validation;
{defaults}.
Not listed either is what is about our images and machines, not about the training:
{excluded}.

[training.md](training.md#settings-of-a-stage) explains the settings; `esrjax recipes show NAME`
prints a recipe with the reasons of our choices. The statements are those of
`tests/report_recipes.toml`, a transcription of the documents that tests compare with the recipes.
"""


def page() -> str:
    """Return the text of docs/recipes.md."""
    defaults = ", ".join(f"`{key} = {_value(value)}`" for key, value in DEFAULTS.items())
    excluded = ", ".join(
        f"`{key}`" for key in sorted(EXCLUDED_KEYS - {"name", "ours", "unspecified"})
    )
    intro = INTRO.format(defaults=defaults, excluded=excluded)
    return "\n".join([intro, *(_section(name) for name in sorted(REPORT))])


def _section(name: str) -> str:
    """Return the section of a recipe: its head, then a table for each stage."""
    recipe, training = load(name), REPORT[name]
    hardware = training.get("hardware", "unspecified")
    head = f"## {name}\n\nSource: {training['source']}. Hardware: {hardware}.\n"
    stages = [
        f"### {name}: {stage.name}\n\n{_table(settings)}"
        for stage, settings in stage_settings(name, recipe)
    ]
    return "\n".join([head, _table(_shared_settings(recipe)), *stages])


def _shared_settings(recipe: Recipe) -> Iterator[Setting]:
    """Yield the settings of a recipe that are not of one stage."""
    yield Setting("method", recipe.method, "stated")
    yield Setting("seed", recipe.seed, "ours")
    yield Setting("parallel", recipe.parallel, "ours")
    for key, value in recipe.hparams.items():
        yield Setting(f"hparams.{key}", value, "ours", HPARAM_NOTES[key])
    for group in recipe.repeat:
        yield Setting("repeat", f"the stages in turn, {group.times} times", "stated")


def _table(settings: Iterator[Setting] | list[Setting]) -> str:
    rows = [f"| `{s.key}` | {_value(s.value)} | {s.status} | {s.note} |" for s in settings]
    return "\n".join(["| setting | value | mark | open |", "|---|---|---|---|", *rows, ""])


def _value(value: Any) -> str:
    """Return a value as in TOML, large integers with separators."""
    match value:
        case dict():
            items = [(key, item) for key, item in value.items() if item not in (None, {})]
            return ", ".join(f"{key} = {_value(item) or 'none'}" for key, item in items)
        case [[int(), int()], *_]:
            return ", ".join(f"{h}x{w}" for h, w in value)
        case [[int(), float()], *_]:
            return ", ".join(f"{weight:g} at step {step:,}" for step, weight in value)
        case list():
            return ", ".join(map(_value, value))
        case bool():
            return json.dumps(value)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}".replace("e-0", "e-")
        case _:
            return str(value).replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page())
