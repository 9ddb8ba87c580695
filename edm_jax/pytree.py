"""Frozen dataclasses that are pytrees of their fields, and values in one short line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")

FEW = 8  # numbers that are shown as they are


def short(value: Any) -> str:
    """A value on one line: of many numbers the type, the shape and the range."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _short_array(value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        if len(value) > FEW:
            return (
                f"{type(value).__name__} of {len(value)}, {short(value[0])} .. {short(value[-1])}"
            )
        inner = ", ".join(map(short, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        leaves = jax.tree.leaves(dict(value))
        if len(leaves) > FEW:
            count = sum(np.size(leaf) for leaf in leaves)
            return f"{type(value).__name__} of {len(leaves)} leaves, {count:,} values"
        return "{" + ", ".join(f"{key!r}: {short(item)}" for key, item in value.items()) + "}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 or type(value).__repr__ is _fields_shown else f"{text[:97]}..."


def _short_array(value: Any) -> str:
    shape = "x".join(map(str, value.shape))
    kind = f"{value.dtype}[{shape}]"
    known = not isinstance(value, jax.core.Tracer) and not getattr(value, "is_deleted", bool)()
    numbers = jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool
    if not known or not numbers or not getattr(value, "is_fully_addressable", True):
        return kind
    values = np.asarray(value)
    if values.dtype.kind not in "biufc":  # bfloat16, int4
        values = values.astype(np.float64)
    if values.ndim == 0:
        return f"{values.item():.6g}" if values.dtype.kind == "f" else str(values.item())
    if values.ndim == 1 and values.size <= FEW:
        return f"{value.dtype}{[short(number) for number in values]}".replace("'", "")
    if values.dtype.kind in "cb" or not values.size:
        return kind
    finite = values[np.isfinite(values)]
    span = f" in [{finite.min():.4g}, {finite.max():.4g}]" if finite.size else ""
    odd = values.size - finite.size
    return kind + span + (f", {odd} not finite" if odd else "")


def _fields_shown(self: Any) -> str:
    if dataclasses.is_dataclass(self):
        names = [field.name for field in dataclasses.fields(self) if field.repr]
    else:
        names = self._fields
    inner = ", ".join(f"{name}={short(getattr(self, name))}" for name in names)
    return f"{type(self).__qualname__}({inner})"


def short_repr(cls: type[T]) -> type[T]:
    """Make a dataclass or named tuple show its fields by `short`: no page of numbers."""
    cls.__repr__ = _fields_shown
    return cls


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields are the children of a pytree.

    In place of `jax.tree_util.register_dataclass`, whose tree structures compare equal
    between classes with as many fields (seen in JAX 0.10.0 to 0.10.2): a jitted function
    given first a VPScaling and then a NoScaling may answer from the wrong program.

    Fields may be traced, but for those with ``metadata={"static": True}``, which belong to
    the structure.  Unflattening does not run ``__post_init__``.
    """
    own = "__repr__" in cls.__dict__
    cls = dataclasses.dataclass(frozen=True)(cls)
    cls = cls if own else short_repr(cls)
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields if not field.metadata.get("static"))
    static = tuple(field.name for field in fields if field.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def values(value: Any, of: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(getattr(value, name) for name in of)

    def flatten(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return values(value, names), values(value, static)

    def flatten_with_keys(value: Any) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        return tuple(zip(keys, values(value, names), strict=True)), values(value, static)

    def unflatten(aux: tuple[Any, ...], children: Any) -> T:
        value = object.__new__(cls)
        for name, child in zip(names + static, (*children, *aux), strict=True):
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
