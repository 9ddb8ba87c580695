"""Checks of what a user passes: one clear ValueError before anything is traced.

Values are checked where they are known (numbers, NumPy arrays, concrete JAX arrays);
traced ones pass, since their numbers do not exist yet.
"""

from __future__ import annotations

import math
import operator
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from edm_jax.names import brief
from edm_jax.typing import ArrayLike, PyTree


def is_known(*values: PyTree) -> bool:
    """Whether no number among the values is traced, so that they can be checked."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_count(name: str, value: Any, *, least: int = 1, cure: str = "") -> int:
    """``value`` as an int; ValueError unless it is a whole number of at least ``least``."""
    try:
        count = operator.index(value)
        good = count >= least and not isinstance(value, bool)
    except TypeError:
        good = False
    if not good:
        raise ValueError(
            f"{name} must be an integer >= {least}, got {brief(value)}"
            + (f"; {cure}" if cure else "")
        )
    return count


def check_switch(name: str, value: Any) -> bool:
    """``value`` as a bool; ValueError unless it is one."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {brief(value)}")
    return bool(value)


def check_function(name: str, value: Any) -> None:
    """Raise ValueError unless value can be called, or is None."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function, got {brief(value)}")


def check_by_name(name: str, value: Any) -> None:
    """Raise ValueError unless value is a dictionary, or None."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dictionary by name, got {brief(value)}")


def check_path(name: str, value: Any) -> None:
    """Raise ValueError unless value is the name of a file or folder, or None."""
    if value is not None and not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} must be the name of a file or folder, got {brief(value)}")


def user_path(name: str, value: str | os.PathLike[str]) -> pathlib.Path:
    """A path that a person gave, ``~`` written out.

    Raises:
      ValueError: for what is no name of a file or folder, or a home that is not known.
    """
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} must be the name of a file or folder, got {brief(value)}")
    path = pathlib.Path(value)
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"{name}={os.fspath(value)}: the home of {path.parts[0]} is not known; write it out"
        ) from None


def check_kind(name: str, value: Any, kind: type, cure: str) -> None:
    """Raise ValueError unless value is one of a class."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {brief(value)}; {cure}")


def check_sharding(sharding: Any) -> None:
    """Raise ValueError unless sharding can place the arrays of a batch."""
    cure = "jax.sharding.NamedSharding(mesh, spec) is one"
    check_kind("sharding", sharding, jax.sharding.NamedSharding, cure)


def check_number(
    name: str,
    value: ArrayLike,
    *,
    above: float | None = None,
    least: float = -math.inf,
    most: float = math.inf,
    below: float | None = None,
    finite: bool = True,
    cure: str = "",
) -> None:
    """Raise ValueError unless every known number obeys the stated bounds; NaN never does.

    Args:
      name: of the argument, for the message.
      value: a number or an array of them, any shape.
      above: exclusive lower bound.
      least, most: inclusive bounds.
      below: exclusive upper bound.
      finite: whether infinity is refused.
      cure: what to do, added to the message.
    """
    if not is_known(value):
        return
    try:
        values = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {brief(value)}") from None
    good = (least <= values) & (values <= most)
    rules = [f"at least {least:g}"] if least > -math.inf else []
    rules += [f"at most {most:g}"] if most < math.inf else []
    if above is not None:
        bound = "positive" if above == 0 else f"above {above:g}"
        good, rules = good & (values > above), [bound, *rules]
    if below is not None:
        good, rules = good & (values < below), [*rules, f"below {below:g}"]
    if finite:
        good, rules = good & np.isfinite(values), [*rules, "finite"]
    if not np.all(good):
        got = value if values.ndim == 0 else values[~good].flat[0]
        raise ValueError(
            f"{name} must be {' and '.join(rules) or 'a number'}, got {got}"
            + (f"; {cure}" if cure else "")
        )


def check_scalar(name: str, value: Any, **bounds: Any) -> None:
    """Raise ValueError unless value is one number within the bounds of `check_number`."""
    if isinstance(value, str | bytes) or np.ndim(value):
        raise ValueError(f"{name} must be a number, got {brief(value)}")
    check_number(name, value, **bounds)


def check_protocol(name: str, value: Any, members: tuple[str, ...], cure: str) -> None:
    """Raise ValueError unless value has the methods that its argument needs."""
    missing = [member for member in members if not callable(getattr(value, member, None))]
    if missing or isinstance(value, type):
        raise ValueError(
            f"{name} must be a value with {', '.join(members)}, got {brief(value)}; {cure}"
        )


def check_range(num_steps: int, sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless N >= 1 and 0 < sigma_min < sigma_max < inf."""
    check_count("num_steps", num_steps)
    check_scalar("sigma_min", sigma_min, finite=False)
    check_scalar("sigma_max", sigma_max, finite=False)
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(
            "need 0 < sigma_min < sigma_max < inf, got "
            f"sigma_min={sigma_min}, sigma_max={sigma_max}"
        )


def check_grid(sigmas: ArrayLike, *, repeats: bool = False, name: str = "sigmas") -> None:
    """Raise ValueError unless sigmas is ``(N+1,)``, strictly decreasing, ending in 0.

    Args:
      sigmas: known values (not traced).
      repeats: allow equal neighbours, which rounding to a table of levels makes.
      name: of the argument, for the message.
    """
    try:
        values = np.asarray(sigmas, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be an array of noise levels, got {brief(sigmas)}; build it with "
            "karras_sigmas"
        ) from None
    if values.ndim != 1 or values.shape[0] < 2:
        raise ValueError(
            f"{name} must have shape (N+1,) with N >= 1, got {values.shape}; "
            "build it with karras_sigmas"
        )
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite, got {brief(values)}; build it with karras_sigmas")
    if values[-1] != 0:
        raise ValueError(
            f"{name} must end in 0, got last entry {values[-1]}; add it with append_zero"
        )
    steps = np.diff(values)
    bad = np.flatnonzero((steps > 0) if repeats else (steps >= 0))
    if values[-2] <= 0 or bad.size:
        i = int(bad[0]) if bad.size else len(values) - 2
        raise ValueError(
            f"{name} must be {'non-increasing' if repeats else 'strictly decreasing'}, got "
            f"{values[i]} then {values[i + 1]} at entry {i}; build it with karras_sigmas, or "
            "drop repeated levels with round_grid(..., merge=True)"
        )
