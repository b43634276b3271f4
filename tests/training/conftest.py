"""Pictures and a recipe small enough to train in seconds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from runs import drawn


@pytest.fixture(autouse=True)
def _as_optax_promotes() -> Iterator[None]:
    """optax raises floats to the power of its integer step, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of four smooth HR pictures of different sizes."""
    return drawn(tmp_path / "pictures")


@pytest.fixture
def said(pictures: Path) -> dict[str, Any]:
    """A recipe of two short stages, as plain data."""
    data = {"sets": [str(pictures)], "patches": [[16, 16], [16, 24]], "batch": 2}
    adam = {"name": "adam", "lr": 1e-3}
    return {
        "method": "spanv2",
        "seed": 3,
        "sizes": {"channels": 4},
        "stage": [
            {
                "name": "first",
                "start": "new",
                "steps": 12,
                "data": {**data, "augment": ["hflip", "vflip", "rot90"]},
                "loss": {"l1": 1.0, "fft": 0.05},
                "optimiser": adam,
                "ema": 0.9,
                "save_every": 5,
            },
            {
                "name": "second",
                "steps": 8,
                "data": data,
                "loss": {"mse": 1.0},
                "optimiser": {**adam, "name": "adamw", "weight_decay": 0.01},
                "schedule": {"name": "cosine", "end_lr": 1e-6},
                "save_every": 5,
            },
        ],
    }
