"""Measurement of time spent waiting for data."""

import time

import jax.numpy as jnp

from esrjax.training.meter import Meter


class PendingLoss:
    """A loss that is not computed yet."""

    def is_ready(self):
        return False


def slow_source():
    for _ in range(3):
        time.sleep(0.02)
        yield ()


def test_slow_source_is_the_limit_if_devices_wait():
    loss, meter = jnp.float32(1), Meter()
    for _ in meter.timed(slow_source()):
        meter.add(loss)
    throughput = meter.throughput()
    assert throughput.data_wait > 0.5 and throughput.limit == "data"


def test_wait_does_not_count_while_devices_compute():
    meter = Meter()
    meter.losses.append(PendingLoss())
    for _ in meter.timed(slow_source()):
        pass
    assert meter.wait_s == 0
