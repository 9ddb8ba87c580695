"""A sampler and its options from JSON values: checked once, then an argument of a program.

The signature of a sampler says what an option is.  An `ArrayLike` is a number and traced, so
that a new value never recompiles; a str, bool or int is a name, switch or count and part of
the program.  What is neither has a form in numbers and names:

    churn       s_churn, s_tmin, s_tmax, s_noise   (`Churn`; none of them given: no churn)
    schedule    "linear", "vp" or "ve"             (`schedules.SCHEDULES`; VP fitted to the grid)
    scaling     "none" or "vp"                     (`schedules.SCALINGS`)
    segments    [[levels, repeats, sigma_lo, sigma_hi], ...]              (`restart.Segment`)

Functions (noise_fn, round_sigma) and the options of the loop are given where it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import grids, names, schedules, seeds
from edm_jax.pytree import pytree_dataclass
from edm_jax.samplers.info import SAMPLERS, SamplerInfo
from edm_jax.samplers.registry import get
from edm_jax.samplers.restart import Segment
from edm_jax.samplers.stochastic import Churn
from edm_jax.schedules import Scaling, Schedule
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key, PyTree

JsonValue = str | bool | int | float | list | None
_CHURN = tuple(field.name for field in dataclasses.fields(Churn))
_BESIDE = ("stats",)  # changes what is returned: no setting of a request
# Enough for every sampler of the library, where no grid is given.
_STEPS = 24


@pytree_dataclass
class Request:
    """A sampler with its options, as `request` makes it; an argument of jitted functions.

    Attributes:
      sampler: name of the sampler; part of the program.
      static: (option, value) pairs that are part of the program.
      traced: option -> numbers, or a pytree of them.
    """

    sampler: str = dataclasses.field(metadata={"static": True})
    static: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})
    traced: Mapping[str, PyTree]

    @property
    def info(self) -> SamplerInfo:
        """The sampler and its promises."""
        return get(self.sampler)

    def nfe(self, num_steps: int) -> int | None:
        """Network calls for N steps; None if the data decide."""
        return self.info.nfe(num_steps, **dict(self.static), **self.traced)

    def __call__(
        self, denoise: DenoiseFn, x: Array, sigmas: ArrayLike, key: Key | None = None, **more: Any
    ) -> Any:
        """Run the sampler; ``more`` are options of the loop, functions, preconditioning."""
        return self.info(denoise, x, sigmas, key, **dict(self.static), **self.traced, **more)


def accepted(info: SamplerInfo) -> dict[str, str]:
    """The options that a sampler takes as JSON values, each with what it is.

    Returns:
      name -> "number", "name", "name or number", "true or false", "count" or "list".
    """
    kinds = {}
    for option, annotation in _annotations(info.fn).items():
        if option in _BESIDE:
            continue
        if _is(annotation, Churn):
            kinds |= dict.fromkeys(_CHURN, "number")
        elif _kind(annotation) is not None:
            kinds[option] = _kind(annotation)
    return kinds


def request(
    sampler: str,
    options: Mapping[str, JsonValue] | None = None,
    *,
    sigmas: ArrayLike | None = None,
) -> Request:
    """A checked Request from a name and JSON values.

        asked = request("edm", {"s_churn": 40, "s_noise": 1.003}, sigmas=sigmas)
        run = jax.jit(lambda asked, x, sigmas, keys: asked(denoise, x, sigmas, keys))

    The sampler is traced once with these options and a network that does nothing, so that
    whatever it refuses is refused here, in its own words and before any work.

    Args:
      sampler: its name, see `registry.get`.
      options: name -> value; `accepted` lists them.
      sigmas: ``(N+1,)`` grid it will run on, known values: the VP schedule is fitted to its
        ends, and least steps are checked.  None checks the options alone.

    Returns:
      The Request; its numbers are Python floats.

    Raises:
      ValueError: for a name, option, value or combination that does not exist.
    """
    info = get(sampler)
    grid = grids.make_sigmas(info.grid, max(info.min_steps, _STEPS)) if sigmas is None else sigmas
    options, values = dict(options or {}), {}
    for option in options:
        if option not in accepted(info):
            raise ValueError(_no_option(info, option))
    for option, annotation in _annotations(info.fn).items():
        if _is(annotation, Churn):
            given = {name: options[name] for name in _CHURN if name in options}
            numbers = {name: _number(info, name, value) for name, value in given.items()}
            values |= {option: Churn(**numbers)} if given else {}
        elif option in options:
            values[option] = _convert(info, option, annotation, options[option], grid)
    _rehearse(info, values, grid)
    static = {name: v for name, v in values.items() if isinstance(v, str | bool | int)}
    traced = {name: v for name, v in values.items() if name not in static}
    return Request(info.name, tuple(sorted(static.items())), traced)


@functools.cache
def _annotations(fn: Callable[..., Any]) -> dict[str, Any]:
    """Option -> type, of the options that are the sampler's own."""
    hints = typing.get_type_hints(fn)
    parameters = inspect.signature(fn).parameters.values()
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return {name: hints[name] for name in own if name not in ("denoise", "x", "sigmas", "key")}


def _is(annotation: Any, kind: type) -> bool:
    return annotation is kind or kind in typing.get_args(annotation)


def _kind(annotation: Any) -> str | None:
    """What an option is; None if it has no JSON form."""
    number, name = _is(annotation, np.ndarray), _is(annotation, str)
    if name:
        return "name or number" if number else "name"
    if annotation in (Schedule, Scaling):
        return "name"
    if _is(annotation, Segment):
        return "list"
    plain = {bool: "true or false", int: "count"}
    return "number" if number else plain.get(annotation)


def _no_option(info: SamplerInfo, option: str) -> str:
    others = [other.name for other in SAMPLERS.values() if option in accepted(other)]
    if option in info.options:  # churn, a function, or of the loop
        instead = f"use {', '.join(_CHURN)}" if option == "churn" else "pass it where it runs"
        return f"option {option!r} of {info.name!r} is no number or name; {instead}"
    return info.no_option(option, accepted(info), others)


def _wrong(info: SamplerInfo, option: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"option {option!r} of {info.name!r} must be {expected}, got {value!r}")


def _number(info: SamplerInfo, option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise _wrong(info, option, "a number", value)
    return float(value)


def _convert(info: SamplerInfo, option: str, annotation: Any, value: Any, grid: ArrayLike) -> Any:
    """A JSON value as the sampler takes it."""
    kind = _kind(annotation)
    if annotation is Schedule:
        make = names.lookup(schedules.SCHEDULES, value, "schedule")
        fitted = make is schedules.VPSchedule and np.shape(grid)[0] > 2
        made = make.fit(float(grid[-2]), float(grid[0])) if fitted else make()
        return jax.tree.map(float, made)
    if annotation is Scaling:
        return names.lookup(schedules.SCALINGS, value, "scaling")()
    if kind == "list":
        return _segments(info, option, value)
    if kind == "number" or (kind == "name or number" and not isinstance(value, str)):
        return _number(info, option, value)
    if kind == "true or false" and not isinstance(value, bool):
        raise _wrong(info, option, "true or false", value)
    if kind == "count" and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
        raise _wrong(info, option, "a whole number", value)
    if kind.startswith("name") and not isinstance(value, str):
        raise _wrong(info, option, "a name", value)
    return int(value) if kind == "count" else value


def _segments(info: SamplerInfo, option: str, value: Any) -> tuple[Segment, ...]:
    rows = list(value) if isinstance(value, list | tuple) else [None]
    if not all(isinstance(row, list | tuple) and len(row) == 4 for row in rows):
        raise _wrong(info, option, "a list of [levels, repeats, sigma_lo, sigma_hi]", value)
    ends = [[_number(info, option, end) for end in row[2:]] for row in rows]
    return tuple(Segment(*row[:2], *pair) for row, pair in zip(rows, ends, strict=True))


def _rehearse(info: SamplerInfo, values: Mapping[str, Any], grid: ArrayLike) -> None:
    """Trace the sampler with known options, so that its own checks see them."""
    learned = values.get("variance") == "learned"

    def nothing(x: Array, sigma: Array) -> Any:
        return (x, x) if learned else x

    x = jax.ShapeDtypeStruct((1, 2, 2, 1), jnp.float32)
    jax.eval_shape(lambda x: info(nothing, x, grid, seeds.image_keys([0]), **values), x)
