"""Each method against its published update, written out in NumPy as published."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from edm_jax import exact, grids, respacing, samplers

RNG = np.random.default_rng(0)
LATENTS = RNG.normal(size=(3, 4))


def _denoise(x, sigma):
    """D of Gaussian data, mean 0.3 and deviation 0.5; NumPy and JAX."""
    return 0.3 + 0.25 / (0.25 + sigma**2) * (x - 0.3)


def _noise(num, seed=1):
    return np.random.default_rng(seed).normal(size=(num, *LATENTS.shape))


def _run(sampler, x, sigmas, noise=None, **options):
    if noise is not None:
        recorded = jnp.asarray(noise)
        options["noise_fn"] = lambda i: recorded[i]
    return jax.jit(lambda x: sampler(_denoise, x, sigmas, **options))(x)


def _vp_sigma(t):
    return math.sqrt(math.expm1(0.5 * 19.9 * t**2 + 0.1 * t))


@pytest.mark.parametrize(
    ("method", "ode"),
    [
        ("euler_maruyama", False),
        ("euler_maruyama", True),
        ("reverse_diffusion", False),
        ("reverse_diffusion", True),
        ("ancestral", False),
    ],
)
def test_vp_predictors(method, ode, x64):
    num, noise = 40, _noise(40)
    times = np.linspace(1, 1e-3, num)
    betas = np.linspace(0.1 / num, 20 / num, num)
    z = LATENTS.copy()
    for i, t in enumerate(times):
        sigma = _vp_sigma(t)
        s = 1 / math.sqrt(1 + sigma**2)
        score = (_denoise(z / s, sigma) - z / s) / (s * sigma**2)
        beta = 0.1 + 19.9 * t
        b = betas[num - 1 - i]
        if method == "euler_maruyama":
            half = 0.5 if ode else 1.0
            mean = z + (1 / num) * (beta * z / 2 + half * beta * score)
            std = math.sqrt(beta / num)
        elif method == "reverse_diffusion":
            mean = (2 - math.sqrt(1 - b)) * z + (b / 2 if ode else b) * score
            std = math.sqrt(b)
        else:
            mean, std = (z + b * score) / math.sqrt(1 - b), math.sqrt(b)
        z = mean if ode else mean + std * noise[i]
    sigmas = grids.vp_sigmas(num)
    np.testing.assert_allclose(sigmas[:-1], [_vp_sigma(t) for t in times], rtol=1e-9)
    x = LATENTS * np.hypot(1, sigmas[0])
    result = _run(samplers.sample_vp, x, sigmas, None if ode else noise, method=method, ode=ode)
    # The published result is the mean of the last step.
    np.testing.assert_allclose(result, z if ode else mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("ode", [False, True])
def test_ve_reverse_diffusion(ode, x64):
    sigmas, noise = grids.ve_sigmas(30), _noise(30)
    x = LATENTS * sigmas[0]
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        score = (_denoise(x, now) - x) / now**2
        gap = now**2 - after**2
        mean = x + (gap / 2 if ode else gap) * score
        x = mean if ode else mean + math.sqrt(gap) * noise[i]
    result = _run(samplers.sample_ve, LATENTS * sigmas[0], sigmas, None if ode else noise, ode=ode)
    np.testing.assert_allclose(result, mean, rtol=1e-9, atol=1e-9)
    if ode:  # it is Euler's method on sigma(t) = sqrt(t)
        euler = samplers.table1(30, discretization="ve", schedule="ve")
        same = _run(
            samplers.sample_general, LATENTS * sigmas[0], euler.sigmas, solver="euler",
            schedule=euler.schedule, scaling=euler.scaling,
        )  # fmt: skip
        np.testing.assert_allclose(same, result, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("corrector_steps", [0, 1, 2])
def test_ve_predictor_corrector(corrector_steps, x64):
    num, draws = 12, corrector_steps + 1
    sigmas, noise = grids.ve_sigmas(num), _noise(num * draws)
    expected = []
    for b in range(3):  # one image at a time: the released norms are then its own
        x = LATENTS[b] * sigmas[0]
        for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
            for k in range(corrector_steps):
                xi = noise[i * draws + k, b]
                g = (_denoise(x, now) - x) / now**2
                eps = 2 * (0.16 * np.linalg.norm(xi) / np.linalg.norm(g)) ** 2
                x = x + eps * g + math.sqrt(2 * eps) * xi
            mean = x + (now**2 - after**2) * (_denoise(x, now) - x) / now**2
            x = mean + math.sqrt(now**2 - after**2) * noise[i * draws + corrector_steps, b]
        expected.append(mean)
    result = _run(
        samplers.sample_predictor_corrector, LATENTS * sigmas[0], sigmas, noise,
        corrector_steps=corrector_steps,
    )  # fmt: skip
    np.testing.assert_allclose(result, np.stack(expected), rtol=1e-9, atol=1e-9)


def test_corrector_without_a_score_does_not_divide_by_zero():
    x = jnp.full((2, 3), 0.3)  # the mean of the data, where the score vanishes
    moved, _ = samplers.langevin_step(_denoise, x, 1.0, jnp.ones_like(x), 0.16)
    np.testing.assert_array_equal(moved, x)


def _ddpm_steps(indices):
    """Cumulative products of the kept levels, and betas rebuilt from them."""
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)[indices]
    before = np.append(1.0, abar[:-1])
    return abar, before, 1 - abar / before


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm_ancestral_on_respaced_steps(variance, x64):
    """q(z_{t-1} | z_t, y) of Ho et al., with the respaced betas."""
    indices = respacing.respaced_indices(1000, "25")
    abar, before, betas = _ddpm_steps(indices)
    noise, v = _noise(25), RNG.uniform(size=LATENTS.shape)
    z = LATENTS.copy()
    for step, j in enumerate(range(24, -1, -1)):
        sigma = math.sqrt(1 / abar[j] - 1)
        y = np.clip(_denoise(z / math.sqrt(abar[j]), sigma), -1, 1)
        mean = (
            math.sqrt(before[j]) * betas[j] / (1 - abar[j]) * y
            + math.sqrt(1 - betas[j]) * (1 - before[j]) / (1 - abar[j]) * z
        )
        if j == 0:
            z = mean
            break
        small = betas[j] * (1 - before[j]) / (1 - abar[j])
        log_var = {
            "small": np.log(small),
            "large": np.log(betas[j]),
            "learned": v * np.log(betas[j]) + (1 - v) * np.log(small),
        }[variance]
        z = mean + np.exp(0.5 * log_var) * noise[step]
    sigmas = respacing.respaced_sigmas(respacing.ddpm_levels("linear"), indices)
    recorded = jnp.asarray(noise)

    def denoise(x, sigma):
        denoised = jnp.clip(_denoise(x, sigma), -1, 1)
        return (denoised, jnp.asarray(v)) if variance == "learned" else denoised

    result = jax.jit(
        lambda x: samplers.sample_ddpm(
            denoise, x, sigmas, variance=variance, noise_fn=lambda i: recorded[i]
        )
    )(LATENTS * np.hypot(1, sigmas[0]))
    np.testing.assert_allclose(result, z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta, x64):
    """Eq. 12 and 16 of Song et al. 2020, with eps from D."""
    indices = respacing.respaced_indices(1000, "ddim20")
    abar, before, _ = _ddpm_steps(indices)
    noise, z = _noise(20), LATENTS.copy()
    for step, j in enumerate(range(19, -1, -1)):
        sigma = math.sqrt(1 / abar[j] - 1)
        y = _denoise(z / math.sqrt(abar[j]), sigma)
        eps = (z - math.sqrt(abar[j]) * y) / math.sqrt(1 - abar[j])
        up = eta * math.sqrt((1 - before[j]) / (1 - abar[j]) * (1 - abar[j] / before[j]))
        z = math.sqrt(before[j]) * y + math.sqrt(1 - before[j] - up**2) * eps + up * noise[step]
    sigmas = respacing.respaced_sigmas(respacing.ddpm_levels("linear"), indices)
    x = LATENTS * np.hypot(1, sigmas[0])
    result = _run(samplers.sample_ddim, x, sigmas, noise if eta else None, eta=eta)
    np.testing.assert_allclose(result, z, rtol=1e-9, atol=1e-9)


def _lambdas(sigmas):
    return -np.log(sigmas[:-1])


def test_dpmpp_2m_and_2s(x64):
    sigmas = grids.karras_sigmas(9)
    lam = _lambdas(sigmas)
    x2m = x2s = LATENTS * sigmas[0]
    old = None
    for i in range(8):
        h = lam[i + 1] - lam[i]
        d = _denoise(x2m, sigmas[i])
        if old is None:
            mixed = d
        else:
            r = (lam[i] - lam[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
        x2m = sigmas[i + 1] / sigmas[i] * x2m - math.expm1(-h) * mixed
        old = d
        middle = math.exp(-(lam[i] + h / 2))
        d = _denoise(x2s, sigmas[i])
        u = middle / sigmas[i] * x2s - math.expm1(-h / 2) * d
        x2s = sigmas[i + 1] / sigmas[i] * x2s - math.expm1(-h) * _denoise(u, middle)
    start = LATENTS * sigmas[0]
    result = _run(samplers.sample_dpmpp_2m, start, sigmas)
    np.testing.assert_allclose(result, _denoise(x2m, sigmas[-2]), rtol=1e-10)
    result = _run(samplers.sample_dpmpp_2s, start, sigmas)
    np.testing.assert_allclose(result, _denoise(x2s, sigmas[-2]), rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sde_solvers_as_in_k_diffusion(eta, x64):
    sigmas, noise = grids.karras_sigmas(9), _noise(9)
    lam = _lambdas(sigmas)
    x2 = x3 = LATENTS * sigmas[0]
    old2, hist3, steps = None, [], []
    for i in range(8):
        h = lam[i + 1] - lam[i]
        g = h * (1 + eta)
        std = sigmas[i + 1] * math.sqrt(-math.expm1(-2 * eta * h))
        d = _denoise(x2, sigmas[i])
        x2_next = sigmas[i + 1] / sigmas[i] * math.exp(-eta * h) * x2 - math.expm1(-g) * d
        if old2 is not None:
            r = steps[-1] / h
            x2_next = x2_next - 0.5 * math.expm1(-g) * (1 / r) * (d - old2)
        x2, old2 = x2_next + std * noise[i], d
        d = _denoise(x3, sigmas[i])
        x3_next = math.exp(-g) * x3 - math.expm1(-g) * d
        p2 = math.expm1(-g) / g + 1
        if len(hist3) == 1:
            x3_next = x3_next + p2 * (d - hist3[0]) / (steps[-1] / h)
        elif len(hist3) >= 2:
            r0, r1 = steps[-1] / h, steps[-2] / h
            d1_0, d1_1 = (d - hist3[-1]) / r0, (hist3[-1] - hist3[-2]) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x3_next = x3_next + p2 * d1 - (p2 / g - 0.5) * d2
        x3 = x3_next + std * noise[i]
        hist3.append(d)
        steps.append(h)
    start = LATENTS * sigmas[0]
    result = _run(samplers.sample_dpmpp_2m_sde, start, sigmas, noise, eta=eta)
    np.testing.assert_allclose(result, _denoise(x2, sigmas[-2]), rtol=1e-9)
    result = _run(samplers.sample_dpmpp_3m_sde, start, sigmas, noise, eta=eta)
    np.testing.assert_allclose(result, _denoise(x3, sigmas[-2]), rtol=1e-9)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, variant, x64):
    """The B(h) form of Zhao et al., solving its linear systems directly."""
    num = 9
    sigmas = grids.karras_sigmas(num)
    lam = _lambdas(sigmas)
    x = LATENTS * sigmas[0]
    models = [_denoise(x, sigmas[0])]
    for i in range(num - 1):
        p = min(order, i + 1, num - i)
        h = lam[i + 1] - lam[i]
        ratios = [(lam[i - k] - lam[i]) / h for k in range(1, p)] + [1.0]
        big_h = -h
        scale = big_h if variant == "bh1" else math.expm1(big_h)
        f, beta = math.expm1(big_h) / big_h - 1, []
        for j in range(1, p + 1):
            beta.append(f * math.factorial(j) / scale)
            f = f / big_h - 1 / math.factorial(j + 1)
        matrix = np.array([[r**j for r in ratios] for j in range(p)])
        rho = [0.5] if p == 2 else list(np.linalg.solve(matrix[:-1, :-1], beta[:-1]))
        rho_c = [0.5] if p == 1 else list(np.linalg.solve(matrix, beta))
        differences = [(models[-1 - k] - models[-1]) / ratios[k - 1] for k in range(1, p)]
        base = math.exp(-h) * x - math.expm1(-h) * models[-1]
        predicted = base - scale * sum(
            (r * d for r, d in zip(rho, differences, strict=False)), np.zeros_like(x)
        )
        new = _denoise(predicted, sigmas[i + 1])
        correction = sum(
            (r * d for r, d in zip(rho_c, differences, strict=False)), np.zeros_like(x)
        )
        x = base - scale * (correction + rho_c[-1] * (new - models[-1]))
        models.append(new)
    result = _run(
        samplers.sample_unipc, LATENTS * sigmas[0], sigmas, order=order, variant=variant,
        trajectory=True,
    )  # fmt: skip
    np.testing.assert_allclose(result.x[-2], x, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(result.x[-1], models[-1], rtol=1e-9, atol=1e-11)


def test_lms_as_in_k_diffusion(x64):
    sigmas = grids.karras_sigmas(8)
    x, slopes = LATENTS * sigmas[0], []
    for i in range(8):
        slopes.append((x - _denoise(x, sigmas[i])) / sigmas[i])
        k = min(i + 1, 4)
        for j in range(k):

            def basis(tau, i=i, j=j, k=k):
                factors = [
                    (tau - sigmas[i - m]) / (sigmas[i - j] - sigmas[i - m])
                    for m in range(k)
                    if m != j
                ]
                return math.prod(factors)

            weight = quad(basis, sigmas[i], sigmas[i + 1], epsrel=1e-10)[0]
            x = x + weight * slopes[-1 - j]
    result = _run(samplers.sample_lms, LATENTS * sigmas[0], sigmas, order=4)
    np.testing.assert_allclose(result, x, rtol=1e-8, atol=1e-8)


# Standard deviation of the state at sigma_min for N(0, 0.5^2) data, 20 steps from 20
# to 0.02 with rho = 7; the exact value is 0.5004.  Published to three digits.
PUBLISHED_DEVIATIONS = [
    ("dpmpp_2m_sde", {}, 0.522),
    ("dpmpp_2m_sde", {"variant": "taylor"}, 0.544),
    ("dpmpp_3m_sde", {}, 0.510),
    ("ddpm", {}, 0.417),
    ("ddim", {"eta": 1.0}, 0.417),
    ("edm", {"churn": samplers.Churn(40.0)}, 0.526),
]


@pytest.mark.parametrize(("name", "options", "published"), PUBLISHED_DEVIATIONS)
def test_published_deviations_of_stochastic_samplers(name, options, published, x64):
    """On Gaussian data the state is linear in the noise: summing impulses is exact."""
    bed, sigmas = exact.Gaussian(0.0, 0.5), grids.karras_sigmas(21, sigma_min=0.02, sigma_max=20.0)
    lane = jnp.arange(23)
    run = functools.partial(samplers.SAMPLERS[name], trajectory=True, **options)
    visited = jax.jit(
        lambda x: run(bed.denoise, x, sigmas, noise_fn=lambda i: (lane == i + 2).astype(float))
    )((lane == 1) * math.hypot(0.5, sigmas[0]))
    deviation = math.sqrt(float(jnp.sum(visited.x[-2] ** 2)))
    np.testing.assert_allclose(deviation, published, atol=1e-3)
