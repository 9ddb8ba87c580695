"""Fixed-step solvers of the flow: against recorded ones, their order, and their program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, precond
from edm_jax.likelihood import solvers
from edm_jax.likelihood.flow import flow_log_likelihood
from edm_jax.likelihood.levels import flow_levels, known_levels
from tests.support import likelihood_golden as recorded


@pytest.fixture(scope="module")
def data():
    return recorded.archive()


def _run(data, name, solver, sigmas):
    denoise, x = recorded.denoiser(data, name), data[f"{name}/flow/x0"]
    run = jax.jit(lambda x, sigmas: flow_log_likelihood(denoise, x, sigmas, solver=solver))
    return run(x, sigmas)


CASES = [(name, "rk4_lnsigma_uniform") for name in recorded.NAMES]
CASES += [(name, key) for name in ("mix2", "box1") for key in recorded.SOLVERS if "heun" in key]


@pytest.mark.parametrize(("name", "key"), CASES)
def test_recorded_solutions(data, name, key, x64):
    solver, rho = recorded.SOLVERS[key]
    sigmas = recorded.levels(data, name, 8, rho)
    result = _run(data, name, solver, sigmas)
    expected = {k: data[f"{name}/solver/{key}/N8/{k}"] for k in ("x", "delta", "log_likelihood")}
    volume, size = np.asarray(result.volume), expected["x"].shape[1]
    if solver == "heun_sigma":
        # The recorded one integrates d / sigma by its trapezoids too, which is exact here.
        trapezoids = np.sum(np.diff(sigmas) * (1 / sigmas[1:] + 1 / sigmas[:-1]) / 2)
        volume = volume + size * (trapezoids - np.log(sigmas[-1] / sigmas[0]))
    # The same arithmetic in another order; the box densities lose a few digits more.
    np.testing.assert_allclose(result.latent * sigmas[-1], expected["x"], rtol=1e-9)
    np.testing.assert_allclose(volume, expected["delta"], rtol=1e-9)
    if solver != "heun_sigma":
        np.testing.assert_allclose(result.log_density, expected["log_likelihood"], rtol=1e-8)


@pytest.mark.parametrize("solver", list(solvers.SOLVERS))
def test_order_of_convergence(data, solver, x64):
    fine = (256, 512) if solver == "adams" else (64, 128)  # where the leading term rules
    errors = []
    for num_steps in fine:
        result = _run(data, "gauss2", solver, recorded.levels(data, "gauss2", num_steps))
        errors.append(np.abs(result.log_density - data["gauss2/flow/log_likelihood"]).max())
    order = np.log2(errors[0] / errors[1])
    # A measured order is within a quarter of its limit at these steps (rk4: 3.91).
    assert abs(order - solvers.get(solver).order) < 0.25, order


def test_accuracy_at_equal_cost_as_tabulated(data, x64):
    """The spec's table: 128 evaluations, bits per dimension of the 64-d mixture."""
    worst = {}
    for solver, num_steps, rho in (("rk4", 32, None), ("heun", 64, 7.0), ("adams", 62, None)):
        sigmas = recorded.levels(data, "mix64", num_steps, rho)
        assert solvers.get(solver).calls(num_steps) == 128
        result = _run(data, "mix64", solver, sigmas)
        error = np.abs(result.log_density - data["mix64/flow/log_likelihood"]).max()
        worst[solver] = error / (64 * np.log(2))
    assert worst["rk4"] == pytest.approx(6.5e-4, rel=0.05)  # two digits are tabulated
    assert worst["heun"] > 20 * worst["rk4"]
    assert worst["adams"] < worst["rk4"] / 3


@pytest.mark.parametrize("num_steps", [1, 2, 3, 9])
def test_adams_integrates_cubics_in_any_spacing(num_steps, x64):
    """D = x - f(tau) with f a polynomial of the degree that its interpolation is exact for."""
    rng = np.random.default_rng(num_steps)
    sigmas = np.exp(np.cumsum(rng.uniform(0.1, 0.9, num_steps + 1)) - 2)
    degree = min(num_steps, 3)
    coefficients = rng.normal(size=degree + 1)
    evaluations, last = solvers.plan("adams", sigmas, dtype=jnp.float64)
    assert len(evaluations.sigma) == last[0] + 1 == solvers.get("adams").calls(num_steps)
    assert np.isin(evaluations.sigma, sigmas).all()
    denoise = lambda x, sigma: x - jnp.polyval(jnp.asarray(coefficients), jnp.log(sigma))  # noqa: E731
    end = jax.jit(lambda x: solvers.integrate(denoise, x, evaluations)[0])(jnp.zeros((1, 1)))
    primitive = np.polyint(coefficients)
    expected = np.polyval(primitive, np.log(sigmas[-1])) - np.polyval(primitive, np.log(sigmas[0]))
    np.testing.assert_allclose(float(end[0, 0]), expected, rtol=1e-10)


def test_passes_share_one_copy_of_the_network():
    traced = 0

    def denoise(x, sigma):
        nonlocal traced
        traced += 1
        return x / (1 + sigma**2)

    def run(x, sigmas):
        return flow_log_likelihood(denoise, x, sigmas, compare_steps=True, num_probes=0)

    text = jax.jit(run).lower(jnp.ones((2, 3)), jnp.asarray(flow_levels(8))).as_text()
    # Of one probe the program holds one evaluation and its derivative, whatever N.
    assert traced <= 3  # the shapes of the traces are found by tracing too
    assert text.count("stablehlo.while") <= 2  # the scan, and the products of the exact trace


def test_first_pass_leaves_nothing_behind(x64):
    """A pass that blows up must not reach the one that follows."""
    bed = exact.Gaussian(np.zeros(2), np.ones(2))
    grid = np.array([0.5, 1.0, 2.0])
    evaluations, last = solvers.plan("rk4", grid, grid, dtype=jnp.float64)
    broken = evaluations._replace(weights=evaluations.weights.at[: last[0] + 1].set(jnp.inf))
    x = jnp.ones((3, 2))
    alone, _ = solvers.plan("rk4", grid, dtype=jnp.float64)
    expected = solvers.integrate(bed.denoise, x, alone)[0]
    np.testing.assert_array_equal(solvers.integrate(bed.denoise, x, broken)[0], expected)


def test_network_with_a_table_is_called_at_its_levels_only(x64):
    network = precond.iddpm_preconditioning()
    table = known_levels(network)
    sigmas = flow_levels(64, preconditioning=network)
    assert np.isin(sigmas, table).all() and 50 < len(sigmas) <= 65
    evaluations, _ = solvers.plan("adams", sigmas, dtype=jnp.float32)
    assert np.isin(np.asarray(evaluations.sigma, np.float32), table.astype(np.float32)).all()
    # And with what is exact there: closed form of a Gaussian, to the error at this N.
    bed = exact.Gaussian(0.1, 0.5)
    x = jnp.asarray([[0.3], [-0.9]])
    run = jax.jit(lambda x, s: flow_log_likelihood(bed.denoise, x, s, solver="adams"))
    result = run(x, sigmas)
    expected = bed.log_density(x[:, 0], sigmas[0])
    # 0.1 nats / 80 is the error of the prior's mean; the solver's is smaller.
    np.testing.assert_allclose(result.log_density, expected, atol=3e-3)


def test_unknown_solver():
    with pytest.raises(ValueError, match="did you mean 'heun'"):
        solvers.get("huen")
