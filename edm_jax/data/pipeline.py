"""From a data source to sharded device batches: shuffle, shard by host, prefetch.

The order of images is a function of (seed, position) alone: element k of the stream
is the same for any number of hosts, devices or workers, and any position can be
reached in O(1), so a resumed run reads what it would have read.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax.data.sources.base import ImageSource

Batch = dict[str, Any]

# Images that a thread reads together: handing one over costs three times as much as finding it.
READ_TOGETHER = 16


class InputError(RuntimeError):
    """Reading broke down, said in one line."""


def host_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """Rows of the global batch that one host loads.

    Raises:
      ValueError: if the batch does not divide evenly.
    """
    if batch_size % process_count:
        raise ValueError(
            f"batch size {batch_size} does not divide over {process_count} hosts; "
            f"use a multiple of {process_count}"
        )
    local = batch_size // process_count
    return range(process_index * local, (process_index + 1) * local)


def host_batches(
    source: ImageSource,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    mirror: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 16,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches of this host, from training step ``start_step`` on.

    Every epoch is a new permutation of the whole data set; epochs follow one another
    without dropping images.

    Args:
      source: random-access images.
      batch_size: global batch size B.
      seed: of the permutations and of mirroring.
      start_step: number of batches to skip, in O(1).
      mirror: flip each image left-right with probability 1/2.
      process_index, process_count: which host this is, of how many.
      num_threads: reading threads, of all processes together.
      num_workers: reading processes; 0 for none.  Changes no batch.

    Yields:
      ``image`` uint8 ``(b, H, W, C)`` with b = B / process_count, and ``label``
      (``(b,)`` int32 or ``(b, L)`` float32) if the source has labels.
    """
    import grain

    rows = host_rows(batch_size, process_index, process_count)
    local = len(rows)
    order = grain.MapDataset.source(_Examples(source)).seed(seed).shuffle().repeat()

    def example(index: int) -> Batch:
        step, row = divmod(index, local)
        position = step * batch_size + rows[row]
        element = order[position]
        if mirror and np.random.default_rng((seed, position)).random() < 0.5:
            element = element | {"image": element["image"][:, ::-1]}
        return element

    examples = grain.MapDataset.range(start_step * local, 2**62).map(example)
    if not num_workers:
        together = math.gcd(local, READ_TOGETHER)
        parts = local // together
        options = grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=max(4 * parts, num_threads)
        )
        stream = examples.batch(together).to_iter_dataset(options)
        return iter(stream.batch(parts, batch_fn=_joined))
    # Processes take turns at the elements of a stream, so its elements must be whole batches.
    threads = max(num_threads // num_workers, 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    stream = examples.batch(local).to_iter_dataset(options)
    return iter(stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers)))


def _joined(parts: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Examples:
    """A source whose elements all have the same keys, as batching needs."""

    def __init__(self, source: ImageSource):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Batch:
        return self._source[int(index)]

    def __repr__(self) -> str:
        return f"{type(self._source).__name__}({len(self)} images)"


def device_batches(
    batches: Iterator[Batch], sharding: jax.sharding.Sharding, *, prefetch: int = 2
) -> Generator[Batch, None, None]:
    """Move batches to the devices ahead of their use.

    Args:
      batches: per-host batches.
      sharding: of the global batch; its first axis is split over devices.
      prefetch: how many batches wait on the devices.

    Yields:
      The same batches as global jax.Arrays.  Closing this closes ``batches``.

    Raises:
      InputError: a reading process died.
    """

    def put(batch: Batch) -> Batch:
        return {
            name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
            for name, value in batch.items()
        }

    queue: collections.deque[Batch] = collections.deque()
    try:
        for batch in _read(batches):
            queue.append(put(batch))
            if len(queue) > prefetch:
                yield queue.popleft()
        yield from queue
    finally:
        if hasattr(batches, "close"):  # ends reading processes and frees what they share
            batches.close()


def _read(batches: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from batches
    except RuntimeError as error:  # what Grain says of its processes
        raise InputError(
            f"reading the data set broke down: {str(error).splitlines()[0]} The same command goes "
            "on from the last checkpoint; a process killed for want of memory (exit code -9) "
            "wants a lower config.data.num_workers"
        ) from error
