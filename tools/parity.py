"""Write docs/parity.md, every official network against ours: `make parity`."""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esrjax import registry
from esrjax.bridge.case import Case
from esrjax.bridge.golden import Parity, parity
from esrjax.method import Method
from esrjax.model import open_method

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Official:
    """A file of official outputs, the method it belongs to and that method's checkpoint."""

    method: str
    golden: Path
    checkpoint: Path

    def compare(self) -> Parity:
        """Through the loader that users have, in deploy form and default sizes."""
        model = open_method(self.method, self.checkpoint)
        return parity(self.method, model.method, model.net, self.golden)


def officials(reference: Path) -> Iterator[Official]:
    """One for every golden file of an installed method: NAME.npz, or NAME_MORE.npz."""
    files = {_sha256(path): path for path in sorted((reference / "weights").iterdir())}
    for golden in sorted((reference / "golden").glob("*.npz")):
        names = [n for n in registry.names() if f"{golden.stem}_".startswith(f"{n}_")]
        name = max(names, key=len, default=None)
        method = registry.method(name) if name else None
        if name and isinstance(method, Method):
            known = (files.get(weights.sha256) for weights in method.weights.values())
            checkpoint = next((path for path in known if path), None)
            if checkpoint:
                yield Official(method=name, golden=golden, checkpoint=checkpoint)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(official: Official) -> str:
    outcome = official.compare()
    outputs = {case.case: case for case in outcome.cases if case.changed is not None}
    parts = [case for case in outcome.cases if case.changed is None]
    worst = max(parts, key=lambda case: case.max_abs / case.allowed, default=None)
    cells = [
        f"`{official.method}`",
        official.golden.stem,
        *(_figure(outputs.get(key)) for key in ("y0", "y1")),
        f"{_figure(worst)} (`{worst.case[4:]}`)" if worst else "-",
        "yes" if outcome.passed else "**no**",
    ]
    print(*cells, flush=True)
    return f"| {' | '.join(cells)} |"


def _figure(case: Case | None) -> str:
    if case is None:
        return "-"
    double = ", double" if case.precision == "float64" else ""
    return f"{case.max_abs:.1e} of {case.allowed:.1e}{double}"


HEAD = """# Parity with the official networks

Written by `make parity` from official checkpoints and from outputs that the official PyTorch
networks gave on a CPU in float32. Largest absolute difference, and what is allowed: 1e-4 of the
larger of white and the reference's range. `y0` is a photograph, `y1` white noise, which drives some
networks far out of range; the last figure is the worst of the stored inner activations. "double":
float32 rounding alone exceeds the tolerance there, and double precision is within it.

| method | file | y0 | y1 | worst activation | equal |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Compare all, and write the table."""
    folder = os.environ.get("ESRJAX_REFERENCE")
    if not folder:
        sys.exit("parity: set ESRJAX_REFERENCE to the reference folder")
    lines = [_line(official) for official in officials(Path(folder))]
    (ROOT / "docs" / "parity.md").write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
