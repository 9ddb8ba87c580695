"""Accumulating for several metrics at once, batch by batch; see `registry` for the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from edm_jax.metrics import frechet
from edm_jax.metrics.extractors import Extractor, Outputs
from edm_jax.metrics.moments import Halves, Moments
from edm_jax.metrics.reference import Reference
from edm_jax.metrics.registry import METRICS, check_metrics
from edm_jax.metrics.result import Result
from edm_jax.metrics.rows import Rows


class Accumulator(Protocol):
    """Numbers gathered batch by batch; the same for any order of the images."""

    @property
    def count(self) -> int: ...

    @property
    def width(self) -> int | None: ...

    def update(self, rows: np.ndarray, first_index: int | np.ndarray) -> None: ...

    def merge(self, other: Any) -> None: ...

    def result(self) -> Any: ...

    def state(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Accumulator: ...


# Need -> accumulator, and which of the outputs it takes.
NEEDS: dict[str, tuple[type, str]] = {
    "moments": (Moments, "features"),
    "halves": (Halves, "features"),
    "features": (Rows, "features"),
    "logits": (Rows, "logits"),
    "labels": (Rows, "labels"),
}


class Accumulation:
    """What several metrics need of the same images, gathered batch by batch.

    Args:
      names: of the metrics.
      extractor: whose outputs come.
      resolution: ``(H, W)`` of the images.
      more: further needs, such as "halves" and "features" to make a reference.

    Raises:
      ValueError: an unknown metric, or one that is not defined on this extractor.
    """

    def __init__(
        self,
        names: Iterable[str],
        extractor: Extractor,
        resolution: tuple[int, int],
        more: Iterable[str] = (),
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        check_metrics(self.names, extractor.name)
        self.extractor, self.resolution = extractor, resolution
        needs = [*more, *(need for name in self.names for need in METRICS[name].needs)]
        self.accumulators: dict[str, Accumulator] = {
            need: NEEDS[need][0]() for need in dict.fromkeys(needs)
        }
        self._remarks: dict[str, None] = {}

    @property
    def count(self) -> int:
        """Number of images so far."""
        return max((one.count for one in self.accumulators.values()), default=0)

    def update(self, outputs: Outputs, first_index: int | np.ndarray) -> None:
        """Add the outputs of a batch.

        Args:
          outputs: of the extractor.
          first_index: of the first image among all of the evaluation; or ``(B,)``, of each.

        Raises:
          ValueError: an image is given twice or has another size, or there are no logits for
            a metric that needs them.
        """
        if outputs.resolution not in (None, self.resolution):
            (h, w), (height, width) = outputs.resolution, self.resolution
            raise ValueError(
                f"images of {h}x{w} pixels among images of {height}x{width}; a metric compares "
                "images of one size, resize them first"
            )
        for need, accumulator in self.accumulators.items():
            rows = getattr(outputs, NEEDS[need][1])
            if rows is None:
                raise ValueError(f"the extractor {self.extractor.name!r} gives no {need}")
            accumulator.update(rows, first_index)
        self._remarks |= dict.fromkeys(outputs.remarks)

    def merge(self, other: Accumulation) -> None:
        """Add what another one has of other images; it must be for the same metrics."""
        for need, accumulator in self.accumulators.items():
            accumulator.merge(other.accumulators[need])
        self._remarks |= other._remarks

    def state(self) -> dict[str, np.ndarray]:
        """Arrays to write to a file, from which `restore` makes the same again."""
        identity = np.array(
            [self.extractor.name, self.extractor.digest, *map(str, self.resolution)]
        )
        state = {"identity": identity, "remarks": np.array(list(self._remarks), dtype=np.str_)}
        for need, accumulator in self.accumulators.items():
            state |= {f"{need}/{key}": array for key, array in accumulator.state().items()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where `state` was taken.

        Raises:
          ValueError: it is of other metrics, another extractor, or another size of images.
        """
        mine = self.state()["identity"].tolist()
        theirs = np.asarray(state["identity"]).tolist()
        missing = [n for n in self.accumulators if not any(k.startswith(f"{n}/") for k in state)]
        if mine != theirs or missing:
            what = f"has no {missing[0]}" if mine == theirs else "is of another extractor or size"
            raise ValueError(f"the evaluation to go on with {what}; begin a new one")
        for need in self.accumulators:
            prefix = f"{need}/"
            inner = {k.removeprefix(prefix): a for k, a in state.items() if k.startswith(prefix)}
            self.accumulators[need] = NEEDS[need][0].from_state(inner)
        self._remarks = dict.fromkeys(np.asarray(state["remarks"]).tolist())

    def check_reference(
        self, reference: Reference | None, names: Iterable[str] | None = None
    ) -> None:
        """Raise ValueError unless the metrics can be measured against a reference.

        The width of the features is checked as soon as there are any.
        """
        for name in self.names if names is None else names:
            metric = METRICS[name]
            if metric.reference and reference is None:
                raise ValueError(f"{name} needs a reference; make one from the data set first")
            if metric.reference == "features" and reference.features is None:
                raise ValueError(
                    f"{name} needs the features of the reference, and {reference.source or 'it'} "
                    "holds statistics only; make one with features from the data set"
                )
        if reference is not None:
            width = self._width() or len(reference.mean)
            reference.check(self.extractor.name, self.extractor.digest, width, self.resolution)

    def _width(self) -> int | None:
        widths = (one.width for n, one in self.accumulators.items() if NEEDS[n][1] == "features")
        return next((width for width in widths if width), None)

    def results(
        self, reference: Reference | None, names: Iterable[str] | None = None
    ) -> dict[str, Result]:
        """All numbers, or those of some: ``fid``, or ``pr/precision`` where a metric has parts.

        Raises:
          ValueError: the reference does not fit, or there are too few images.
        """
        names = self.names if names is None else tuple(names)
        self.check_reference(reference, names)
        general = tuple(self._remarks)
        found = {}
        for name in names:
            metric = METRICS[name]
            beside = general + (reference.remarks() if metric.reference and reference else ())
            for part, result in metric.measure(self.accumulators, reference).items():
                remarks = result.remarks + beside
                found[f"{name}/{part}" if part else name] = dataclasses.replace(
                    result, remarks=remarks
                )
        return found

    def reference(self, source: str = "") -> Reference:
        """The images as a reference for others; needs "halves", and "features" if it is to have.

        Args:
          source: what the images are, for people.
        """
        halves: Any = self.accumulators["halves"]
        mean, cov = halves.result()
        features = self.accumulators.get("features")
        floor = None
        if min(part.count for part in halves.parts) >= 2:
            floor = frechet.frechet_distance(*halves.parts[0].result(), *halves.parts[1].result())
        return Reference(
            mean,
            cov,
            extractor=self.extractor.name,
            digest=self.extractor.digest,
            resolution=self.resolution,
            count=halves.count,
            features=None if features is None else features.result(),
            floor=floor,
            floor_count=None if floor is None else halves.count // 2,
            source=source,
        )
