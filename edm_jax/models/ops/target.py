"""The platform that a program is traced for, where that is not the one of this machine."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_assumed: contextvars.ContextVar[str | None] = contextvars.ContextVar("assumed", default=None)


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: that of `assumed`, else JAX's default."""
    return _assumed.get() or jax.default_backend()


@contextlib.contextmanager
def assumed(name: str) -> Iterator[None]:
    """Trace for another platform: programs that are compiled ahead of time for a described one."""
    token = _assumed.set(name)
    try:
        yield
    finally:
        _assumed.reset(token)
