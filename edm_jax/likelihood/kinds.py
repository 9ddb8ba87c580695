"""How the likelihood of each kind of model is made: one entry of `KINDS` for each.

`log_likelihood`, data sets (`record`) and the command line look a model up here and know
nothing else of its kind.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edm_jax.arguments import check_kind
from edm_jax.likelihood import autoregressive, denoisers, reflected
from edm_jax.likelihood.results import PassFn, Settings
from edm_jax.model import Model
from edm_jax.pytree import short_repr
from edm_jax.typing import ArrayLike


@short_repr
@dataclasses.dataclass(frozen=True)
class Kind:
    """What has a likelihood, and how.

    Attributes:
      methods: of `log_likelihood` that it has.
      settings: (model, **asked) -> Settings with their defaults; ValueError for what cannot work.
      arrays: (images, model, settings) -> ``{"x": (B, ...), ...}``, what a pass takes of every
        image besides ``ids`` and label ``rows``; ValueError for images that do not fit.
      prepare: (model, settings) -> the pass over a batch.
      dequantisation: default for bytes, and for floats.
      told: what else the number depends on, for the JSON.
      codes: whether its flow gives images latent codes (`encode`, `decode`).
    """

    methods: tuple[str, ...]
    settings: Callable[..., Settings]
    arrays: Callable[[ArrayLike, Model, Settings], dict[str, np.ndarray]]
    prepare: Callable[[Model, Settings], PassFn]
    dequantisation: tuple[str, str]
    told: Mapping[str, str]
    codes: bool = False

    def default_dequantisation(self, images: ArrayLike) -> str:
        """Of images of their type."""
        return self.dequantisation[np.asarray(images).dtype != np.uint8]


KINDS: dict[str, Kind] = {
    "denoiser": Kind(
        methods=("flow", "bound"),
        settings=denoisers.settings,
        arrays=denoisers.arrays,
        prepare=denoisers.prepare,
        dequantisation=("gaussian", "none"),
        told={"prior": "N(0, sigma_max^2)", "data_scaling": "v / 127.5 - 1"},
        codes=True,
    ),
    "reflected": Kind(
        methods=("flow", "bound"),
        settings=reflected.settings,
        arrays=reflected.arrays,
        prepare=reflected.prepare,
        dequantisation=("gaussian", "none"),
        told={"prior": "uniform on [-1, 1]", "data_scaling": "v / 127.5 - 1"},
    ),
    "ardm": Kind(
        methods=("bound",),
        settings=autoregressive.settings,
        arrays=autoregressive.arrays,
        prepare=autoregressive.prepare,
        dequantisation=(autoregressive.DISCRETE, autoregressive.DISCRETE),
        told={"estimate": "one random call of the policy in a random order, for each pass"},
    ),
}


def of(model: Model) -> Kind:
    """That of a model; ValueError for one whose images have no likelihood."""
    check_kind("model", model, Model, "edm_jax.load or from_denoiser makes one")
    if model.kind not in KINDS:
        raise ValueError(
            f"the likelihood is that of a {' or '.join(KINDS)}, got a model of kind {model.kind!r}"
        )
    return KINDS[model.kind]


def check_codes(model: Model) -> None:
    """Raise ValueError unless a model's images have latent codes."""
    check_kind("model", model, Model, "edm_jax.load or from_denoiser makes one")
    if model.kind not in KINDS or not KINDS[model.kind].codes:
        having = " or ".join(name for name, kind in KINDS.items() if kind.codes)
        raise ValueError(
            f"latent codes are those of a {having}, got a model of kind {model.kind!r}"
        )


def likelihood_settings(model: Model, **asked: Any) -> Settings:
    """Settings with their defaults for a model; arguments as in `log_likelihood`.

    Raises:
      ValueError: for a value, or a combination, that cannot work.
    """
    return of(model).settings(model, **asked)


def describe_model(model: Model) -> dict[str, Any]:
    """Which model a number belongs to, as JSON values."""
    return {
        "network": model.description["network"]["name"],
        "precond": getattr(model.preconditioning, "name", None),
        "image_shape": list(model.image_shape),
        "num_classes": model.num_classes,
        "ema": model.variant,
        "progress": model.description.get("progress"),
    }


def settings_json(model: Model, settings: Settings) -> dict[str, Any]:
    """Settings and model as JSON values, for a result or a file."""
    values = {
        **dataclasses.asdict(settings),
        "probe": "rademacher" if settings.num_probes else None,
        **of(model).told,
        "model": describe_model(model),
    }
    return json.loads(json.dumps(values))
