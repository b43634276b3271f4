"""Writes tests/goldens/*.npz: what the PyTorch twins give for tiny networks, in double precision.

    python tools/goldens.py [METHOD ...]

A file holds a picture x0, the network's output y0 and the gradient g0 of the sum of its sines by
x0, all (N, C, h, w), and says in `about` where they come from. Weights are not stored: they are
drawn again from the seed (tests/twins/drawn.py).
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

from twins import drawn  # noqa: E402 # it lies beside the tests

SEED = 2026
CASES: dict[str, dict[str, Any]] = {  # sizes of the network, form, sides of the picture
    "span": {"sizes": {"channels": 4}, "form": "train", "picture": (6, 7)},
    "spanv2": {"sizes": {"channels": 4}, "form": "deploy", "picture": (6, 7)},
    "rfdn_span": {"sizes": {"channels": 6}, "form": "deploy", "picture": (6, 7)},
    "hfenet": {"sizes": {"channels": 9, "blocks": 2}, "form": "deploy", "picture": (11, 12)},
    "safmn_deep15": {"sizes": {"channels": 8, "blocks": 2}, "form": "deploy", "picture": (9, 10)},
    "mambagate_sr": {"sizes": {"channels": 4, "states": 3}, "form": "train", "picture": (6, 7)},
}


def main(names: list[str]) -> None:
    """Write the golden of every named method."""
    for name in names:
        path = TESTS / "goldens" / f"{name}.npz"
        np.savez_compressed(path, **golden(name, **CASES[name]))
        print(f"{path.name}: {path.stat().st_size} bytes")


def golden(
    name: str, *, sizes: dict[str, Any], form: str, picture: tuple[int, int]
) -> dict[str, Any]:
    """The arrays of one file."""
    sizes = {**sizes, "scale": 2}
    net = twin(name, form, sizes)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    tensors = drawn.weights(shapes, SEED)
    net.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    pixels = np.random.RandomState(SEED).random_sample((1, 3, *picture))
    x = torch.tensor(pixels.astype(np.float32), dtype=torch.float64, requires_grad=True)
    y = net(x)
    torch.sin(y).sum().backward()
    assert x.grad is not None
    about = {
        "method": name,
        "form": form,
        "sizes": sizes,
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


def twin(name: str, form: str, sizes: dict[str, Any]) -> torch.nn.Module:
    """The twin in this form, in double precision."""
    how = {"form": form} if name == "span" else {}
    net = importlib.import_module(f"twins.{name}").Twin(**sizes, **how).double()
    return net.train(form == "train")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
