"""Finding good settings of sampling within a budget, and proving them on fresh seeds."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from edm_jax.arguments import check_number
from edm_jax.model import Model
from edm_jax.store.atomic import to_json
from edm_jax.studies import blocks, planning, quality, running
from edm_jax.studies import grid as grids
from edm_jax.studies import space as spaces
from edm_jax.studies.declaration import Study
from edm_jax.studies.files import write_json

JOURNAL, REQUEST, RESULT = "trials.log", "tuning.json", "tuned.json"
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
      images: drawn in all.
      network_calls: for all of them.
      seconds: it took, of this call.
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
        calls = f"{self.network_calls:.3g} network calls for {self.images} images"
        lines.append(f"{self.trials} settings tried, {self.pruned} given up early; {calls}")
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
      directory: keeps every trial; the same call goes on.
      seed: of the search.
      fresh_blocks: of each comparison; by default as many as the study has, at least four.
      reference, **making: for metrics, see `running.run`.
      sharding, report, poll: as of `running.run`.

    Returns:
      What was found.

    Raises:
      ValueError: for a budget below 1, a default that cannot work, a directory that holds
        another tuning, or where Optuna is not installed.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"the budget must be at least 1 trial, got {budget}")
    check_number("fresh_blocks", 1 if fresh_blocks is None else fresh_blocks, least=1)
    optuna = load_optuna()
    (measure,) = _one_measure(study)
    bench = _Bench.open(study, models or {}, reference, sharding, report, poll, making)
    started = time.monotonic()
    default = bench.cell(base)  # a default that cannot work is said at once
    identity = {"base": dict(base), "measure": measure.key, "space": _told(space)}
    identity["about"] = default.digest
    trials = _Search(optuna, bench, measure, dict(base), space, seed, report)
    found = trials.run(budget, directory, identity)
    fresh = fresh_blocks or max(4, study.blocks)
    candidates = _ranked(found, measure)[:CANDIDATES]
    first = study.blocks
    means = [
        np.mean(bench.values(base, point, range(first, first + fresh), measure.key))
        for point in candidates
    ]
    sign = 1 if measure.lower_is_better else -1
    best = candidates[int(np.argmin(sign * np.array(means)))] if candidates else {}
    unseen = range(first + fresh, first + 2 * fresh)
    ours = bench.values(base, best, unseen, measure.key)
    theirs = bench.values(base, {}, unseen, measure.key)
    gains = sign * (theirs - ours)
    better = bool(best) and float(np.mean(gains)) > 0
    tuned = Tuned(
        settings=spaces.settings_of(base, best if better else {}),
        is_default=not better,
        measure=measure.title,
        **_summary("", ours if better else theirs),
        **_summary("default_", theirs),
        **_gain(gains if better else 0 * gains),
        trials=len(found),
        pruned=sum(one["pruned"] for one in found),
        images=bench.images,
        network_calls=bench.calls,
        seconds=time.monotonic() - started,
        history=tuple(_history(found, measure)),
    )
    if directory is not None:
        write_json(pathlib.Path(directory).expanduser() / RESULT, dataclasses.asdict(tuned))
    return tuned


def load_optuna() -> ModuleType:
    """The optimiser, silent; ValueError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ValueError("tuning needs Optuna: pip install 'edm_jax[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


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


@dataclasses.dataclass
class _Bench:
    """Measures settings on blocks of seeds, and counts what it costs."""

    study: Study
    plan: Any
    read: Mapping[str, Callable[[], Model]]
    identity: Mapping[str, Any]
    sharding: Any
    poll: Any
    images: int = 0
    calls: int = 0
    known: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)

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
    ) -> _Bench:
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

    def block(self, one: planning.Planned, block: int, key: str) -> float:
        """The measure on a block; each is drawn once."""
        if (one.digest, block) not in self.known:
            name = one.cell.model
            (found,) = blocks.measure(
                self.study, self.plan, self.read[name](), [one], block, self._accurate[name],
                sharding=self.sharding, poll=self.poll,
            )  # fmt: skip
            if isinstance(found, Exception):
                raise found
            calls = one.nfe if one.rows is None else sum(one.rows.values())
            self.images += self.study.num_images
            self.calls += self.study.num_images * int(calls or 0)
            self.known[one.digest, block] = found.values[key]
        return self.known[one.digest, block]

    def values(
        self, base: Mapping[str, Any], point: Mapping[str, Any], which: range, key: str
    ) -> np.ndarray:
        """The measure on several blocks."""
        one = self.cell(spaces.settings_of(base, point))
        return np.array([self.block(one, block, key) for block in which])


@dataclasses.dataclass
class _Search:
    """The trials."""

    optuna: ModuleType
    bench: _Bench
    measure: quality.Measure
    base: dict[str, Any]
    space: spaces.Space
    seed: int
    report: Callable[[str], None]

    def run(
        self, budget: int, directory: str | os.PathLike[str] | None, identity: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """All trials in order: point, value, pruned; the first is the default."""
        optuna = self.optuna
        storage = None
        if directory is not None:
            folder = pathlib.Path(directory).expanduser()
            _check_same(folder / REQUEST, identity)
            backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
            storage = optuna.storages.JournalStorage(backend)
        search = optuna.create_study(
            storage=storage,
            study_name="tuning",
            load_if_exists=True,
            direction="minimize" if self.measure.lower_is_better else "maximize",
            sampler=optuna.samplers.TPESampler(
                seed=self.seed + self._number(storage),
                n_startup_trials=max(4, min(10, budget // 3)),
            ),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
        )
        ended = self._ended(search)
        if ended:
            self.report(f"going on after {len(ended)} of {budget} trials")
        for number in range(len(ended), budget):
            if number == 0:
                search.enqueue_trial({}, user_attrs={"default": True})
            search.optimize(self._trial, n_trials=1, catch=())
            self._say(number + 1, search.get_trials()[-1], budget)
        return [self._told(trial) for trial in self._ended(search)][:budget]

    def _ended(self, search: Any) -> list[Any]:
        """Trials with a result, in order: those that were stopped on the way have none."""
        states = self.optuna.trial.TrialState
        return search.get_trials(states=(states.COMPLETE, states.PRUNED))

    def _number(self, storage: Any) -> int:
        """Trials that are there: a search that goes on must not try the same points again."""
        if storage is None or not storage.get_all_studies():
            return 0
        return len(storage.get_all_trials(storage.get_all_studies()[0]._study_id))

    def _trial(self, trial: Any) -> float:
        point = {} if trial.user_attrs.get("default") else self._point(trial)
        trial.set_user_attr("point", point)
        try:
            one = self.bench.cell(spaces.settings_of(self.base, point))
        except ValueError as error:
            trial.set_user_attr("reason", " ".join(str(error).split()))
            raise self.optuna.TrialPruned from None
        values: list[float] = []
        for block in range(self.bench.study.blocks):
            try:
                values.append(self.bench.block(one, block, self.measure.key))
            except ValueError as error:  # images that are not finite, say
                trial.set_user_attr("reason", " ".join(str(error).split()))
                raise self.optuna.TrialPruned from None
            trial.report(float(np.mean(values)), block)
            last = block + 1 == self.bench.study.blocks
            if not last and point and trial.should_prune():
                raise self.optuna.TrialPruned
        return float(np.mean(values))

    def _point(self, trial: Any) -> dict[str, Any]:
        point = {}
        for name, one in self.space.items():
            if isinstance(one, spaces.Choice):
                point[name] = trial.suggest_categorical(name, list(one.values))
            elif one.whole:
                point[name] = trial.suggest_int(name, int(one.low), int(one.high), log=one.log)
            else:
                point[name] = trial.suggest_float(name, one.low, one.high, log=one.log)
        return point

    def _told(self, trial: Any) -> dict[str, Any]:
        pruned = trial.state != self.optuna.trial.TrialState.COMPLETE
        return {
            "point": trial.user_attrs.get("point", {}),
            "value": math.nan if trial.value is None else trial.value,
            "pruned": pruned,
        }

    def _say(self, number: int, trial: Any, budget: int) -> None:
        point = trial.user_attrs.get("point", {})
        shown = grids.label(point, list(point)) if point else "the default"
        told = trial.user_attrs.get("reason", "given up")
        if trial.state == self.optuna.trial.TrialState.COMPLETE:
            told = f"{self.measure.key} {trial.value:.4g}"
        self.report(f"[{number}/{budget}] {shown}: {told}")


def _check_same(path: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Write what a tuning is about, or raise ValueError if another one is there."""
    new = json.loads(json.dumps(to_json(identity), default=str))
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError):
        write_json(path, new)
        return
    differing = [key for key in new if old.get(key) != new[key]]
    if differing:
        raise ValueError(
            f"{path.parent} holds a tuning of something else ({', '.join(differing)} differ); "
            "use another directory"
        )
