"""Valid files with flipped bits, cuts, splices and repetitions: read, or refused in words.

A case is a block of inputs for one reader; block 0 is a small one, for the sample of the tests.
"""

import functools
import io
import json
import random
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from attack.case import Case, find_excess, find_message_fault
from attack.hostile_files import READERS, X, Y, _npz, _torch
from esrjax.errors import UserError
from esrjax.nn import checkpoint_io

NUM_BLOCKS, BLOCK, FIRST_BLOCK = 8, 500, 20  # of each reader; inputs
SECONDS, MIB = 10.0, 900  # of one input, on a busy machine
ENTRY = {
    **dict.fromkeys(("valid_ave_psnr", "test_ave_psnr"), 27.0),
    **dict.fromkeys(("valid_ave_runtime", "test_ave_runtime"), 5.0),
    "num_parameters": 0.15,
    "flops": 9.8,
    "valid_psnr": [26.0, 28.0],
    "valid_runtime": [5.0, 5.0],
}
TABLE = "team,method,psnr_valid,psnr_test,runtime_ms,params_m,flops_g\nA,a,27,27.1,5,.1,9\n"
REPORT = {"request": {"method": "span", "golden": "g.npz"}, "passed": True, "hashes": {"a": "b"}}


def _images(*formats: str) -> list[bytes]:
    gradient = np.add.outer(np.arange(24), np.arange(0, 160, 5))[..., None] * [1, 2, 3]
    image = Image.fromarray(gradient.astype(np.uint8))
    streams = [io.BytesIO() for _ in formats]
    for stream, format in zip(streams, formats, strict=True):
        image.save(stream, format)
    deep = io.BytesIO()
    Image.fromarray((gradient[..., 0] * 99).astype(np.uint16)).save(deep, formats[0])
    return [stream.getvalue() for stream in (*streams, deep)]


def _pth(**options: object) -> list[bytes]:
    torch = checkpoint_io.import_torch("an attack")
    state = {"head.weight": torch.ones(4, 3, 3, 3), "head.bias": torch.zeros(4)}
    return [_torch(contents, **options) for contents in (state, {"params_ema": state, "iter": 5})]


def _safetensors() -> list[bytes]:
    from safetensors.numpy import save

    metadata = {"esrjax": json.dumps({"method": "span", "form": "deploy", "hparams": {"a": 1}})}
    tensors = {"head.weight": np.ones((4, 3, 3, 3), np.float32), "b": np.zeros(4, np.float16)}
    return [save(tensors, metadata), save(tensors)]


def _configs(*names: str) -> list[bytes]:
    folder = resources.files("esrjax_configs")
    return [(folder / f"{name}.toml").read_bytes() for name in names]


def _json(*values: object) -> list[bytes]:
    return [json.dumps(value, indent=indent).encode() for value in values for indent in (None, 1)]


def _resolved_recipes() -> list[bytes]:
    from esrjax.training import recipe, recipe_loader

    return [recipe.to_json(recipe_loader.load(name)).encode() for name in ("quick", "span_291")]


SEEDS: Mapping[str, tuple[str, Callable[[], list[bytes]]]] = {  # what -> reader, valid files
    "PNG": ("image", lambda: _images("PNG")),
    "JPEG, WebP, GIF": ("image", lambda: _images("TIFF", "JPEG", "WEBP", "GIF")),
    "TIFF, BMP, PPM": ("image", lambda: _images("TIFF", "BMP", "PPM")),
    "sizes of images": ("image size", lambda: _images("PNG", "JPEG", "TIFF", "WEBP", "BMP")),
    "pth": ("pth", _pth),
    "pth in the old format": ("pth", lambda: _pth(_use_new_zipfile_serialization=False)),
    "safetensors": ("safetensors", _safetensors),
    "npz": ("golden", lambda: [_npz(x0=X, y0=Y), _npz(x0=X, y0=Y, act_a=Y[:, 0], compression=8)]),
    "results.json": ("results.json", lambda: _json({"00_SPAN": ENTRY, "22_a": ENTRY})),
    "results.csv": ("results.csv", lambda: [TABLE.encode(), TABLE.replace(",", ";").encode()]),
    "published table": ("published table", lambda: [TABLE.encode(), TABLE.encode("utf-16")]),
    "recipe.toml": ("recipe.toml", lambda: _configs("quick", "span_291", "pds")),
    "recipe.json": ("recipe.json", _resolved_recipes),
    "rules": ("rules", lambda: _configs("ntire2026")),
    "parity report": ("parity report", lambda: _json(REPORT)),
}
INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x80",
    b"9999999999",
    b"[",
    b'"',
)


def mutate(seeds: list[bytes], draw: random.Random) -> bytes:
    """Return one of the seeds with one to four changes."""
    content = bytearray(draw.choice(seeds))
    for _ in range(draw.randint(1, 4)):
        index = draw.randrange(len(content) or 1)
        match draw.randrange(6):
            case 0 if content:
                content[index] ^= 1 << draw.randrange(8)
            case 1:
                del content[index:]
            case 2:
                other = draw.choice(seeds)
                content[index:] = other[draw.randrange(len(other)) :]
            case 3:
                word = draw.choice(INTERESTING)
                content[index : index + len(word)] = word
            case 4:
                length = draw.randint(1, 50)
                content[index:index] = content[index : index + length] * draw.choice((1, 2, 100))
            case _:
                del content[index : index + draw.randint(1, 20)]
    return bytes(content)


def _read(path: Path, read: Callable[[Path], object]) -> str | None:
    try:
        read(path)
    except UserError as error:
        return find_message_fault(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


@functools.cache
def _seeds(what: str) -> list[bytes]:
    return SEEDS[what][1]()


def _attack(folder: Path, *, what: str, block: int, count: int) -> str | None:
    suffix, read = READERS[SEEDS[what][0]]
    path, faults = folder / f"file{suffix}", list[str]()
    for index in range(count):
        path.write_bytes(mutate(_seeds(what), random.Random(f"{what} {block} {index}")))
        call = functools.partial(_read, path, read)
        if fault := find_excess(call, seconds=SECONDS, mib=MIB):
            faults.append(f"input {index}: {fault}")
    return f"{len(faults)} of {count}: {faults[0]}" if faults else None


def cases() -> list[Case]:
    """Return the blocks of every reader."""
    blocks = [(what, block) for what in SEEDS for block in range(NUM_BLOCKS)]
    return [
        Case(
            name=f"{what}, block {block}",
            attack=functools.partial(_attack, what=what, block=block, count=count),
            is_fast=block == 0,
            count=count,
        )
        for what, block in blocks
        for count in [BLOCK if block else FIRST_BLOCK]
    ]
