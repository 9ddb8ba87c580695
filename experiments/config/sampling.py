"""``config.sampler`` as the one request that everything which draws images takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edm_jax import samplers
from edm_jax.ardm.request import NAME, Decoding
from edm_jax.generate import Sampling
from edm_jax.reflected.sampling import check_on_box
from experiments.config.groups import ConfigError, named

CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")


def parse_options(text: str) -> dict[str, Any]:
    """Options of a sampler: ``eta=0.5,solver=euler``, or a JSON object.

    Raises:
      ValueError: for anything else.
    """
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text, object_pairs_hook=_once))
        except json.JSONDecodeError as error:
            raise ValueError(f"options {text!r} is no JSON object: {error}") from None
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise ValueError(
                f"options {text!r}: {part!r} is not name=value; write them like eta=0.5,order=3"
            )
        if name in options:
            raise ValueError(f"options {text!r}: {name!r} stands there twice")
        try:
            options[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            options[name] = value
    return options


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"options name {name!r} twice")
        found[name] = value
    return found


def parse_policy(text: str) -> str | tuple[int, ...]:
    """A policy of autoregressive diffusion: its name, or the numbers of ``0,4,16,64``.

    Raises:
      ValueError: for something else that begins with a digit.
    """
    if not text[:1].isdigit():
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"policy must be uniform, optimal, or numbers such as 0,4,16,64, got {text!r}"
        ) from None


def read_decoding(group: Mapping[str, Any]) -> Decoding:
    """The request of a ``config.sampler`` group for autoregressive diffusion.

    Raises:
      ConfigError: for the name of a sampler of denoisers, or a policy that is none.
    """
    if group["name"] != NAME:
        raise ConfigError(
            f"config.sampler.name: a model of kind 'ardm' is drawn from by {NAME!r}, got "
            f"{group['name']!r}"
        )
    with named("config.sampler", ("num_steps", "policy")):
        policy = group["policy"]
        policy = parse_policy(policy) if isinstance(policy, str) else tuple(policy)
        return Decoding(group["num_steps"] if isinstance(policy, str) else None, policy)


def read_sampling(group: Mapping[str, Any], kind: str = "denoiser") -> Sampling | Decoding:
    """The request of a ``config.sampler`` group, for a kind of model.

    With churn, the sampler called ``heun`` is ``edm``, its stochastic form (EDM Algorithm 2);
    without, the three other numbers of churn mean nothing.

    Raises:
      ConfigError: for an unknown sampler or option, or a grid that is none.
    """
    if kind == "ardm":
        return read_decoding(group)
    name, churn = group["name"], {key: group[key] for key in CHURN}
    known = ("name", "discretization", "num_steps", "sigma_min", "sigma_max", "rho", "sigmas")
    with named("config.sampler", (*known, "options", *CHURN), {"sampler": "config.sampler.name"}):
        options = parse_options(group["options"])
        samplers.Churn(**churn)
        if churn["s_churn"]:
            name = "edm" if name == "heun" else name
            if "churn" not in samplers.get(name).options:
                raise ConfigError(
                    f"config.sampler.s_churn is {churn['s_churn']:g}, but the sampler {name!r} has "
                    "no churn; set it to 0"
                )
            options |= churn
        elif group["s_noise"] != 1 and "s_noise" in samplers.accepted(samplers.get(name)):
            options.setdefault("s_noise", group["s_noise"])
        if kind == "reflected":
            check_on_box(samplers.get(name))
        sampling = Sampling(
            sampler=name,
            discretization=group["discretization"],
            num_steps=group["num_steps"],
            sigma_min=group["sigma_min"],
            sigma_max=group["sigma_max"],
            rho=group["rho"],
            sigmas=tuple(group["sigmas"]) or None,
            options=options,
        )
        sampling.check()
    return sampling
