"""Requests for images, a `Sampling` or a `Decoding`, completed and checked against a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from edm_jax import samplers
from edm_jax.ardm.request import Decoding
from edm_jax.arguments import check_by_name, check_kind, check_protocol
from edm_jax.guidance.compose import shifts_mean
from edm_jax.model import Model
from edm_jax.names import brief
from edm_jax.reflected.sampling import check_sampler
from edm_jax.samplers import Churn
from edm_jax.sampling import Sampling
from edm_jax.typing import PyTree

CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
GRID = ("num_steps", "sigma_min", "sigma_max", "rho")


def default_request(model: Model) -> Sampling | Decoding:
    """How images are drawn where nothing is said: Heun's method, or one variable at a time."""
    return Decoding() if model.kind == "ardm" else Sampling()


def checked(model: Model, sampling: Sampling | Decoding | None) -> Sampling | Decoding:
    """The request; the default one of the model for None."""
    if sampling is None:
        return default_request(model)
    if not isinstance(sampling, Decoding):
        check_kind("sampling", sampling, Sampling, 'use edm_jax.Sampling("heun", num_steps=18)')
    return sampling


def completed(
    sampling: Sampling | Decoding, churn: Churn | None, settings: Mapping[str, Any]
) -> Sampling | Decoding:
    """A request completed by fields and options given by their names.

    Raises:
      ValueError: one that the request does not have, or that is given twice with different
        values.
    """
    fields = {field.name: field.default for field in dataclasses.fields(sampling)}
    if isinstance(sampling, Decoding):
        if idle := [*settings.keys() - fields, *(["churn"] if churn is not None else [])]:
            raise ValueError(
                f"{idle[0]} is about noise levels, which a model of kind 'ardm' has none of; it "
                f"takes {' and '.join(sorted(fields))}"
            )
        if "policy" in settings:  # its own number of calls
            sampling = dataclasses.replace(sampling, policy="uniform")
            if not isinstance(settings["policy"], str):
                sampling = dataclasses.replace(sampling, num_steps=None)
        return dataclasses.replace(sampling, **settings)
    idle = [name for name in ("discretization", *GRID) if name in settings]
    if idle and (sampling.sigmas is not None or settings.get("sigmas") is not None):
        raise ValueError(f"sigmas are the noise levels themselves: leave {idle[0]} out")
    changes = {key: value for key, value in settings.items() if key in fields}
    given = changes.pop("options", None)
    check_by_name("options", given)
    options = dict(sampling.options)
    _put(options, given or {})
    _put(options, {key: value for key, value in settings.items() if key not in fields})
    if churn is not None:
        check_kind("churn", churn, Churn, "use Churn(s_churn)")
        if changes.get("sampler", sampling.sampler) == "heun":
            changes["sampler"] = "edm"
        _put(options, {name: float(getattr(churn, name)) for name in CHURN})
    made = dataclasses.replace(sampling, **changes, options=options)
    for name, default in fields.items():
        before, after = getattr(sampling, name), getattr(made, name)
        if name in changes and before != default and before != after:
            raise _twice(name, before, after)
    return made


def check_request(
    model: Model, sampling: Sampling | Decoding, guidance: PyTree | None = None
) -> samplers.Request | np.ndarray:
    """What is asked of a model, checked as a whole before anything is drawn.

    Returns:
      The sampler with its options; of a model of kind "ardm" the policy of every stage.

    Raises:
      ValueError: for a request that cannot be carried out, or that the model cannot.
    """
    if model.kind == "classifier":
        raise ValueError(
            "a classifier draws no images; it guides a model that does, see edm_jax.guidance"
        )
    wanted = Decoding if model.kind == "ardm" else Sampling
    if not isinstance(sampling, wanted):
        raise ValueError(
            f"a model of kind {model.kind!r} is drawn from by a {wanted.__name__}, got "
            f"{type(sampling).__name__}"
        )
    if isinstance(sampling, Decoding):
        if guidance is not None:
            raise ValueError("guidance changes a denoiser, and a model of kind 'ardm' has none")
        return sampling.of_model(model)
    # First, as what a sampler asks of its levels no cure makes fit a box.
    info, grid = samplers.get(sampling.sampler), sampling.grid(model.preconditioning)
    check_sampler(info, model.kind, grid)
    asked = sampling.request(model.preconditioning)
    if guidance is not None:
        check_guidance(guidance, model, asked)
    if learns_variance(asked):
        images = jax.ShapeDtypeStruct((1, *model.image_shape), np.float32)
        denoise = model.denoiser(model.variables, variance=True)  # refuses other networks
        jax.eval_shape(denoise, images, jax.ShapeDtypeStruct((), np.float32))
    return asked


def check_guidance(guidance: PyTree, model: Model, asked: samplers.Request) -> None:
    """Raise ValueError for a guidance that cannot act on a model, or under a sampler."""
    check_protocol("guidance", guidance, ("guide", "check"), "see edm_jax.guidance")
    guidance.check(model)
    if shifts_mean(guidance) and "shift" not in asked.info.options:
        raise ValueError(
            "classifier guidance with form='mean' shifts the mean of the steps of the sampler "
            f"'ddpm', got {asked.sampler!r}; use form='denoiser'"
        )


def learns_variance(asked: samplers.Request) -> bool:
    """Whether a sampler takes its variance from the network: D then comes with v, as a pair."""
    return ("variance", "learned") in asked.static


def network_calls(model: Model, sampling: Sampling | Decoding) -> int | None:
    """Network calls for an image; None where the data decide (adaptive samplers)."""
    if isinstance(sampling, Decoding):
        policies = sampling.of_model(model)
        return policies.shape[0] * (policies.shape[1] - 1)
    return sampling.nfe(model.preconditioning)


def _put(options: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add options; ValueError for another value of one that is there."""
    for name, value in more.items():
        if name in options and not np.array_equal(options[name], value):
            raise _twice(name, options[name], value)
        options[name] = value


def _twice(name: str, first: Any, second: Any) -> ValueError:
    return ValueError(
        f"{name} is given twice, as {brief(first)} and {brief(second)}; leave one out, or change "
        f"a request with dataclasses.replace(sampling, {name}=...)"
    )
