"""The rows of the likelihood in the table of promises."""

import types

import jax
import jax.numpy as jnp
import pytest

from edm_jax.exact import likelihood_promises, promises
from edm_jax.likelihood import solvers


@pytest.mark.parametrize("solver", ["rk4", "adams"])
def test_solvers_keep_their_promises(solver):
    report = likelihood_promises.validate_solver(solver)
    assert report.passed, report.failures
    assert report.nfe == tuple(solvers.get(solver).calls(n) for n in report.num_steps)
    assert "pass" in promises.table([report])


def test_a_wrong_method_is_found(monkeypatch):
    """Heun's method passed off as one of order 4, with a call too few."""
    wrong = solvers.SOLVERS["heun"]._replace(order=4, calls=lambda n: 2 * n - 1)
    monkeypatch.setitem(solvers.SOLVERS, "heun", wrong)
    report = likelihood_promises.validate_solver("heun")
    assert "it converges with order 1.98" in report.failures[0]
    assert any("it calls the network 512 times" in failure for failure in report.failures)


def result_of(log_density, **more):
    return types.SimpleNamespace(log_density=log_density, **more)


def noise(keys):
    return jax.vmap(jax.random.normal)(keys)


DENSITIES = {
    "its own": (lambda x, keys: x.sum((1, 2, 3)) + noise(keys), (True, True)),
    "the mean of all": (lambda x, keys: x.mean() + noise(keys), (False, True)),
    "its place": (lambda x, keys: x[:, 0, 0, 0] * jnp.arange(6) + noise(keys), (False, True)),
    "no key": (lambda x, keys: x.sum((1, 2, 3)), (True, False)),
    "the keys of all": (lambda x, keys: x[:, 0, 0, 0] + noise(keys).sum(), (False, False)),
    # Only of the images of which the first alone is exchanged.
    "that of the first": (
        lambda x, keys: x[:, 0, 0, 0] + noise(keys) + x[0].sum() * (x[0].sum() < 0),
        (False, True),
    ),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_independence_of_known_functions(name, monkeypatch, x64):
    function, expected = DENSITIES[name]

    def fake(denoise, x, sigmas, *, key, solver, num_probes):
        return result_of(function(x, key))

    monkeypatch.setattr(likelihood_promises, "flow_log_likelihood", fake)
    assert likelihood_promises.independence("heun") == expected


def test_the_error_is_that_of_the_worst_image(monkeypatch, x64):
    """Errors of 1 to 6 nats of four pixels: 1.5 nats per dimension."""
    mixture = likelihood_promises.MIXTURE

    def fake(denoise, x, sigmas, *, solver, num_probes):
        error = jnp.arange(1.0, 7.0)
        start = mixture.log_density(x, sigmas[0])
        at_end = mixture.log_density(x * sigmas[-1], sigmas[-1])
        return result_of(None, latent=x, volume=start - at_end + error)

    monkeypatch.setattr(likelihood_promises, "flow_log_likelihood", fake)
    ((error, _),) = likelihood_promises.runs("heun", (8,))
    assert error == pytest.approx(1.5, abs=1e-9)


def test_the_order_is_the_slope_of_the_finest_runs(monkeypatch):
    """Four times the steps and a 256th of the error: order 4."""
    info = solvers.get("rk4")
    monkeypatch.setattr(likelihood_promises, "FINE_STEPS", (256, 1024))
    monkeypatch.setattr(likelihood_promises, "independence", lambda solver: (True, True))
    monkeypatch.setattr(
        likelihood_promises, "runs",
        lambda solver, steps: list(zip((1e-1, 1e-4, 1e-4 / 256), map(info.calls, steps))),  # noqa: B905
    )  # fmt: skip
    report = likelihood_promises.validate_solver("rk4")
    assert report.measured_order == pytest.approx(4) and report.passed
