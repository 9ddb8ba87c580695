"""The platform that a program is traced for, and whether it takes forms of its own.

Some operations have another form on one platform, the same but for rounding and faster there.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_assumed: contextvars.ContextVar[str | None] = contextvars.ContextVar("assumed", default=None)
_devices: contextvars.ContextVar[int | None] = contextvars.ContextVar("devices", default=None)
_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: that of `assumed`, else JAX's default."""
    return _assumed.get() or jax.default_backend()


def devices() -> int:
    """Over how many a batch is split: what `batch_over` or `assumed` say, else all there are."""
    return _devices.get() or jax.device_count()


def takes_forms_of(name: str) -> bool:
    """Whether operations take the forms that only this platform has."""
    return platform() == name and not _plain.get()


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Trace operations in the forms that all platforms share: what another device computes.

    A jitted function that was traced before keeps its form: JAX's caches know nothing of this.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


@contextlib.contextmanager
def batch_over(count: int) -> Iterator[None]:
    """Trace for batches that are split over so many devices."""
    token = _devices.set(count)
    try:
        yield
    finally:
        _devices.reset(token)


@contextlib.contextmanager
def assumed(name: str, count: int | None = None) -> Iterator[None]:
    """Trace for another platform: programs that are compiled ahead of time for a described one.

    As in `plain_forms`, what was jitted and traced before stays as it is.

    Args:
      name: of the platform.
      count: of its devices that share a batch; those of this machine by default.
    """
    token = _assumed.set(name)
    try:
        with batch_over(count or jax.device_count()):
            yield
    finally:
        _assumed.reset(token)
