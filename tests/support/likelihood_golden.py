"""The distributions of tests/golden/15_likelihood.npz as denoisers, and its settings."""

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact
from edm_jax.likelihood import solvers
from tests.support.paths import GOLDEN

SMOOTH = ("gauss2", "gauss16", "diag64", "mix2", "mix8", "mix64")
NAMES = (*SMOOTH, "finite12", "box1", "box2")


def archive():
    return np.load(GOLDEN / "15_likelihood.npz")


def _gaussian(mean, cov):
    """D of a Gaussian with any covariance."""
    values, vectors = np.linalg.eigh(cov)

    def denoise(x, sigma):
        shrink = values / (values + jnp.square(sigma))
        moved = (x - mean[None]) @ vectors
        return mean[None] + (moved * shrink[None]) @ vectors.T

    return denoise


def _boxes(edges, probs):
    """D of a density that is constant on each cell of a grid: x + sigma^2 grad ln p."""

    def log_p(x, sigma):
        event = probs.ndim
        at = (edges[None] - x[:, None]) / sigma  # (d, K+1)
        mass = jnp.diff(jax.scipy.stats.norm.cdf(at), axis=-1)
        # Beyond the box the difference of two numbers near 1 is none; mirror it.
        mirrored = -jnp.diff(jax.scipy.stats.norm.cdf(-at), axis=-1)
        mass = jnp.where(at[..., :-1] > 0, mirrored, mass)
        joint = mass[0] if event == 1 else jnp.outer(mass[0], mass[1])
        return jnp.log(jnp.sum(probs * joint))

    score = jax.vmap(jax.grad(log_p), (0, None))
    return lambda x, sigma: x + jnp.square(sigma) * score(x, sigma)


def denoiser(data, name):
    """The exact denoiser of a distribution, ``(x (B, d), sigma) -> (B, d)``."""
    get = lambda key: np.asarray(data[f"{name}/{key}"])  # noqa: E731
    if name.startswith("gauss"):
        return _gaussian(get("mean"), get("cov"))
    if name.startswith("box"):
        return _boxes(get("edges"), get("probs"))
    if name == "diag64":
        return exact.Gaussian(get("mean"), get("std")).denoise
    if name.startswith("mix"):
        return exact.GaussianMixture(get("means"), get("stds"), get("weights")).denoise
    return exact.FiniteData(get("points")).denoise


def sigma_min(data, name):
    key = f"{name}/flow/sigma_min"
    return float(data[key])


def levels(data, name, num_steps, rho=None):
    from edm_jax.likelihood.levels import flow_levels

    low, high = sigma_min(data, name), float(data["sigma_max"])
    return flow_levels(num_steps, sigma_min=low, sigma_max=high, rho=rho)


# Name in the archive -> (ours, rho of the grid).
SOLVERS = {
    "rk4_lnsigma_uniform": ("rk4", None),
    "heun_lnsigma_rho7": ("heun", 7.0),
    "heun_sigma_rho7": ("heun_sigma", 7.0),
}
assert {ours for ours, _ in SOLVERS.values()} < set(solvers.SOLVERS)
