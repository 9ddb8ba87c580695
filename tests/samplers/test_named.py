"""Samplers by name against the programs that released them, on the exact denoiser of a mixture."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import grids, samplers
from edm_jax.samplers import Churn, Segment, restart
from edm_jax.samplers.path import tree_value
from tests.support.paths import GOLDEN

ARCHIVE = dict(np.load(GOLDEN / "18_named_samplers.npz"))
CONFIGS = {k[: -len("/config")]: json.loads(str(v)) for k, v in ARCHIVE.items() if "/config" in k}


def _denoise(x, sigma):
    """D of the mixture, written out from the description of the file."""
    means, stds, weights = (ARCHIVE[name] for name in ("means", "stds", "weights"))
    total = jnp.asarray(stds**2) + sigma**2
    away = x[:, None] - means[None]
    squares = jnp.sum(away**2, axis=-1)
    log_p = jnp.log(weights)[None] - squares / (2 * total)[None]
    log_p = log_p - means.shape[1] / 2 * jnp.log(total)[None]
    towards = means[None] + (stds**2 / total)[None, :, None] * away
    return jnp.einsum("bk,bkd->bd", jax.nn.softmax(log_p), towards)


def _churn(config):
    return Churn(config["s_churn"], config["s_tmin"], config["s_tmax"], config["s_noise"])


def _power(config):
    name = config["noise_scaler"]
    power = {} if name == "default" else {"function": "power", "eta": float(name[2:]) - 1}
    return {"order": config["max_stage"], **power}


def _sa(config):
    low, high = config["tau_interval"] or (0.0, np.inf)
    return {
        "predictor": config["predictor_order"], "corrector": config["corrector_order"],
        "tau": 1.0 if config["tau"] == "interval" else config["tau"], "tau_min": low,
        "tau_max": high, "simple": config["simple_order_2"], "pece": config["use_pece"],
    }  # fmt: skip


def _given(config, *names):
    return {name: config[name] for name in names if name in config}


# Callbacks may see states in single precision, whatever the program computes in.
SEEN = 1e-6
# Function of the program -> name here, and its options from the configuration.
OURS = {
    "euler_ancestral": ("euler_ancestral", lambda c: _given(c, "eta", "s_noise")),
    "dpm_2_ancestral": ("dpm_2_ancestral", lambda c: _given(c, "eta", "s_noise")),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", lambda c: _given(c, "eta", "s_noise")),
    "dpmpp_sde": ("dpmpp_sde", lambda c: _given(c, "eta", "s_noise")),
    "dpm_2": ("dpm_2", lambda c: {"churn": _churn(c)} if "s_churn" in c else {}),
    "ipndm": ("ipndm", lambda c: {"order": c["max_order"]}),
    "deis": ("deis", lambda c: {"order": c["max_order"], "space": "vp"}),
    "res_multistep": ("res_multistep", lambda c: {}),
    "lcm": ("lcm", lambda c: {}),
    "er_sde": ("er_sde", _power),
    "seeds_2": ("seeds_2", lambda c: {"variant": c["solver_type"], **_given(c, "r", "eta")}),
    "seeds_3": ("seeds_3", lambda c: _given(c, "eta")),
    "sa_solver": ("sa_solver", _sa),
}
CASES = [
    (case, steps)
    for case, config in CONFIGS.items()
    for steps in (4, 8, 20)
    if config.get("function") in OURS and f"{case}/N{steps}/result" in ARCHIVE
]


def _run(name, options, x, sigmas, noise):
    """A compiled run; the result, levels and states of all network calls, in order."""
    seen = []

    def note(sigma, x):
        seen.append((float(sigma), np.array(x)))

    def denoise(x, sigma):
        jax.debug.callback(
            lambda s, x: seen.append((float(s), np.array(x))), sigma, x, ordered=True
        )
        return _denoise(x, sigma)

    recorded = jnp.asarray(noise)
    info = samplers.get(name)
    more = {"noise_fn": lambda i: recorded[i]} if "noise_fn" in info.options else {}
    run = jax.jit(lambda x: info(denoise, x, sigmas, trajectory=True, **options, **more))
    visited = jax.block_until_ready(run(x))
    jax.effects_barrier()
    return visited, [s for s, _ in seen], np.array([x for _, x in seen])


@pytest.mark.parametrize(("case", "steps"), CASES)
def test_released_programs(case, steps, x64):
    config = CONFIGS[case]
    name, options = OURS[config["function"]]
    options, sigmas = options(config), ARCHIVE[f"sigma/N{steps}"]
    at = f"{case}/N{steps}"
    noise = ARCHIVE.get(f"{at}/noise", ARCHIVE["noise"])
    if config["function"] == "sa_solver":
        # Draws are counted over the steps that end where tau > 0.
        ends = sigmas[1:-1]
        active = (options["tau_min"] <= ends) & (ends <= options["tau_max"]) & (options["tau"] > 0)
        noise = noise[np.append(np.maximum(np.cumsum(active) - 1, 0), 0)]
    visited, levels, states = _run(name, options, ARCHIVE["x"] * sigmas[0], sigmas, noise)
    expected = ARCHIVE.get(f"{at}/exact", ARCHIVE[f"{at}/result"])
    scale = np.max(np.abs(expected))
    # As recommended with the arrays; the integrals of `exact` are good to 3e-10.
    tolerance = 1e-9 if f"{at}/exact" in ARCHIVE else 1e-10
    np.testing.assert_allclose(visited.x[-1], expected, rtol=0, atol=tolerance * scale)
    if f"{at}/exact" in ARCHIVE:  # the programs sum their integrals coarsely
        coarse = 2e-4 if config["function"] == "deis" else 2e-3
        result = ARCHIVE[f"{at}/result"]
        np.testing.assert_allclose(visited.x[-1], result, rtol=0, atol=coarse * scale)
    assert len(levels) == ARCHIVE[f"{at}/network_calls"] == samplers.get(name).nfe(steps, **options)
    if f"{at}/call_sigma" in ARCHIVE:
        np.testing.assert_allclose(levels, ARCHIVE[f"{at}/call_sigma"], rtol=SEEN)
        inexact = f"{at}/exact" in ARCHIVE
        tolerance = 2e-3 if inexact else SEEN
        calls = ARCHIVE[f"{at}/call_x"]
        np.testing.assert_allclose(states, calls, rtol=0, atol=tolerance * np.max(np.abs(calls)))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", [4, 8, 20])
def test_deis_in_log_space_up_to_the_last_positive_level(order, steps, x64):
    sigmas, at = ARCHIVE[f"sigma/N{steps}"], f"diffusers/deis_logrho_{order}/N{steps}"
    options = {"order": order, "lower_order_final": steps < 15}
    visited, levels, _ = _run("deis", options, ARCHIVE["x"] * sigmas[0], sigmas, [0.0])
    expected = ARCHIVE[f"{at}/result"]
    np.testing.assert_allclose(visited.x[-2], expected, atol=1e-10 * np.max(np.abs(expected)))
    assert len(levels) == ARCHIVE[f"{at}/network_calls"] + 1  # ours denoises at the end


@pytest.mark.parametrize("steps", [10, 25])
def test_pndm_up_to_its_final_level(steps, x64):
    at = f"diffusers/pndm_N{steps}"
    levels = ARCHIVE[f"{at}/sigma"]
    assert levels[-1] == levels[-2]  # its step at the end goes nowhere; ours denoises there
    x = ARCHIVE["x"] * np.sqrt(1 + levels[0] ** 2)
    visited, seen, states = _run("pndm", {}, x, grids.append_zero(levels[:-1]), [0.0])
    np.testing.assert_allclose(visited.x[-2], ARCHIVE[f"{at}/result"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(seen, ARCHIVE[f"{at}/call_sigma"], rtol=SEEN)
    calls = ARCHIVE[f"{at}/call_x"]
    np.testing.assert_allclose(states, calls, rtol=0, atol=SEEN * np.max(np.abs(calls)))


@pytest.mark.parametrize("steps", [4, 8, 20])
def test_restart(steps, x64):
    config, sigmas = CONFIGS[f"restart/N{steps}"], ARCHIVE[f"sigma/N{steps}"]
    segments = tuple(Segment(*segment) for segment in config["segments"])
    planned = np.stack(restart.plan(sigmas, segments), axis=1)
    np.testing.assert_allclose(planned, ARCHIVE[f"restart/N{steps}/plan"], rtol=1e-12)
    # The same while it is traced, where the place of a segment is not known.
    traced = jax.jit(restart.plan)(sigmas, segments)
    np.testing.assert_allclose(np.stack(traced, axis=1), planned, rtol=1e-12)
    options = {"segments": segments, "s_noise": config["s_noise"]}
    x = ARCHIVE["x"] * sigmas[0]
    visited, levels, states = _run("restart", options, x, sigmas, ARCHIVE["noise"])
    expected = ARCHIVE[f"restart/N{steps}/result"]
    np.testing.assert_allclose(visited.x[-1], expected, atol=1e-10 * np.max(np.abs(expected)))
    assert len(levels) == ARCHIVE[f"restart/N{steps}/network_calls"]
    assert len(levels) == samplers.get("restart").nfe(steps, segments=segments)
    np.testing.assert_allclose(levels, ARCHIVE[f"restart/N{steps}/call_sigma"], rtol=SEEN)
    calls = ARCHIVE[f"restart/N{steps}/call_x"]
    np.testing.assert_allclose(states, calls, rtol=0, atol=SEEN * np.max(np.abs(calls)))


def test_calls_as_published():
    """Xu et al. 2023, their tables of settings: 43 calls on CIFAR-10, 203 on ImageNet-64."""
    info = samplers.get("restart")
    assert info.nfe(18) == 43 and info.nfe(36, segments=restart.IMAGENET64) == 203


def test_segments_that_cannot_be():
    with pytest.raises(ValueError, match="two segments end on the level"):
        restart.plan(ARCHIVE["sigma/N8"], (Segment(3, 1, 0.08, 0.3), Segment(3, 1, 0.1, 2.0)))
    with pytest.raises(ValueError, match="must end above the level"):
        restart.plan(ARCHIVE["sigma/N4"], (Segment(3, 1, 0.3, 0.31),))
    with pytest.raises(ValueError, match="sigma_lo < sigma_hi"):
        Segment(3, 1, 0.5, 0.3)
    with pytest.raises(ValueError, match="levels of a segment"):
        Segment(1, 1, 0.1, 0.3)


def test_tree_with_given_normals(x64):
    config, normals = CONFIGS["tree"], jnp.asarray(ARCHIVE["tree/normals"])
    shape = {"depth": config["depth"], "clock_min": config["clock_min"]}
    value = jax.jit(
        functools.partial(tree_value, lambda i: normals[i], clock_max=config["clock_max"], **shape)
    )
    x = np.stack([value(leaf) for leaf in range(2 ** config["depth"] + 1)])
    np.testing.assert_allclose(x, ARCHIVE["tree/X"], rtol=1e-12, atol=1e-12)
    leaf, clock = ARCHIVE["tree/leaf"], ARCHIVE["tree/clock"]
    gap = np.diff(clock[leaf])[:, None]
    noise = (x[leaf[1:]] - np.exp(-gap) * x[leaf[:-1]]) / np.sqrt(-np.expm1(-2 * gap))
    np.testing.assert_allclose(noise, ARCHIVE["tree/noise"], rtol=1e-10)
