"""Rules that the values of a configuration obey, whatever data and machine it is for."""

from __future__ import annotations

import math
from typing import Any

import ml_collections

from edm_jax.train.sharding import LAYOUTS
from experiments.config import build

MAX_STEPS = 2**31 - 1
MAX_BATCH = 2**20


def _require(ok: bool, key: str, value: Any, rule: str) -> None:
    if not ok:
        raise build.ConfigError(f"config.{key} must be {rule}, got {value!r}")


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuse values that cannot work, before anything is built.

    Raises:
      ConfigError: naming the key, the rule and the value.
    """
    _check_training(config)
    _check_sampling(config)
    _require(0 <= config.seed < 2**32, "seed", config.seed, "0 or more, and below 2^32")
    data = config.data
    _require(data.num_threads >= 1, "data.num_threads", data.num_threads, "at least 1")
    for key in ("num_workers", "max_size", "resolution"):
        _require(data[key] >= 0, f"data.{key}", data[key], "0 or more")
    for key in ("dropout", "label_dropout"):
        value = config.model[key]
        _require(0 <= value < 1, f"model.{key}", value, "in [0, 1)")
    probability = config.augment.probability
    _require(0 <= probability <= 1, "augment.probability", probability, "in [0, 1]")
    for key, value in config.augment.items():
        _require(0 <= value < math.inf, f"augment.{key}", value, "0 or more, and finite")
    _check_choices(config)


def _check_training(config: ml_collections.ConfigDict) -> None:
    train = config.train
    for key in ("total_kimg", "lr", "loss_scaling", "log_kimg", "checkpoint_kimg", "adam_eps"):
        value = train[key]
        _require(0 < value < math.inf, f"train.{key}", value, "positive and finite")
    zero_or_more = (
        "lr_rampup_kimg ema_rampup_ratio sample_kimg keep_every_kimg grad_clip_norm micro_batch"
    )
    for key in zero_or_more.split():
        value = train[key]
        _require(0 <= value < math.inf, f"train.{key}", value, "0 or more, and finite")
    for key, least in (("batch_size", 1), ("max_bad_steps", 1), ("keep_last", 2)):
        _require(train[key] >= least, f"train.{key}", train[key], f"at least {least}")
    _require(train.batch_size <= MAX_BATCH, "train.batch_size", train.batch_size, f"<= {MAX_BATCH}")
    _check_steps(config)
    for key in ("adam_b1", "adam_b2"):
        _require(0 <= train[key] < 1, f"train.{key}", train[key], "in [0, 1)")
    _require(train.sharding in LAYOUTS, "train.sharding", train.sharding, " or ".join(LAYOUTS))
    halflives, key = tuple(train.ema_halflife_kimg), "train.ema_halflife_kimg"
    numbers = all(isinstance(h, int | float) and 0 <= h < math.inf for h in halflives)
    good = len(halflives) > 0 and numbers
    _require(good, key, halflives, "one or more finite numbers >= 0")
    names = set(build.build_averaging(config).names())
    _require(len(names) == len(halflives), key, halflives, "different numbers")


def _check_steps(config: ml_collections.ConfigDict) -> None:
    """The run and its intervals in steps, which are counted in 32 bits."""
    keys = [f"train.{what}_kimg" for what in ("total", "log", "sample", "checkpoint", "keep_every")]
    most = MAX_STEPS * config.train.batch_size / 1000
    for key in (*keys, "evaluation.every_kimg"):
        group, _, option = key.partition(".")
        value = config[group][option]
        _require(value <= most, key, value, f"at most {most:g}: {MAX_STEPS:,} steps")


def _check_sampling(config: ml_collections.ConfigDict) -> None:
    sampler, evaluation = config.sampler, config.evaluation
    for key in ("num_steps", "batch_size"):
        _require(sampler[key] >= 1, f"sampler.{key}", sampler[key], "at least 1")
    levels = (sampler.sigma_min, sampler.sigma_max)
    _require(
        0 < levels[0] < levels[1] < math.inf,
        "sampler.sigma_min",
        levels,
        "positive and below sampler.sigma_max",
    )
    _require(0 < sampler.rho < math.inf, "sampler.rho", sampler.rho, "positive")
    for key in ("s_noise", "s_churn"):
        _require(0 <= sampler[key] < math.inf, f"sampler.{key}", sampler[key], "0 or more")
    ends = (sampler.s_tmin, sampler.s_tmax)
    _require(0 <= ends[0] <= ends[1], "sampler.s_tmin", ends, "0 or more, and at most s_tmax")
    count = evaluation.num_images
    _require(count == 0 or count >= 2, "evaluation.num_images", count, "0, or at least 2")
    for key in ("first_seed", "trajectory_seeds"):
        _require(evaluation[key] >= 0, f"evaluation.{key}", evaluation[key], "0 or more")
    every = evaluation.every_kimg
    _require(0 <= every < math.inf, "evaluation.every_kimg", every, "0 or more, and finite")


def _check_choices(config: ml_collections.ConfigDict) -> None:
    """Names and constants of the choices; building them is cheap and checks the rest."""
    for group in ("noise", "weight", "precond"):
        name = config[group].name
        for key, value in config[group].get(name, {}).items():
            spread = key not in ("p_mean", "beta_min")  # all others are scales or counts
            good = math.isfinite(value) and (value > 0 or not spread)
            rule = "positive and finite" if spread else "finite"
            _require(good, f"{group}.{name}.{key}", value, rule)
    build.build_distribution(config)
    build.build_weight(config)
    try:
        build.build_preconditioning(config)
    except build.ConfigError:
        raise
    except ValueError as error:
        raise build.ConfigError(f"config.precond: {error}") from error
