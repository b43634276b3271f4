"""Factsheet: every figure, every setting of every stage, and blanks for what only teams know."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from esrjax import registry
from esrjax.challenge import factsheet, rules
from esrjax.challenge.factsheet import FactsheetData
from esrjax.challenge.record import BaselineTiming, Result
from esrjax.challenge.submission import results_entry, threshold_checks
from esrjax.cli import methods
from esrjax.training import recipe_loader
from esrjax.training.recipe import to_json

RULES = rules.load_rules("ntire2026")


@pytest.fixture
def data(both_splits: Result) -> FactsheetData:
    runtime = replace(both_splits.runtime, median_ms=9.5)
    baseline = BaselineTiming(method="span", team="O", params=1, macs=1, runtime=runtime)
    result = replace(both_splits, baseline=baseline)
    means = {split: (quality.psnr, 200) for split, quality in result.quality.items()}
    return FactsheetData(
        key="23_net",
        method=registry.get_method("spanv2"),
        result=result,
        entry=results_entry(result),
        checks=threshold_checks(means, RULES, "Ours"),
        training=["trained on DIV2K"],
        recipe=to_json(recipe_loader.load("spanv2")),
        external=[],
        weights=["net.pth"],
        hparams={"channels": 4},
    )


def test_factsheet_has_every_figure_and_the_baselines_runtime(data: FactsheetData) -> None:
    text = factsheet.markdown("Factsheet of 23_net", factsheet.factsheet(data))
    assert text.startswith("# Factsheet of 23_net\n")
    for line in (
        "| FLOPs | 9.8338 G |",
        "| memory, test | 812.50 MiB | the allocator's peak |",
        "| runtime, average | 15.000 ms |",
        "| runtime, one size | 5.000 ms | median of 40 runs at 256x256",
        "| runtime of span, one size | 9.500 ms |",
        "| PSNR, valid | 26.7500 dB | threshold 26.90 dB: -150 mdB",
        "- trained on DIV2K\n",
        "- device: Some GPU",
        "- Team: XiaomiMM\n",
        "- Hyperparameters: channels=4, ",
    ):
        assert line in text
    without_baseline = replace(data, result=replace(data.result, baseline=None))
    assert "of span" not in factsheet.markdown("", factsheet.factsheet(without_baseline)[2:3])


@pytest.mark.parametrize("name", ["spanv2", "pkdsr"])  # of few and of many stages
def test_every_setting_of_every_stage_is_listed(data: FactsheetData, name: str) -> None:
    recipe = recipe_loader.load(name)
    sections = factsheet.factsheet(replace(data, recipe=to_json(recipe)))
    text = factsheet.markdown("", sections)
    tables = sections[3].tables or {}
    columns = {head: i for table in tables.values() for i, head in enumerate(table[0]) if i}
    assert list(columns) == [stage.name for stage in recipe.stage]
    for stage in recipe.stage:
        (table,) = [table for table in tables.values() if stage.name in table[0]]
        settings = {row[0]: row[table[0].index(stage.name)] for row in table[1:]}
        assert settings["optimizer.learning_rate"] == f"{stage.optimizer.learning_rate:g}"
        assert settings["data.batch_size"] == str(stage.data.batch_size)
        assert settings["schedule.name"] == stage.schedule.name
        assert {f"loss.{term}" for term in stage.loss} <= settings.keys()
    assert f"seed {recipe.seed}" in text


def test_blanks_are_counted_and_placeholders_of_a_new_method_are_blanks(data: FactsheetData):
    sections = factsheet.factsheet(data)
    text = factsheet.markdown("", sections)
    assert len(factsheet.blanks(sections)) == text.count("TO BE FILLED: ") > 10
    scaffold = methods.FILES["{package}/__init__.py"]
    for placeholder in (*factsheet.PLACEHOLDERS, factsheet.DESCRIPTION_PLACEHOLDER):
        assert placeholder in scaffold
    team, paper = factsheet.PLACEHOLDERS
    description = f"Net: {factsheet.DESCRIPTION_PLACEHOLDER}."
    new = replace(data.method, team=team, paper=paper, description=description)
    unknown = replace(data, method=new, recipe=None, external=None)
    added = set(factsheet.blanks(factsheet.factsheet(unknown))) - {*factsheet.blanks(sections)}
    assert added == {
        "Team: name of the team",
        "general description of the method",
        "Weights of other models: which",
        "the paper",
        "training description: stages, loss, optimizer, schedule, patches, batches",
    }


def test_latex_has_the_same_blanks_and_is_escaped(data: FactsheetData, tmp_path):
    odd = replace(data.method, team="50% of A_B & C", description="a → b · c #1\n\nsecond")
    sections = factsheet.factsheet(replace(data, method=odd))
    text = factsheet.latex("Factsheet of 23_net", sections)
    assert text.count("TO BE FILLED:") == len(factsheet.blanks(sections))
    assert r"50\% of A\_B \& C" in text and r"a $\to$ b $\cdot$ c \#1" in text
    assert re.findall(r"(?<!\\)[#%]", text) == []
    begins, ends = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(begins) == sorted(ends)
    if pdflatex := shutil.which("pdflatex"):
        (tmp_path / "sheet.tex").write_text(text)
        command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "sheet.tex"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
