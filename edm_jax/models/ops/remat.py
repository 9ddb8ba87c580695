"""Recomputation of a module in the backward pass, in a form that survives every compiler.

`flax.linen.remat` saves memory where XLA honours its optimisation barriers.  XLA for CPU
removes them and then merges the recomputed values with the stored ones, so that nothing
is saved.  There the backward pass of a module sits in a branch that is always taken but
that the compiler cannot see into: it is computed late, and its values are freed with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import lift
from jax import lax

from edm_jax.models.ops import target
from edm_jax.typing import PyTree


def recompute_in_branch(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``fn`` whose gradient keeps its arguments alone; for reverse mode only.

    Args:
      fn: pure function of pytrees of arrays, of which those of floating point are
        differentiated.
    """

    def recomputed(*args: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(args)
        is_float = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
        floats = [leaf for leaf, f in zip(leaves, is_float, strict=True) if f]
        others = [leaf for leaf, f in zip(leaves, is_float, strict=True) if not f]

        def merged(floats: list, others: list) -> PyTree:
            a, b = iter(floats), iter(others)
            return fn(*jax.tree.unflatten(tree, [next(a if f else b) for f in is_float]))

        def forward(floats: list, others: list) -> tuple[PyTree, PyTree]:
            return merged(floats, others), (floats, others)

        def pull_back(floats: list, others: list, cotangents: PyTree) -> list:
            _, vjp = jax.vjp(lambda floats: merged(floats, others), floats)
            return vjp(cotangents)[0]

        def nothing(floats: list, others: list, cotangents: PyTree) -> list:
            return jax.tree.map(jnp.zeros_like, floats)

        def backward(residuals: PyTree, cotangents: PyTree) -> tuple[list, None]:
            always = lax.optimization_barrier(jnp.array(True))
            return lax.cond(always, pull_back, nothing, *residuals, cotangents), None

        function = jax.custom_vjp(merged)
        function.defvjp(forward, backward)
        return function(floats, others)

    return recomputed


def _lifted(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    def inner(
        scope_fn: Callable, repack_fn: Callable, variables: PyTree, rngs: PyTree, *args: Any
    ) -> PyTree:
        @recompute_in_branch
        def run(variables: PyTree, *args: Any) -> PyTree:
            scope = scope_fn(variables, rngs)
            return fn(scope, *args), repack_fn(scope)

        return run(variables, *args)

    # All variables pass through; a module that draws random numbers is not supported.
    return lift.pack(inner, (True,), (True,), (False,), name="recompute")


def remat(module_class: type[nn.Module]) -> type[nn.Module]:
    """The class, keeping only inputs of a call for the backward pass.

    It must not draw random numbers, and its call takes arrays alone.  On CPU the result
    has no forward-mode derivative.
    """
    return _rematted(module_class, target.platform() == "cpu")


@functools.cache
def _rematted(module_class: type[nn.Module], in_branch: bool) -> type[nn.Module]:
    if not in_branch:
        return nn.remat(module_class)
    return nn.transforms.lift_transform(_lifted, module_class)
