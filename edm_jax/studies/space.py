"""What a tuning searches: ranges and choices of settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from edm_jax import names
from edm_jax.studies.grid import known_settings

# The two ends of guidance_interval are searched as numbers of their own.
ENDS = ("guidance_low", "guidance_high")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between two ends, uniform in value or (log) in their logarithm.

    Attributes:
      low, high: the ends; whole numbers are searched as such if ``whole``.
      log: whether factors matter, not differences.
      whole: whether only whole numbers are tried.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range needs low < high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range of factors (log) begins above 0, got {self.low}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Some values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"a choice needs two values and more, got {list(self.values)}")


# Those of the authors' search (EDM section E.2 and Table 5), a little wider.
USUAL: dict[str, Range] = {
    "s_churn": Range(0.0, 100.0),
    "s_tmin": Range(0.005, 10.0, log=True),
    "s_tmax": Range(0.05, 80.0, log=True),
    "s_noise": Range(0.995, 1.015),
    "rho": Range(3.0, 12.0),
    "sigma_max": Range(20.0, 160.0, log=True),
    "guidance_scale": Range(1.0, 4.0),
    "guidance_low": Range(0.01, 2.0, log=True),
    "guidance_high": Range(0.5, 80.0, log=True),
}
Space = dict[str, Range | Choice]


def read(told: Mapping[str, Any]) -> Space:
    """A space from JSON values.

    Args:
      told: setting -> None for its `USUAL` range, ``[low, high]`` numbers (whole ones for
        ``num_steps`` and other counts), ``{"low", "high", "log", "whole"}``, or
        ``{"choices": [...]}`` or a list of names.

    Raises:
      ValueError: an unknown setting, a range that is none, or nothing to search.
    """
    if not told:
        raise ValueError("there is nothing to search: name settings, such as s_churn and rho")
    known = sorted({*known_settings(), *ENDS})
    space: Space = {}
    for name, value in told.items():
        if name not in known:
            raise names.unknown("setting", name, known)
        if name == "guidance_interval":
            raise ValueError("guidance_interval is searched by its ends: " + ", ".join(ENDS))
        try:
            space[name] = _read(name, value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
    return space


def _read(name: str, value: Any) -> Range | Choice:
    if value is None:
        if name not in USUAL:
            raise ValueError(f"has no usual range (there are {', '.join(USUAL)}); give one")
        return USUAL[name]
    if isinstance(value, Mapping) and set(value) == {"choices"}:
        return Choice(tuple(value["choices"]))
    if isinstance(value, Mapping):
        return Range(**value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be [low, high], choices, or null, got {value!r}")
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 2:
        return Choice(tuple(value))
    whole = name in ("num_steps", "nfe") or (name not in USUAL and _both_whole(value))
    usual = USUAL.get(name)
    return Range(*value, log=bool(usual and usual.log and value[0] > 0), whole=whole)


def _both_whole(value: Any) -> bool:
    return all(isinstance(v, int) for v in value)


def settings_of(base: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a cell: those of the default with what a trial changes."""
    settings = {**base, **{k: v for k, v in point.items() if k not in ENDS}}
    if any(end in point for end in ENDS):
        low, high = base.get("guidance_interval") or (0.0, math.inf)
        ends = (point.get("guidance_low", low), point.get("guidance_high", high))
        settings["guidance_interval"] = sorted(ends)
    if "s_tmin" in settings and "s_tmax" in settings and settings["s_tmin"] > settings["s_tmax"]:
        # The same range the other way round: every point of the space is a setting.
        settings["s_tmin"], settings["s_tmax"] = settings["s_tmax"], settings["s_tmin"]
    return settings
