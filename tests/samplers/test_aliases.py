"""Names from elsewhere: what they stand for, and why some stand for nothing."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, samplers, seeds
from edm_jax.samplers import ALIASES, LEFT_OUT, SAMPLERS

BED = exact.Gaussian(0.3, 0.5)


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_an_alias_is_the_sampler_that_it_names(name, x64):
    if ALIASES[name].sampler == "adaptive":
        pytest.importorskip("diffrax")
    info, alias = samplers.get(name), ALIASES[name]
    sigmas, keys = grids.karras_sigmas(5), seeds.image_keys([0, 1])
    x = jnp.array([[1.0, -0.5], [0.2, 2.0]]) * sigmas[0]
    expected = SAMPLERS[alias.sampler](BED.denoise, x, sigmas, keys, **alias.options)
    np.testing.assert_allclose(info(BED.denoise, x, sigmas, keys), expected, rtol=1e-12)
    other = info(BED.denoise, x, sigmas, seeds.image_keys([5, 6]))
    assert np.allclose(other, expected) != info.stochastic
    assert info.name == name and info.note.startswith(f"{name} is {alias.sampler}")


@pytest.mark.parametrize(
    ("label", "ours", "grid"),
    [
        ("Euler a", "euler_ancestral", "edm"),
        ("DPM2 a", "dpm_2_ancestral", "edm"),
        ("DPM++ 2S a", "dpmpp_2s_ancestral", "edm"),
        ("DPM++ 2M Karras", "dpmpp_2m", "edm"),
        ("DPM++ 2M SDE Heun Exponential", "dpmpp_2m_sde_heun", "log_linear"),
        ("DPM++ SDE", "dpmpp_sde", "edm"),
        ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde", "edm"),
        ("PLMS", "ipndm", "edm"),
        ("UniPC", "unipc_3", "edm"),
        ("Restart", "restart", "edm"),
        ("LMS", "lms_4", "edm"),
        ("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral", "edm"),
        ("EulerAncestralDiscrete", "euler_ancestral", "edm"),
        ("DEISMultistepScheduler", "deis", "edm"),
        ("DPMSolverSDEScheduler", "dpmpp_sde", "edm"),
        ("HeunDiscreteScheduler", "heun", "edm"),
        ("DDIMScheduler", "ddim", "edm"),
        ("IPNDMScheduler", "ipndm", "edm"),
        ("SASolverScheduler", "sa_solver", "edm"),
        ("LCMScheduler", "lcm", "edm"),
    ],
)
def test_labels_as_they_are_written(label, ours, grid):
    found, same = samplers.get(label), samplers.get(ours)
    assert (found.fn, dict(found.presets)) == (same.fn, dict(same.presets))
    assert found.grid == grid and found.name == label


def test_methods_that_coincide(x64):
    """Identities between methods, and of each at eta = 0 with its deterministic form."""
    sigmas, keys = grids.karras_sigmas(9), seeds.image_keys([0, 1])
    x = jnp.array([[1.0, -0.5], [0.2, 2.0]]) * sigmas[0]

    def run(name, at=sigmas, **options):
        return samplers.get(name)(BED.denoise, x, at, keys, trajectory=True, **options).x

    pairs = [
        (run("dpm_2_ancestral", eta=0.0), run("dpm_2")),
        (run("dpmpp_2s_ancestral", eta=0.0), run("dpmpp_2s")),
        (run("dpmpp_sde", eta=0.0), run("dpmpp_2s")),
        (run("seeds_2", eta=0.0, variant="phi_1"), run("dpmpp_2s")),
        (run("sa_solver", predictor=2, corrector=0, tau=0.0)[:-2],
         run("dpmpp_2m", variant="taylor")[:-2]),
        (run("er_sde", order=1, function="power", eta=0.0), run("euler")),
        (run("deis", order=1), run("euler")),
        (run("ipndm", order=1), run("euler")),
        (run("er_sde", order=1, function="power"), run("ddim", eta=1.0)),
    ]  # fmt: skip
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    # Equal steps: the weights of linear multistep are those of Adams and Bashforth.
    even = np.linspace(9.0, 0.0, 10)
    for order in (2, 3, 4):
        ours = run("ipndm", at=even, order=order)[:-1]
        np.testing.assert_allclose(ours, run(f"lms_{order}", at=even)[:-1], rtol=1e-9)


@pytest.mark.parametrize("name", [*LEFT_OUT, "DPM fast", "euler_cfg_pp", "deis rhoab"])
def test_names_that_are_left_out_say_why(name):
    with pytest.raises(ValueError, match="is left out: ") as error:
        samplers.get(name)
    assert "\n" not in str(error.value)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'euler_ancestral'"):
        samplers.get("euler_ancestrl")
    for name in (3, None, ["heun"], ""):
        with pytest.raises(ValueError, match=re.escape(f"unknown sampler {name!r}")):
            samplers.get(name)
    assert samplers.get("Euler\na").note == "Euler a is ddim, eta=1.0"  # one line
