"""Single settings measured on blocks of seeds, each once, with what that costs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edm_jax.model import Model
from edm_jax.requests import CHURN
from edm_jax.studies import blocks, planning, running
from edm_jax.studies import grid as grids
from edm_jax.studies import space as spaces
from edm_jax.studies.declaration import Study
from edm_jax.studies.files import BlockFile, Drawn


@dataclasses.dataclass
class Bench:
    """Measures settings on blocks of seeds, and counts what it costs."""

    study: Study
    plan: Any
    read: Mapping[str, Callable[[], Model]]
    identity: Mapping[str, Any]
    sharding: Any
    poll: Any
    drawn: BlockFile = dataclasses.field(default_factory=BlockFile)

    @classmethod
    def open(
        cls,
        study: Study,
        models: Mapping[str, Model],
        reference: Any,
        sharding: Any,
        report: Callable[[str], None],
        poll: Any,
        making: Mapping[str, Any],
    ) -> Bench:
        """With the models' readers and the plan of the metrics."""
        read = {name: functools.cache(one) for name, one in running.readers(study, models).items()}
        plan = running.plan_metrics(study, read, reference, report, making)
        identity = running.identity_of(study, plan)
        return cls(study, plan, read, identity, sharding, poll)

    @functools.cached_property
    def _about(self) -> dict[str, dict[str, Any]]:
        return {
            name: planning.about_model(self.study, self.read[name](), self.identity)
            for name in self.study.models
        }

    @functools.cached_property
    def _accurate(self) -> dict[str, blocks.Accurate]:
        return {n: blocks.Accurate(self.read[n](), self.study) for n in self.study.models}

    def cell(self, settings: Mapping[str, Any]) -> planning.Planned:
        """The settings, checked; ValueError if they cannot work."""
        cell = grids.cell(settings, list(self.study.models))
        model = self.read[cell.model]()
        return planning.planned_cell(cell, self.study, model, self._about[cell.model])

    def refused(self, base: Mapping[str, Any], point: Mapping[str, Any]) -> str:
        """Why a point of a space cannot work; empty text if it can."""
        try:
            one = self.cell(spaces.settings_of(base, point))
        except ValueError as error:
            return " ".join(str(error).split())
        _, asked, _ = one.lane
        idle = [name for name in CHURN[1:] if name in point]
        if idle and "churn" in asked.info.options and not one.cell.sampling.options.get("s_churn"):
            return f"{idle[0]} says nothing without churn: search s_churn too, or give it"
        return ""

    def block(self, one: planning.Planned, block: int, key: str) -> float:
        """The measure on a block; each is drawn once, over all calls that share a file."""
        kept = self.drawn.found.get((one.digest, block))
        if kept is not None and kept.value is not None:
            return kept.value
        name, started = one.cell.model, time.monotonic()
        (found,) = blocks.measure(
            self.study, self.plan, self.read[name](), [one], block, self._accurate[name],
            sharding=self.sharding, poll=self.poll,
        )  # fmt: skip
        failed = isinstance(found, Exception)
        calls = one.nfe if one.rows is None else sum(one.rows.values())
        images = self.study.num_images
        self.drawn.put(one.digest, block, Drawn(
            None if failed else found.values[key], images, images * int(calls or 0),
            round(time.monotonic() - started, 3),
        ))  # fmt: skip
        if failed:
            raise found
        return found.values[key]

    def values(
        self, base: Mapping[str, Any], point: Mapping[str, Any], which: range, key: str
    ) -> np.ndarray:
        """The measure on several blocks."""
        one = self.cell(spaces.settings_of(base, point))
        return np.array([self.block(one, block, key) for block in which])
