"""What metrics give back, and what they get."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edm_jax.pytree import short_repr

# Accumulators by the name of the need they serve, see `edm_jax.metrics.feature_metrics.NEEDS`.
Accumulated = Mapping[str, Any]


@short_repr
@dataclasses.dataclass(frozen=True)
class Result:
    """One number.

    Attributes:
      value: the number.
      uncertainty: a standard deviation, where the metric has one; the metric says of what.
      remarks: lines that belong beside the number.
    """

    value: float
    uncertainty: float | None = None
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; an uncertainty or remarks only where there are any."""
        out: dict[str, Any] = {"value": self.value}
        if self.uncertainty is not None:
            out["uncertainty"] = self.uncertainty
        if self.remarks:
            out["remarks"] = list(self.remarks)
        return out


def enough(count: int, least: int, what: str) -> int:
    """The number of images, if there are as many as a metric needs.

    Raises:
      ValueError: there are not.
    """
    if count < least:
        raise ValueError(f"{what} needs at least {least} images, got {count}; evaluate more")
    return count
