"""Array aliases and the two protocols that everything else is written against.

Shapes are given in docstrings: images are ``(B, H, W, C)``, per-image scalars
``(B,)``, grids of noise levels ``(N+1,)``.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = jax.Array | np.ndarray | float | int
Key: TypeAlias = jax.Array  # a typed PRNG key, as jax.random.key makes it
PyTree: TypeAlias = Any


@runtime_checkable
class DenoiseFn(Protocol):
    """``D(x; sigma)``: an estimate of the clean ``y`` from ``x = y + sigma * n``.

    ``x`` has any shape; ``sigma`` is a scalar, or ``(B,)`` for one noise level
    per element of the leading axis of ``x``.  Returns the shape of ``x``.
    """

    def __call__(self, x: Array, sigma: Array) -> Array: ...


@runtime_checkable
class NetFn(Protocol):
    """``F(c_in * x; c_noise, ...)``: the raw network inside a denoiser.

    It sees ``c_noise`` (scalar or ``(B,)``), never sigma.  Whatever else it
    needs (labels) follows as further arguments.
    """

    def __call__(self, x: Array, c_noise: Array, *args: Any, **kwargs: Any) -> Array: ...
