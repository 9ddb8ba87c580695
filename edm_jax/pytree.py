"""Frozen dataclasses that are pytrees of their fields."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields are the children of a pytree.

    In place of `jax.tree_util.register_dataclass`, whose tree structures compare equal
    between classes with as many fields (seen in JAX 0.10.0 to 0.10.2): a jitted function
    given first a VPScaling and then a NoScaling may answer from the wrong program.

    Fields may be traced, but for those with ``metadata={"static": True}``, which belong to
    the structure.  Unflattening does not run ``__post_init__``.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
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
