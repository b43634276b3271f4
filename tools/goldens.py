"""Generator of tests/goldens/*.npz, outputs of tiny PyTorch twins in double precision.

    python tools/goldens.py [METHOD ...]

A file contains an image x0, the network's output y0 = f(x0), and the gradient g0 of sum(sin(y0))
with respect to x0, all (N, C, h, w); `about` records their origin as JSON. Weights are not stored:
they are drawn again from the seed (tests/twins/drawn.py).
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from twins.drawn import random_state_dict  # noqa: E402 # a package in tests/

SEED = 2026
WINDOWS = {"channels": 8, "num_groups": 1, "depth": 2, "num_heads": 2, "window_size": 4}
CASES: dict[str, dict[str, Any]] = {  # image_size: (h, w) of x0
    "span": {"hparams": {"channels": 4}, "form": "train", "image_size": (6, 7)},
    "spanv2": {"hparams": {"channels": 4}, "form": "deploy", "image_size": (6, 7)},
    "rfdn_span": {"hparams": {"channels": 6}, "form": "deploy", "image_size": (6, 7)},
    "hfenet": {
        "hparams": {"channels": 9, "num_blocks": 2},
        "form": "deploy",
        "image_size": (11, 12),
    },
    "safmn_deep15": {
        "hparams": {"channels": 8, "num_blocks": 2},
        "form": "deploy",
        "image_size": (9, 10),
    },
    "mambagate_sr": {
        "hparams": {"channels": 4, "d_state": 3},
        "form": "train",
        "image_size": (6, 7),
    },
    "hat": {
        "hparams": {**WINDOWS, "squeeze_factor": 4},
        "form": "deploy",
        "image_size": (7, 9),
    },
    "mambairv2": {
        "hparams": {**WINDOWS, "d_state": 3, "num_tokens": 5, "inner_rank": 2},
        "form": "deploy",
        "image_size": (7, 9),
    },
}


def main(names: list[str]) -> None:
    """Write the golden file of every method in `names`."""
    for name in names:
        path = TESTS / "goldens" / f"{name}.npz"
        np.savez_compressed(path, **make_golden(name, **CASES[name]))
        print(f"{path.name}: {path.stat().st_size} bytes")


def make_golden(
    name: str, *, hparams: dict[str, Any], form: str, image_size: tuple[int, int]
) -> dict[str, Any]:
    """Return the arrays of one golden file."""
    hparams = {**hparams, "scale": 2}
    net = make_twin(name, form, hparams)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    tensors = random_state_dict(shapes, SEED)
    net.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    pixels = np.random.RandomState(SEED).random_sample((1, 3, *image_size))
    x = torch.tensor(pixels.astype(np.float32), dtype=torch.float64, requires_grad=True)
    y = net(x)
    torch.sin(y).sum().backward()
    assert x.grad is not None
    about = {
        "method": name,
        "form": form,
        "hparams": hparams,
        "seed": SEED,
        "torch": str(torch.__version__),
        "twin": f"tests/twins/{name}.py",
    }
    return {
        "x0": x.detach().numpy().astype(np.float32),
        "y0": y.detach().numpy(),
        "g0": x.grad.numpy(),
        "about": np.array(json.dumps(about)),
    }


def make_twin(name: str, form: str, hparams: dict[str, Any]) -> torch.nn.Module:
    """Return the PyTorch twin in this form, in double precision."""
    kwargs = {"form": form} if name == "span" else {}
    net = importlib.import_module(f"twins.{name}").Twin(**hparams, **kwargs).double()
    return net.train(form == "train")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
