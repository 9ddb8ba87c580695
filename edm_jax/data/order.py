"""The order in which the published program visits a data set.

Training here shuffles every epoch anew; this order exists to compare runs with the
published program image by image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def infinite_order(
    length: int,
    *,
    seed: int = 0,
    shard: int = 0,
    num_shards: int = 1,
    shuffle: bool = True,
    window_size: float = 0.5,
) -> Iterator[int]:
    """Indices in the order of the published infinite sampler, without end.

    A random permutation is walked through again and again; after each visit the image
    changes places with one up to ``window_size`` of the data set behind it.

    Args:
      length: number of images n.
      seed: of the legacy NumPy generator, mod 2^31.
      shard, num_shards: yield the visits whose number is ``shard`` mod ``num_shards``;
        all shards walk the same stream.
      shuffle: False gives 0, 1, ..., n-1, 0, 1, ...
      window_size: fraction of n; below two images nothing changes places.

    Raises:
      ValueError: for numbers out of range.
    """
    if length < 1 or not 0 <= shard < num_shards or not 0 <= window_size <= 1:
        raise ValueError(
            "need length >= 1, 0 <= shard < num_shards and 0 <= window_size <= 1, got "
            f"length={length}, shard={shard}, num_shards={num_shards}, window_size={window_size}"
        )
    return _walk(length, seed, shard, num_shards, shuffle, window_size)


def _walk(
    length: int, seed: int, shard: int, num_shards: int, shuffle: bool, window_size: float
) -> Iterator[int]:
    order = np.arange(length)
    window = 0
    random = np.random.RandomState(seed % 2**31)
    if shuffle:
        random.shuffle(order)
        window = int(np.rint(length * window_size))
    visit = 0
    while True:
        i = visit % length
        if visit % num_shards == shard:
            yield int(order[i])
        if window >= 2:
            j = (i - random.randint(window)) % length
            order[i], order[j] = order[j], order[i]
        visit += 1
