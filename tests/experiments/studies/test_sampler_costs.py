"""The study of what samplers gain for their network calls, on a few of them."""

import numpy as np
import pytest

from edm_jax import samplers
from experiments.studies import sampler_costs


def test_every_setting_is_one_of_the_library():
    for settings in (sampler_costs.DETERMINISTIC, sampler_costs.STOCHASTIC):
        for name, options in settings.values():
            samplers.get(name).check(**options)


def test_errors_within_budgets():
    few = {name: sampler_costs.DETERMINISTIC[name] for name in ("euler", "heun", "vp_ode")}
    errors = sampler_costs.measure(few, stochastic=False, budgets=(10, 20))
    assert set(errors["heun"]) == {9, 19} and set(errors["euler"]) == {10, 20}
    assert errors["heun"][9] / errors["heun"][19] > 4 > errors["euler"][10] / errors["euler"][20]
    noisy = {name: sampler_costs.STOCHASTIC[name] for name in ("seeds_2", "euler_ancestral")}
    sde = sampler_costs.measure(noisy, stochastic=True, budgets=(20,))
    # A deviation off by a tenth is an error of 0.05.
    assert sde["seeds_2"][19] < sde["euler_ancestral"][20] < 0.2


def test_the_best_within_a_number_of_calls():
    errors = {"a": {10: 0.3, 20: 0.1}, "b": {9: 0.2, 19: 0.15}, "c": {5: 0.01}}
    assert sampler_costs.best(errors, 10) == [["b", 9, 0.2], ["a", 10, 0.3]]
    assert sampler_costs.best(errors, 20, count=1) == [["a", 20, 0.1]]
    # An error that passes through zero does not count as small.
    errors["a"] = {10: 0.001, 20: 0.25}
    assert sampler_costs.best(errors, 10) == [["b", 9, 0.2], ["a", 10, 0.25]]


@pytest.mark.parametrize("noise", ["step", "tree"])
def test_images_of_the_same_seeds(noise):
    points = np.random.default_rng(0).uniform(-1, 1, size=(40, 4, 4, 1)).astype(np.float32)
    images = sampler_costs.path_images(points, (10, 20, 40), noise, 24)
    assert images.shape == (3, 24, 4, 4, 1)
    same = np.mean(np.max(np.abs(images[1] - images[2]), axis=(1, 2, 3)) < 0.3)
    # With data points this far apart an image is the nearest of them.
    assert (same > 0.5) == (noise == "tree")
