"""From flags to a sampling request: what goes with what."""

import pytest

from edm_jax.ardm.request import Decoding
from edm_jax.generate import Sampling
from experiments import flags, sampling_flags
from experiments.config.flag import UsageError

RUN = Sampling(num_steps=5, sigma_min=0.01, sigma_max=50.0, rho=6.0)
CHURNED = Sampling("edm", num_steps=5, options={"s_churn": 4.0, "s_noise": 1.01})


def request(*words, base=RUN):
    return sampling_flags.request(flags.parse(words, sampling_flags.FLAGS, lambda name: []), base)


def test_autoregressive_models():
    base = Decoding(16, "optimal")
    assert request(base=base) == base
    assert request("--num_steps=9", base=base) == Decoding(9, "optimal")
    assert request("--policy=uniform", base=base) == Decoding(16)
    assert request("--policy=0,4,64", "--sampler=ardm", base=base) == Decoding(policy=(0, 4, 64))


@pytest.mark.parametrize(
    "words, base, message",
    [
        (["--sigma_max=40"], Decoding(), "--sigma_max is about noise levels, which this model"),
        (["--s_churn=4"], Decoding(), "--s_churn is about noise levels"),
        (["--sampler=heun"], Decoding(), "--sampler=heun: the samplers are those of denoisers"),
        (["--policy=0,64", "--num_steps=1"], Decoding(), "leave --num_steps out"),
        (["--policy=optimal"], RUN, "--policy is for autoregressive models"),
    ],
)
def test_flags_of_another_kind(words, base, message):
    with pytest.raises(UsageError, match=message):
        request(*words, base=base)


def test_a_policy_of_no_numbers():
    with pytest.raises(UsageError, match="must be uniform, optimal, or numbers such as 0,4,16,64"):
        request("--policy=0,x", base=Decoding())
    with pytest.raises(ValueError, match="policy must be one of uniform, optimal, or numbers"):
        request("--policy=best", base=Decoding())


def test_without_flags_it_is_that_of_the_run():
    assert request() == RUN and request(base=CHURNED) == CHURNED


def test_a_flag_changes_what_it_says():
    assert request("--num_steps=9").to_json() == RUN.to_json() | {"num_steps": 9}
    assert request("--sampler=dpmpp_2m").to_json() == RUN.to_json() | {"sampler": "dpmpp_2m"}


def test_a_discretization_comes_with_its_own_range():
    json = request("--discretization=ve", "--sigma_max=90").to_json()
    assert json["sigma_max"] == 90 and "sigma_min" not in json and "rho" not in json


def test_levels_take_the_place_of_a_grid():
    levels = request("--sigmas=80,1,0")
    assert levels.sigmas == (80, 1, 0) and levels.num_steps == 2
    assert request("--num_steps=4", base=levels).sigmas is None


def test_options_belong_to_their_sampler():
    base = Sampling("ddim", num_steps=5, options={"eta": 0.5})
    assert request(base=base).options == {"eta": 0.5}
    assert request("--sampler=heun", base=base).options == {}
    new = request("--sampler_options=eta=1,s_noise=1.01", base=base)
    assert new.options == {"eta": 1, "s_noise": 1.01}
    assert request("--sampler=ddim", "--s_noise=1.02").options == {"s_noise": 1.02}


def test_churn_makes_heun_the_edm_sampler():
    churned = request("--s_churn=40", "--s_tmin=0.05")
    assert churned.sampler == "edm" and churned.options == {"s_churn": 40.0, "s_tmin": 0.05}
    assert request("--s_churn=0", base=CHURNED).sampler == "heun"
    assert request("--s_churn=0", base=CHURNED).options == {}
    assert request("--s_tmin=0.1", base=CHURNED).options == CHURNED.options | {"s_tmin": 0.1}
    general = request("--sampler=general", "--s_churn=4")
    assert general.sampler == "general" and general.options == {"s_churn": 4.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--s_noise=1.01"], "without churn it means nothing; give --s_churn too"),
        (["--s_tmin=1", "--sampler=general"], "without churn it means nothing"),
        (["--s_churn=1", "--sampler=dpmpp_2m"], "the sampler 'dpmpp_2m' has no churn"),
        (["--sigmas=80,1,0", "--rho=5"], "leave --rho out"),
        (["--sampler="], "--sampler=: must not be empty"),
        (["--sampler=lms_4", "--num_steps=2"], "needs at least 4 steps, got 2"),
        (["--sampler_options=order=3"], "has no option 'order'"),
        (["--sigma_min=60"], "sigma_min"),
    ],
)
def test_what_does_not_go_together_is_one_line(words, message):
    with pytest.raises(ValueError) as found:
        request(*words)
    assert message in str(found.value) and "\n" not in str(found.value)
    assert isinstance(found.value, UsageError) or "--" not in message
