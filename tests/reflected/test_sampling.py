"""Trajectories against the published program and independent float64 replays."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import grids, samplers
from edm_jax.domains.box import Box
from edm_jax.reflected import sampling
from edm_jax.reflected.sources import ReflectedPoints
from edm_jax.samplers import reflected
from edm_jax.samplers import reflected_steps as steps
from edm_jax.seeds import image_keys
from tests.support import reflected_toy as toy
from tests.support.reflected_toy import UNIT


def _replay(arrays, case, sigmas, **options):
    """`sample_reflected` on the golden source and noise; states before the last step."""
    noise = jnp.asarray(arrays[f"{case}/noise"])
    denoise = toy.source(arrays).denoise

    @jax.jit
    def run(x):
        return reflected.sample_reflected(
            denoise, x, sigmas, box=UNIT, noise_fn=lambda i: noise[i], trajectory=True, **options
        )

    return np.asarray(run(arrays[f"{case}/start"]).x)


def _settings(arrays, case):
    config = json.loads(str(arrays[f"{case}/config"]))
    ends = {"sigma_min": config["sigma_min"], "sigma_max": config["sigma_max"]}
    return config, reflected.published_steps(config["N"], **ends)


@pytest.mark.parametrize("case", ["em-N24", "em-N60"])
def test_published_euler_maruyama(case, golden, x64):
    arrays, case = golden("13_reflected"), f"pc/{case}"
    _, (sigmas, variances) = _settings(arrays, case)
    np.testing.assert_allclose(sigmas[:-2], arrays[f"{case}/sigma"], rtol=1e-12)
    x = _replay(arrays, case, sigmas, variances=variances)
    np.testing.assert_allclose(x[1:-1], arrays[f"{case}/x"], atol=1e-8)
    means = [
        steps.reflected_step(
            toy.source(arrays).denoise, before, sigma, variance, np.zeros(before.shape), box=UNIT
        )[0]
        for before, sigma, variance in zip(x[:3], sigmas[:3], variances[:3], strict=True)
    ]
    np.testing.assert_allclose(means, arrays[f"{case}/x_mean"][:3], atol=1e-8)


@pytest.mark.parametrize("case", ["pc-N12", "pc-N10-2"])
def test_published_predictor_corrector(case, golden, x64):
    """Step by step: the program's batch means of norms enter as a signal-to-noise per image."""
    arrays, case = golden("13_reflected"), f"pc/{case}"
    config, (_, variances) = _settings(arrays, case)
    denoise, updates = toy.source(arrays).denoise, config["updates_per_step"]
    correct = jax.jit(
        functools.partial(steps.reflected_langevin_step, denoise, box=UNIT, max_correction=np.inf)
    )
    predict = jax.jit(functools.partial(steps.reflected_step, denoise, box=UNIT))

    def norms(a):
        return np.linalg.norm(a.reshape(len(a), -1), axis=1)

    before = arrays[f"{case}/start"]
    for j, expected in enumerate(arrays[f"{case}/x"]):
        sigma, noise = arrays[f"{case}/sigma"][j], arrays[f"{case}/noise"][j]
        score = arrays[f"{case}/score"][j]
        if j % updates < updates - 1:
            ratio = norms(noise).mean() / norms(score).mean()
            snr = config["snr"] * ratio * norms(score) / norms(noise)
            x, denoised = correct(before, sigma, noise, snr)
        else:
            x, denoised = predict(before, sigma, variances[j // updates], noise)
        np.testing.assert_allclose((denoised - before) / sigma**2, score, rtol=1e-8, atol=1e-7)
        np.testing.assert_allclose(x, expected, atol=1e-8)
        before = expected


@pytest.mark.parametrize(
    ("case", "kappa"), [("fold-sde", 1.0), ("fold-partial", 0.5), ("fold-euler-ode", 0.0)]
)
def test_partial_noise(case, kappa, golden, x64):
    arrays, case = golden("13_reflected"), f"own/{case}"
    sigmas = np.append(arrays[f"{case}/sigma"], 0)
    x = _replay(arrays, case, sigmas, kappa=kappa)
    np.testing.assert_allclose(x[:-1], arrays[f"{case}/x"], atol=1e-8)
    assert np.all((x >= 0) & (x <= 1))


@pytest.mark.parametrize(
    ("case", "boundary"), [("clip-all", "project"), ("clip-mean", "threshold")]
)
def test_thresholding(case, boundary, golden, x64):
    arrays, case = golden("13_reflected"), f"own/{case}"
    _, (sigmas, variances) = _settings(arrays, case)
    x = _replay(arrays, case, sigmas, variances=variances, boundary=boundary)
    np.testing.assert_allclose(x[:-1], arrays[f"{case}/x"], atol=1e-8)
    np.testing.assert_allclose(UNIT.clip(x[-2]), arrays[f"{case}/result"], atol=1e-8)


def test_lifted_sde_by_the_sampler_of_the_whole_space(golden, x64):
    """`sample_ve` on the lift; folded, it is the reflected sampler with some signs turned."""
    arrays, case = golden("13_reflected"), "own/lift-sde"
    sigmas, noise = np.append(arrays[f"{case}/sigma"], 0), jnp.asarray(arrays[f"{case}/noise"])
    denoise = toy.source(arrays).denoise

    @jax.jit
    def run(x):
        # One more draw for the step to 0, which takes none of it.
        draws = jnp.concatenate([noise, noise[:1]])
        return samplers.sample_ve(
            UNIT.lift(denoise), x, sigmas, noise_fn=lambda i: draws[i], trajectory=True
        ).x

    v = np.asarray(run(arrays[f"{case}/start"]))
    np.testing.assert_allclose(v[:-1], arrays[f"{case}/x"], atol=1e-7)
    assert np.any((v < 0) | (v > 1))
    turned = {"own/turned/noise": noise * UNIT.sign(v[:-2]), "own/turned/start": v[0]}
    folded = _replay({**arrays, **turned}, "own/turned", sigmas)
    np.testing.assert_allclose(folded, UNIT.fold(v), atol=1e-7)


@pytest.mark.parametrize("case", ["uncond", "cfg"])
def test_heun_on_the_lift(case, golden, x64):
    arrays, case = golden("13_reflected"), f"heun/{case}"
    config = json.loads(str(arrays[f"{case}/config"]))
    sigmas = grids.make_sigmas(
        "edm", config["N"], sigma_min=config["sigma_min"], sigma_max=config["sigma_max"],
        rho=config["rho"],
    )  # fmt: skip
    denoise = toy.source(arrays).denoise
    if config["w_theirs"] is not None:
        conditional, free = toy.by_label(arrays, arrays[f"{case}/y"]), denoise

        def denoise(x, sigma):
            d_c, d_0 = conditional(x, sigma), free(x, sigma)
            return d_c + config["w_theirs"] * (d_c - d_0)

    trajectory = toy.call(
        lambda x: samplers.sample_heun(UNIT.lift(denoise), x, sigmas, trajectory=True),
        arrays[f"{case}/start"],
    )
    np.testing.assert_allclose(trajectory.x[:-1], arrays[f"{case}/call_v"][::2], atol=1e-7)
    np.testing.assert_allclose(trajectory.denoised, arrays[f"{case}/call_D"][::2], atol=1e-7)
    np.testing.assert_allclose(trajectory.x[-1], arrays[f"{case}/result_v"], atol=1e-7)
    np.testing.assert_allclose(UNIT.fold(trajectory.x[-1]), arrays[f"{case}/result"], atol=1e-7)


@pytest.mark.parametrize("case", ["uncond", "cfg"])
def test_ode(case, golden, x64):
    """The exact probability flow, guidance w' up to 2.4 included, by UniPC on the lift."""
    arrays, case = golden("13_reflected"), f"ode/{case}"
    denoise = toy.source(arrays).denoise
    if case == "ode/cfg":
        conditional, free = toy.by_label(arrays, arrays[f"{case}/y"]), denoise
        scale = arrays[f"{case}/w_theirs"].reshape(-1, 1, 1, 1)

        def denoise(x, sigma):
            d_c, d_0 = conditional(x, sigma), free(x, sigma)
            return d_c + scale * (d_c - d_0)

    sigma_min = 0.01 * 500**1e-5
    sigmas = grids.make_sigmas("log_linear", 600, sigma_min=sigma_min, sigma_max=5.0)
    x = toy.call(
        lambda x: samplers.sample_unipc(UNIT.lift(denoise), x, sigmas, order=3, trajectory=True).x,
        np.float64(arrays[f"{case}/start"]),
    )[-2]
    # Golden tolerance; the solver's own error at 600 steps is 1e-8.
    np.testing.assert_allclose(UNIT.fold(x), arrays[f"{case}/exact_nobump"], atol=1e-6)
    # The published program multiplies the velocity by a bump, worth 3e-3 to 5e-3.
    np.testing.assert_allclose(UNIT.fold(x), arrays[f"{case}/program_result"], atol=6e-3)


def test_another_box_is_the_same_trajectory(golden, x64):
    """[-1, 1] with doubled sigma against [0, 1], correctors on, and Heun on the lift."""
    arrays = golden("13_reflected")
    points, weights = arrays["toy/points"], arrays["toy/weights"]
    wide = Box(-1.0, 1.0)
    sources = (ReflectedPoints(points, weights, UNIT), ReflectedPoints(2 * points - 1, weights))
    sigmas = grids.make_sigmas("ve", 9, sigma_min=0.02, sigma_max=1.5)
    rng = np.random.default_rng(0)
    start, noise = rng.uniform(size=(3, 1, 1, 2)), jnp.asarray(rng.normal(size=(18, 3, 1, 1, 2)))

    def both(sample):
        unit = toy.call(lambda x: sample(sources[0].denoise, x, sigmas, UNIT), start)
        doubled = toy.call(lambda x: sample(sources[1].denoise, x, 2 * sigmas, wide), 2 * start - 1)
        np.testing.assert_allclose(doubled, 2 * unit - 1, atol=1e-9)

    def stochastic(denoise, x, sigmas, box):
        return reflected.sample_reflected(
            denoise, x, sigmas, box=box, corrector_steps=1, snr=0.1, noise_fn=lambda i: noise[i],
            trajectory=True,
        ).x  # fmt: skip

    def heun(denoise, x, sigmas, box):
        return samplers.sample_heun(box.lift(denoise), x, sigmas, trajectory=True).x

    both(stochastic)
    both(heun)


@pytest.mark.parametrize("corrector_steps", [0, 2])
def test_every_move_has_noise_of_its_own(corrector_steps, x64):
    """A loop of the public steps; level i uses indices from i (corrector_steps + 1)."""
    sigmas, rng = np.array([0.8, 0.4, 0.1, 0.0]), np.random.default_rng(4)
    calls = corrector_steps + 1
    noise, start = jnp.asarray(rng.normal(size=(3 * calls, 2, 3))), rng.uniform(size=(2, 3))

    def denoise(x, sigma):
        return 0.5 + 0.2 * (x - 0.5)

    x = start
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        own = noise[i * calls : (i + 1) * calls]
        for k in range(corrector_steps):
            x, _ = steps.reflected_langevin_step(denoise, x, now, own[k], 0.3, box=UNIT)
        last = own[-1] if after else jnp.zeros((2, 3))
        x, _ = steps.reflected_step(denoise, x, now, now**2 - after**2, last, box=UNIT)
    found = reflected.sample_reflected(
        denoise, start, sigmas, box=UNIT, snr=0.3, corrector_steps=corrector_steps,
        noise_fn=lambda i: noise[i],
    )  # fmt: skip
    np.testing.assert_allclose(found, x, rtol=1e-12)


def test_corrector_is_bounded_where_the_published_one_breaks():
    """At sigma = 5 float32 scores are 0, and the published step folds infinity."""
    source = ReflectedPoints(np.float32([0.0, 0.4, 1.0]), None, UNIT)
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(4, 3)).astype(np.float32)
    noise = rng.normal(size=x.shape).astype(np.float32)
    step = jax.jit(steps.reflected_langevin_step, static_argnums=0)
    for sigma in (0.01, 0.5, 0.9, 1.5, 5.0):
        moved, denoised = step(source.denoise, x, np.float32(sigma), noise, 0.01, box=UNIT)
        assert np.all((moved >= 0) & (moved <= 1))
        assert np.all(moved == x) if sigma > 1 else np.any(moved != x)
        eps = 2 * (0.01 * np.linalg.norm(noise, axis=1)) ** 2
        score = (np.asarray(denoised) - x) / sigma**2
        with np.errstate(divide="ignore"):
            eps = np.minimum(eps / np.linalg.norm(score, axis=1) ** 2, sigma**2)[:, None]
        expected = UNIT.fold(x + (eps * score + np.sqrt(2 * eps) * noise) * (sigma <= 1))
        np.testing.assert_allclose(moved, expected, atol=2e-5)


def test_images_do_not_depend_on_their_batch():
    source = ReflectedPoints(np.float32([-1.0, -0.4, 0.1, 1.0]))
    sigmas = grids.make_sigmas("ve", 6, sigma_min=0.02, sigma_max=3.0)
    sampler = samplers.SAMPLERS["reflected_predictor_corrector"]
    traces = []

    @jax.jit
    def run(noise, keys, sigmas, kappa):
        traces.append(None)
        return sampling.run(sampler, source.denoise, noise, sigmas, keys, kappa=kappa)

    noise, keys = jax.random.normal(jax.random.key(0), (4, 3, 2, 1)), image_keys(range(4))
    base = run(noise, keys, sigmas, 1.0)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(run(noise[order], keys[order], sigmas, 1.0), base[order], atol=1e-6)
    assert np.all((base >= -1) & (base <= 1))
    other = run(noise, keys, sigmas * 1.1, 0.3)  # settings are traced
    assert np.any(other != base) and len(traces) == 1
    moved = run(noise.at[0].add(1.0), image_keys([9, 1, 2, 3]), sigmas, 1.0)
    np.testing.assert_array_equal(moved[1:], base[1:])


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc_2", "edm", "ddim", "reflected"])
def test_run_takes_every_kind_of_sampler(name):
    """Exact data on faces: whatever the sampler, what it returns is data, inside the box."""
    levels = np.float32([-1.0, -0.4, 0.1, 1.0])
    sampler, denoise = samplers.get(name), ReflectedPoints(levels).denoise
    sigmas = grids.make_sigmas("edm", 24, sigma_min=0.01, sigma_max=4.0)
    noise = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
    keys = image_keys(range(8))
    trajectory = jax.jit(
        lambda noise: sampling.run(sampler, denoise, noise, sigmas, keys, trajectory=True)
    )(noise)
    assert np.all((trajectory.x >= -1) & (trajectory.x <= 1))
    # Paths end within a few sigma_min of a level, which the last step then returns.
    distance = np.abs(np.asarray(trajectory.x[-1])[..., None] - levels).min(-1)
    assert np.mean(distance < 0.02) > 0.97


def test_samplers_that_a_box_cannot_have():
    """Langevin steps of the whole space end anywhere, those of VP start where no level is."""
    unfit = {name for name, info in samplers.SAMPLERS.items() if info.off_box}
    vp = {name for name in samplers.SAMPLERS if name.startswith("vp_")}
    assert unfit == {"ve_predictor_corrector"} | vp and len(vp) == 4
    levels = np.float32([-1.0, -0.4, 0.1, 1.0])
    denoise, keys = ReflectedPoints(levels).denoise, image_keys(range(8))
    sigmas = grids.make_sigmas("ve", 24, sigma_min=0.02, sigma_max=4.0)
    noise = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
    for name in unfit:
        with pytest.raises(ValueError, match=f"{name}' cannot take a reflected model"):
            sampling.run(samplers.get(name), denoise, noise, sigmas, keys)
    # The reason: without the refusal the steps from sigma = 2 on throw images so far away that
    # the digits of what is folded are lost, and most end on one level.
    wild = Box().lift(denoise)
    x = samplers.sample_predictor_corrector(
        wild, Box().prior(noise), sigmas, keys, trajectory=True
    ).x
    assert np.abs(x).max() > 2**24


def test_network_calls():
    info = samplers.SAMPLERS
    assert info["reflected"].nfe(10) == 10
    assert info["reflected_predictor_corrector"].nfe(10) == 20
    assert info["reflected"].nfe(10, corrector_steps=2) == 30
    calls = []
    source = ReflectedPoints(np.float32([-1.0, 1.0]))

    def denoise(x, sigma):
        jax.debug.callback(lambda _: calls.append(None), sigma)
        return source.denoise(x, sigma)

    sigmas = grids.make_sigmas("ve", 7, sigma_min=0.02, sigma_max=3.0)
    sampler, keys = info["reflected_predictor_corrector"], image_keys([0])
    jax.jit(lambda n: sampling.run(sampler, denoise, n, sigmas, keys))(jnp.zeros((1, 2)))
    jax.effects_barrier()
    assert len(calls) == 14


def test_bad_input():
    denoise = ReflectedPoints(np.float32([-1.0, 1.0])).denoise
    sample = functools.partial(reflected.sample_reflected, denoise)
    sigmas, keys, x = np.array([3.0, 1.0, 0.02, 0.0]), image_keys(range(2)), jnp.zeros((2, 1))
    with pytest.raises(ValueError, match=r"start of reflected sampling must lie in the box"):
        sample(3.0 * jnp.ones((2, 1)), sigmas, keys)
    with pytest.raises(ValueError, match="boundary"):
        sample(x, sigmas, keys, boundary="bounce")
    with pytest.raises(ValueError, match="kappa must be at least 0"):
        sample(x, sigmas, keys, kappa=-1.0)
    with pytest.raises(ValueError, match="max_correction must be at least 0"):
        sample(x, sigmas, keys, max_correction=float("nan"))
    with pytest.raises(ValueError, match="corrector_steps must be an integer >= 0"):
        sample(x, sigmas, keys, corrector_steps=-1)
    for value in (np.nan, -1.0, "a"):
        with pytest.raises(ValueError, match="max_correction must be"):
            sample(x, sigmas, keys, max_correction=value)
    with pytest.raises(ValueError, match=r"variances must have shape \(2,\)"):
        sample(x, sigmas, keys, variances=np.ones(3))
    with pytest.raises(ValueError, match="needs a key"):
        sample(x, sigmas)
    with pytest.raises(ValueError, match="sampler"):
        samplers.get("reflcted")
    with pytest.raises(ValueError, match="has no option 's_churn'"):
        samplers.SAMPLERS["reflected"].check(s_churn=1.0)


@pytest.mark.parametrize("boundary", ["reflect", "project", "threshold"])
def test_the_network_is_called_inside_the_box_only(boundary):
    """Of noise of deviation 4 most states of "threshold" lie outside; D is continued there."""

    def denoise(x, sigma):
        return jnp.where(jnp.abs(x) <= 1, 0.5 * x, jnp.nan)

    x = jnp.linspace(-0.9, 0.9, 40).reshape(4, 10)
    found = reflected.sample_reflected(
        denoise, x, [8.0, 4.0, 0.5, 0.0], image_keys(range(4)), boundary=boundary, trajectory=True
    )
    assert np.all(np.isfinite(found.x)) and np.all(np.abs(found.x[-1]) <= 1)
    assert np.any(np.abs(found.x) > 1) == (boundary == "threshold")
