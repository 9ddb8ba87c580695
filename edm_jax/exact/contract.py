"""Can a sampler be called, and does an image feel its batch or the keys of others?

No image may feel which others share its batch, and the noise of an image comes from its
own key alone.
"""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import grids, seeds
from edm_jax.exact import bed
from edm_jax.exact.bed import Subject
from edm_jax.typing import Array, Key

CONTRACT_STEPS = 32
TRACING_ERRORS = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)

BatchFn = Callable[[Array, Key], np.ndarray]


def _batch_fn(subject: Subject) -> BatchFn:
    """The subject for the batches of `_images`, compiled once."""
    run = bed.runner(subject, bed.MIXTURE.denoise)
    sigmas = grids.make_sigmas(subject.grid, CONTRACT_STEPS)
    return lambda x, keys: run(x, sigmas, keys)[0]


def _images(subject: Subject) -> tuple[Array, Key]:
    """A batch of six small images, and their keys."""
    sigma = grids.make_sigmas(subject.grid, CONTRACT_STEPS)[0]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 2, 2, 1))) * sigma
    return x, seeds.image_keys(range(6))


def raised(error: Exception) -> str:
    """What a sampler raised and where, in one line; our own checks of it speak for themselves."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    if place.filename == bed.__file__:
        return text
    where = f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno}"
    return f"it raises {type(error).__name__} ({where}): {text[:200]}"


def contract(subject: Subject) -> tuple[Subject, BatchFn, str | None]:
    """Whether a sampler can be called and returns images, before anything is measured.

    Returns:
      The subject, with what was observed (whether it can be compiled, and whether it is
      stochastic where that was left open); its function of a batch, for `independence`;
      and what is wrong, in words, or None.
    """
    run, (x, keys) = _batch_fn(subject), _images(subject)
    try:
        try:
            result = run(x, keys)
        except TRACING_ERRORS:  # it uses values of the grid in Python
            subject = dataclasses.replace(subject, jit=False)
            run = _batch_fn(subject)
            result = run(x, keys)
    except Exception as error:
        return subject, run, raised(error)
    if result.dtype != x.dtype:
        return subject, run, f"it returns {result.dtype} for x of {x.dtype}; keep the dtype of x"
    if not np.all(np.isfinite(result)):
        return subject, run, f"its result is not finite at N = {CONTRACT_STEPS}"
    if subject.stochastic is None:
        other = run(x, seeds.image_keys(range(7, 13)))
        subject = dataclasses.replace(subject, stochastic=not np.array_equal(result, other))
    return subject, run, None


def independence(subject: Subject, run: BatchFn | None = None) -> tuple[bool, bool]:
    """Whether images are independent of their batch, and their noise of other keys.

    Batch: reordering the batch reorders the results, and exchanging one image and its
    key leaves the others as they were.  Noise: of a stochastic sampler, images that
    start alike end differently under different keys, and a new key changes its own
    image and no bit of the others; of a deterministic one, keys change nothing.
    """
    run, (x, keys) = run or _batch_fn(subject), _images(subject)
    base = run(x, keys)
    order = np.array([4, 2, 0, 5, 1, 3])
    moved = run(x[order], keys[order])
    other = seeds.image_keys([99, 1, 2, 3, 4, 5])
    exchanged = run(x.at[0].multiply(-3.0), other)
    # Vectorised code may round an image differently in another place of the batch.
    close = functools.partial(np.allclose, rtol=1e-9, atol=1e-9)
    batch = bool(close(moved, base[order]) and close(exchanged[1:], base[1:]))
    rekeyed = run(x, other)
    if not subject.stochastic:
        return batch, bool(np.array_equal(rekeyed, base))
    alike = run(jnp.broadcast_to(x[:1], x.shape), keys).reshape(6, -1)
    distinct = np.unique(alike.round(12), axis=0).shape[0] == 6
    own = not np.array_equal(rekeyed[0], base[0]) and np.array_equal(rekeyed[1:], base[1:])
    return batch, bool(distinct and own)
