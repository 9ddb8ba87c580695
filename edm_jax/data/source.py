"""What every data set is to the input pipeline: random access to uint8 images.

A source is picklable and cheap to open, because it travels to worker processes, and
may be read from several threads at once.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ImageSource(Protocol):
    """Random access to the images of a data set.

    Attributes:
      image_shape: ``(H, W, C)`` of every image.
      num_classes: dimension of the labels; 0 means there are none.
      label_names: what the ``num_classes`` labels are called, or None if not known.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"image": (H, W, C) uint8, "label": int32 scalar or (num_classes,) float32}``.

        There is no "label" when ``num_classes == 0``.  ``index`` lies in [0, len).
        """
        ...
