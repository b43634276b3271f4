"""Run the attack campaign: python -m attack [CLASS ...] [--sample N] [--only TEXT].

A table of tried and survived cases per class goes to standard output, and each case that is not
survived is named there. The exit code is 1 if one is not.
"""

import argparse
import importlib
import pkgutil
import random
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import attack
from attack.case import Case


@dataclass(kw_only=True)
class Tally:
    """Counts of one class of attacks, with the cases that were not survived."""

    tried: int = 0
    faults: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0

    def add(self, case: Case) -> None:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="esrjax-attack-") as folder:
            fault = case.run(Path(folder))
        self.seconds += time.monotonic() - start
        self.tried += case.count
        if fault is not None:
            self.faults[case.name] = fault


def list_classes() -> list[str]:
    """Return the names of the modules that have cases."""
    modules = (module.name for module in pkgutil.iter_modules(attack.__path__))
    return sorted(name for name in modules if name not in ("__main__", "case"))


def load_cases(name: str, *, sample: int | None = None, only: str = "") -> list[Case]:
    """Return the cases of a class; with `sample`, so many fast ones, drawn by a fixed seed."""
    cases = [
        case for case in importlib.import_module(f"attack.{name}").cases() if only in case.name
    ]
    if sample is None:
        return cases
    fast = [case for case in cases if case.is_fast]
    return random.Random(0).sample(fast, min(sample, len(fast)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m attack")
    parser.add_argument("classes", nargs="*", metavar="CLASS", help=", ".join(list_classes()))
    parser.add_argument("--sample", type=int, help="so many fast cases of each class")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of libraries, about the files of the campaign
    tallies: dict[str, Tally] = {}
    for name in options.classes or list_classes():
        tally = tallies[name] = Tally()
        for case in load_cases(name, sample=options.sample, only=options.only):
            tally.add(case)
            if case.name in tally.faults:
                print(f"NOT SURVIVED {name}: {case.name}: {tally.faults[case.name]}", flush=True)
    print(f"{'class':24}{'tried':>8}{'survived':>10}{'seconds':>9}")
    for name, tally in tallies.items():
        survived = tally.tried - len(tally.faults)
        print(f"{name:24}{tally.tried:8,}{survived:10,}{tally.seconds:9.0f}")
    return int(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    raise SystemExit(main())
