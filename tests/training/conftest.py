"""Images and a recipe that are small enough to train in seconds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from runs import write_images


@pytest.fixture(autouse=True)
def _standard_dtype_promotion() -> Iterator[None]:
    """Optax computes float ** integer step, which strict dtype promotion rejects."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """A folder of four smooth HR images of different sizes."""
    return write_images(tmp_path / "images")


@pytest.fixture
def recipe_dict(image_dir: Path) -> dict[str, Any]:
    """A recipe of two short stages, as plain data."""
    data = {"datasets": [str(image_dir)], "hr_patch_sizes": [[16, 16], [16, 24]], "batch_size": 2}
    adam = {"name": "adam", "learning_rate": 1e-3}
    return {
        "method": "spanv2",
        "seed": 3,
        "hparams": {"channels": 4},
        "stage": [
            {
                "name": "first",
                "init_from": "scratch",
                "steps": 12,
                "data": {**data, "augment": ["hflip", "vflip", "rot90"]},
                "loss": {"l1": 1.0, "fft": 0.05},
                "optimizer": adam,
                "ema": 0.9,
                "ema_warmup": True,
                "save_every": 5,
            },
            {
                "name": "second",
                "steps": 8,
                "data": data | {"hr_patch_sizes": [[16, 16]]},
                "loss": {"mse": 1.0},
                "optimizer": {**adam, "name": "adamw", "weight_decay": 0.01},
                "schedule": {"name": "cosine", "end_learning_rate": 1e-6},
                "save_every": 5,
            },
        ],
    }


@pytest.fixture
def crumb_recipe_dict(recipe_dict: dict[str, Any], crumbs: Path) -> dict[str, Any]:
    """The same recipe for a network of one convolution, which compiles fastest."""
    for stage, sizes in zip(recipe_dict["stage"], ([[24, 24], [24, 32]], [[24, 24]]), strict=True):
        stage["data"]["hr_patch_sizes"] = sizes
    return recipe_dict | {"method": "crumb", "hparams": {"kernel_size": 5}}
