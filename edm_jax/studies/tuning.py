"""Finding good settings of sampling within a budget, and proving them on fresh seeds."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from edm_jax.arguments import check_number
from edm_jax.model import Model
from edm_jax.studies import feasibility, quality
from edm_jax.studies import grid as grids
from edm_jax.studies import space as spaces
from edm_jax.studies.bench import Bench
from edm_jax.studies.declaration import Study
from edm_jax.studies.files import BlockFile, write_json
from edm_jax.studies.trials import REQUEST, Search, check_same, load_optuna

RESULT, BLOCKS = "tuned.json", "blocks.json"
CANDIDATES = 3  # of the search, compared again on fresh seeds


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a tuning found.

    Attributes:
      settings: the ones to use.
      is_default: whether nothing better than the default was found.
      measure: what was made better.
      value, error: of them, mean over fresh blocks and its standard error.
      default_value, default_error: of the default on the same seeds.
      gain, gain_error: mean of the paired differences, positive where better.
      trials, pruned: how many settings were tried, and given up before their last block.
      impossible: trials that could not work, or whose images were not finite; not in ``pruned``.
      images: drawn in all, by every call of the tuning.
      network_calls: for all of them.
      seconds: that took.
      history: ``(trial, best mean so far)``.
    """

    settings: Mapping[str, Any]
    is_default: bool
    measure: str
    value: float
    error: float | None
    default_value: float
    default_error: float | None
    gain: float
    gain_error: float | None
    trials: int
    pruned: int
    impossible: int
    images: int
    network_calls: int
    seconds: float
    history: tuple[tuple[int, float], ...] = ()

    def report(self) -> str:
        """The result in a few lines."""

        def with_error(value: float, error: float | None) -> str:
            return f"{value:.4g}" + ("" if error is None else f" +- {error:.2g}")

        lines = [
            f"{self.measure}, on fresh seeds (mean +- standard error over blocks)",
            f"  default  {with_error(self.default_value, self.default_error)}",
        ]
        if self.is_default:
            lines.append("  nothing better was found: the default stays")
        else:
            lines.append(f"  tuned    {with_error(self.value, self.error)}")
            lines.append(f"  gain     {with_error(self.gain, self.gain_error)}")
            lines.append("  " + grids.label(self.settings, list(self.settings)))
        told = f"{self.trials} settings tried, {self.pruned} given up early"
        told += f", {self.impossible} impossible" if self.impossible else ""
        lines.append(f"{told}; {self.network_calls:.3g} network calls for {self.images} images")
        return "\n".join(lines)


def tune(
    study: Study,
    base: Mapping[str, Any],
    space: spaces.Space,
    budget: int,
    models: Mapping[str, Model] | None = None,
    directory: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    fresh_blocks: int | None = None,
    reference: Any = None,
    sharding: jax.sharding.NamedSharding | None = None,
    report: Callable[[str], None] = print,
    poll: Callable[[], None] | None = None,
    **making: Any,
) -> Tuned:
    """Search a space of settings for the best of a measure (the tree-structured Parzen estimator).

    A trial draws the blocks of the study one after the other and is given up when it falls
    behind the median of the trials before it.  The best few are compared again on fresh blocks, and
    the best of these with the default on blocks that nobody has seen: unless it is better
    there, the default is what is returned.

    Args:
      study: models, the one measure, seeds; its grid is not looked at.
      base: settings of the default.
      space: see `space.read`; "model" chooses between the models of the study.
      budget: how many settings are tried, the default among them.
      models: those that the study does not load itself.
      directory: keeps every trial and every block; the same call goes on, and draws nothing
        where all is there.
      seed: of the search.
      fresh_blocks: of each comparison; by default as many as the study has, at least four.
      reference, **making: for metrics, see `running.run`.
      sharding, report, poll: as of `running.run`.

    Returns:
      What was found.

    Raises:
      ValueError: for a budget below 1, a default or a part of the space that cannot work (see
        `feasibility.check`), a directory that holds another tuning, or where Optuna is not
        installed.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"the budget must be at least 1 trial, got {budget}")
    check_number("fresh_blocks", 1 if fresh_blocks is None else fresh_blocks, least=1)
    optuna = load_optuna()
    (measure,) = _one_measure(study)
    bench = Bench.open(study, models or {}, reference, sharding, report, poll, making)
    default = bench.cell(base)  # a default that cannot work is said at once
    feasibility.check(space, lambda point: bench.refused(base, point))
    identity = {"base": dict(base), "measure": measure.key, "space": _told(space)}
    identity["about"] = default.digest
    for name in {"model", "guidance_model"} & space.keys():  # other weights are another tuning
        identity[f"weights of {name}"] = [
            bench.cell(spaces.settings_of(base, {name: value})).digest
            for value in feasibility.places(space[name])
            if not bench.refused(base, {name: value})
        ]
    trials = Search(optuna, bench, measure, dict(base), space, seed, report)
    folder = None if directory is None else pathlib.Path(directory).expanduser()
    if folder is not None:
        check_same(folder / REQUEST, identity)
        bench.drawn = BlockFile(folder / BLOCKS)
    found = trials.run(budget, folder)
    tuned = _compared(bench, measure, base, found, fresh_blocks or max(4, study.blocks))
    if folder is not None:
        write_json(folder / RESULT, dataclasses.asdict(tuned))
    return tuned


def _compared(
    bench: Bench,
    measure: quality.Measure,
    base: Mapping[str, Any],
    found: list[dict[str, Any]],
    fresh: int,
) -> Tuned:
    """The best trials against each other on fresh blocks, then the best one against the default.

    Twice ``fresh`` blocks, as the winner of a comparison has been lucky in it.
    """
    first, sign = bench.study.blocks, 1 if measure.lower_is_better else -1
    candidates = _ranked(found, measure)[:CANDIDATES]
    means = [
        np.mean(bench.values(base, point, range(first, first + fresh), measure.key))
        for point in candidates
    ]
    best = candidates[int(np.argmin(sign * np.array(means)))] if candidates else {}
    unseen = range(first + fresh, first + 2 * fresh)
    ours = bench.values(base, best, unseen, measure.key)
    theirs = bench.values(base, {}, unseen, measure.key)
    gains = sign * (theirs - ours)
    better = bool(best) and float(np.mean(gains)) > 0
    return Tuned(
        settings=spaces.settings_of(base, best if better else {}),
        is_default=not better,
        measure=measure.title,
        **_summary("", ours if better else theirs),
        **_summary("default_", theirs),
        **_gain(gains if better else 0 * gains),
        trials=len(found),
        pruned=sum(one["pruned"] and not one["impossible"] for one in found),
        impossible=sum(one["impossible"] for one in found),
        **{name: bench.drawn.total(name) for name in ("images", "network_calls", "seconds")},
        history=tuple(_history(found, measure)),
    )


def _one_measure(study: Study) -> list[quality.Measure]:
    found = quality.measures(study.quality)
    if len(found) != 1:
        keys = ", ".join(measure.key for measure in found)
        raise ValueError(f"tuning makes one number better, and the study measures {keys}")
    return found


def _told(space: spaces.Space) -> dict[str, Any]:
    return {
        name: list(one.values) if isinstance(one, spaces.Choice) else dataclasses.asdict(one)
        for name, one in space.items()
    }


def _summary(prefix: str, values: np.ndarray) -> dict[str, Any]:
    told = quality.summary([float(v) for v in values])
    return {f"{prefix}value": told["mean"], f"{prefix}error": told["standard_error"]}


def _gain(values: np.ndarray) -> dict[str, Any]:
    told = quality.summary([float(v) for v in values])
    return {"gain": told["mean"], "gain_error": told["standard_error"]}


def _ranked(found: list[dict[str, Any]], measure: quality.Measure) -> list[dict[str, Any]]:
    """Points of the trials that went to their end, the best first, without the default."""
    sign = 1 if measure.lower_is_better else -1
    whole = [one for one in found if not one["pruned"] and one["point"]]
    ranked = sorted(whole, key=lambda one: sign * one["value"])
    return [one["point"] for one in ranked if math.isfinite(one["value"])]


def _history(found: list[dict[str, Any]], measure: quality.Measure) -> list[tuple[int, float]]:
    better, best, history = (min if measure.lower_is_better else max), None, []
    for i, one in enumerate(found):
        if not one["pruned"] and math.isfinite(one["value"]):
            best = one["value"] if best is None else better(best, one["value"])
        if best is not None:
            history.append((i + 1, best))
    return history
