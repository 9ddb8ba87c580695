"""Every kind of data set by name; a new one is its own file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edm_jax.data.sources import digits, image_files, text, tfds
from edm_jax.data.sources.base import ImageSource
from edm_jax.names import lookup

# ``open_split(path, split, *, use_labels, **options) -> ImageSource`` of each kind.  ``split``
# is "train" or "test"; a data set without the latter raises `base.NoTestSplit`.
SOURCES: Mapping[str, Callable[..., ImageSource]] = {
    "digits": digits.open_split,
    "images": image_files.open_split,
    "text": text.open_split,
    "tfds": tfds.open_split,
}


def open_source(
    kind: str, path: str = "", split: str = "train", *, use_labels: bool = True, **options: Any
) -> ImageSource:
    """A data set by the name of its kind.

    Args:
      kind: a key of SOURCES.
      path: where it is, or what it is called there; the digits have none.
      split: ``train``, or ``test`` where there is one.
      use_labels: whether the labels, if there are any, are wanted.
      **options: of that kind.

    Raises:
      ValueError: for an unknown kind, or a path that holds no such data set.
      NoTestSplit: where there are no images apart from those trained on.
    """
    return lookup(SOURCES, kind, "data source")(path, split, use_labels=use_labels, **options)
