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
from edm_jax.samplers import general, stochastic

LINE, ARROW, PATHS = "#1b3a57", "#222222", ("#b5482f", "#e09f1f", "#6a2c93")


PANELS = (
    (
        r"VP: $\sigma(t)=\sqrt{e^{\beta_d t^2/2+\beta_{min}t}-1}$",
        schedules.VPSchedule(),
        schedules.VPScaling(),
    ),
    (r"VE: $\sigma(t)=\sqrt{t}$", schedules.VESchedule(), schedules.NoScaling()),
    (r"EDM, DDIM: $\sigma(t)=t$", schedules.LinearSchedule(), schedules.NoScaling()),
)


def _draw_flow(
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not points or not width > 0 or not 0 < sigma_zoom < sigma_max:
        raise ValueError(
            "need at least one point, width > 0 and 0 < sigma_zoom < sigma_max, got "
            f"points={points}, width={width}, sigma_zoom={sigma_zoom}, sigma_max={sigma_max}"
        )
    data = exact.GaussianMixture(np.asarray(points, float), width)
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.6))
    for row, (limit, reach) in enumerate([(sigma_max, 2.4 * sigma_max), (sigma_zoom, 2.6)]):
        for axis, (title, schedule, scaling) in zip(axes[row], PANELS, strict=False):
            # In the scaled variable of VP, data and noise together have the size of 1.
            scaled = isinstance(scaling, schedules.VPScaling)
            height = min(reach, 2.6) if scaled else reach
            _draw_flow(axis, data, schedule, scaling, limit, height, num_lines=18, arrows=(7, 9))
            axis.set_title(title if row == 0 else rf"near the data: $\sigma \leq {limit:g}$")
            axis.set_xlabel("$t$")
        axes[row, 0].set_ylabel("$x$ (scaled for VP)")

        axis = axes[row, 3]
        _draw_flow(
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
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def run(workdir: pathlib.Path) -> None:
    """Draw ``flow_1d.png`` in a directory."""
    with jax.enable_x64(True):  # flow lines between the points are delicate
        draw_flow_picture(workdir / "flow_1d.png")
    print(workdir / "flow_1d.png")
