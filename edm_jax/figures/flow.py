"""Densities and flow lines of one-dimensional data under a schedule (EDM Fig. 3)."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from edm_jax import exact, schedules
from edm_jax.figures import files
from edm_jax.samplers import general

LINE, ARROW = "#1b3a57", "#222222"
# Title, sigma(t) and s(t).
Panel = tuple[str, schedules.Schedule, schedules.Scaling]


PANELS: tuple[Panel, ...] = (
    (
        r"VP: $\sigma(t)=\sqrt{e^{\beta_d t^2/2+\beta_{min}t}-1}$",
        schedules.VPSchedule(),
        schedules.VPScaling(),
    ),
    (r"VE: $\sigma(t)=\sqrt{t}$", schedules.VESchedule(), schedules.NoScaling()),
    (r"EDM, DDIM: $\sigma(t)=t$", schedules.LinearSchedule(), schedules.NoScaling()),
)


def draw_flow(
    axis: Any,
    data: exact.GaussianMixture,
    schedule: schedules.Schedule,
    scaling: schedules.Scaling,
    sigma_max: float,
    height: float,
    *,
    num_lines: int,
    arrows: tuple[int, int],
) -> None:
    """Density, flow lines and slopes for sigma in (0, sigma_max] on one axis."""
    t_max = float(schedule.inverse(sigma_max))
    times = np.linspace(t_max * 1e-4, t_max, 240)
    sigmas = np.asarray(schedule.sigma(times))
    scale = np.asarray(scaling.scale(sigmas))

    x = np.linspace(-height, height, 401)
    unscaled = x[None] / scale[:, None]
    density = np.exp(np.asarray(data.log_density(unscaled, sigmas)))
    density /= density.max(axis=1, keepdims=True)  # each moment on its own scale
    axis.pcolormesh(
        times, x, density.T**0.6, cmap="GnBu", shading="gouraud", vmin=0, vmax=1.25, rasterized=True
    )

    start = np.linspace(-1, 1, num_lines) * height / scale[-1]
    lines = np.asarray(
        data.flow(np.broadcast_to(start, (len(times), num_lines)), sigma_max, sigmas)
    )
    axis.plot(times, lines * scale[:, None], color=LINE, lw=0.7, alpha=0.85)

    columns = np.linspace(0, t_max, arrows[0] + 2)[1:-1]
    rows = np.linspace(-height, height, arrows[1] + 2)[1:-1]
    slopes = np.array(
        [
            general.ode_slope(
                data.denoise, jnp.asarray(rows), t, schedule.sigma(t), schedule, scaling
            )[0]
            for t in columns
        ]
    )
    # Against time, as a sampler goes, and of equal length on the page.
    step = np.stack([-np.ones_like(slopes) / t_max, -slopes / (2 * height)])
    step /= np.hypot(*step)
    axis.quiver(
        *np.meshgrid(columns, rows, indexing="ij"), *step, color=ARROW, width=0.004,
        scale=22, pivot="mid", headwidth=4,
    )  # fmt: skip
    axis.set_xlim(0, t_max)
    axis.set_ylim(-height, height)


def flow_panels(
    path: pathlib.Path,
    data: exact.GaussianMixture,
    panels: Sequence[Panel] = PANELS,
    *,
    sigma_max: float = 1.0,
    num_lines: int = 18,
) -> None:
    """A panel for each schedule: density, exact flow lines, and the slope a solver sees.

    Straight lines mean that a solver with large steps is accurate.

    Args:
      path: file to write, .png, .pdf or .svg.
      data: scalar data, with deviations above 0 so that densities are finite.
      panels: title, sigma(t) and s(t) of each.
      sigma_max: noise level at the right edges.
      num_lines: flow lines of a panel.
    """
    if np.ndim(data.means) != 1:
        raise ValueError(f"flow lines are of scalar data, got means {np.shape(data.means)}")
    spread = float(np.max(np.abs(data.means))) + 2.2 * sigma_max
    with files.style():
        fig, axes = files.subplots(1, len(panels), size=(2.3 * len(panels), 2.3), squeeze=False)
        for axis, (title, schedule, scaling) in zip(axes[0], panels, strict=True):
            scaled = isinstance(scaling, schedules.VPScaling)
            height = min(spread, 2.6) if scaled else spread
            draw_flow(axis, data, schedule, scaling, sigma_max, height, num_lines=num_lines,
                      arrows=(7, 9))  # fmt: skip
            axis.set(title=title, xlabel="time $t$")
        axes[0, 0].set_ylabel("$x$ (data units; scaled for VP)")
        files.save(fig, path)
