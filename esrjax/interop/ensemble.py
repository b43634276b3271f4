"""Comparison of an ensemble with images stored from the official PyTorch ensemble.

`jax_*` names images that esrjax computes, `torch_*` those of the golden file.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from esrjax.data.image_io import Pixels
from esrjax.errors import UnreadableFile
from esrjax.evaluation import upscale
from esrjax.evaluation.metrics import to_uint8
from esrjax.evaluation.upscale import FloatImage, Upscaler
from esrjax.inference import EnsembleModel, Model
from esrjax.interop import array_diff
from esrjax.interop.array_diff import ArrayDiff, Implementation
from esrjax.interop.parity import GoldenComparison, GoldenFile, read_golden
from esrjax.method import Member

LEVEL = 1 / 255  # one uint8 level
MAX_CHANGED_FRACTION = 1e-3  # of an image's uint8 values may differ by one level
NUM_PERTURBATIONS = 8  # perturbed inputs that are tried before an image fails

_MEMBER_KEY = re.compile(r"act_(\w+)_tta(\d+)|(\w+)_u8_(\d+)")

MemberOfKey = Mapping[str, str | None]  # key of a stored image -> member; None for the fused image


def compare(
    ensemble: EnsembleModel, golden: str | Path, implementation: Implementation = "auto"
) -> GoldenComparison:
    """Compare the images of an ensemble and of its members with the arrays of a golden file.

    The file has float32 arrays in NCHW: LR images `xK` in [0, 1], the fused uint8 images `yK`,
    members' uint8 images `NAME_u8_K`, and the same before rounding, `act_NAME_ttaK`, where NAME is
    a prefix of the member's name. uint8 images may differ by one level, in
    `MAX_CHANGED_FRACTION` of all values.

    Networks that sort tokens by score (MambaIRv2) may meet ties, which rounding decides: an image
    that fails may pass for LR values perturbed by one float32 rounding.

    Args:
        ensemble: The ensemble.
        golden: The .npz file.
        implementation: Implementation of operations.

    Raises:
        UnreadableFile: If the file cannot be read or does not fit the ensemble.
    """
    file = read_golden(golden)
    diffs: list[ArrayDiff] = []
    with array_diff.full_precision(implementation):
        for number, member_of_key in _image_keys(file, ensemble).items():
            diffs += _diffs(file, ensemble, _read_pixels(file, f"x{number}"), member_of_key)
    return GoldenComparison.of(ensemble.name, file, diffs)


def _image_keys(golden: GoldenFile, ensemble: EnsembleModel) -> Mapping[str, MemberOfKey]:
    """Return the keys of stored images by the number of their input, the fused image first."""
    arrays = golden.arrays
    keys: dict[str, dict[str, str | None]] = {}
    for number in sorted(key[1:] for key in arrays if re.fullmatch(r"x\d+", key)):
        keys[number] = {f"y{number}": None} if f"y{number}" in arrays else {}
    for key in sorted(arrays):
        if match := _MEMBER_KEY.fullmatch(key):
            prefix, number = filter(None, match.groups())
            members = [name for name in ensemble.members if name.startswith(prefix)]
            if len(members) != 1:
                problem = f"{prefix!r} is a prefix of {len(members)} members' names"
                raise _bad_golden(golden, f"has {key!r}, but {problem}")
            keys.get(number, {})[key] = members[0]
    return keys


def _diffs(
    golden: GoldenFile, ensemble: EnsembleModel, lr: Pixels, member_of_key: MemberOfKey
) -> list[ArrayDiff]:
    """Compare the images of one input; where they fail, of perturbed inputs as well."""
    names = set(ensemble.members if None in member_of_key.values() else member_of_key.values())
    diffs: dict[str, ArrayDiff] = {}
    for upscalers in _upscaler_variants(ensemble):
        images = {name: upscalers[name](lr) for name in ensemble.members if name in names}
        for key, member in member_of_key.items():
            image = ensemble.blend(list(images.values())) if member is None else images[member]
            diff = _array_diff(golden, key, image)
            first = diffs.setdefault(key, diff)  # of LR as it is
            diffs[key] = first.prefer_passed(diff, num_changed_u8_unperturbed=first.num_changed_u8)
        if all(diff.passed for diff in diffs.values()):
            break
    return list(diffs.values())


def _upscaler_variants(ensemble: EnsembleModel) -> Iterator[Mapping[str, Upscaler]]:
    """Yield the upscalers of all members: for LR as it is, then for perturbed LR values."""
    yield ensemble.member_upscalers()
    for seed in range(NUM_PERTURBATIONS):
        yield {
            name: _perturbed_upscaler(ensemble.members[name], member, seed)
            for name, member in ensemble.ensemble.members.items()
        }


def _perturbed_upscaler(model: Model, member: Member, seed: int) -> Upscaler:
    """Return the member's upscaler for LR values moved to the next float32 below or above."""
    rng = np.random.default_rng(seed)

    def forward(lr: jax.Array) -> jax.Array:
        x = np.asarray(lr)
        directions = np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype)
        return model.forward(np.nextafter(x, directions))  # pyright: ignore[reportArgumentType] # jit takes numpy

    return upscale.compose_upscaler(
        upscale.single_pass(forward, model.method.data_range),
        model.scale,
        self_ensemble=member.self_ensemble,
        windows=member.windows,
        pad_multiple=member.pad_multiple,
    )


def _array_diff(golden: GoldenFile, key: str, jax_image: FloatImage) -> ArrayDiff:
    torch_image, is_float = golden.arrays[key], key.startswith("act_")
    image = jax_image if is_float else to_uint8(jax_image, 1.0)
    jax_array = array_diff.to_channels_first(image[None]).astype(np.float64)
    if jax_array.shape != torch_image.shape:
        shapes = f"{torch_image.shape}, JAX {jax_array.shape}"
        raise _bad_golden(golden, f"has {key} of shape {shapes}")
    if is_float:
        tolerance = array_diff.FLOAT32_RTOL * max(1.0, float(np.ptp(torch_image)))
        num_changed_u8 = array_diff.count_changed_u8(jax_array, torch_image, 1.0)
        return ArrayDiff.of(key, jax_array, torch_image, tolerance, num_changed_u8=num_changed_u8)
    abs_diff = np.abs(jax_array - torch_image)
    return ArrayDiff(
        name=key,
        shape=torch_image.shape,
        max_abs_diff=float(abs_diff.max()) * LEVEL,
        tolerance=LEVEL,
        num_changed_u8=int((abs_diff > 0).sum()),
        max_changed_u8=int(MAX_CHANGED_FRACTION * abs_diff.size),
    )


def _read_pixels(golden: GoldenFile, key: str) -> Pixels:
    """Return an input, stored as `(1, 3, h, w)` in [0, 1], as a uint8 image `(h, w, 3)`."""
    x = golden.arrays[key]
    levels = np.rint(x.astype(np.float64) * 255)
    if x.shape[:2] != (1, 3) or np.abs(x * 255.0 - levels).max() > 1e-3:
        raise _bad_golden(golden, f"has an input {x.shape} that is not an 8-bit image")
    return levels[0].transpose(1, 2, 0).astype(np.uint8)


def _bad_golden(golden: GoldenFile, problem: str) -> UnreadableFile:
    return UnreadableFile(
        f"The golden file {problem}",
        rule="xK is an 8-bit image / 255, yK the fused uint8 image, MEMBER_u8_K a member's uint8 "
        "image, act_MEMBER_ttaK the same before rounding; NCHW, MEMBER a prefix of a member's name",
        location=str(golden.path),
        remedy="check that the file belongs to the ensemble",
    )
