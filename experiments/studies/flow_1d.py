r"""The one-dimensional picture of EDM Figure 3: densities, flow lines, churn.

python experiments/main.py --mode=study --study=flow_1d --workdir=docs

Data are a few points on a line.  Each panel shows, over time, the density of the
noisy state, exact solutions of the probability-flow ODE and the direction of its
slope, for one choice of sigma(t) and s(t); the last shows EDM's stochastic sampler,
whose every step first adds noise, moving up in sigma, and then removes more.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact, grids, samplers, schedules
from edm_jax.figures import files
from edm_jax.figures.flow import PANELS, draw_flow
from edm_jax.samplers import stochastic

PATHS = ("#D55E00", "#E69F00", "#CC79A7")


def churn_paths(
    data: exact.GaussianMixture,
    starts: Sequence[float],
    sigmas: np.ndarray,
    churn: samplers.Churn,
    key: jax.Array,
) -> tuple[np.ndarray, np.ndarray]:
    """Every point that Algorithm 2 visits: x_0, x_hat_0, x_1, x_hat_1, ..., x_N.

    Returns:
      Noise levels ``(2N+1, S)`` and states ``(2N+1, S)`` for S starts.
    """
    x, num_steps = jnp.asarray(starts), len(sigmas) - 1
    levels, states = [np.full(len(starts), sigmas[0])], [np.asarray(x)]
    gammas = churn.gamma(jnp.asarray(sigmas[:-1]), num_steps)
    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        x, sigma_hat = stochastic.add_noise(x, sigma, gammas[i], churn.s_noise, noise)
        levels.append(np.full(len(starts), float(sigma_hat)))
        states.append(np.asarray(x))
        step = samplers.heun_step if after > 0 else samplers.euler_step
        x, _ = step(data.denoise, x, sigma_hat, after)
        levels.append(np.full(len(starts), after))
        states.append(np.asarray(x))
    return np.array(levels), np.array(states)


def draw_flow_picture(
    path: str | pathlib.Path,
    *,
    points: Sequence[float] = (-1.0, 1.0),
    width: float = 0.02,
    sigma_max: float = 25.0,
    sigma_zoom: float = 1.0,
    churn: samplers.Churn = samplers.Churn(4.0, 0.05, 50.0, 1.0),
    num_steps: int = 32,
    seed: int = 0,
) -> None:
    """Draw the picture and save it.

    Args:
      path: PNG, PDF or SVG file.
      points: where the data lie.
      width: deviation of the data around each point; > 0 so that densities are finite.
      sigma_max: noise level at the right edge of the upper panels.
      sigma_zoom: the same for the lower panels, near the data.
      churn: noise of the stochastic paths.
      num_steps: N of the stochastic paths.
      seed: of their noise.
    """
    if not points or not width > 0 or not 0 < sigma_zoom < sigma_max:
        raise ValueError(
            "need at least one point, width > 0 and 0 < sigma_zoom < sigma_max, got "
            f"points={points}, width={width}, sigma_zoom={sigma_zoom}, sigma_max={sigma_max}"
        )
    data = exact.GaussianMixture(np.asarray(points, float), width)
    with files.style():
        figure = _panels(
            data, limits=(sigma_max, sigma_zoom), churn=churn, num_steps=num_steps, seed=seed
        )
        files.save(figure, pathlib.Path(path))


def _panels(
    data: exact.GaussianMixture,
    *,
    limits: tuple[float, float],
    churn: samplers.Churn,
    num_steps: int,
    seed: int,
) -> Any:
    """Both rows of panels, as a figure."""
    figure, axes = files.subplots(2, 4, size=(4 * files.COLUMN, 5.6))
    for row, (limit, reach) in enumerate([(limits[0], 2.4 * limits[0]), (limits[1], 2.6)]):
        for axis, (title, schedule, scaling) in zip(axes[row], PANELS, strict=False):
            # In the scaled variable of VP, data and noise together have the size of 1.
            scaled = isinstance(scaling, schedules.VPScaling)
            height = min(reach, 2.6) if scaled else reach
            draw_flow(axis, data, schedule, scaling, limit, height, num_lines=18, arrows=(7, 9))
            axis.set_title(title if row == 0 else rf"near the data: $\sigma \leq {limit:g}$")
            axis.set_xlabel("$t$")
        axes[row, 0].set_ylabel("$x$ (scaled for VP)")

        axis = axes[row, 3]
        draw_flow(
            axis, data, schedules.LinearSchedule(), schedules.NoScaling(), 1.12 * limit, reach,
            num_lines=0, arrows=(0, 0),
        )  # fmt: skip
        sigmas = grids.karras_sigmas(num_steps, sigma_min=0.01, sigma_max=limit, rho=7.0)
        starts = np.linspace(-0.55, 0.6, len(PATHS)) * reach
        levels, states = churn_paths(data, starts, sigmas, churn, jax.random.key(seed))
        for lane, color in enumerate(PATHS):
            level, state = levels[:, lane], states[:, lane]
            # Noise goes up in sigma (dotted), the ODE step down (solid).
            up = [slice(i, i + 2) for i in range(0, len(level) - 2, 2)]
            down = [slice(i, i + 2) for i in range(1, len(level) - 1, 2)]
            for parts, style in ((up, {"ls": ":", "lw": 0.9}), (down, {"ls": "-", "lw": 1.2})):
                for part in parts:
                    axis.plot(level[part], state[part], color=color, **style)
            axis.plot(level[::2], state[::2], ".", color=color, ms=3.5)
        axis.set_title(
            rf"EDM with churn: $\gamma={float(churn.gamma(jnp.ones(()), num_steps)):.2g}$"
        )
        axis.set_xlabel(r"$t=\sigma$")
    return figure


def run(workdir: pathlib.Path, *, figure_format: str = "png") -> None:
    """Draw ``flow_1d.png`` in a directory."""
    path = workdir / f"flow_1d.{figure_format}"
    with jax.enable_x64(True):  # flow lines between the points are delicate
        draw_flow_picture(path)
    print(path)
