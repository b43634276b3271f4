"""Options that are given several times: never does the last one silently win."""

import pytest

REPEATED = {
    "--spec": "eval span --data Set5 --spec y --spec=ntire",
    "--output": "upscale a.png -o x.png --output y.png",
    "--json": "method list --json --json",
    "--tile": "upscale a.png -o x.png --tile 64 --tile 64",
    "--seed": "parity span --seed 1 --seed 2",
    "--valid": "submit check span --valid Set5 --valid Set14 --test Set5",
}
SEVERAL_VALUES = {
    "--hparam 'channels'": "upscale a.png -o x.png --hparam channels=4 --hparam channels=8",
    "--checkpoint 'span'": "upscale a.png -o x.png --checkpoint span=a --checkpoint span=b",
    "--set 'seed'": "train quick -o run --set seed=1 --set seed=2",
    "--what-if 'a:runtime'": "rank results --what-if a:runtime=1 --what-if a:runtime=-2",
    "--images 'a'": "report results --data Set5 --images a=one --images a=two",
}


@pytest.mark.parametrize("option", REPEATED)
def test_option_for_one_value_cannot_be_repeated(esrjax, option):
    result = esrjax(*REPEATED[option].split())
    assert (result.code, result.out) == (2, "")
    assert f"{option} is repeated" in result.err and "remedy:" in result.err


@pytest.mark.parametrize("case", SEVERAL_VALUES)
def test_key_of_a_repeatable_option_has_one_value(esrjax, case):
    words = SEVERAL_VALUES[case].split()
    result = esrjax(*words)
    assert result.code == 2
    assert all(part in result.err for part in (*case.split(), words[-1], words[-3]))


def test_bare_checkpoints_of_one_method_are_an_error(esrjax):
    result = esrjax(*"upscale a.png -o x.png --checkpoint a.pth --checkpoint b.pth".split())
    assert result.code == 2 and "a.pth, b.pth" in result.err


def test_repeatable_options_can_be_repeated(esrjax, tmp_path):
    args = ["--hparam", "channels=4", "--hparam", "size=channels=8"]
    assert "repeated" not in esrjax("method", "cost", "span", *args).err


@pytest.mark.parametrize(
    ("command", "option", "other"),
    [
        ("eval crumb --data D --rules mine.toml", "--rules", "-o"),
        ("eval crumb --data D --json --format latex", "--format latex", "--json"),
        ("rank r.json --json --format latex", "--format latex", "--json"),
        ("report r.json --num-images 3", "--num-images", "--data"),
        ("report r.json --crop-size 100", "--crop-size", "--data"),
        ("train quick -o run --rules mine.toml", "--rules", "--dry-run"),
        ("train quick --dry-run --log tensorboard", "--log", "--dry-run"),
        ("train quick --dry-run --distributed", "--distributed", "--dry-run"),
    ],
)
def test_option_without_an_effect_is_an_error(
    esrjax, monkeypatch, tmp_path, command, option, other
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.json").write_text("{}")
    result = esrjax(*command.split())
    assert result.code == 2 and f"{option} " in result.err and f" {other}" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    "option", ["--seconds=0", "--seconds=-1", "--seconds=nan", "--image-size=8,8x8"]
)
def test_impossible_benchmarks_are_refused(esrjax, option):
    result = esrjax("bench", "spanv2", option)
    assert result.code == 2 and all(part in result.err for part in option.split("="))
