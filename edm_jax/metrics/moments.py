"""Running mean and covariance of features in float64, the same for any order and sharding.

Rows are gathered in blocks of `rows.BLOCK` consecutive image indices.  A full block becomes a
number, a mean and a sum of centred products; two neighbours become the parent of both in a
fixed binary tree, and so on (Chan, Golub & LeVeque 1979):

    mean = mean_a + d n_b / n,   scatter = scatter_a + scatter_b + d d^T n_a n_b / n,
    d = mean_b - mean_a

What is added to what depends on the indices alone.  Hence batches of any size, restarts, and
hosts with any share of the images give the same bits on the same kind of machine, provided
that the features are the same bits.  Memory: a matrix ``(D, D)`` for each level of the tree,
and the rows of blocks that are not full; a host with consecutive images has at most two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from edm_jax.metrics.rows import BLOCK, Rows, row_indices


@dataclasses.dataclass(frozen=True)
class _Node:
    """Moments of some rows: their number, mean ``(D,)``, and centred products ``(D, D)``."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    def __add__(self, other: _Node) -> _Node:
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += np.outer(step, step * (self.count * other.count / count))
        return _Node(count, self.mean + step * (other.count / count), scatter)


def _node_of(rows: np.ndarray) -> _Node:
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    return _Node(len(rows), mean, rows.T @ rows)


class Moments:
    """Accumulates mean and covariance.  See the module for how."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], _Node] = {}  # (level, position): 2**level blocks
        self._open = Rows()

    @property
    def count(self) -> int:
        """Number of rows."""
        return self._open.count + sum(node.count for node in self._nodes.values())

    @property
    def width(self) -> int | None:
        """Numbers of a row; None as long as there is none."""
        return next((node.mean.size for node in self._nodes.values()), self._open.width)

    def update(self, rows: np.ndarray, first_index: int | np.ndarray) -> None:
        """Add rows.

        Args:
          rows: ``(B, D)``.
          first_index: of the image of the first row, or ``(B,)`` of all of them.

        Raises:
          ValueError: an index was there before, or rows of another width.
        """
        indices = row_indices(rows, first_index)
        if self.width not in (None, rows.shape[1]):
            raise ValueError(f"rows of {rows.shape[1]} numbers after rows of {self.width}")
        for block in np.unique(indices // BLOCK).tolist():
            if self._holds(block):
                first = indices[indices // BLOCK == block][0]
                raise ValueError(f"image {first} is given a second time")
        self._open.update(rows, indices)
        for block, full in self._open.take_full():
            self._insert((0, block), _node_of(full))

    def _holds(self, block: int) -> bool:
        return any(block >> level == position for level, position in self._nodes)

    def _insert(self, key: tuple[int, int], node: _Node) -> None:
        level, position = key
        while (sibling := self._nodes.pop((level, position ^ 1), None)) is not None:
            node = sibling + node if position % 2 else node + sibling
            level, position = level + 1, position // 2
        self._nodes[level, position] = node

    def merge(self, other: Moments) -> None:
        """Add what another one, of other images, has.

        Raises:
          ValueError: an image is in both, or the widths differ.
        """
        if None not in (self.width, other.width) and self.width != other.width:
            raise ValueError(f"rows of {other.width} numbers after rows of {self.width}")
        for level, position in other._nodes:
            first, last = position << level, (position + 1 << level) - 1
            mine = {block for block, _, _ in self._open.blocks()}
            inside = any(first <= p << at <= last for at, p in self._nodes)
            if inside or self._holds(first) or any(first <= block <= last for block in mine):
                raise ValueError(
                    f"images {first * BLOCK} to {(last + 1) * BLOCK - 1} are given a second time"
                )
        for key, node in other._nodes.items():
            self._insert(key, node)
        for _, indices, rows in other._open.blocks():
            self.update(rows, indices)

    def _total(self) -> _Node | None:
        """All of it, added in the order of the indices."""
        parts = {position << level: node for (level, position), node in self._nodes.items()}
        parts |= {block: _node_of(rows) for block, _, rows in self._open.blocks()}
        total = None
        for block in sorted(parts):
            total = parts[block] if total is None else total + parts[block]
        return total

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``(D,)`` and unbiased covariance ``(D, D)``, float64.

        Raises:
          ValueError: fewer than two rows.
        """
        total = self._total()
        if total is None or total.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return total.mean, total.scatter / (total.count - 1)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `from_state` makes the same again."""
        keys, width = sorted(self._nodes), self.width or 0
        nodes = [self._nodes[key] for key in keys]
        numbers = [(*key, node.count) for key, node in zip(keys, nodes, strict=True)]
        open_rows = {f"open_{name}": array for name, array in self._open.state().items()}
        return open_rows | {
            "nodes": np.array(numbers, np.int64).reshape(-1, 3),
            "means": np.array([node.mean for node in nodes]).reshape(len(nodes), width),
            "scatters": np.array([node.scatter for node in nodes]).reshape(
                len(nodes), width, width
            ),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Moments:
        """The inverse of `state`."""
        moments = cls()
        moments._open = Rows.from_state(
            {name: state[f"open_{name}"] for name in ("indices", "rows")}
        )
        for i, (level, position, count) in enumerate(np.asarray(state["nodes"]).tolist()):
            moments._nodes[level, position] = _Node(
                count, np.array(state["means"][i]), np.array(state["scatters"][i])
            )
        return moments


class Halves:
    """Moments of the images of even and of odd index, and of all of them.

    From these comes the distance between two halves of one set: what remains where nothing
    is wrong, at half the number of images.
    """

    def __init__(self) -> None:
        self.parts = (Moments(), Moments())

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(part.count for part in self.parts)

    @property
    def width(self) -> int | None:
        """Numbers of a row; None as long as there is none."""
        return self.parts[0].width or self.parts[1].width

    def update(self, rows: np.ndarray, first_index: int | np.ndarray) -> None:
        """Add rows, see `Moments.update`."""
        indices = row_indices(rows, first_index)
        for odd, part in enumerate(self.parts):
            mine = indices % 2 == odd
            if mine.any():
                part.update(rows[mine], indices[mine] // 2)

    def merge(self, other: Halves) -> None:
        """Add what another one, of other images, has."""
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine.merge(theirs)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of all of them, see `Moments.result`."""
        totals = [total for part in self.parts if (total := part._total()) is not None]
        if not totals or sum(total.count for total in totals) < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        whole = totals[0] if len(totals) == 1 else totals[0] + totals[1]
        return whole.mean, whole.scatter / (whole.count - 1)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `from_state` makes the same again."""
        named = zip(("even", "odd"), self.parts, strict=True)
        return {f"{name}_{key}": a for name, part in named for key, a in part.state().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Halves:
        """The inverse of `state`."""
        halves = cls()
        halves.parts = tuple(
            Moments.from_state(
                {k.removeprefix(f"{name}_"): a for k, a in state.items() if k.startswith(name)}
            )
            for name in ("even", "odd")
        )
        return halves
