"""The trials of a tuning: a search that is kept, trial by trial, and goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from edm_jax.store.atomic import to_json
from edm_jax.studies import grid as grids
from edm_jax.studies import quality
from edm_jax.studies import space as spaces
from edm_jax.studies.bench import Bench
from edm_jax.studies.files import read_dictionary, write_json

JOURNAL, REQUEST = "trials.log", "tuning.json"


def load_optuna() -> ModuleType:
    """The optimiser, silent; ValueError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ValueError("tuning needs Optuna: pip install 'edm_jax[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@dataclasses.dataclass
class Search:
    """The trials."""

    optuna: ModuleType
    bench: Bench
    measure: quality.Measure
    base: dict[str, Any]
    space: spaces.Space
    seed: int
    report: Callable[[str], None]

    def run(self, budget: int, folder: pathlib.Path | None) -> list[dict[str, Any]]:
        """All trials in order: point, value, pruned, impossible; the first is the default."""
        optuna = self.optuna
        storage = None
        if folder is not None:
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
        if len(ended) >= budget:
            self.report(f"all {budget} trials are there already")
        elif ended:
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
            "impossible": pruned and "reason" in trial.user_attrs,
        }

    def _say(self, number: int, trial: Any, budget: int) -> None:
        point = trial.user_attrs.get("point", {})
        shown = grids.label(point, list(point)) if point else "the default"
        told = trial.user_attrs.get("reason", "given up")
        if trial.state == self.optuna.trial.TrialState.COMPLETE:
            told = f"{self.measure.key} {trial.value:.4g}"
        self.report(f"[{number}/{budget}] {shown}: {told}")


def check_same(path: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Write what a tuning is about, or raise ValueError if another one is there."""
    new = json.loads(json.dumps(to_json(identity), default=str))
    old = read_dictionary(path, "tuning")
    if old is None:
        write_json(path, new)
        return
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differing:
        raise ValueError(
            f"{path.parent} holds a tuning of something else ({', '.join(differing)} differ); "
            "use another directory"
        )
