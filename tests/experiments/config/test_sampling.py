"""``config.sampler`` as a request."""

import math

import numpy as np
import pytest

from configs import base
from edm_jax.schedules import karras_sigmas
from experiments.config.groups import ConfigError
from experiments.config.sampling import parse_options, read_sampling


def group(**options):
    return base.get_config().sampler.to_dict() | options


def test_the_default_is_heun_on_edm_levels():
    sampling = read_sampling(group())
    assert sampling.sampler == "heun" and not sampling.options
    np.testing.assert_array_equal(sampling.grid(), karras_sigmas(18))
    warped = read_sampling(group(rho=5.0, sigma_max=20.0, num_steps=9))
    np.testing.assert_array_equal(warped.grid(), karras_sigmas(9, sigma_max=20.0, rho=5.0))


def test_churn_makes_heun_stochastic():
    churn = dict(s_churn=40.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
    sampling = read_sampling(group(**churn))
    assert sampling.sampler == "edm" and sampling.options == churn
    assert read_sampling(group(**churn, name="edm")) == sampling
    # Without churn its range means nothing.
    assert read_sampling(group(s_tmin=0.05, s_noise=2.0)) == read_sampling(group())
    with pytest.raises(ConfigError, match=r"s_churn is 40, but the sampler 'ddim' has no churn"):
        read_sampling(group(**churn, name="ddim"))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("eta=0.5", {"eta": 0.5}),
        (" order=3 , solver=euler,ode=True", {"order": 3, "solver": "euler", "ode": True}),
        ('{"alpha": 0.5}', {"alpha": 0.5}),
        ("s_tmax=Infinity", {"s_tmax": math.inf}),
    ],
)
def test_options_as_text(text, options):
    parsed = parse_options(text)
    assert parsed == options and list(map(type, parsed.values())) == list(
        map(type, options.values())
    )


@pytest.mark.parametrize(
    "text", ["eta", "eta=", "=3", "eta=1,,x", '{"eta": }', "eta=1,eta=2", '{"eta": 1, "eta": 2}']
)
def test_options_that_are_none(text):
    with pytest.raises(ConfigError, match=r"^config.sampler.options: options .*"):
        read_sampling(group(options=text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="dpmpp_2n"), r"^config.sampler: unknown sampler 'dpmpp_2n'; did you mean"),
        (dict(options="lower_ordr=1", name="unipc_2"), "has no option 'lower_ordr'"),
        (dict(name="dpmpp_2m", num_steps=1), "needs at least 2 steps, got 1"),
        (dict(discretization="edn"), "did you mean 'edm'"),
        (dict(discretization="vp", rho=3.0), "rho"),
        (dict(sigmas=(80.0, 1.0)), "must end in 0"),
    ],
)
def test_requests_that_cannot_be_carried_out(options, message):
    with pytest.raises(ConfigError, match=message):
        read_sampling(group(**options))


def test_levels_of_ones_own():
    sampling = read_sampling(group(sigmas=(80.0, 5.0, 0.2, 0.0)))
    np.testing.assert_array_equal(sampling.grid(), [80, 5, 0.2, 0])
