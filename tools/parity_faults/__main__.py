"""Mutation campaign of the parity checker: `make parity-faults`.

    python -m parity_faults [TWIN ...] [--seeds N] [--sample N] [-o FILE.jsonl]
    python -m parity_faults --records FILE.jsonl [FILE.jsonl ...]

The first form runs the campaign; the second writes docs/parity-faults.md from records of it.

Every kind of fault (kinds.toml) is planted at every place of the twins where it applies, and each
mutant is compared with its JAX network at every seed, as `esrjax parity` does. A mutant is caught;
or equivalent, where outputs and gradients of PyTorch itself change by less than the tolerance for
ten other draws; or missed. The table and the list of equivalents are printed. Twins may be named,
to run parts of the campaign at once.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esrjax.errors import UserError
from esrjax.interop import draws, torch_compare, torch_optim
from esrjax.interop.array_diff import FLOAT64_RTOL, max_abs, value_range
from esrjax.interop.draws import ModelPair
from esrjax.interop.torch_compare import CaseResult, JaxRuns
from esrjax.interop.torch_model import TorchModel
from esrjax.interop.torch_watch import Exercise

from . import layers
from .mutants import TWINS, Fault, Twin, build_mutant, find_faults, place_of, read_kinds

NUM_EQUIVALENCE_DRAWS = 10
PAGE = Path(__file__).parents[2] / "docs/parity-faults.md"
HEAD = """# What `parity` catches

Written by `make parity-faults`: faults of many kinds, planted one at a time in PyTorch networks,
implementations of our own, at every place where they apply; in all instances of a class of
modules, and in the last one alone. `esrjax parity` compared each mutant with the JAX network for
three values of `--seed`. The kinds are the patterns in `tools/parity_faults/kinds.toml`.

A mutant is **caught** if it was found at every seed; **right place**: the reported location is a
module of the class with the fault. It is **equivalent** if outputs and gradients of PyTorch itself,
in float64, change by at most the tolerance (1e-9) for ten other draws of weights and images, in
eval and in train mode; these are listed with the largest change. All others are **missed**.

"""
CAUGHT, EQUIVALENT, MISSED = "caught", "equivalent", "missed"

ALL_TWINS = (
    Twin(name="span", hparams={"channels": 6}, torch_args={"form": "both"}),
    Twin(name="spanv2", hparams={"channels": 8}),
    Twin(name="rfdn_span", hparams={"channels": 8}),
    Twin(name="hfenet", hparams={"channels": 9, "num_blocks": 2}),
    Twin(name="safmn_deep15", hparams={"channels": 12, "num_blocks": 2}),
    Twin(name="mambagate_sr", hparams={"channels": 5, "d_state": 3}),
    Twin(
        name="hat",
        hparams={
            "channels": 12,
            "num_groups": 2,
            "depth": 2,
            "num_heads": 2,
            "window_size": 4,
            "squeeze_factor": 3,
        },
        jax_hparams={"drop_path_rate": 0.0},  # so that train mode is compared
    ),
    Twin(
        name="mambairv2",
        hparams={
            "channels": 12,
            "num_groups": 1,
            "depth": 2,
            "num_heads": 2,
            "window_size": 4,
            "d_state": 4,
            "num_tokens": 8,
            "inner_rank": 4,
        },
    ),
)


class Campaign:
    """Comparison of mutants of one twin with its JAX network, whose results are computed once.

    Args:
        twin: The twin.
        seeds: Values of `--seed`.
        folder: Where the packages of mutants are written.
    """

    def __init__(self, twin: Twin, seeds: Sequence[int], folder: Path):
        self.twin = twin
        self.folder = folder
        self.runs: dict[int, JaxRuns] = {}
        self._num_mutants = 0
        self._equivalence_pairs: dict[int, ModelPair] = {}
        for seed in seeds:
            self.runs[seed] = JaxRuns(self.pair(seed))
            self.runs[seed].share_programs(self.runs[seeds[0]])
        # No fault makes a network stochastic, so that the cases are those of the twin.
        self.cases = {seed: torch_compare.list_cases(self.runs[seed])[0] for seed in seeds}

    def pair(self, seed: int) -> ModelPair:
        """Return the pair of the JAX network and the twin without a fault."""
        hparams = {**self.twin.hparams, **self.twin.jax_hparams}
        return draws.make_pair(self.twin.name, self.twin.build(TWINS), hparams, seed=seed)

    def _equivalence_pair(self, seed: int) -> ModelPair:
        if seed not in self._equivalence_pairs:
            self._equivalence_pairs[seed] = self.pair(seed)
        return self._equivalence_pairs[seed]

    def compare(self, model: TorchModel, seed: int) -> tuple[CaseResult | None, Exercise]:
        """Return the first case in which a network differs, or None, and what was exercised."""
        runs, exercise = self.runs[seed], Exercise()
        runs.pair = replace(runs.pair, torch_model=model)
        for case in self.cases[seed]:
            result = torch_compare.compare_case(runs, case, exercise)
            if not result.passed:
                return result, exercise
        return None, exercise

    def false_alarms(self) -> Iterator[str]:
        """Yield the seeds at which the twin without a fault differs or is not exercised."""
        for seed in self.runs:
            result, exercise = self.compare(self.twin.build(TWINS), seed)
            if result is not None or not exercise.report().passed:
                yield f"{self.twin.name}, seed {seed}"

    def run(self, fault: Fault) -> dict[str, Any] | None:
        """Return the record of a fault, or None if it does not apply."""
        self._num_mutants += 1
        folder = self.folder / f"{self.twin.name}_{self._num_mutants}"
        record = {"twin": self.twin.name, "kind": fault.kind, "fault": str(fault)}
        try:
            model, paths = build_mutant(fault, folder, self.changes)
        except UserError as error:
            return None if _is_not_applicable(error) else record | _error_record(error, fault)
        seeds: list[dict[str, Any]] = []
        for seed in self.runs:
            try:
                seeds.append(self._run_seed(model, seed, paths))
            except UserError as error:
                if _is_not_applicable(error):
                    return None
                seeds.append(_error_record(error, fault))
        outcome = CAUGHT
        if not all(seed["caught"] for seed in seeds):
            change = self.largest_change(model, NUM_EQUIVALENCE_DRAWS)
            outcome = EQUIVALENT if change <= 1 else MISSED
            record["change"] = change
        right = [seed["right"] for seed in seeds if seed["caught"]]
        return record | {
            "outcome": outcome,
            "right": bool(right) and all(right),
            "places": sorted({seed["place"] for seed in seeds if seed["caught"]}),
            "seeds": [seed["caught"] for seed in seeds],
        }

    def _run_seed(self, model: TorchModel, seed: int, paths: set[str]) -> dict[str, Any]:
        result, exercise = self.compare(model, seed)
        if result is None:
            report = exercise.report()
            place = "; ".join((*report.closed, *report.constant))
            right = any(path in place for path in paths)
            return {"caught": not report.passed, "place": place, "right": right}
        divergence = result.layers.first_divergence
        if divergence is None:
            failed = next(diff for diff in result.diffs if not diff.passed)
            places = [(failed.worst_key or "").rpartition(".")[0]]
        elif divergence.cause == "module":
            places = [divergence.torch_path]
        else:
            torch_only = [label.partition(" ")[0] for label in divergence.torch_only]
            places = [divergence.enclosing, *torch_only]
        module = model.module
        right = any(place_of(place, module) in paths for place in places)
        return {"caught": True, "place": places[0], "right": right}

    def changes(self, model: TorchModel) -> bool:
        """Return whether a network differs from the twin without a fault in any bit."""
        try:
            return self.largest_change(model, num_draws=1) > 0
        except UserError:
            return True

    def largest_change(self, model: TorchModel, num_draws: int) -> float:
        """Return the largest change of outputs and gradients, as a multiple of the tolerance."""
        largest, method = 0.0, self.runs[next(iter(self.runs))].pair.method
        for seed in range(1000, 1000 + num_draws):
            pair = self._equivalence_pair(seed)
            draw, original = pair.draws[0], pair.torch_model
            x = draws.draw_images(method, seed, draws.image_sizes(method)[seed % 2])
            for training in (False, True):
                results = []
                for network in (original, model):
                    replace(pair, torch_model=network).load(draw)
                    args = network, x.astype(np.float64), Exercise()
                    results.append(torch_optim.run(*args, training=training))
                largest = max(largest, _change(*results))
        return largest


def _change(original: torch_optim.TorchRun, mutant: torch_optim.TorchRun) -> float:
    """Return the largest change of output and gradients, as a multiple of the tolerance."""
    grad_scale = max((max_abs(grad) for grad in original.grads.values()), default=1.0)
    changes = [
        max_abs(mutant.output - original.output) / value_range(original.output),
        max_abs(mutant.x_grad - original.x_grad) / max_abs(original.x_grad),
    ]
    for key, grad in original.grads.items():
        scale = max(max_abs(grad), torch_compare.GRAD_FLOOR * grad_scale)
        changes.append(max_abs(mutant.grads.get(key, 0 * grad) - grad) / scale)
    return float(np.max(changes)) / FLOAT64_RTOL


def _is_not_applicable(error: BaseException) -> bool:
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__ == layers.NotApplicable.__name__


def _error_record(error: UserError, fault: Fault) -> dict[str, Any]:
    """Return the record of a mutant that cannot run: the place is the line that is reported."""
    location = str(error.location)
    lines = {f"{fault.file}.py:{fault.line + 1 + i}:" for i in range(-1, 8)}  # one line was added
    right = any(line in location for line in lines) or "layers" in location
    return {"caught": True, "place": location, "right": right, "outcome": CAUGHT}


# --- output ---


def table(records: Iterable[dict[str, Any]]) -> str:
    """Return the Markdown table of a campaign, one row for each kind, and the equivalents."""
    records, rows = list(records), defaultdict[str, Counter[str]](Counter)
    for record in records:
        for name in (record["kind"], "all"):
            rows[name][record["outcome"]] += 1
            rows[name]["right"] += record["outcome"] == CAUGHT and record["right"]
    lines = ["| kind | mutants | caught | right place | equivalent | missed |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name in (*read_kinds(), "all"):
        counts = rows[name]
        total = sum(counts[outcome] for outcome in (CAUGHT, EQUIVALENT, MISSED))
        cells = [name, total, counts[CAUGHT], counts["right"], counts[EQUIVALENT], counts[MISSED]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for outcome, title in ((MISSED, "Missed"), (EQUIVALENT, "Equivalent")):
        matches = [record for record in records if record["outcome"] == outcome]
        lines += ["", f"{title}:" if matches else f"{title}: none", ""] * bool(matches)
        lines += [f"- {r['fault']}: {r['change']:.1e} of the tolerance" for r in matches]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the campaign; exit code 1 if a mutant is missed, or a twin without a fault fails."""
    parser = argparse.ArgumentParser(prog="parity_faults")
    parser.add_argument("twins", nargs="*", help="names of twins; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of each mutant")
    parser.add_argument("--sample", type=int, help="faults of each twin, drawn with seed 0")
    parser.add_argument("--records", type=Path, nargs="+", help="write the page from records")
    parser.add_argument("-o", dest="output", type=Path, help="records, one JSON object per line")
    args = parser.parse_args()
    if args.records:
        return write_page(args.records)
    torch.set_num_threads(1)  # the networks are small
    records: list[dict[str, Any]] = []
    false_alarms: list[str] = []
    for twin in ALL_TWINS:
        if not args.twins or twin.name in args.twins:
            with tempfile.TemporaryDirectory(prefix="parity-faults-") as folder:
                campaign = Campaign(twin, range(args.seeds), Path(folder))
                false_alarms += campaign.false_alarms()
                records += run_faults(campaign, args.sample, args.output)
    print(table(records))
    print(f"false alarms: {', '.join(false_alarms) or 'none'}")
    sys.exit(bool(false_alarms) or any(record["outcome"] == MISSED for record in records))


def run_faults(
    campaign: Campaign, num_faults: int | None, output: Path | None
) -> Iterator[dict[str, Any]]:
    """Yield the records of all faults of a twin, or of `num_faults`; append them to `output`."""
    for fault in sample(list(find_faults(campaign.twin)), num_faults):
        if (record := campaign.run(fault)) is not None:
            yield record
            if output:
                with output.open("a") as file:
                    file.write(json.dumps(record) + "\n")


def write_page(paths: Iterable[Path]) -> None:
    """Write docs/parity-faults.md from files of records."""
    lines = [line for path in paths for line in path.read_text().splitlines()]
    records = [json.loads(line) for line in lines]
    counts = Counter(record["twin"] for record in records)
    networks = ", ".join(f"{name} ({count})" for name, count in counts.items())
    PAGE.write_text(f"{HEAD}Networks, with their mutants: {networks}.\n\n{table(records)}")


def sample(faults: list[Fault], size: int | None) -> list[Fault]:
    """Return all faults, or some of them, drawn with a fixed seed."""
    if size is None or size >= len(faults):
        return faults
    indices = np.random.RandomState(0).permutation(len(faults))[:size]
    return [faults[index] for index in sorted(indices)]


if __name__ == "__main__":
    main()
