"""Preemption: a training stops after the current step on SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptionHandler:
    """Context manager that records SIGTERM and SIGINT; a second Ctrl-C interrupts at once.

    With several processes JAX handles SIGTERM instead, whichever process receives it, so that all
    processes stop after the same step.
    """

    def __init__(self) -> None:
        self._stop_requested, self._previous_handlers = False, dict[int, Any]()
        self._sync_count = 0

    def __enter__(self) -> PreemptionHandler:
        if jax.process_count() == 1:
            self._previous_handlers = {
                signum: signal.signal(signum, self._handle_signal) for signum in _SIGNALS
            }
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def should_stop(self) -> bool:
        """Return whether the training should stop; call it once after every step."""
        if jax.process_count() == 1:
            return self._stop_requested
        # JAX stops all processes at the largest count that one of them has reached, plus one.
        self._sync_count += 1
        return multihost_utils.reached_preemption_sync_point(self._sync_count)

    def _handle_signal(self, signum: int, _: FrameType | None) -> None:
        if self._stop_requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_requested = True
