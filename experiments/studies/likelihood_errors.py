r"""Error against cost of the likelihood's solvers and of latent codes, where both are exact.

python experiments/main.py --mode=study --study=likelihood_errors --workdir=docs

Data are mixtures of Gaussians in 8 and in 64 dimensions.  Left: the largest error of the log
density over four points, with the exact trace, so that only the solver's error is left.  Right:
errors of codes and decoded images.  Prints the numbers of docs/likelihood.md.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact
from edm_jax.figures import files
from edm_jax.likelihood import flow_levels, flow_log_likelihood, solvers
from edm_jax.likelihood.code_errors import CodeErrors, code_errors

CALLS = (32, 64, 128, 256)
# Name -> (solver, rho of its levels; None: even in ln sigma).
LINES = {
    "rk4": ("rk4", None),
    "adams": ("adams", None),
    "heun": ("heun", None),
    "heun_sigma, rho 7": ("heun_sigma", 7.0),
}
COLOURS = files.COLOURS[:4]


def mixture(size: int) -> exact.GaussianMixture:
    """Four isotropic Gaussians in ``size`` dimensions, always the same."""
    rng = np.random.default_rng(size)
    means = rng.normal(size=(4, size)) * 0.5
    return exact.GaussianMixture(means, rng.uniform(0.1, 0.4, 4), rng.uniform(0.5, 1, 4))


def density_errors(size: int) -> dict[str, list[tuple[int, float]]]:
    """For each of LINES: (network calls, largest error in bits per dimension)."""
    bed = mixture(size)
    x = bed.sample(jax.random.key(0), (4,))
    table = {}
    for name, (solver, rho) in LINES.items():

        @jax.jit
        def error(x: jax.Array, sigmas: jax.Array, solver: str = solver) -> jax.Array:
            result = flow_log_likelihood(bed.denoise, x, sigmas, solver=solver, num_probes=0)
            # Against the exact density at S too: the prior's error is no error of the solver.
            end = bed.log_density(result.latent * sigmas[-1], sigmas[-1])
            return result.volume + end - bed.log_density(x, sigmas[0])

        rows, calls_of = [], solvers.get(solver).calls
        for calls in CALLS:
            steps = max(n for n in range(1, calls) if calls_of(n) <= calls)
            worst = jnp.max(jnp.abs(error(x, jnp.asarray(flow_levels(steps, rho=rho)))))
            rows.append((calls_of(steps), float(worst) / (size * np.log(2))))
        table[name] = rows
    return table


def measured_codes(size: int) -> list[CodeErrors]:
    """Code errors of the two solvers that a user chooses between."""
    bed = mixture(size)
    x = bed.sample(jax.random.key(1), (8,))
    return [code_errors(bed.denoise, x, solver=name) for name in ("rk4", "heun_sigma")]


def draw(errors: dict[int, dict], codes: list[CodeErrors], path: pathlib.Path) -> None:
    """Both panels."""
    from edm_jax.figures import files
    from edm_jax.figures.codes import plot_code_errors
    from edm_jax.figures.ticks import log_axes

    figure, (left, right) = files.subplots(1, 2, size=(11, 4.4))
    for style, (size, table) in zip(("-", "--"), errors.items(), strict=True):
        for colour, (name, rows) in zip(COLOURS, table.items(), strict=True):
            left.plot(*zip(*rows, strict=True), style, color=colour, marker="o", ms=3,
                      label=f"{name}, d = {size}")  # fmt: skip
    left.set_xlabel("evaluations of denoiser and divergence")
    left.set_ylabel("largest error, bits per dimension")
    log_axes(left)
    left.set_xticks(CALLS, [str(c) for c in CALLS])
    left.set_xticks([], minor=True)
    left.grid(alpha=0.3)
    left.set_ylim(bottom=1e-7)  # room for the legend
    left.legend(fontsize=7, ncols=2, handlelength=3, loc="lower left")
    plot_code_errors(right, codes)
    files.save(figure, path, dpi=100)


def run(workdir: pathlib.Path, *, figure_format: str = "png") -> None:
    """Measure, print the numbers, and draw ``likelihood_errors.png`` in a directory."""
    with jax.enable_x64(True):
        errors = {size: density_errors(size) for size in (8, 64)}
        codes = measured_codes(8)
    for size, table in errors.items():
        for name, rows in table.items():
            cells = "  ".join(f"{calls}: {error:.1e}" for calls, error in rows)
            print(f"d = {size:2d}  {name:18s} {cells}")
    for each in codes:
        for name in ("latent", "image", "round_trip"):
            values = "  ".join(
                f"{n}: {e:.1e}" for n, e in zip(each.num_steps, getattr(each, name), strict=True)
            )
            print(f"{each.solver:10s} {name:10s} {values}")
    path = workdir / f"likelihood_errors.{figure_format}"
    draw(errors, codes, path)
    print(path)
