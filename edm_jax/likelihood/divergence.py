"""The trace of a denoiser's Jacobian, exactly or from random probes (Hutchinson).

What these functions make has the form ``trace(fn, x) -> (fn(x), traces)`` with fn: x -> D(x)
for a batch of images that do not influence each other, and traces ``(P, B)``: P estimates of
tr dD/dx for each image (P = 1 and exact, or one for each probe).  An attribute says which:
``trace.exact`` is True, or ``trace.probes`` has the probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from edm_jax import names, seeds
from edm_jax.typing import Array, Key

TraceFn = Callable[[Callable[[Array], Array], Array], tuple[Array, Array]]

# Up to here the exact trace is the default: as many Jacobian products as elements.
EXACT_LIMIT = 256
BLOCK = 32  # products at a time, which bounds the memory of the exact trace
# Networks that recompute activations on CPU, and kernels of attention, have no forward mode.
_NO_FORWARD_MODE = (TypeError, NotImplementedError)


def _event_dot(a: Array, b: Array) -> Array:
    """Inner product of each image: ``(B, ...)`` twice -> ``(B,)``."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


def _linear_map(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """fn(x), and v -> J v (or transposed, if fn has no forward mode: the trace is the same)."""
    try:
        value, product = jax.linearize(fn, x)
        # A function without forward mode is found out when its derivative is mapped.
        jax.eval_shape(jax.vmap(product), x[None])
        return value, product
    except _NO_FORWARD_MODE:
        value, pull_back = jax.vjp(fn, x)
        return value, lambda v: pull_back(v.astype(value.dtype))[0]


def exact_trace(block: int = BLOCK) -> TraceFn:
    """The trace itself, by one Jacobian product for each element of an image.

    Args:
      block: products computed at a time.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")

    def trace(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
        value, product = _linear_map(fn, x)
        size = math.prod(x.shape[1:])

        def diagonal(i: Array) -> Array:
            unit = (jnp.arange(size) == i).astype(x.dtype).reshape((1, *x.shape[1:]))
            unit = unit * jnp.ones_like(x)
            return _event_dot(unit, product(unit))

        entries = jax.lax.map(diagonal, jnp.arange(size), batch_size=min(block, size))
        return value, jnp.sum(entries, axis=0)[None]

    trace.exact = True
    return trace


def hutchinson_trace(probes: Array) -> TraceFn:
    """Estimates v^T J v, one for each probe; unbiased where E v v^T = 1.

    The probes stay the same at every noise level, so the estimate of an integral of the trace
    is v^T M v with M the integral of J along the trajectory, and with M_s its symmetric part

        Var = 2 (|M_s|^2 - sum_i M_ii^2)   for random signs,     2 |M_s|^2   for Gaussian probes.

    Args:
      probes: ``(P, B, ...)``, as `probe_vectors` draws them.
    """

    def trace(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
        if probes.ndim != x.ndim + 1 or probes.shape[1:] != x.shape:
            raise ValueError(
                f"probes must have shape (P, {', '.join(map(str, x.shape))}), got {probes.shape}"
            )
        vectors = probes.astype(x.dtype)
        value, product = _linear_map(fn, x)
        return value, jax.vmap(lambda v: _event_dot(v, product(v)))(vectors)

    trace.probes = probes
    return trace


_KINDS = {"rademacher": seeds.signs, "gaussian": seeds.normal}


def probe_vectors(
    key: Key, num_probes: int, shape: tuple[int, ...], *, kind: str = "rademacher"
) -> Array:
    """Random probes of mean 0 and covariance 1, the same for the same key.

    Args:
      key: ``(B,)`` keys, one per image, or one key for all.
      num_probes: P >= 1.
      shape: ``(B, ...)`` of the images.
      kind: ``rademacher`` (random signs; no error at all where J is diagonal) or ``gaussian``
        (ten times the deviation on the distributions of the test bed).

    Returns:
      ``(P, B, ...)`` float32.
    """
    draw = names.lookup(_KINDS, kind, "kind of probe")
    if num_probes != int(num_probes) or num_probes < 1:
        raise ValueError(f"num_probes must be an integer >= 1, got {num_probes}")
    keys = [seeds.probe_key(key, index) for index in range(int(num_probes))]
    return jnp.stack([draw(each, shape) for each in keys])


def default_trace(shape: tuple[int, ...], key: Key | None, num_probes: int | None) -> TraceFn:
    """The exact trace for images of up to EXACT_LIMIT elements, else random signs.

    Args:
      shape: ``(B, ...)`` of the images.
      key: of the probes.
      num_probes: P; 0 asks for the exact trace at any size, None chooses between it and one
        probe by size.

    Raises:
      ValueError: if probes are needed and there is no key.
    """
    size = math.prod(shape[1:])
    if num_probes == 0 or (num_probes is None and size <= EXACT_LIMIT):
        return exact_trace()
    if key is None:
        raise ValueError(
            f"images of {size} elements take random probes, which need a key for each image "
            "(seeds.image_keys); num_probes=0 computes the exact trace"
        )
    return hutchinson_trace(probe_vectors(key, 1 if num_probes is None else num_probes, shape))
