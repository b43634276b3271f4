"""Protocol timing: runtime over the images of a dataset as the organisers' program measures it.

The program runs every image once, in order: one forward pass, timed from the call until the device
is done. There is no repetition, no outlier is dropped, and the first image counts in the mean; it
has no warm-up but what a team's constructor or loader ran. JAX adds one thing, a compilation for
each image size. These are compiled before the loop, outside the timing, and not called there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrjax.contest import clock
from esrjax.contest.clock import CompiledForward, forward_fn
from esrjax.contest.record import ProtocolTiming
from esrjax.contest.rules import Rules
from esrjax.data.datasets import Pair, Progress
from esrjax.model import Model, check_min_side
from esrjax.network import ops


def time_by_protocol(
    model: Model, pairs: Sequence[Pair], rules: Rules, progress: Progress = iter
) -> ProtocolTiming:
    """Time each image once, as the organisers' program does.

    For a cold start as in the challenge this must be the first work of its process.

    Args:
        model: Model to time.
        pairs: LR/HR pairs of the dataset, in order; only the LR images are used.
        rules: Rules with the warm-up passes of the model's team.
        progress: Wraps the pairs, for example in a progress bar.

    Raises:
        ImageTooSmall: An LR image is smaller than the method accepts; nothing has run by then.
    """
    compiled = _compile_shapes(model, pairs)
    passes = rules.num_warmup_passes(model.method.team)
    if rules.timing and passes:
        _warm_up(model, rules.timing.lr_side, passes)
    times = {pair.name: _time_image_ms(compiled, _load_lr(model, pair)) for pair in progress(pairs)}
    return ProtocolTiming(
        ms_per_image=times,
        warmup_passes=passes,
        num_shapes=len(compiled),
        compile_s=sum(forward.compile_s for forward in compiled.values()),
        peak_mib=clock.peak_memory_mib(),
        executable_mib=max((f.executable_mib or 0 for f in compiled.values()), default=0) or None,
        device=clock.device_name(),
        implementation=ops.implementation.value,
    )


def _compile_shapes(model: Model, pairs: Sequence[Pair]) -> dict[tuple[int, ...], CompiledForward]:
    shapes = dict.fromkeys(_load_lr(model, pair).shape for pair in pairs)
    return {
        shape: clock.compile_forward(forward_fn(model.net), jnp.zeros(shape)) for shape in shapes
    }


def _warm_up(model: Model, side: int, passes: int) -> None:
    lr = jnp.zeros((1, side, side, 3))
    compiled = clock.compile_forward(forward_fn(model.net), lr)
    for _ in range(passes):
        clock.time_forward_ms(compiled, lr)


def _time_image_ms(compiled: dict[tuple[int, ...], CompiledForward], lr: Array) -> float:
    """Runtime of one pass; the image is on the device before the timing starts."""
    return clock.time_forward_ms(compiled[lr.shape], jax.block_until_ready(lr))


def _load_lr(model: Model, pair: Pair) -> Array:
    """LR image (1, h, w, 3), float32, with values in [0, data_range]."""
    pixels = pair.load()[0]
    check_min_side(model.name, model.method.min_side, pixels.shape[:2])
    scale = np.float32(255 / model.method.data_range)
    return jax.device_put(pixels[None].astype(np.float32) / scale)
