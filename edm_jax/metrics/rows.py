"""Rows by the index of their image, in blocks: the order in which they come does not matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

# Rows of a block.  It decides in which order numbers are added up, hence their last digits.
BLOCK = 1024


def row_indices(rows: np.ndarray, indices: int | np.ndarray) -> np.ndarray:
    """The index of every row, int64.

    Args:
      rows: ``(B, D)``.
      indices: ``(B,)``, or the index of the first of consecutive ones.

    Raises:
      ValueError: shapes that do not belong together, negative indices.
    """
    if rows.ndim != 2:
        raise ValueError(f"rows must have shape (B, D), got {rows.shape}")
    if np.ndim(indices) == 0:
        indices = int(indices) + np.arange(len(rows))
    indices = np.asarray(indices, np.int64)
    if indices.shape != (len(rows),) or (indices < 0).any():
        raise ValueError(f"need one index of at least 0 for each of {len(rows)} rows")
    return indices


class Rows:
    """Rows kept as they are, float32: what neighbours, subsets and splits are computed from.

    50,000 rows of 2048 numbers take 410 MB of the host's memory.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # there or not, and rows

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(int(there.sum()) for there, _ in self._blocks.values())

    @property
    def width(self) -> int | None:
        """Numbers of a row; None as long as there is none."""
        return next((rows.shape[1] for _, rows in self._blocks.values()), None)

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
        if len(np.unique(indices)) != len(indices):
            raise ValueError("an image is given twice in one batch")
        blocks = indices // BLOCK
        for block in np.unique(blocks).tolist():
            there, _ = self._blocks.get(block, (np.zeros(BLOCK, bool), None))
            again = there[indices[blocks == block] % BLOCK]
            if again.any():
                first = indices[blocks == block][again][0]
                raise ValueError(f"image {first} is given a second time")
        for block in np.unique(blocks).tolist():
            mine = blocks == block
            if block not in self._blocks:
                empty = np.zeros((BLOCK, rows.shape[1]), np.float32)
                self._blocks[block] = (np.zeros(BLOCK, bool), empty)
            there, kept = self._blocks[block]
            at = indices[mine] % BLOCK
            there[at], kept[at] = True, rows[mine]

    def blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Number of a block, indices and rows that are there; in the order of the indices."""
        for block in sorted(self._blocks):
            there, rows = self._blocks[block]
            at = np.flatnonzero(there)
            yield block, block * BLOCK + at, rows[at]

    def take_full(self) -> Iterator[tuple[int, np.ndarray]]:
        """Remove full blocks and give their numbers and rows."""
        for block in sorted(b for b, (there, _) in self._blocks.items() if there.all()):
            yield block, self._blocks.pop(block)[1]

    def merge(self, other: Rows) -> None:
        """Add what another one, of other images, has."""
        for _, indices, rows in other.blocks():
            self.update(rows, indices)

    def result(self) -> np.ndarray:
        """``(n, D)`` float32, in the order of the indices."""
        parts = [rows for _, _, rows in self.blocks()]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `from_state` makes the same again."""
        parts = [indices for _, indices, _ in self.blocks()]
        indices = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return {"indices": indices, "rows": self.result()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Rows:
        """The inverse of `state`."""
        rows = cls()
        if len(state["indices"]):
            rows.update(state["rows"], state["indices"])
        return rows
