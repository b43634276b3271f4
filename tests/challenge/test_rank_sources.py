"""Files to rank: drawn tables with drawn faults are ranked rightly, or refused with the place."""

import json
import random
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from pathlib import Path

import pytest

from esrjax.challenge import rank, results, rules, table
from esrjax.errors import NotFound, RankingError, UnreadableFile, UserError

RULES = rules.load_rules("ntire2026")
CAMPAIGN = 10_000  # draws
SAMPLE = 250
HEADER = "team method psnr_val psnr_test runtime_val_ms runtime_test_ms runtime_avg_ms params_m"
HEADER = [*HEADER.split(), "flops_g", "rank_main"]
NAMES = ("Ours", "Équipe 超分", "A | B", "<b>x</b>", "R&D 50%", "[x](y)", "a,b", 'say "hi"', "x;y")


# --- drawn entries, and an independent ranking of them -----------------------------------------


@dataclass
class Case:
    """A file, and what must come of it: the ranks by team, or an error that names `expected`."""

    path: Path
    ranks: dict[str, int | None] = field(default_factory=dict)
    expected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def draw_entries(rng: random.Random) -> list[dict[str, object]]:
    teams = ["EfficientSR Organizers", *rng.sample(NAMES, rng.randint(1, 5))]
    return [
        {
            "team": team,
            "method": "SPAN" if k == 0 else f"net{k}",
            "psnr_val": round(rng.uniform(26.85, 27.1), 3),
            "psnr_test": round(rng.uniform(26.94, 27.2), 3),
            "runtime_val_ms": (valid := round(rng.uniform(1, 60), 3)),
            "runtime_test_ms": (test := round(rng.uniform(1, 60), 3)),
            "runtime_avg_ms": (valid + test) / 2,
            "params_m": round(rng.uniform(0.01, 2), 3),
            "flops_g": round(rng.uniform(1, 60), 2),
        }
        for k, team in enumerate(teams)
    ]


def independent_ranks(entries: list[dict[str, object]]) -> dict[str, int | None]:
    """Main ranks by the formulas of the challenge report, in decimal arithmetic."""
    baseline, *others = entries
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 40, 10**17, -(10**17)

        def score(entry):
            exps = [
                (2 * Decimal(entry[name]) / Decimal(baseline[name])).exp()
                for name in ("runtime_avg_ms", "params_m", "flops_g")
            ]
            weights = map(Decimal, ("0.8", "0.1", "0.1"))
            return sum(w * e for w, e in zip(weights, exps, strict=True))

        passes = [
            e
            for e in others
            if round(e["psnr_val"], 2) >= 26.9 and round(e["psnr_test"], 2) >= 26.99
        ]
        scores = {entry["team"]: score(entry) for entry in passes}
    ranks = {team: 1 + sum(o < s for o in scores.values()) for team, s in scores.items()}
    return {entry["team"]: ranks.get(entry["team"]) for entry in entries}


# --- CSV ---------------------------------------------------------------------------------------


def csv_cell(value: object, delimiter: str, comma: bool) -> str:
    text = repr(value) if isinstance(value, float) else str(value)
    text = text.replace(".", ",") if comma and isinstance(value, float) else text
    if any(c in text for c in (delimiter, '"', "\n")):
        text = '"' + text.replace('"', '""') + '"'
    return text


def draw_csv(rng: random.Random, folder: Path) -> Case:
    entries = draw_entries(rng)
    delimiter = rng.choice(",;\t")
    comma = delimiter != "," and rng.random() < 0.5
    rows = [[*(entry[name] for name in HEADER[:-1]), 1] for entry in entries]
    case = Case(folder / f"t.{rng.choice(['csv', 'CSV', 'Csv'])}", independent_ranks(entries))
    if comma:
        case.notes = ("decimal comma",)
    index = rng.randrange(len(rows))
    column = rng.choice(HEADER[2:9])
    line, row, place = f"line {index + 2}", rows[index], HEADER.index(column)
    header, encoding = list(HEADER), rng.choice(["utf-8", "utf-8-sig", "utf-16"])
    end, fault = rng.choice(["\n", "\r\n"]), rng.choice(CSV_FAULTS)
    if fault == "value":
        value = rng.choice("nan inf -3 1e400 1e308 x 26.9* 1.2.3 null 0x10 1e-320 -inf".split())
        if value == "1e-320" and not column.startswith("runtime"):
            value = "-0.1"
        row[place], case.expected = value, (line, f"'{value}'")
    elif fault == "missing":
        row[HEADER.index("runtime_avg_ms")], case.expected = "", (line, "runtime_ms")
    elif fault == "duplicate":
        rows.append(list(row))
        if rng.random() < 0.5:  # with other figures
            rows[-1][HEADER.index("flops_g")] = 0.5
        case.expected = (str(row[1]), line, f"line {len(rows) + 1}")
    elif fault == "mean":
        row[HEADER.index("runtime_avg_ms")] *= rng.choice([0.5, 1.02, 3.0])
        case.expected = (line, "runtime_ms", "mean")
    elif fault == "short":
        rows[index] = row[: rng.randint(1, len(row) - 1)]
        case.expected = (line, f"{len(rows[index])} cells", str(len(HEADER)))
    elif fault == "long":
        row.append(7)
        case.expected = (line, f"{len(row)} cells")
    elif fault == "columns":
        header[-1] = rng.choice([column, "runtime_ms", "results_key"])
        case.expected = (header[-1],)
    elif fault == "control":
        row[0], case.expected = f"{row[0]}\x1b[31m", (line, "\\x1b[31m")
    elif fault == "latin":
        row[0], encoding, case.expected = "Équipe", "latin-1", ("0xc9", line)
        rows[:] = [
            [str(c).encode("ascii", "replace").decode() if r is not row else c for c in r]
            for r in rows
        ]
    elif fault == "mixed" and comma:
        row[place], case.expected = "1.25", ("'1.25'", "comma")
    elif fault == "unit":
        other = HEADER.index("flops_g")
        row[other] *= 1e9 if index else 1
        if index:
            entries[index]["flops_g"] = row[other]
            case.ranks, case.notes = independent_ranks(entries), (*case.notes, "unit right")
    elif fault == "columns unread":
        header[-1], case.notes = "psnr_vali", (*case.notes, "psnr_vali")
    lines = [header, *rows]
    text = end.join(
        delimiter.join(csv_cell(cell, delimiter, comma) for cell in line) for line in lines
    )
    case.path.write_bytes((text + end).encode(encoding))
    return case


CSV_FAULTS = [None, None, "value", "missing", "duplicate", "mean", "short", "long", "columns"]
CSV_FAULTS += ["control", "latin", "mixed", "unit", "columns unread"]


# --- the organisers' results.json --------------------------------------------------------------


def official_entry(entry: dict[str, object], rng: random.Random) -> dict[str, object]:
    figures: dict[str, object] = {"num_parameters": entry["params_m"], "flops": entry["flops_g"]}
    for split, name in (("valid", "val"), ("test", "test")):
        psnr, runtime = entry[f"psnr_{name}"], entry[f"runtime_{name}_ms"]
        figures |= {f"{split}_ave_psnr": psnr, f"{split}_ave_runtime": runtime}
        if rng.random() < 0.5:
            figures |= {f"{split}_psnr": [psnr - 1, psnr + 1]}
            figures |= {f"{split}_runtime": [runtime / 2, runtime * 3 / 2]}
    return figures


def draw_json(rng: random.Random, folder: Path) -> Case:
    entries = draw_entries(rng)
    keys = [f"{90 * bool(k) + k:02}_{entry['method']}" for k, entry in enumerate(entries)]
    for entry in entries[1:]:
        entry["team"] = entry["method"]  # a number without a team
    document = {k: official_entry(e, rng) for k, e in zip(keys, entries, strict=True)}
    case = Case(folder / f"r.{rng.choice(['json', 'JSON'])}", independent_ranks(entries))
    index, fault = rng.randrange(len(keys)), rng.choice(JSON_FAULTS)
    key, figures = keys[index], document[keys[index]]
    name = rng.choice([n for n in figures if "ave" in n or n in ("flops", "num_parameters")])
    text, encoding = "", rng.choice(["utf-8", "utf-8-sig", "utf-16"])
    if fault == "value":
        value = rng.choice([float("nan"), float("inf"), None, True, "9.8", [1.0], -1.0, 1e308])
        figures[name], case.expected = value, (key, "")
        if value is None and "psnr" in name:  # unknown, of a split without HR
            split = name.partition("_")[0]
            figures.pop(f"{split}_psnr", None)
            entries[index]["psnr_val" if split == "valid" else "psnr_test"] = 0.0
            case.expected, case.ranks = (), independent_ranks(entries)
            case.notes = ("is unknown of",) if index else ()
    elif fault == "large":
        figures[name] = 12345.678
        digits = rng.choice(["1e400", "1" + "0" * 400, "1" + "0" * 5000])
        text = json.dumps(document).replace("12345.678", digits)
        case.expected = ("",)
    elif fault == "missing":
        del figures[name]
        case.expected = (key, name, "missing")
    elif fault == "duplicate key":
        text = json.dumps(document, indent=1)[:-2] + f',\n "{key}": {json.dumps(figures)}\n}}'
        number = 1 + text.count("\n", 0, text.rindex(f'"{key}"'))
        case.expected = (key, f"line {number},")
    elif fault == "duplicate figure":
        document[key] = "HERE"
        body = json.dumps(figures)[:-1] + ', "flops": 0.1}'
        text = json.dumps(document, indent=1).replace('"HERE"', body)
        case.expected = (f"{key}.flops", "column")
    elif fault == "duplicate entry":
        other = rng.choice([" ", "0"]) + key
        document[other] = figures
        case.expected = (repr(key), repr(other))
    elif fault == "mean":
        figures["valid_psnr"] = [20.0, 30.5]
        case.expected = (key, "valid_ave_psnr", "25.25")
    elif fault == "lengths":
        figures["test_psnr"] = [figures["test_ave_psnr"]]
        figures["test_runtime"] = [figures["test_ave_runtime"]] * 3
        case.expected = (key, "1 and 3")
    elif fault == "cut":
        text = json.dumps(document, indent=1)
        text = text[: rng.randrange(1, len(text) - 1)]
        case.expected = ("line ",)
    elif fault == "list":
        text, case.expected = json.dumps(list(document.values())), ("r.",)
    elif fault == "unit" and index:
        figures["num_parameters"] = entries[index]["params_m"] = 139104.0
        case.ranks, case.notes = independent_ranks(entries), ("unit right",)
    case.path.write_bytes((text or json.dumps(document)).encode(encoding))
    return case


JSON_FAULTS = [None, None, "value", "large", "missing", "duplicate key", "duplicate figure", "mean"]
JSON_FAULTS += ["duplicate entry", "lengths", "cut", "list", "unit"]


# --- the campaign ------------------------------------------------------------------------------


def check_case(case: Case) -> str:
    """Assert that a file is ranked rightly, or refused with value, rule, remedy and place."""
    notes: list[str] = []
    try:
        rows = results.read_rows(case.path, RULES, on_note=notes.append)
        ranking = rank.rank(rows, RULES)
    except UserError as error:
        assert case.expected, f"{case.path.read_bytes()!r}: {error}"
        assert isinstance(error, UnreadableFile | NotFound)
        assert error.rule and error.remedy
        for part in case.expected:
            assert part in str(error), (part, str(error))
        return "refused"
    assert not case.expected, (case.expected, case.path.read_bytes())
    assert {entry.row.team: entry.rank("main") for entry in ranking.entries} == case.ranks
    for part in case.notes:
        assert any(part in note for note in (*notes, *ranking.notes)), (part, notes)
    others = [note for note in notes if "instead of 200 images" not in note]
    of_reading = {*case.notes} - {"unit right", "is unknown of"}  # the others are the ranking's
    assert bool(others) == bool(of_reading)
    for text in (table.markdown(ranking), table.latex(ranking)):
        assert "nan" not in text.split("\n", 2)[2] and "\x1b" not in text
    return "ranked"


def run_campaign(draws: int, folder: Path, seed: int) -> dict[str, int]:
    rng, counts = random.Random(seed), {"ranked": 0, "refused": 0}
    for _ in range(draws):
        draw = rng.choice([draw_csv, draw_json])
        case = draw(rng, folder)
        counts[check_case(case)] += 1
        case.path.unlink()
    return counts


def test_drawn_files_are_ranked_rightly_or_refused(tmp_path: Path):
    counts = run_campaign(SAMPLE, tmp_path, 0)
    assert min(counts.values()) > SAMPLE / 5


@pytest.mark.slow
def test_campaign_of_drawn_files(tmp_path: Path):
    counts = run_campaign(CAMPAIGN, tmp_path, 1)
    print(counts)
    assert sum(counts.values()) == CAMPAIGN


# --- folders, figures and names ----------------------------------------------------------------


def row(**figures: object) -> results.Row:
    figures = {"team": "Ours", "method": "net", "runtime_ms": 5.0, **figures}
    return results.Row(**{"params_m": 0.1, "flops_g": 9.0, **figures})  # pyright: ignore


SPAN = row(team="EfficientSR Organizers", method="SPAN")


def test_runtime_that_is_zero_as_printed_is_reported():
    with pytest.raises(RankingError, match=r"0\.0002 ms"):
        rank.rank([SPAN, row(runtime_ms=0.0002)], RULES, figures="printed")


def test_names_are_escaped_in_tables():
    name = r"\input x_1^2~ [a](b) <img> `c` *d* 50%"
    ranking = rank.rank([SPAN, row(team=name)], RULES, apply_thresholds=False)
    latex, markdown = table.latex(ranking), table.markdown(ranking)
    assert r"\textbackslash{}input x\_1\textasciicircum{}2\textasciitilde{} " in latex
    assert r"\\input x_1^2~ [a\](b) \<img> \`c\` \*d\* 50%" in markdown
