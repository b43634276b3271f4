"""A training is told to stop, by SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Hears the signals while it is entered; a second Ctrl-C interrupts at once.

    Where there are several processes JAX hears SIGTERM, whichever process is sent it, and lets all
    agree on the step to stop after.
    """

    def __init__(self) -> None:
        self._heard, self._before = False, dict[int, Any]()
        self._times = 0

    def __enter__(self) -> Interruption:
        if jax.process_count() == 1:
            self._before = {each: signal.signal(each, self._hear) for each in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)

    def asked(self) -> bool:
        """Whether the training is to stop; to be asked after every step."""
        if jax.process_count() == 1:
            return self._heard
        self._times += 1  # JAX stops at the largest count that any process has reached, plus one
        return multihost_utils.reached_preemption_sync_point(self._times)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self._heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard = True
