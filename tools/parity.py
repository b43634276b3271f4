"""Generator of docs/parity.md, every official network compared with ours: `make parity`."""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esrjax import registry
from esrjax.inference import open_method
from esrjax.interop.array_diff import ArrayDiff
from esrjax.interop.parity import GoldenComparison, compare
from esrjax.method import Method

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class OfficialCase:
    """Stored outputs of an official network.

    Attributes:
        method: Name of the method.
        golden: The .npz file of inputs, outputs and activations.
        checkpoint: The official checkpoint of that method.
    """

    method: str
    golden: Path
    checkpoint: Path

    def compare(self) -> GoldenComparison:
        """Compare with the network as users load it, in deploy form with default hparams."""
        model = open_method(self.method, self.checkpoint)
        return compare(self.method, model.method, model.net, self.golden)


def official_cases(reference: Path) -> Iterator[OfficialCase]:
    """Yield a case for every golden file of an installed method, NAME.npz or NAME_MORE.npz."""
    files = {_sha256(path): path for path in sorted((reference / "weights").iterdir())}
    for golden in sorted((reference / "golden").glob("*.npz")):
        names = [n for n in registry.names() if f"{golden.stem}_".startswith(f"{n}_")]
        name = max(names, key=len, default=None)
        method = registry.get_entry(name) if name else None
        if name and isinstance(method, Method):
            checkpoints = (files.get(weights.sha256) for weights in method.weights.values())
            checkpoint = next((path for path in checkpoints if path), None)
            if checkpoint:
                yield OfficialCase(method=name, golden=golden, checkpoint=checkpoint)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _table_row(official: OfficialCase) -> str:
    comparison = official.compare()
    outputs = {case.name: case for case in comparison.diffs if case.num_changed_u8 is not None}
    activations = [case for case in comparison.diffs if case.num_changed_u8 is None]
    worst = max(activations, key=lambda case: case.max_abs_diff / case.tolerance, default=None)
    cells = [
        f"`{official.method}`",
        official.golden.stem,
        *(_cell(outputs.get(key)) for key in ("y0", "y1")),
        f"{_cell(worst)} (`{worst.name[4:]}`)" if worst else "-",
        "yes" if comparison.passed else "**no**",
    ]
    print(*cells, flush=True)
    return f"| {' | '.join(cells)} |"


def _cell(case: ArrayDiff | None) -> str:
    if case is None:
        return "-"
    double = ", double" if case.precision == "float64" else ""
    return f"{case.max_abs_diff:.1e} / {case.tolerance:.1e}{double}"


HEAD = """# Parity with the official networks

Written by `make parity` from official checkpoints and from stored outputs of the official PyTorch
networks, which ran on a CPU in float32. Each cell is the largest absolute difference / its
tolerance. The tolerance is 1e-4 of the data range or of the reference's peak to peak, whichever is
larger. `y0` is the output for a photograph, `y1` for white noise, which drives some networks far
outside the data range; "worst activation" is the stored inner activation closest to its tolerance.
"double": rounding in float32 alone exceeds the tolerance there, and the difference in double
precision is within it. Where no official checkpoint is public, the official class has seeded
weights (`mambagate_sr`) or is a tiny network (`hat`, `mambairv2`, `swinir`).

| method | file | y0 | y1 | worst activation | equal |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Compare all official networks and write the page."""
    folder = os.environ.get("ESRJAX_REFERENCE")
    if not folder:
        sys.exit("parity: set ESRJAX_REFERENCE to the reference folder")
    rows = [_table_row(official) for official in official_cases(Path(folder))]
    (ROOT / "docs" / "parity.md").write_text(HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
