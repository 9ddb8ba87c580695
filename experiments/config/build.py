"""From a configuration to an experiment: the only place that knows a configuration's keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from edm_jax import models, samplers
from edm_jax.ardm.registry import PROCESSES
from edm_jax.ardm.registry import build as build_process
from edm_jax.arguments import check_number
from edm_jax.augment.drawing import AugmentPipe
from edm_jax.data.sources.registry import SOURCES
from edm_jax.noise import DISTRIBUTIONS, WEIGHTS, DiscreteLevels
from edm_jax.precond import PRECONDITIONINGS
from edm_jax.reflected.sampling import check_sampler
from edm_jax.train.averaging import Averaging
from edm_jax.train.objectives import KINDS, OBJECTIVES
from edm_jax.train.optimizer import make_optimizer
from experiments.config.experiment import SHARED, Experiment, Network
from experiments.config.groups import ConfigError, choice, construct, named, pick, plain
from experiments.config.options import Data, Evaluation, Intervals, Training
from experiments.config.sampling import read_sampling


def experiment(config: ml_collections.ConfigDict | Mapping[str, Any]) -> Experiment:
    """Read a configuration, which nothing after this does.

    No data set is opened, and nothing is traced or compiled.

    Args:
      config: resolved; see configs/base.py.  Plain dictionaries, as config.json holds them,
        will do.

    Raises:
      ConfigError: for the first value that cannot work: its key, and what the object that it
        is for says of it.
    """
    values = plain(config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config)
    try:
        return _read(values)
    except KeyError as error:
        raise ConfigError(
            f"the configuration has no {error}; start from configs/base.py, which has all options"
        ) from error


def _read(values: Mapping[str, Any]) -> Experiment:
    train = values["train"]
    with named("config", ("seed",)):
        check_number("seed", values["seed"], least=0, below=2**32)
    with named("config.sampler", ("batch_size",)):
        check_number("batch_size", values["sampler"]["batch_size"], least=1)
    with named("config.train", train):
        training = Training(
            **{field.name: train[field.name] for field in dataclasses.fields(Training)}
        )
    kind = KINDS.get(values["objective"]["name"], "denoiser")
    name, constants = choice(values["precond"])
    pick(OBJECTIVES, values["objective"]["name"], "config.objective.name")
    read = Experiment(
        config=values,
        seed=values["seed"],
        data=_data(values["data"]),
        network=_network(values["model"]),
        preconditioning=construct(PRECONDITIONINGS, values["precond"], "config.precond"),
        precond={"name": name, **constants},
        objective=_chosen(values["objective"]),
        distribution=construct(DISTRIBUTIONS, values["noise"], "config.noise"),
        weight=construct(WEIGHTS, values["weight"], "config.weight"),
        augment=_augment(values["augment"]),
        optimizer=_optimizer(train),
        averaging=_averaging(train),
        training=training,
        intervals=_intervals(train, values["evaluation"]),
        sampling=read_sampling(values["sampler"], kind),
        sample_batch=values["sampler"]["batch_size"],
        evaluation=_evaluation(values["evaluation"]),
    )
    if kind == "ardm":
        return read
    _check_discrete(read)
    with named("config.sampler"):
        # The range of other networks is preflight's to judge, with all else that is wrong.
        bounds = read.preconditioning if read.kind == "reflected" else None
        grid = read.sampling.grid(bounds)
        check_sampler(samplers.get(read.sampling.sampler), read.kind, grid)
    return read


def _check_discrete(read: Experiment) -> None:
    """Raise ConfigError for discrete levels to train on that are not those of the network."""
    network, drawn = read.preconditioning, read.distribution
    if not isinstance(drawn, DiscreteLevels) or not network.rounds:
        return
    if read.objective["name"] == "ddpm":  # has its own, which it compares itself
        return
    levels = np.asarray(drawn.levels[:-1], np.float64)
    # The cosine table in float32, as published networks carry it, is off by 5e-4.
    if not np.allclose(network.round_sigma(levels), levels, rtol=2e-3):
        raise ConfigError(
            "config.noise.discrete: these are not the levels of config.precond.iddpm; give both "
            "the same schedule and num_levels"
        )


def _chosen(group: Mapping[str, Any]) -> dict[str, Any]:
    """A choice without the groups of the names that were not chosen."""
    chosen = {key: value for key, value in group.items() if key in ("name", group["name"])}
    if group["name"] == "order_agnostic":
        options = dict(chosen["order_agnostic"])
        options["process"] = _process(options["process"])
        chosen["order_agnostic"] = options
    return chosen


def _process(group: Mapping[str, Any]) -> dict[str, Any]:
    """``{"name": ..., **arguments}`` of `ardm.registry.build`, which takes them."""
    key = "config.objective.order_agnostic.process"
    name, constants = choice(group)
    pick(PROCESSES, name, f"{key}.name")
    # JSON has no placeholders: None is what the constructor does by itself.
    constants = {option: value for option, value in constants.items() if value is not None}
    with named(f"{key}.{name}", constants):
        build_process(name, **constants)
    return {"name": name, **constants}


def _data(group: Mapping[str, Any]) -> Data:
    name, options = choice(group, "source")
    pick(SOURCES, name, "config.data.source")
    plain = {key: value for key, value in group.items() if not isinstance(value, Mapping)}
    with named("config.data", plain):
        return Data(**plain, options=options)


def _network(group: Mapping[str, Any]) -> Network:
    name, options = choice(group)
    pick(models.NETWORKS, name, "config.model.name")
    return Network(name, options, {key: group[key] for key in SHARED})


def _augment(group: Mapping[str, Any]) -> AugmentPipe | None:
    constants = {key: value for key, value in group.items() if key != "probability"}
    with named("config.augment", constants, {"p": "config.augment.probability"}):
        pipe = AugmentPipe(p=group["probability"], **constants)
    return pipe if pipe.p else None


def _optimizer(train: Mapping[str, Any]) -> Any:
    adam = {name: f"config.train.adam_{name}" for name in ("b1", "b2", "eps")}
    with named("config.train", train, adam):
        return make_optimizer(
            batch_size=train["batch_size"],
            lr=train["lr"],
            lr_rampup_kimg=train["lr_rampup_kimg"],
            b1=train["adam_b1"],
            b2=train["adam_b2"],
            eps=train["adam_eps"],
            grad_clip_norm=train["grad_clip_norm"],
            weight_decay=train["weight_decay"],
            lr_end_kimg=train["lr_end_kimg"],
        )


def _averaging(train: Mapping[str, Any]) -> Averaging:
    keys = {
        "halflives_kimg": "config.train.ema_halflife_kimg",
        "rampup_ratio": "config.train.ema_rampup_ratio",
    }
    ratio = train["ema_rampup_ratio"]
    with named("config.train", (), keys):
        return Averaging(train["ema_halflife_kimg"], ratio if ratio else None)


def _intervals(train: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Intervals:
    names = "total_kimg log_kimg checkpoint_kimg sample_kimg keep_every_kimg".split()
    with named("config.train", names, {"every_kimg": "config.evaluation.every_kimg"}):
        intervals = Intervals.from_kimg(
            train["batch_size"],
            **{name: train[name] for name in names},
            every_kimg=evaluation["every_kimg"],
        )
    if evaluation["num_images"]:
        return intervals
    return dataclasses.replace(intervals, evaluation=0)


def _evaluation(group: Mapping[str, Any]) -> Evaluation:
    options = {key: value for key, value in group.items() if key != "every_kimg"}
    with named("config.evaluation", options):
        return Evaluation(**options)


__all__ = ["ConfigError", "Experiment", "experiment"]
