"""Sequences of characters or bytes from one text file, such as text8."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from edm_jax.data.sources.base import check_index

TEXT8 = " abcdefghijklmnopqrstuvwxyz"
# Shares of the file, in its order: for text8 the customary 90, 5 and 5 million characters.
SPLITS = {"train": (0, 90), "valid": (90, 95), "test": (95, 100)}
_FOREIGN = 255  # never an index of an alphabet, which has fewer characters


class TextSource:
    """Chunks of a text file that do not overlap, as sequences of token numbers.

    The file is mapped, not read: a chunk costs its own bytes.

    Args:
      path: of the file.
      length: L, tokens of a chunk; what is left at the end of a split is dropped.
      split: ``train``, ``valid`` or ``test``: 90, 5 and 5 percent of the file.
      alphabet: the characters, one byte each, numbered from 0; None takes bytes as they are.

    Raises:
      ValueError: for a file too short, or characters that are not in the alphabet.
    """

    num_classes = 0
    label_names = None

    def __init__(
        self,
        path: str | os.PathLike,
        length: int,
        *,
        split: str = "train",
        alphabet: str | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"a text has splits {', '.join(SPLITS)}, got {split!r}")
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"length must be an integer of at least 1, got {length!r}")
        self.path, self.image_shape = pathlib.Path(path), (length,)
        if not self.path.is_file():
            raise ValueError(f"no such text file: {self.path}")
        self.alphabet = alphabet
        self._table = None if alphabet is None else _numbers(alphabet)
        self.num_values = 256 if alphabet is None else len(alphabet)
        size = self.path.stat().st_size
        first, last = (size * share // 100 for share in SPLITS[split])
        self._start, self._chunks = first, (last - first) // length
        if not self._chunks:
            raise ValueError(
                f"{self.path}: the {split} split has {last - first} bytes, fewer than one sequence "
                f"of {length}; take a longer text or shorter sequences"
            )
        self._map: np.ndarray | None = None
        self._check_characters(last)

    def _check_characters(self, last: int) -> None:
        if self._table is None:
            return
        step = 1 << 24
        for low in range(self._start, last, step):
            part = self._bytes()[low : min(low + step, last)]
            foreign = np.flatnonzero(self._table[part] == _FOREIGN)
            if foreign.size:
                where = int(foreign[0])
                raise ValueError(
                    f"{self.path}: byte {bytes(part[where : where + 1])!r} at {low + where} is not "
                    "in the alphabet; clean the text, or leave the alphabet out to take bytes"
                )

    def _bytes(self) -> np.ndarray:
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, mode="r")
        return self._map

    def __getstate__(self) -> dict[str, Any]:
        """Without the map, which every process opens for itself."""
        return {**self.__dict__, "_map": None}

    def __len__(self) -> int:
        return self._chunks

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"image": (L,) uint8}``, the tokens."""
        length = self.image_shape[0]
        start = self._start + check_index(index, len(self)) * length
        tokens = np.array(self._bytes()[start : start + length])
        return {"image": tokens if self._table is None else self._table[tokens]}

    def __repr__(self) -> str:
        return f"TextSource({len(self)} sequences of {self.image_shape[0]} tokens)"


def _numbers(alphabet: str) -> np.ndarray:
    """``(256,)`` uint8: byte -> number in the alphabet."""
    characters = alphabet.encode("latin-1", errors="replace")
    if not 2 <= len(characters) < _FOREIGN or len(set(characters)) < len(characters):
        raise ValueError(
            f"an alphabet must be 2 to {_FOREIGN - 1} different characters of one byte, got "
            f"{alphabet!r}"
        )
    table = np.full(256, _FOREIGN, np.uint8)
    table[np.frombuffer(characters, np.uint8)] = np.arange(len(characters))
    return table


def as_text(tokens: np.typing.ArrayLike, alphabet: str | None = None) -> str:
    """Token numbers as a string; bytes without an alphabet are read as UTF-8."""
    tokens = np.asarray(tokens)
    if alphabet is None:
        return tokens.astype(np.uint8).tobytes().decode("utf-8", errors="replace")
    return "".join(alphabet[token] for token in tokens)


def open_split(
    path: str,
    split: str = "train",
    *,
    use_labels: bool = True,
    length: int = 250,
    alphabet: str = "",
) -> TextSource:
    """A text as `registry.SOURCES` opens it; there are no labels.

    Args:
      path: of the file.
      split: see `SPLITS`.
      use_labels: without effect.
      length: of a sequence.
      alphabet: the characters; empty takes bytes.
    """
    del use_labels
    if not path:
        raise ValueError("path is missing: the name of the text file")
    return TextSource(path, length, split=split, alphabet=alphabet or None)
