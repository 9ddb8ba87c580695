"""The study of the likelihood's solvers, on one of them."""

import numpy as np

from edm_jax.likelihood.code_errors import CodeErrors
from experiments.studies import likelihood_errors


def test_errors_fall_with_the_order(monkeypatch, x64):
    monkeypatch.setattr(likelihood_errors, "CALLS", (64, 128))
    monkeypatch.setattr(likelihood_errors, "LINES", {"rk4": likelihood_errors.LINES["rk4"]})
    ((calls, coarse), (more, fine)) = likelihood_errors.density_errors(2)["rk4"]
    assert 60 < calls <= 64 and 124 < more <= 128
    # Order 4 gains 16 for twice the calls; half of that this far from the limit.
    assert 0 < fine < coarse / 8


def test_errors_are_drawn(tmp_path):
    numbers = np.array([8, 16, 32])
    codes = CodeErrors(numbers, 1.0 / numbers**4, 2.0 / numbers**4, 0.1 / numbers**4, "rk4")
    table = {name: [(32, 1e-3), (64, 1e-4)] for name in likelihood_errors.LINES}
    path = tmp_path / "errors.png"
    likelihood_errors.draw({8: table, 64: table}, [codes], path)
    assert path.stat().st_size > 10_000
