"""Comparison of an ensemble with images stored from the official PyTorch ensemble.

`jax_*` names images that esrjax computes, `torch_*` those of the golden file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from esrjax.data.image_io import Pixels
from esrjax.errors import UnreadableFile
from esrjax.evaluation import upscale
from esrjax.evaluation.metrics import to_uint8
from esrjax.evaluation.upscale import FloatImage, Upscaler
from esrjax.inference import EnsembleModel, Model
from esrjax.interop.array_diff import (
    FLOAT32_RTOL,
    Array,
    ArrayDiff,
    Implementation,
    count_changed_u8,
    to_channels_first,
)
from esrjax.interop.parity import GoldenComparison, read_arrays
from esrjax.method import Member
from esrjax.nn import ops

LEVEL = 1 / 255  # one uint8 level
MAX_CHANGED_FRACTION = 1e-3  # of an image's uint8 values may differ by one level
NUM_PERTURBATIONS = 8  # perturbed inputs that are tried before an image fails

_MEMBER_KEY = re.compile(
    r"act_(?P<float_member>\w+)_tta(?P<float_number>\d+)|(?P<u8_member>\w+)_u8_(?P<u8_number>\d+)"
)


@dataclass(frozen=True)
class GoldenInput:
    """One input of a golden file.

    Attributes:
        lr: The LR image.
        fused_key: Key of the fused image.
        member_keys: Keys of members' images, each with the name of its member.
    """

    lr: Pixels
    fused_key: str
    member_keys: Mapping[str, str]


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
    arrays = read_arrays(golden)
    inputs = _golden_inputs(arrays, ensemble, str(golden))
    diffs: list[ArrayDiff] = []
    with ops.implementation(implementation), jax.default_matmul_precision("highest"):
        for golden_input in inputs:
            diffs += _diffs_with_perturbation(ensemble, golden_input, arrays, str(golden))
    used_keys = {diff.name for diff in diffs} | {
        f"x{golden_input.fused_key[1:]}" for golden_input in inputs
    }
    unchecked_keys = tuple(sorted(set(arrays) - used_keys))
    return GoldenComparison(method=ensemble.name, diffs=tuple(diffs), unchecked_keys=unchecked_keys)


def _golden_inputs(
    arrays: Mapping[str, Array], ensemble: EnsembleModel, location: str
) -> list[GoldenInput]:
    """Return the inputs of the file, in the order of their numbers."""
    member_keys: dict[str, dict[str, str]] = {}
    for key in sorted(arrays):
        if match := _MEMBER_KEY.fullmatch(key):
            number = match["float_number"] or match["u8_number"]
            member = _member_name(
                match["float_member"] or match["u8_member"], ensemble, key, location
            )
            member_keys.setdefault(number, {})[key] = member
    indices = sorted(key[1:] for key in arrays if re.fullmatch(r"x\d+", key))
    return [
        GoldenInput(
            _to_pixels(arrays[f"x{number}"], location), f"y{number}", member_keys.get(number, {})
        )
        for number in indices
    ]


def _member_name(prefix: str, ensemble: EnsembleModel, key: str, location: str) -> str:
    members = [name for name in ensemble.members if name.startswith(prefix)]
    if len(members) != 1:
        raise _bad_golden(
            f"has {key!r}, but {prefix!r} is a prefix of {len(members)} members' names", location
        )
    return members[0]


def _diffs_with_perturbation(
    ensemble: EnsembleModel, golden_input: GoldenInput, arrays: Mapping[str, Array], location: str
) -> tuple[ArrayDiff, ...]:
    """Compare the images of one input; where they fail, of perturbed inputs as well."""
    diffs = _diffs(ensemble, golden_input, arrays, ensemble.member_upscalers(), location)
    for seed in range(NUM_PERTURBATIONS):
        if all(diff.passed for diff in diffs):
            break
        upscalers = {
            name: _perturbed_upscaler(ensemble.members[name], member, seed)
            for name, member in ensemble.ensemble.members.items()
        }
        perturbed_diffs = _diffs(ensemble, golden_input, arrays, upscalers, location)
        diffs = [_prefer_passed(*both) for both in zip(diffs, perturbed_diffs, strict=True)]
    return tuple(diffs)


def _prefer_passed(diff: ArrayDiff, perturbed: ArrayDiff) -> ArrayDiff:
    if diff.passed or not perturbed.passed:
        return diff
    return replace(perturbed, num_changed_u8_unperturbed=diff.num_changed_u8)


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


# --- one array ---------------------------------------------------------------------------------


def _diffs(
    ensemble: EnsembleModel,
    golden_input: GoldenInput,
    arrays: Mapping[str, Array],
    upscalers: Mapping[str, Upscaler],
    location: str,
) -> list[ArrayDiff]:
    """Compare the stored images of one input: the fused image and those of members."""
    has_fused = golden_input.fused_key in arrays
    needed = ensemble.members if has_fused else set(golden_input.member_keys.values())
    images = {name: upscalers[name](golden_input.lr) for name in ensemble.members if name in needed}
    outputs = {key: images[member] for key, member in golden_input.member_keys.items()}
    if has_fused:
        outputs = {golden_input.fused_key: ensemble.blend(list(images.values())), **outputs}
    return [
        _array_diff(key, jax_image, arrays[key], location) for key, jax_image in outputs.items()
    ]


def _array_diff(key: str, jax_image: FloatImage, torch_image: Array, location: str) -> ArrayDiff:
    is_float = key.startswith("act_")
    jax_array = to_channels_first(
        (jax_image if is_float else to_uint8(jax_image, 1.0))[None]
    ).astype(np.float64)
    if jax_array.shape != torch_image.shape:
        raise _bad_golden(
            f"has {key} of shape {torch_image.shape}, JAX {jax_array.shape}", location
        )
    abs_diff = np.abs(jax_array - torch_image)
    if not is_float:
        return ArrayDiff(
            name=key,
            shape=torch_image.shape,
            max_abs_diff=float(abs_diff.max()) * LEVEL,
            tolerance=LEVEL,
            num_changed_u8=int((abs_diff > 0).sum()),
            max_changed_u8=int(MAX_CHANGED_FRACTION * abs_diff.size),
        )
    return ArrayDiff(
        name=key,
        shape=torch_image.shape,
        max_abs_diff=float(abs_diff.max()),
        tolerance=FLOAT32_RTOL * max(1.0, float(np.ptp(torch_image))),
        num_changed_u8=count_changed_u8(jax_array, torch_image, 1.0),
    )


def _to_pixels(x: Array, location: str) -> Pixels:
    """Convert `(1, 3, h, w)` in [0, 1] to a uint8 image `(h, w, 3)`."""
    levels = np.rint(x.astype(np.float64) * 255)
    if x.shape[:2] != (1, 3) or np.abs(x * 255.0 - levels).max() > 1e-3:
        raise _bad_golden(f"has an input {x.shape} that is not an 8-bit image", location)
    return levels[0].transpose(1, 2, 0).astype(np.uint8)


def _bad_golden(problem: str, location: str) -> UnreadableFile:
    return UnreadableFile(
        f"The golden file {problem}",
        rule="xK is an 8-bit image / 255, yK the fused uint8 image, MEMBER_u8_K a member's uint8 "
        "image, act_MEMBER_ttaK the same before rounding; NCHW, MEMBER a prefix of a member's name",
        location=location,
        remedy="check that the file belongs to the ensemble",
    )
