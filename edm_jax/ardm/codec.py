"""Lossless compression with a plain model: one network call per block of variables.

Orders and policy are agreed beforehand; encoder and decoder make the same calls, and a range
coder (the package constriction) turns each block into bits.  Decoding needs the same
probabilities to the last bit: the same program, batch and device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm_jax.ardm import orders
from edm_jax.ardm.outputs import Softmax
from edm_jax.ardm.policy import check_policy
from edm_jax.ardm.process import Absorbing, PredictFn, check_values, num_variables
from edm_jax.typing import Array

FLOOR = 2e-5  # of the release: no symbol costs more than 16 bits


def floored(probabilities: Array, floor: float = FLOOR) -> Array:
    """``(1 - K floor) p + floor``: every value can be coded."""
    return (1 - probabilities.shape[-1] * floor) * probabilities + floor


def _coder() -> tuple:
    try:
        import constriction
    except ImportError:
        raise ImportError(
            "compression needs the package constriction; install it with pip install constriction"
        ) from None
    stream = constriction.stream
    return stream.queue, stream.model.Categorical(perfect=False)


def _calls(
    predict: PredictFn, process: Absorbing, ranks: ArrayLike, policy: ArrayLike, shape: tuple
) -> Iterator[tuple[NDArray[np.bool_], Callable[[NDArray], NDArray]]]:
    """For every call what it codes, and the function state -> probabilities of that."""
    if not isinstance(process, Absorbing) or not isinstance(process.output, Softmax):
        raise ValueError("compression needs a plain model with softmax outputs")
    orders.check_ranks(ranks, shape)
    policy = check_policy(policy, num_variables(process, shape[1:]))
    ranks = np.asarray(ranks)
    stage = jnp.zeros(shape[0], jnp.int32)

    @jax.jit
    def probabilities(x: Array, known: Array, t: Array) -> Array:
        outputs = predict(process.shown(x, known, stage), known, t, stage)
        return floored(jax.nn.softmax(process.output.logits(outputs, shape)))

    for t, t_next in itertools.pairwise(policy):
        if t == t_next:
            return
        known, current = ranks < t, (t <= ranks) & (ranks < t_next)
        times = np.full(shape[0], t, np.int32)

        def of_current(x: NDArray, known=known, current=current, times=times) -> NDArray:
            return np.asarray(probabilities(jnp.asarray(x), known, times))[current]

        yield current, of_current


def encode(
    predict: PredictFn, process: Absorbing, x: ArrayLike, ranks: ArrayLike, policy: ArrayLike
) -> NDArray[np.uint32]:
    """Examples -> words of 32 bits; n network calls.

    Args:
      predict, process: the model, see `edm_jax.ardm.process`; softmax outputs.
      x: ``(B, ...)`` integers 0..K-1.
      ranks: ``(B, *shape)``, the orders.
      policy: ``(n + 1,)``.

    Returns:
      The code of the whole batch, about `likelihood.code_length` long.
    """
    check_values(x, process.num_values)
    x = np.asarray(x, np.int32)
    queue, family = _coder()
    encoder = queue.RangeEncoder()
    for current, probabilities in _calls(predict, process, ranks, policy, x.shape):
        encoder.encode(x[current], family, probabilities(x))
    return encoder.get_compressed()


def decode(
    predict: PredictFn,
    process: Absorbing,
    words: NDArray[np.uint32],
    ranks: ArrayLike,
    policy: ArrayLike,
) -> NDArray[np.int32]:
    """The examples that `encode` was given; the other arguments must be the same."""
    queue, family = _coder()
    decoder = queue.RangeDecoder(words)
    shape = np.shape(ranks)
    x = np.broadcast_to(np.asarray(process.start(shape[1:])), shape).copy()
    for current, probabilities in _calls(predict, process, ranks, policy, shape):
        x[current] = decoder.decode(family, probabilities(x))
    return x
