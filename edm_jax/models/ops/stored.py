"""Arrays that XLA for CPUs computes once, whoever reads them: an elementwise value and a gradient.

XLA repeats a chain of elementwise operations in every operation that reads its result, unless
the last of them is expensive and a reader cannot take it in: a product, a convolution, or one
that reads a number several times.  On CPUs a gradient that adds up the terms of several blocks,
of forty arrays, was computed three times, and the few numbers of a channel anew for each pixel.
There the last operation becomes a division by one that the compiler cannot leave out:

    x / (1 if x == x else x)

is x for every x (subnormal numbers are zero in XLA for CPUs anyway).  Elsewhere nothing is added.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from edm_jax.models.ops import target
from edm_jax.typing import Array

# A primitive: no transformation of JAX's makes a linear function with another transpose that can
# also be differentiated forwards and mapped (`linear_call` cannot, `custom_vjp` not the former).
_primitive = Primitive("stored")


def stored(x: Array) -> Array:
    """x, computed once: ``(...)`` -> the same shape, dtype and value."""
    if not target.takes_forms_of("cpu"):
        return x
    return _primitive.bind(x, backwards=False)


def stored_gradient(x: Array) -> Array:
    """x, whose cotangent is computed once; else as `stored`."""
    if not target.takes_forms_of("cpu"):
        return x
    return _primitive.bind(x, backwards=True)


def _transposed(cotangent: Array, x: Array, *, backwards: bool) -> list[Array]:
    if isinstance(cotangent, ad.Zero):
        return [cotangent]
    return [_primitive.bind(cotangent, backwards=not backwards)]


def _identity(x: Array, *, backwards: bool) -> Array:
    return x


def _on_cpu(x: Array, *, backwards: bool) -> Array:
    if backwards or not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return x / jnp.where(x == x, jnp.ones_like(x), x)


_primitive.def_impl(_identity)
_primitive.def_abstract_eval(_identity)
ad.deflinear2(_primitive, _transposed)
batching.defvectorized(_primitive)
mlir.register_lowering(_primitive, mlir.lower_fun(_identity, multiple_results=False))
mlir.register_lowering(_primitive, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
