"""What the speed of a training hangs on."""

import time

import jax.numpy as jnp

from esrjax.training.meter import Meter


class Busy:
    """A loss that is still being computed."""

    def is_ready(self):
        return False


def slow():
    for _ in range(3):
        time.sleep(0.02)
        yield ()


def test_a_slow_source_is_the_limit_where_the_devices_wait():
    loss, meter = jnp.float32(1), Meter()
    for _ in meter.waits(slow()):
        meter.add(loss)
    pace = meter.pace()
    assert pace.waiting > 0.5 and pace.limit == "data"


def test_a_slow_source_is_none_while_the_devices_have_to_do():
    meter = Meter()
    meter.losses.append(Busy())
    for _ in meter.waits(slow()):
        pass
    assert meter.waited == 0
