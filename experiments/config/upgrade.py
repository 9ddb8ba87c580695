"""Configurations of older runs in the words of today's; what they compute does not change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Tree = dict[str, Any]

# Options of both networks when they lay side by side, and those that SongUNet alone had.
_SONG_ONLY = (
    "embedding_type",
    "channel_mult_noise",
    "encoder_type",
    "decoder_type",
    "resample_filter",
)
# What None stands for now.
_EDM_LEVELS = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


def _networks_by_name(config: Tree) -> None:
    """``config.model`` had the options of all networks; now each has a group."""
    model = config.get("model")
    if not isinstance(model, dict) or "model_channels" not in model:
        return
    name = model.get("name")
    options = {key: model[key] for key in model if key not in ("name", "dtype", "remat")}
    if name != "SongUNet":
        options = {key: value for key, value in options.items() if key not in _SONG_ONLY}
    shared = {key: model[key] for key in ("name", "dtype", "remat") if key in model}
    config["model"] = shared | {name: options}


def _samplers_by_name(config: Tree) -> None:
    """There was one sampler, Heun's, with or without churn, on EDM's noise levels."""
    if isinstance(config.get("sampler"), dict):
        sampler = dict(config["sampler"])
        if "name" not in sampler:
            for key, value in _EDM_LEVELS.items():
                if sampler.get(key) == value:
                    sampler[key] = None
        old = {"name": "heun", "discretization": "edm", "sigmas": [], "options": ""}
        config["sampler"] = old | sampler


def _objectives_by_name(config: Tree) -> None:
    """There was one objective."""
    if "train" in config:
        config.setdefault("objective", {"name": "denoising"})


def _evaluations_of_features(config: Tree) -> None:
    """There were metrics of pixels only, in one block, with every class equally often."""
    if isinstance(config.get("evaluation"), dict):
        old = {"every_num_images": 0, "blocks": 1, "labels": "balanced"}
        paths = {"inception": "", "dinov2": "", "reference": ""}
        config["evaluation"] = old | paths | config["evaluation"]


def _published_tables(config: Tree) -> None:
    """There was one table of discrete levels, the rate did not fall, and weights did not decay."""
    old = {"schedule": "cosine", "num_levels": 1000}
    for group, name in (("precond", "iddpm"), ("noise", "discrete")):
        if isinstance(config.get(group), dict) and isinstance(config[group].get(name), dict):
            config[group] = config[group] | {name: old | config[group][name]}
    if isinstance(config.get("train"), dict):
        config["train"] = {"weight_decay": 0.0, "lr_end_kimg": 0.0} | config["train"]


def _policies(config: Tree) -> None:
    """No sampler had a policy."""
    if isinstance(config.get("sampler"), dict):
        config["sampler"] = {"policy": "uniform"} | config["sampler"]


# In the order in which the words changed; each leaves alone what has the newer words.
STEPS: tuple[Callable[[Tree], None], ...] = (
    _networks_by_name,
    _samplers_by_name,
    _objectives_by_name,
    _evaluations_of_features,
    _published_tables,
    _policies,
)


def upgrade(config: Mapping[str, Any]) -> Tree:
    """A configuration, as config.json holds it, in today's words."""
    result = dict(config)
    for step in STEPS:
        step(result)
    return result


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    return float(value) if value in ("inf", "-inf", "nan") else value


def parse_config(text: str) -> dict[str, Any]:
    """A configuration from the text of a config.json, in today's words.

    Raises:
      ValueError: if it holds none.
    """
    config = _from_json(json.loads(text))
    if not isinstance(config, dict):
        raise ValueError(f"it holds a {type(config).__name__}, not a configuration")
    return upgrade(config)
