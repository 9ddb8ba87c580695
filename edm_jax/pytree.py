"""Frozen dataclasses that are pytrees of their fields."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields are all children of a pytree.

    In place of `jax.tree_util.register_dataclass`, whose tree structures compare equal
    between classes with as many fields (seen in JAX 0.10.0 to 0.10.2): a jitted function
    given first a VPScaling and then a NoScaling may answer from the wrong program.

    Fields may be traced; unflattening does not run ``__post_init__``.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def flatten(value: Any) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(value, name) for name in names), None

    def flatten_with_keys(value: Any) -> tuple[tuple[tuple[Any, Any], ...], None]:
        return tuple(zip(keys, flatten(value)[0], strict=True)), None

    def unflatten(unused: None, children: Any) -> T:
        value = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
