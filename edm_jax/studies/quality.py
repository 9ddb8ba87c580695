"""What a study measures of the images of a cell, block by block."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from edm_jax.evaluation.planning import Plan
from edm_jax.generate import to_uint8
from edm_jax.metrics.registry import METRICS, flat_key, parse
from edm_jax.studies.declaration import DISTANCE, TRUNCATION

WORDS = {
    DISTANCE: "RMS distance to the accurate solution (data units)",
    TRUNCATION: "sum of the RMS errors of single steps (data units)",
}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of a result: its key, what it is called, and which end is good."""

    key: str
    title: str
    lower_is_better: bool = True
    form: str = "{:.4g}"


def measures(names: tuple[str, ...]) -> list[Measure]:
    """The numbers that measures of quality give, in order; metrics may have parts."""
    found = []
    for name in names:
        if name in WORDS:
            found.append(Measure(name, WORDS[name]))
            continue
        asked = parse(name)
        metric = METRICS[asked.name]
        for part in metric.parts:
            title = f"{part or metric.title}" + (f" ({asked.extractor})" if "@" in name else "")
            found.append(
                Measure(flat_key(asked, part), title, metric.better == "lower", metric.form)
            )
    return found


class Meter(Protocol):
    """Sees the images of one block as they come."""

    def update(self, images: np.ndarray, first: int) -> None:
        """Add images ``(n, H, W, C)``, the first of them at position ``first`` of the block."""

    def values(self) -> dict[str, float]:
        """The numbers by their keys, once all images of the block were seen."""


class Distance:
    """RMS over images and elements of the difference to accurate solutions, in data units.

    Args:
      accurate: ``(n, H, W, C)`` of the same seeds.
    """

    def __init__(self, accurate: np.ndarray) -> None:
        self.accurate, self.total, self.count = accurate, 0.0, 0

    def update(self, images: np.ndarray, first: int) -> None:
        """Add images of the seeds from ``first`` on."""
        other = self.accurate[first : first + len(images)]
        self.total += float(np.sum(np.square(images.astype(np.float64) - other)))
        self.count += images.size

    def values(self) -> dict[str, float]:
        """The distance."""
        return {DISTANCE: float(np.sqrt(self.total / self.count))}


class OfPlan:
    """The metrics of an evaluation.

    Args:
      plan: what is measured and with what.
      labels: ``(n,)`` classes asked for, or None.
    """

    def __init__(self, plan: Plan, labels: np.ndarray | None) -> None:
        self.plan, self.labels, self.measurement = plan, labels, plan.measurement()

    def update(self, images: np.ndarray, first: int) -> None:
        """Add images from position ``first`` on."""
        labels = None if self.labels is None else self.labels[first : first + len(images)]
        self.measurement.update(to_uint8(images), first, labels)

    def values(self) -> dict[str, float]:
        """All numbers by their flat keys.

        Raises:
          ValueError: a metric gives none of these images.
        """
        results, failed = self.measurement.results(self.plan.references)
        if failed:
            name, reason = next(iter(failed.items()))
            raise ValueError(f"{name}: {reason}")
        found = {}
        for key, result in results.items():
            text, _, part = key.partition("/")
            found[flat_key(parse(text), part)] = float(result.value)
        return found


def summary(values: list[float]) -> dict[str, Any]:
    """Mean over blocks, its standard error, and the extremes."""
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {
        "mean": float(np.mean(values)),
        "standard_error": spread,
        "minimum": min(values),
        "maximum": max(values),
        "blocks": values,
    }
