"""Logarithmic axes whose numbers can be read, however much or little they span."""

from __future__ import annotations

import functools
import math
from typing import Any

_EVEN = 0.3  # decades, a factor of 2: below, the ticks of a linear axis
# Below so many decades, the multiples of powers of ten that are labelled; then these alone.
_FEW = ((0.7, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)), (2.0, (1.0, 2.0, 5.0)))


def log_axes(axes: Any, which: str = "xy") -> None:
    """Make axes logarithmic: powers of ten, or plain numbers where there are few of these.

    Less than two decades are labelled at 1, 2 and 5 times powers of ten, less than a factor of
    five at more, and of two evenly; what is between has no number, as these would touch.  Call it
    after the curves are drawn: `loglog` and `set_xscale` of matplotlib set ticks of their
    own.

    Args:
      axes: of matplotlib.
      which: "x", "y" or "xy".
    """
    from matplotlib import ticker

    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(_locator()())
        axis.set_major_formatter(ticker.FuncFormatter(functools.partial(_number, axis)))
        axis.set_minor_formatter(ticker.NullFormatter())


def _decades(low: float, high: float) -> float:
    low, high = sorted((low, high))
    return math.log10(high / low) if low > 0 else math.inf


def _number(axis: Any, value: float, position: int | None = None) -> str:
    """A tick as text: 10^k on a long axis, a plain number on a short one."""
    exponent = math.log10(value) if value > 0 else math.nan
    whole = abs(exponent - round(exponent)) < 1e-9
    if whole and _decades(*axis.get_view_interval()) >= _FEW[-1][0]:
        return f"$\\mathdefault{{10^{{{round(exponent)}}}}}$"
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    factor, power = f"{value:.6e}".split("e")
    return f"$\\mathdefault{{{float(factor):g}\\times10^{{{int(power)}}}}}$"


@functools.cache
def _locator() -> type:
    """A class, made when matplotlib is there."""
    from matplotlib import ticker

    class Locator(ticker.LogLocator):
        """Ticks by how many decades are seen."""

        def tick_values(self, vmin: float, vmax: float) -> Any:
            decades = _decades(vmin, vmax)
            if decades < _EVEN:
                return ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(vmin, vmax)
            self.set_params(subs=next((of for most, of in _FEW if decades < most), (1.0,)))
            return super().tick_values(vmin, vmax)

    return Locator
