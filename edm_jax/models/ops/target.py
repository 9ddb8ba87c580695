"""The platform that a program is traced for, and whether it takes forms of its own.

Some operations have another form on one platform, the same but for rounding and faster there.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

_assumed: contextvars.ContextVar[str | None] = contextvars.ContextVar("assumed", default=None)
_devices: contextvars.ContextVar[int | Mesh | None] = contextvars.ContextVar(
    "devices", default=None
)
_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: that of `assumed`, else JAX's default."""
    return _assumed.get() or jax.default_backend()


def devices() -> int:
    """Over how many a batch is split: what `batch_over` or `assumed` say, else all there are."""
    given = _devices.get()
    return given.size if isinstance(given, Mesh) else given or jax.device_count()


def mesh() -> Mesh | None:
    """The devices themselves, where they are more than one and `batch_over` says which."""
    given = _devices.get()
    return given if isinstance(given, Mesh) and given.size > 1 else None


def takes_forms_of(name: str) -> bool:
    """Whether operations take the forms that only this platform has."""
    return platform() == name and not _plain.get()


def device_kind() -> str:
    """What devices that share a batch call themselves; "" of described ones without a mesh."""
    given = _devices.get()
    if isinstance(given, Mesh):
        return given.devices.flat[0].device_kind
    return jax.devices()[0].device_kind if platform() == jax.default_backend() else ""


def over(mesh: Mesh, function: Callable) -> Callable:
    """The function, its operations traced as in `batch_over`, whoever jits and calls it."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with batch_over(mesh):
            return function(*args, **kwargs)

    return traced


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
def batch_over(devices: int | Mesh) -> Iterator[None]:
    """Trace for batches that are split over so many devices, or over all axes of a mesh.

    Of a mesh operations know where the parts are, so that a kernel that the compiler cannot
    split may be run on each.  What is traced then belongs to its devices: a jitted function that
    several meshes call needs the mesh as a static argument, or is made of `over`.
    """
    token = _devices.set(devices)
    try:
        yield
    finally:
        _devices.reset(token)


@contextlib.contextmanager
def assumed(name: str, devices: int | Mesh | None = None) -> Iterator[None]:
    """Trace for another platform: programs that are compiled ahead of time for a described one.

    As in `plain_forms`, what was jitted and traced before stays as it is.

    Args:
      name: of the platform.
      devices: that share a batch, as in `batch_over`; as many as this machine has by default.
    """
    token = _assumed.set(name)
    try:
        with batch_over(devices or jax.device_count()):
            yield
    finally:
        _assumed.reset(token)
