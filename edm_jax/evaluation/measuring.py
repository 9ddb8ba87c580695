"""Several metrics of a stream of images at once; stopped anywhere, it goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax.evaluation import drawing
from edm_jax.metrics.extractors import Extractor, Outputs
from edm_jax.metrics.feature_metrics import Accumulation
from edm_jax.metrics.reference import Reference
from edm_jax.metrics.registry import Asked
from edm_jax.metrics.result import Result
from edm_jax.train import distributed

# Images on the picture beside a result: the first ones, not chosen.
SHOWN = 64
# Seconds between states on the disk, and between lines where there is no terminal.
SAVE_SECONDS, REPORT_SECONDS = 60.0, 60.0
# Writing a state takes at most one in so many seconds.
_SAVE_SHARE = 20


def extract(extractor: Extractor, images: np.ndarray) -> Outputs:
    """Outputs of the extractor, each process making its share; the same on every process."""
    processes = jax.process_count()
    if processes == 1:
        return extractor(images)
    part = -(-len(images) // processes)
    mine = jax.process_index() * part + np.arange(part)
    out = extractor(images[np.minimum(mine, len(images) - 1)])
    features, logits = (
        None if rows is None else distributed.gather(rows)[: len(images)]
        for rows in (out.features, out.logits)
    )
    return dataclasses.replace(out, features=features, logits=logits)


class Measurement:
    """What the metrics of an evaluation need of its images, gathered batch by batch.

    Process 0 gathers, all processes make features.

    Args:
      asked: the metrics.
      extractors: by name, those of the metrics.
      resolution: ``(H, W)`` of the images.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        extractors: Mapping[str, Extractor],
        resolution: tuple[int, int],
    ) -> None:
        self.asked = tuple(asked)
        self.extractors = {one.extractor: extractors[one.extractor] for one in self.asked}
        self.parts = {
            name: Accumulation(
                [one.name for one in self.asked if one.extractor == name], extractor, resolution
            )
            for name, extractor in self.extractors.items()
        }
        self.shown: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of images so far."""
        return min((part.count for part in self.parts.values()), default=0)

    def update(self, images: np.ndarray, first_index: int, labels: np.ndarray | None) -> None:
        """Add a batch; all processes call this together.

        Args:
          images: ``(B, H, W, C)`` uint8.
          first_index: of the first of them.
          labels: ``(B,)`` classes that were asked for, or None.

        Raises:
          ValueError: images that no metric takes, or features that are not finite.
        """
        leads = jax.process_index() == 0
        for name, part in self.parts.items():
            outputs = extract(self.extractors[name], images)
            if labels is not None and labels.ndim == 1:
                outputs = dataclasses.replace(outputs, labels=np.float32(labels)[:, None])
            if leads:
                part.update(outputs, first_index)
        if leads and first_index < SHOWN:
            before = images[:0] if self.shown is None else self.shown
            self.shown = np.concatenate([before, images])[:SHOWN]

    def results(
        self, references: Mapping[str, Reference]
    ) -> tuple[dict[str, Result], dict[str, str]]:
        """All numbers, ``kid@dinov2`` or ``pr/precision``, and why a metric has none after all."""
        found: dict[str, Result] = {}
        failed: dict[str, str] = {}
        for one in self.asked:
            try:
                results = self.parts[one.extractor].results(
                    references.get(one.extractor), (one.name,)
                )
            except (ValueError, ArithmeticError) as error:  # the others are had
                failed[one.text] = " ".join(str(error).split())
                continue
            for key, result in results.items():
                found[one.text + key.removeprefix(one.name)] = result
        return found, failed

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `restore` makes the same again."""
        state = {
            f"{name}:{key}": array
            for name, part in self.parts.items()
            for key, array in part.state().items()
        }
        return state if self.shown is None else state | {"shown": self.shown}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where `state` was taken; ValueError or KeyError if it is of something else."""
        for name, part in self.parts.items():
            prefix = f"{name}:"
            part.restore(
                {k.removeprefix(prefix): a for k, a in state.items() if k.startswith(prefix)}
            )
        self.shown = state.get("shown")


class StateFile:
    """The state of a measurement on the disk, written by process 0.

    Args:
      path: of an ``.npz``; None keeps nothing.
      seconds: between two of them.
    """

    def __init__(self, path: pathlib.Path | None, seconds: float = SAVE_SECONDS) -> None:
        self.path, self.seconds = path, seconds
        self._next = time.monotonic() + seconds

    def save(self, measurement: Measurement, *, now: bool = False) -> None:
        """Write the state if it is time to, completely or not at all."""
        started = time.monotonic()
        if self.path is None or jax.process_index() or not (now or started >= self._next):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **measurement.state())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        ended = time.monotonic()
        self._next = ended + max(self.seconds, _SAVE_SHARE * (ended - started))

    def load(self, measurement: Measurement) -> int:
        """Restore what is there into process 0.

        Returns:
          The number of images that it holds, on every process; 0 if nothing usable is there.
        """

        def load() -> int:
            if self.path is None or not self.path.exists():
                return 0
            try:
                with np.load(self.path, allow_pickle=False) as archive:
                    state = {name: archive[name] for name in archive.files}
                measurement.restore(state)
            except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
                return 0  # damaged, or of other settings: nothing is lost but time
            return measurement.count

        return distributed.from_lead(load)


class Progress:
    """A bar on a terminal; lines now and then where there is none."""

    def __init__(self, total: int, done: int, name: str, report: Callable[[str], None]) -> None:
        self.total, self.done, self.begun_at = total, done, done
        self.name, self.report = name, report
        self.bar = drawing.progress_bar(total, name, done)
        self.started = self.said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.bar.close()

    def add(self, count: int) -> None:
        """So many more images are done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if not self.bar.disable or jax.process_index() or now - self.said < REPORT_SECONDS:
            return
        rate = (self.done - self.begun_at) / (now - self.started)
        left = (self.total - self.done) / rate
        self.report(
            f"{self.name}: {self.done} of {self.total} images, {rate:.3g} img/s, "
            f"{left / 60:.0f} min left"
        )
        self.said = now


def measure(
    measurement: Measurement,
    batches: Callable[[int], Iterator[tuple[int, np.ndarray]]],
    total: int,
    labels: np.ndarray | None,
    *,
    state: StateFile | None = None,
    name: str = "evaluation",
    report: Callable[[str], None] = print,
    poll: Callable[[], None] | None = None,
) -> None:
    """Feed images to a measurement, from where a state on the disk left off.

    Args:
      measurement: of a fresh block of images.
      batches: number of images that are done -> (index of the first, images) of the others.
      total: number of images.
      labels: ``(total,)`` classes asked for, or None.
      state: where it is kept.
      name: shown with the progress.
      report: told what is going on.
      poll: called for each batch; may raise, then on every process.
    """
    state = StateFile(None) if state is None else state
    done = state.load(measurement)
    if done:
        report(f"{name}: going on after {done} of {total} images")
    with Progress(total, done, name, report) as progress:
        with contextlib.closing(batches(done)) as images_left:
            for first, images in images_left:
                mine = None if labels is None else labels[first : first + len(images)]
                measurement.update(images, first, mine)
                state.save(measurement)
                progress.add(len(images))
                if poll is not None:
                    poll()
    if done < total:
        state.save(measurement, now=True)
