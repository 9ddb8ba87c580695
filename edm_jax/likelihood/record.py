"""Likelihoods of a whole data set that may stop after any batch and go on later."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from edm_jax.likelihood.kinds import settings_json
from edm_jax.likelihood.model_likelihood import log_likelihood
from edm_jax.likelihood.results import Likelihood, Settings, summarise
from edm_jax.model import Model
from edm_jax.typing import ArrayLike

FIELDS = ("log_likelihood", "standard_error", "step_difference", "calls")


@dataclasses.dataclass
class Record:
    """Values of images by their index in the data set, in any order of arrival.

    Attributes:
      settings: JSON of what the values depend on, as `Likelihood.settings`.
      size: d, elements of an image.
      values: index -> one number for each of FIELDS.
    """

    settings: Mapping[str, Any]
    size: int
    values: dict[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Those of the indices that have no value yet, in their order."""
        return [int(i) for i in indices if int(i) not in self.values]

    def add(self, indices: ArrayLike, result: Likelihood) -> None:
        """Keep the values of some images.

        Raises:
          ValueError: if they were made with other settings or by another model.
        """
        check_same(self.settings, result.settings)
        columns = [getattr(result, field) for field in FIELDS]
        for index, *numbers in zip(np.asarray(indices), *columns, strict=True):
            self.values[int(index)] = tuple(float(number) for number in numbers)

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays (`numpy.savez`) from which `from_state` makes the record again."""
        indices = sorted(self.values)
        table = np.array([self.values[i] for i in indices]).reshape(-1, len(FIELDS))
        return {
            "index": np.array(indices, np.int64),
            **{field: table[:, j] for j, field in enumerate(FIELDS)},
            "size": np.asarray(self.size),
            "settings": np.asarray(json.dumps(self.settings)),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Record:
        """The record that `state` was made of; ValueError if something is missing."""
        missing = [name for name in ("index", *FIELDS, "size", "settings") if name not in state]
        if missing:
            raise ValueError(f"no record of likelihoods: {', '.join(missing)} missing")
        columns = zip(*(np.asarray(state[field]).tolist() for field in FIELDS), strict=True)
        values = dict(zip(np.asarray(state["index"]).tolist(), columns, strict=True))
        return cls(json.loads(str(state["settings"])), int(state["size"]), values)

    def summary(self) -> dict[str, Any]:
        """Means over the images so far, as `Likelihood.summary`."""
        if not self.values:
            raise ValueError("the record is empty: no image has been evaluated")
        state = self.state()
        return summarise(
            state["log_likelihood"], state["step_difference"], self.size, self.settings
        )


def check_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first difference, unless settings are equal."""
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            raise ValueError(
                f"the record was made with {name}={old.get(name)!r}, not {new.get(name)!r}; go on "
                "with the same settings and model, or begin a new record"
            )


def likelihoods(
    model: Model,
    images: Iterable[tuple[ArrayLike, ArrayLike, ArrayLike | None]],
    settings: Settings,
    *,
    record: Record | None = None,
    batch_size: int = 64,
    **placement: Any,
) -> Iterator[Record]:
    """Evaluate a data set, batch by batch.

    Args:
      model: as `load` returns it.
      images: batches ``(indices (n,), images (n, H, W, C), labels (n,) or None)`` of any sizes,
        such as an iterator over a data source gives them.
      settings: of `likelihood_settings`.
      record: what an earlier run left; its images are passed over.
      batch_size: images at a time; one program serves all batches.
      **placement: ``sharding`` of `log_likelihood`.

    Yields:
      The same Record after every evaluated batch; save its ``state()`` to be able to stop.

    Raises:
      ValueError: if the record was made with other settings or by another model.
    """
    wanted = settings_json(model, settings)
    record = Record(wanted, int(np.prod(model.image_shape))) if record is None else record
    check_same(record.settings, wanted)
    options = {k: v for k, v in dataclasses.asdict(settings).items() if v is not None}
    waiting: list[tuple[int, np.ndarray, Any]] = []

    def evaluate(batch: list[tuple[int, np.ndarray, Any]]) -> Record:
        full = batch + batch[-1:] * (batch_size - len(batch))
        indices, pixels, labels = zip(*full, strict=True)
        result = log_likelihood(
            model,
            np.stack(pixels),
            None if labels[0] is None else np.stack(labels),
            image_ids=np.asarray(indices),
            batch_size=batch_size,
            **options,
            **placement,
        )
        record.add(indices, result)  # the padding repeats an image, with the same value
        return record

    for indices, pixels, labels in images:
        labels = [None] * len(indices) if labels is None else labels
        done = set(record.values) | {index for index, *_ in waiting}
        waiting += [
            (int(i), np.asarray(x), y)
            for i, x, y in zip(indices, pixels, labels, strict=True)
            if int(i) not in done
        ]
        while len(waiting) >= batch_size:
            yield evaluate(waiting[:batch_size])
            del waiting[:batch_size]
    if waiting:
        yield evaluate(waiting)
