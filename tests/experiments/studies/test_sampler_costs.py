"""The study of what samplers gain for their network calls, on a few of them."""

import json

import numpy as np
import pytest

from edm_jax import samplers
from experiments.studies import sampler_costs
from tests.support.paths import ROOT


def test_every_sampler_of_the_library_and_no_other():
    names = set()
    for settings in sampler_costs.GROUPS.values():
        for name, options in settings.values():
            samplers.SAMPLERS[name].check(**options)
            names.add(name)
    assert names == set(samplers.SAMPLERS)


def test_the_file_of_the_documentation_has_them_all():
    stored = json.loads((ROOT / "docs/sampler_costs.json").read_text())
    assert set(stored["samplers"].values()) == set(samplers.SAMPLERS)
    for group, settings in sampler_costs.GROUPS.items():
        assert set(stored[group]) == set(settings)
        for label, found in stored[group].items():
            assert found, f"{label} was not measured"
            assert all(0 < error < 3 for error in found.values())
        for calls in sampler_costs.CHOICES:
            assert stored["best"][group][str(calls)]


def test_errors_within_budgets():
    few = {name: sampler_costs.DETERMINISTIC[name] for name in ("euler", "heun", "vp_ode")}
    errors = sampler_costs.measure(few, "deterministic", budgets=(10, 20))
    assert set(errors["heun"]) == {9, 19} and set(errors["euler"]) == {10, 20}
    assert errors["heun"][9] / errors["heun"][19] > 4 > errors["euler"][10] / errors["euler"][20]
    noisy = {name: sampler_costs.STOCHASTIC[name] for name in ("seeds_2", "ddpm")}
    sde = sampler_costs.measure(noisy, "stochastic", budgets=(20,))
    # A deviation off by a tenth is an error of 0.05.
    assert sde["seeds_2"][19] < sde["ddpm"][20] < 0.2


def test_what_is_measured_in_another_way():
    adaptive = sampler_costs.measure({"adaptive": ("adaptive", {})}, "deterministic", (80,))
    calls, errors = zip(*sorted(adaptive["adaptive"].items()), strict=True)
    assert len(calls) > 2 and calls[-1] <= 80
    assert errors[-1] < 0.3 * errors[0]
    box = sampler_costs.measure({"of a box": ("reflected", {})}, "box", budgets=(20,))
    assert 0 < box["of a box"][20] < 0.1


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
