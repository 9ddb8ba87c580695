"""The rows of the likelihood in the table of promises."""

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
