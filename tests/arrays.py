"""Arrays of .npz files, read at once, so that no file stays open."""

from pathlib import Path

import numpy as np


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file by name."""
    with np.load(path) as file:
        return dict(file)
