"""The cells of a study against their models, all checked before the first one runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import samplers, seeds
from edm_jax.evaluation import reporting
from edm_jax.evaluation.labels import labels_of
from edm_jax.evaluation.protocol import network_rows_of
from edm_jax.model import Model
from edm_jax.requests import check_request
from edm_jax.sampling import Sampling
from edm_jax.studies import guidances, lanes, steps
from edm_jax.studies.declaration import DISTANCE, TRUNCATION, Study
from edm_jax.studies.grid import Cell

FORMAT = 1  # of the files of cells: results of other versions are not taken


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """A cell that can run.

    Attributes:
      cell: the setting.
      lane: levels, request and guidance.
      signature: cells of equal ones share a program.
      nfe: network calls for an image; None if the data decide.
      rows: images through each network for one image, where guided.
      digest: of all that its result depends on.
    """

    cell: Cell
    lane: lanes.Lane
    signature: Any
    nfe: int | None
    rows: Mapping[str, int] | None
    digest: str

    @property
    def vmapped(self) -> bool:
        """Whether it gains from running beside others: not where each decides its own work."""
        guidance = self.lane[2]
        return self.nfe is not None and getattr(guidance, "interval", None) is None


def is_stochastic(sampling: Sampling) -> bool:
    """Whether a request draws noise after the first, as its own options say."""
    info, options = samplers.get(sampling.sampler), {**sampling.options}
    if "churn" in info.options:
        return bool(options.get("s_churn", 0))
    if any(name in info.options for name in ("eta", "tau")):
        amount = options.get("eta", options.get("tau", info.presets.get("eta")))
        return info.stochastic if amount is None else bool(amount)
    return info.stochastic


def plan(
    study: Study, models: Mapping[str, Callable[[], Model]], identity: Mapping[str, Any]
) -> tuple[dict[str, list[Planned]], list[Cell]]:
    """Every cell with what it needs, by model, and the cells that cannot work, with reasons.

    Args:
      study: the study.
      models: name -> reads the model.
      identity: what results depend on besides cell and model: measures, references.

    Raises:
      ValueError: a model that cannot be read, or no cell that works.
    """
    found: dict[str, list[Planned]] = {}
    impossible: list[Cell] = []
    for name in study.models:
        cells = [cell for cell in study.cells if cell.model == name]
        if not cells:
            continue
        model = models[name]()
        about = about_model(study, model, identity)
        for cell in cells:
            try:
                planned = planned_cell(cell, study, model, about)
            except ValueError as error:
                told = dataclasses.replace(cell, reason=" ".join(str(error).split()))
                impossible.append(told)
            else:
                found.setdefault(name, []).append(planned)
    if not found:
        first = impossible[0]
        raise ValueError(
            f"no cell of the study can work; the first, {dict(first.settings)}: {first.reason}"
        )
    return found, impossible


def about_model(study: Study, model: Model, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What all results of a model depend on.

    Raises:
      ValueError: the model draws no images, or has not the labels that are asked for.
    """
    if model.kind not in ("denoiser", "reflected"):
        raise ValueError(f"a {model.kind} draws no images, so nothing can be compared")
    labels_of(model, study.first_seed + np.arange(1), study.labels)
    return {
        **identity,
        "format": FORMAT,
        "weights": reporting.weights_digest(model),
        "precond": model.description.get("precond"),
        **{key: getattr(study, key) for key in ("num_images", "blocks", "first_seed")},
        "labels": study.labels if model.num_classes else None,
    }


def planned_cell(cell: Cell, study: Study, model: Model, about: Mapping[str, Any]) -> Planned:
    """The cell checked for its model; ValueError says why it cannot work."""
    sampling = cell.sampling
    if sampling is None:
        raise ValueError(cell.reason)
    asked, sigmas = check_request(model, sampling), sampling.grid(model.preconditioning)
    guidance = guidances.build(cell.guidance, model, sampling)
    for name in (DISTANCE, TRUNCATION):
        if name in study.quality and is_stochastic(sampling):
            raise ValueError(
                f"{name} compares with a solution of the same latents, and this sampler draws "
                "noise of its own"
            )
    if TRUNCATION in study.quality:
        steps.check(asked, model)
    rows = None if guidance is None else network_rows_of(guidance, sampling, model)
    lane = (sigmas.astype(np.float32), asked, guidance)
    guided = guidances.identity(cell.guidance)
    identity = {**about, "sampling": sampling.to_json(), "guidance": guided}
    text = json.dumps(identity, sort_keys=True, default=str)
    return Planned(
        cell, lane, lanes.signature(lane), sampling.nfe(model.preconditioning), rows,
        hashlib.sha256(text.encode()).hexdigest()[:24],
    )  # fmt: skip


def groups(planned: Sequence[Planned], most: int) -> list[list[Planned]]:
    """Cells that share a program, at most ``most`` side by side, in the order of the cells."""
    found: dict[Any, list[Planned]] = {}
    for one in planned:
        key = one.signature if one.vmapped else (one.signature, one.digest)
        found.setdefault(key, []).append(one)
    return [
        group[i : i + most] for group in found.values() for i in range(0, len(group), max(most, 1))
    ]


def counted_calls(planned: Planned, model: Model, study: Study) -> float:
    """Network calls of a sampler whose tolerances decide, the mean over the first images."""
    sigmas, asked, _ = planned.lane
    keys = seeds.image_keys(study.first_seed + np.arange(min(study.num_images, 16)))

    @jax.jit
    def solve(model: Model, keys: jax.Array) -> jax.Array:
        noise = seeds.latents(keys, (keys.shape[0], *model.image_shape))
        denoise = model.denoiser(model.variables)
        _, stats = asked(denoise, noise * sigmas[0], jnp.asarray(sigmas), keys, stats=True)
        return stats.nfe

    return float(np.mean(solve(model, keys)))
