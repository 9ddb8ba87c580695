"""The flags of a sampling request, and the request that they make of another."""

from __future__ import annotations

import dataclasses
import inspect
import types
from typing import TYPE_CHECKING, Any

from experiments import flags
from experiments.config.flag import UsageError

if TYPE_CHECKING:
    from edm_jax.ardm.request import Decoding
    from edm_jax.generate import Sampling

GRID = ("discretization", "num_steps", "sigma_min", "sigma_max", "rho")
CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")


def _levels(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("must be numbers with commas between, the last one 0") from None


def _policy(text: str) -> str | tuple[int, ...]:
    from experiments.config.sampling import parse_policy

    return parse_policy(text)


FLAGS = (
    flags.text("sampler", "Which sampler; those there are stand below.", example="dpmpp_2m"),
    flags.text("sampler_options", "Options of the sampler.", example="eta=0.5,solver=euler"),
    flags.text("discretization", "Which time steps, of EDM Table 1 and others.", example="edm"),
    flags.integer("num_steps", "Steps N.", least=1, example="18"),
    flags.number("sigma_min", "Lowest noise level before 0.", example="0.002"),
    flags.number("sigma_max", "Highest noise level.", example="80"),
    flags.number("rho", "Warp of the noise levels.", example="7"),
    flags.Flag(
        "sigmas",
        "The noise levels themselves, instead of the five above.",
        convert=_levels,
        example="80,20,5,1,0.2,0",
    ),
    flags.number(
        "s_churn",
        "Amount of churn; 0 is deterministic. Without --sampler it makes Heun's the EDM sampler.",
        least=0,
        example="40",
    ),
    flags.number("s_tmin", "Lowest noise level that churns.", least=0, example="0.05"),
    flags.number("s_tmax", "Highest noise level that churns.", least=0, example="50"),
    flags.number("s_noise", "Scale of the churned noise.", least=0, example="1.003"),
    flags.Flag(
        "policy",
        "Of autoregressive models: uniform, optimal, or the numbers of known variables.",
        convert=_policy,
        example="optimal",
    ),
    flags.integer("batch_size", "Images at a time.", least=1, example="64"),
)


def more_help() -> str:
    """The samplers with their options, and the discretizations."""
    from edm_jax import grids, samplers

    lines = ["Samplers, and what each takes as --sampler_options:"]
    for name, info in samplers.SAMPLERS.items():
        options = ", ".join(f"{key}={_shown(value)}" for key, value in _settings(info).items())
        told = ", ".join(filter(None, (options, "churn" if churns(info) else "")))
        lines.append(f"  {name:<30} {told}".rstrip())
    lines.append("With churn: --s_churn, --s_tmin, --s_tmax, --s_noise.")
    return "\n".join([*lines, "", f"Discretizations: {', '.join(grids.GRIDS)}"])


def _settings(info: Any) -> dict[str, Any]:
    """The options of a sampler that its own entry leaves open, and their defaults."""
    from edm_jax import samplers

    parameters = inspect.signature(info.fn).parameters
    names = [n for n in samplers.accepted(info) if n not in (*CHURN, *info.presets)]
    names += [n for n in CHURN if n in parameters]
    return {name: parameters[name].default for name in names}


def _shown(value: Any) -> str:
    from edm_jax import schedules

    for table in (schedules.SCHEDULES, schedules.SCALINGS):
        for name, make in table.items():
            if type(value) is make:
                return name
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def churns(info: Any) -> bool:
    """Whether a sampler adds noise before its steps (EDM Algorithm 2)."""
    return "churn" in info.options


def decoding(values: types.SimpleNamespace, base: Decoding) -> Decoding:
    """A request for an autoregressive model with what the flags say about it replaced.

    Raises:
      UsageError: for flags about noise levels, or that contradict each other.
    """
    for name in (*GRID, *CHURN, "sigmas", "sampler_options"):
        if name != "num_steps" and getattr(values, name) is not None:
            raise UsageError(
                f"--{name} is about noise levels, which this model has none of; it is drawn from "
                "with --num_steps and --policy"
            )
    if values.sampler not in (None, base.to_json()["sampler"]):
        raise UsageError(
            f"--sampler={values.sampler}: the samplers are those of denoisers; this model is drawn "
            "from with --num_steps and --policy"
        )
    changes = {
        name: getattr(values, name)
        for name in ("num_steps", "policy")
        if getattr(values, name) is not None
    }
    if not isinstance(changes.get("policy", "uniform"), str):
        if "num_steps" in changes:
            raise UsageError("--policy says the number of calls itself: leave --num_steps out")
        changes["num_steps"] = None
    return dataclasses.replace(base, **changes)


def request(values: types.SimpleNamespace, base: Sampling | Decoding) -> Sampling | Decoding:
    """A request with what the flags say about it replaced.

    What belongs to a choice goes with it: another sampler starts with its own options,
    another discretization with its own range.

    Args:
      values: of FLAGS.
      base: the request without any flag.

    Raises:
      UsageError: for flags that contradict each other.
      ValueError: for a request that no sampler can carry out.
    """
    from edm_jax import samplers
    from edm_jax.ardm.request import Decoding
    from experiments.config.sampling import parse_options

    if isinstance(base, Decoding):
        return decoding(values, base)
    if values.policy is not None:
        raise UsageError("--policy is for autoregressive models; a denoiser has a --sampler")
    given = {name: getattr(values, name) for name in (*GRID, "sigmas")}
    given = {name: value for name, value in given.items() if value is not None}
    if "sigmas" in given and len(given) > 1:
        other = next(name for name in given if name != "sigmas")
        raise UsageError(f"--sigmas are the noise levels themselves: leave --{other} out")
    changes: dict[str, Any] = dict(given)
    if given:
        changes.setdefault("sigmas", None)
    if values.discretization not in (None, base.discretization):
        for name in ("sigma_min", "sigma_max", "rho"):
            changes.setdefault(name, None)
    name = base.sampler if values.sampler is None else values.sampler
    options = dict(base.options)
    if name != base.sampler:
        options = {}
    churn = {key: getattr(values, key) for key in CHURN if getattr(values, key) is not None}
    if not values.sampler and "s_churn" in churn and name in ("heun", "edm"):
        name = "edm" if churn["s_churn"] else "heun"
        options = options if churn["s_churn"] else {}
        churn = churn if churn["s_churn"] else {}
    info = samplers.get(name)
    if info.note:
        print(info.note)
    for key in churn:
        if not churns(info) and key not in info.options:
            raise UsageError(f"--{key}={churn[key]:g}: {_no_churn(key, name)}")
        if churns(info) and not ({"s_churn", "churn"} & (churn.keys() | options.keys())):
            raise UsageError(f"--{key}={churn[key]:g}: without churn it means nothing; {_GIVE}")
    try:
        options |= churn | parse_options(values.sampler_options or "")
    except ValueError as error:
        raise UsageError(f"--sampler_options: {error}") from None
    result = dataclasses.replace(base, **changes, sampler=name, options=options)
    result.check()
    return result


_GIVE = "give --s_churn too"


def _no_churn(key: str, name: str) -> str:
    """Why a constant of churn says nothing about a sampler, and what to do."""
    if name == "heun" and key != "s_churn":
        return f"without churn it means nothing; {_GIVE}"
    return f"the sampler {name!r} has no churn; --sampler=edm and --sampler=general have"
