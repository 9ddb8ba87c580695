"""Stopping when the machine asks for it: finish the step, save, leave."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import jax


class Preempted(RuntimeError):
    """The run was asked to stop and has saved its state."""


class Interrupted(RuntimeError):
    """Work that can be done again was cut short, because the run was asked to stop."""


class StopRequest:
    """Whether SIGTERM (or the platform's notice) has come.

    Several processes ask together, equally often: all learn of it by the same question.
    """

    def __init__(self) -> None:
        self._asked = False
        self._questions = 0
        self._previous: Any = None

    def __enter__(self) -> StopRequest:
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *unused: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def poll(self) -> None:
        """Cut short what is going on if the run was asked to stop.

        Raises:
          Interrupted: if so.
        """
        if self.asked():
            raise Interrupted

    def asked(self) -> bool:
        """Whether the run should stop, the same answer on every host."""
        if jax.process_count() > 1 and not self._asked:
            from jax.experimental import multihost_utils

            # JAX's preemption service catches SIGTERM on any host and picks a number that
            # none has reached yet.  Nobody else may ask it, with numbers of their own.
            self._questions += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._questions)
        return self._asked
