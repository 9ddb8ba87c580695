"""Carrying out a study: cell by cell, resumable, and a failed cell stops no other."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax.evaluation.planning import Plan, make_plan
from edm_jax.evaluation.references import reference_digest
from edm_jax.loading import load
from edm_jax.metrics.registry import parse
from edm_jax.model import Model
from edm_jax.studies import blocks, planning, quality, request
from edm_jax.studies.declaration import DISTANCE, TRUNCATION, Study
from edm_jax.studies.files import CellFiles
from edm_jax.studies.grid import Cell, label, varying
from edm_jax.studies.planning import Planned
from edm_jax.studies.results import Results, by_reason

DONE, FAILED, IMPOSSIBLE = "done", "failed", "impossible"


def read_model(path: str) -> Model:
    """A model of ``PATH`` or ``PATH:VARIANT``.

    Raises:
      FileNotFoundError, ValueError: as `edm_jax.load`.
    """
    head, separator, variant = path.rpartition(":")
    if separator and not pathlib.Path(path).expanduser().exists():
        return load(head, variant=variant)
    return load(path)


def run(
    study: Study,
    models: Mapping[str, Model] | None = None,
    directory: str | os.PathLike[str] | None = None,
    *,
    reference: Any = None,
    sharding: jax.sharding.NamedSharding | None = None,
    report: Callable[[str], None] = print,
    poll: Callable[[], None] | None = None,
    **making: Any,
) -> Results:
    """Measure every cell of a study.

    Args:
      study: what is measured.
      models: those that the study does not load itself.
      directory: keeps the result of every cell, whole or not at all; the same call goes on
        with the cells that are left, and so does one with another grid (`request.check_same`).
        None keeps nothing.
      reference: for metrics: a source of real images, a `Reference`, the path of one, several
        of these, or a `Plan`.
      sharding: of images over devices of this process; None for one device.
      report: told what goes on.
      poll: called for each batch; may raise.
      **making: further arguments of `evaluation.planning.make_plan`: weights, cache, ...

    Returns:
      The Results, in the order of the cells.

    Raises:
      ValueError: for what can be known before the first cell runs; the directory holds another
        study.
      FileNotFoundError: a model that is not there.
    """
    request.check_same(study, directory, report)
    read = readers(study, models or {})
    plan = plan_metrics(study, read, reference, report, making)
    asked, study = study, _that_can_be_given(study, plan)
    identity = identity_of(study, plan)
    planned, impossible = planning.plan(study, read, identity)
    request.record(asked, directory)
    shown = varying(study.cells)
    for line in by_reason((label(cell.settings, shown), cell.reason) for cell in impossible):
        report(f"cannot work: {line}")
    work = _Work(study, plan, CellFiles(directory), shown, sharding, report, poll)
    rows: dict[int, dict[str, Any]] = {
        id(cell.settings): _row(cell, shown, IMPOSSIBLE, reason=cell.reason) for cell in impossible
    }
    work.total = sum(map(len, planned.values()))
    for name, cells in planned.items():
        rows |= work.cells_of(read[name], cells)
    return Results(study, [rows[id(cell.settings)] for cell in study.cells], shown)


def readers(study: Study, given: Mapping[str, Model]) -> dict[str, Callable[[], Model]]:
    """Name -> reads the model; paths that are not there are found out at once."""
    readers: dict[str, Callable[[], Model]] = {}
    for name, path in study.models.items():
        if name in given:
            readers[name] = lambda name=name: given[name]
        elif path:
            readers[name] = functools.partial(read_model, path)
        else:
            raise ValueError(f"the study needs the model {name!r}: give it, or its path")
    return readers


def plan_metrics(
    study: Study,
    read: Mapping[str, Callable[[], Model]],
    reference: Any,
    report: Callable[[str], None],
    making: Mapping[str, Any],
) -> Plan | None:
    """What metrics need; None where none is asked for.

    Raises:
      ValueError: the models have several image sizes, or as `make_plan`.
    """
    if not study.metrics:
        return None
    if isinstance(reference, Plan):
        return reference
    files = [*study.reference]
    given = [*files, *(reference if isinstance(reference, list | tuple) else [reference])]
    names = list(dict.fromkeys(cell.model for cell in study.cells))
    model = read[names[0]]()
    for name in names[1:]:  # before references are made, which takes long
        shapes = [tuple(one.image_shape) for one in (model, read[name]())]
        if shapes[0] != shapes[1]:
            here, there = ("x".join(map(str, shape)) for shape in shapes)
            raise ValueError(
                f"metrics compare models of one image size: {names[0]} has {here}, {name} has "
                f"{there}; measure them in two studies"
            )
    return make_plan(
        study.metrics, given, num_images=study.num_images, image_shape=model.image_shape,
        classes=model.num_classes, report=report, **making,
    )  # fmt: skip


def _that_can_be_given(study: Study, plan: Plan | None) -> Study:
    """The study without the metrics that these data do not allow, which the plan has told."""
    if plan is None or not plan.left_out:
        return study
    without = {name for name in study.metrics if parse(name).text in plan.left_out}
    names = tuple(name for name in study.quality if name not in without)
    return dataclasses.replace(study, quality=names)


def identity_of(study: Study, plan: Plan | None) -> dict[str, Any]:
    """What results depend on besides cells and models."""
    told: dict[str, Any] = {"quality": list(study.quality)}
    if DISTANCE in study.quality:
        told["accurate"] = study.accurate.to_json()
    if TRUNCATION in study.quality:
        told["substeps"] = study.substeps
    if plan is not None:
        told["references"] = {n: reference_digest(one) for n, one in plan.references.items()}
        told["extractors"] = {n: one.digest for n, one in plan.extractors.items()}
    return told


def _row(cell: Cell, shown: Sequence[str], status: str, **more: Any) -> dict[str, Any]:
    """A result as JSON values."""
    return {
        "cell": label(cell.settings, shown),
        "model": cell.model,
        "settings": dict(cell.settings),
        "sampling": None if cell.sampling is None else cell.sampling.to_json(),
        "guidance": None if cell.guidance is None else dict(cell.guidance),
        "status": status,
        **more,
    }


@dataclasses.dataclass
class _Work:
    """The cells of a study, one model after the other."""

    study: Study
    plan: Plan | None
    files: CellFiles
    shown: Sequence[str]
    sharding: jax.sharding.NamedSharding | None
    report: Callable[[str], None]
    poll: Callable[[], None] | None
    total: int = 0
    done: int = 0

    def cells_of(
        self, read: Callable[[], Model], cells: Sequence[Planned]
    ) -> dict[int, dict[str, Any]]:
        """Results by the identity of the settings of a cell."""
        rows, left = {}, []
        keys = [measure.key for measure in quality.measures(self.study.quality)]
        for one in cells:
            there = self.files.read(one.digest, keys)
            if there is None:
                left.append(one)
                continue
            # What is shown of a cell depends on the study around it.
            rows[id(one.cell.settings)] = there | _row(one.cell, self.shown, DONE)
            self.done += 1
        if rows:
            self.report(f"{len(rows)} cells are there already")
        if not left:
            return rows
        try:
            model = read()
        except Exception as error:  # gone since the study began: its cells fail, no others
            for one in left:
                rows[id(one.cell.settings)] = self._failed(one, error)
            return rows
        images = min(self.study.batch_size, self.study.num_images)
        # As many lanes for the cells that are left as for all: the same program.
        most = max(1, self.study.batch_size // images)
        wanted = {
            group[0].signature: min(most, len(group))
            for group in planning.groups(cells, len(cells))
        }
        accurate = blocks.Accurate(model, self.study, self.poll)
        for group in planning.groups(left, most):
            rows |= self._group(group, model, accurate, wanted[group[0].signature])
        return rows

    def _group(
        self, group: Sequence[Planned], model: Model, accurate: blocks.Accurate, width: int
    ) -> dict[int, dict[str, Any]]:
        """Measures cells side by side; where that fails, one by one."""
        started = time.monotonic()
        try:
            found = self._measure(group, model, accurate, width if group[0].vmapped else 1)
        except Exception as error:
            if len(group) == 1 and (width == 1 or not _is_memory(error)):
                return {id(group[0].cell.settings): self._failed(group[0], error)}
            narrow = 1 if _is_memory(error) else width
            rows = {}
            for one in group:
                rows |= self._group([one], model, accurate, narrow)
            return rows
        seconds = (time.monotonic() - started) / len(group)
        rows = {}
        for one, result in zip(group, found, strict=True):
            if isinstance(result, Exception):
                rows[id(one.cell.settings)] = self._failed(one, result)
                continue
            row = self._finished(one, model, result, seconds)
            rows[id(one.cell.settings)] = row
        return rows

    def _finished(
        self, one: Planned, model: Model, found: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        nfe = one.nfe
        if nfe is None:
            nfe = planning.counted_calls(one, model, self.study)
        row = _row(
            one.cell, self.shown, DONE, weights=model.variant,
            progress=model.description.get("progress"), nfe=nfe,
            network_calls=nfe if one.rows is None else sum(one.rows.values()),
            network_rows=None if one.rows is None else dict(one.rows),
            num_images=self.study.num_images, seconds=round(seconds, 3), digest=one.digest,
            **found,
        )  # fmt: skip
        self.files.write(one.digest, row)
        self.done += 1
        values = ", ".join(_told(key, value) for key, value in found["values"].items())
        self.report(f"[{self.done}/{self.total}] {row['cell']}: {values}")
        return row

    def _failed(self, one: Planned, error: Exception) -> dict[str, Any]:
        self.done += 1
        reason = " ".join(str(error).split()) or type(error).__name__
        row = _row(one.cell, self.shown, FAILED, reason=reason[:500])
        self.report(f"[{self.done}/{self.total}] {row['cell']}: failed: {reason[:200]}")
        return row

    def _measure(
        self, group: Sequence[Planned], model: Model, accurate: blocks.Accurate, width: int
    ) -> list[dict[str, Any] | Exception]:
        """Values of every cell over all blocks, or why a cell has none."""
        found: list[list[blocks.Block]] = [[] for _ in group]
        failed: dict[int, Exception] = {}
        for block in range(self.study.blocks):
            each = blocks.measure(
                self.study, self.plan, model, group, block, accurate,
                width=width, sharding=self.sharding, poll=self.poll,
            )  # fmt: skip
            for i, one in enumerate(each):
                if isinstance(one, Exception):
                    failed.setdefault(i, one)
                else:
                    found[i].append(one)
            if len(failed) == len(group):
                break
        return [failed.get(i) or self._result(found[i], one) for i, one in enumerate(group)]

    def _result(self, found: Sequence[blocks.Block], one: Planned) -> dict[str, Any]:
        keys = [measure.key for measure in quality.measures(self.study.quality)]
        values = {k: quality.summary([block.values[k] for block in found]) for k in keys}
        out: dict[str, Any] = {"values": values}
        if found[0].steps is not None:
            out["steps"] = {
                "sigmas": [float(sigma) for sigma in one.lane[0][:-2]],
                "errors": np.mean([block.steps for block in found], axis=0).tolist(),
            }
        return out


def _told(key: str, value: Mapping[str, Any]) -> str:
    spread = value["standard_error"]
    return f"{key} {value['mean']:.4g}" + ("" if spread is None else f" +- {spread:.2g}")


def _is_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError)
