"""What every sampler of the registry keeps, whatever its method."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from edm_jax import exact, grids, precond, samplers, schedules, seeds
from edm_jax.samplers import SAMPLERS, Churn, dpmpp, lms, rows, unipc
from tests.support import compiler

# Samplers of a box start and stay in it: tests/reflected has theirs.
NAMES = sorted(name for name, info in SAMPLERS.items() if info.domain != "box")
NUM_STEPS = 24  # the VP predictors need more than 20
SHAPE = (5, 2, 3, 1)
OPTIONS = {"edm": {"churn": Churn(8.0)}}


@functools.cache
def _program(name):
    """One compiled run of a sampler on Gaussian data of any mean and deviation.

    Returns:
      The program, a list with an entry per trace of the denoiser, and a list with an
      entry per call of it while the program runs.
    """
    traces, calls = [], []

    @jax.jit
    def run(mean, std, x, sigmas, key):
        def denoise(x, sigma):
            traces.append(sigma.shape)
            jax.debug.callback(lambda: calls.append(0))
            return exact.Gaussian(mean, std).denoise(x, sigma)

        return SAMPLERS[name](denoise, x, sigmas, key, trajectory=True, **OPTIONS.get(name, {}))

    return run, traces, calls


def _inputs(name):
    sigmas = grids.make_sigmas(SAMPLERS[name].grid, NUM_STEPS)
    keys = seeds.image_keys(range(SHAPE[0]))
    return seeds.latents(keys, SHAPE) * sigmas[0], sigmas, keys


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    """Cost, trajectory, precision, one trace, independence of images; one compilation."""
    info, (x, sigmas, keys) = SAMPLERS[name], _inputs(name)
    run, traces, calls = _program(name)
    visited = run(0.3, 0.5, x, sigmas, keys)
    jax.block_until_ready(visited)
    jax.effects_barrier()
    num_traces = len(traces)

    if name != "adaptive":  # its cost depends on the data; see test_samplers_adaptive
        assert len(calls) == info.nfe(NUM_STEPS)
    steps = NUM_STEPS + 4 * (name == "restart")  # two repeats of two steps
    assert visited.x.shape == (steps + 1, *SHAPE)
    assert visited.denoised.shape == (steps, *SHAPE)
    assert visited.x.dtype == visited.denoised.dtype == jnp.float32
    assert np.all(np.isfinite(visited.x))
    first = x if "vp" not in name else x / np.hypot(1, sigmas[0])
    np.testing.assert_allclose(visited.x[0], first, rtol=1e-5)
    # Churn and the corrector move x first: D is within 0.5^2 / 80 of the mean anyway.
    expected = exact.Gaussian(0.3, 0.5).denoise(x, sigmas[0])
    np.testing.assert_allclose(visited.denoised[0], expected, atol=1e-2)

    # An image is the same in any place of any batch, and its noise is its own.
    order = np.array([3, 0, 4, 1, 2])
    moved = run(0.3, 0.5, x[order], sigmas, keys[order])
    np.testing.assert_allclose(moved.x[-1], visited.x[-1][order], rtol=1e-5, atol=1e-5)
    other_keys = seeds.image_keys([77, 1, 2, 3, 4])
    rekeyed = run(0.3, 0.5, x, sigmas, other_keys)
    np.testing.assert_array_equal(rekeyed.x[-1][1:], visited.x[-1][1:])
    assert np.array_equal(rekeyed.x[-1][0], visited.x[-1][0]) != info.stochastic
    replaced = run(0.3, 0.5, x.at[0].multiply(-2.0), sigmas, keys)
    np.testing.assert_allclose(replaced.x[-1][1:], visited.x[-1][1:], rtol=1e-5, atol=1e-5)

    # A point mass is reproduced, whatever the noise on the way.  Not by the original VP
    # and VE flows: the first end above zero noise, the second half way there.
    if name != "ve_ode" and not name.startswith("vp"):
        point = run(0.25, 0.0, x, sigmas, keys)
        np.testing.assert_allclose(point.x[-1], 0.25, atol=3e-5)  # float32, from x = 100

    # New numbers never recompile.
    if not name.startswith("vp"):
        smaller = grids.karras_sigmas(NUM_STEPS, sigma_min=0.03, sigma_max=30.0, rho=5.0)
        assert np.all(np.isfinite(run(0.1, 0.6, x, smaller, keys).x[-1]))
    assert len(traces) == num_traces


@pytest.mark.parametrize(
    "name",
    ["ddim", "ddpm", "deis", "dpmpp_2s", "dpmpp_3m_sde", "dpmpp_sde", "er_sde", "ipndm", "lms_4",
     "sa_solver", "seeds_3", "unipc_3", "ve_predictor_corrector", "vp_euler_maruyama",
     "vp_reverse_diffusion"],
)  # fmt: skip
def test_grids_can_be_vmapped_and_float64_works(name, x64):
    info = SAMPLERS[name]
    bed = exact.Gaussian(0.3, 0.5)
    x = jnp.ones((2, 3))
    keys = seeds.image_keys([0, 1])
    base = grids.make_sigmas(info.grid, NUM_STEPS)
    stack = jnp.stack([jnp.asarray(base), jnp.asarray(base) * (1.0 if "vp" in name else 0.9)])
    # Draws are float32, and vectorised may round the last bit of it elsewhere: recorded ones.
    recorded = jnp.asarray(np.random.default_rng(0).normal(size=(4 * NUM_STEPS, 2, 3)))
    noise = {"noise_fn": lambda i: recorded[i]} if info.stochastic else {}
    run = jax.jit(lambda s: info(bed.denoise, x * s[0], s, keys, **noise))
    together = jax.jit(jax.vmap(run))(stack)
    assert together.dtype == jnp.float64
    for result, sigmas in zip(together, stack, strict=True):
        # Same arithmetic, vectorised: rounding only.
        np.testing.assert_allclose(result, run(sigmas), rtol=1e-9)
    # NumPy coefficients from a known grid agree with those computed while tracing.
    known = jax.jit(lambda x: info(bed.denoise, x, base, keys, **noise))(x * base[0])
    np.testing.assert_allclose(together[0], known, rtol=1e-8)


@pytest.mark.parametrize("name", ["edm", "dpmpp_2m", "unipc_2"])
def test_gradients_with_bounded_memory(name, x64):
    """remat gives the same gradient, the right one, and stores less."""
    info, bed = SAMPLERS[name], exact.Gaussian(0.3, 0.5)
    sigmas = grids.karras_sigmas(10)
    x, keys = jnp.linspace(-2.0, 2.0, 16).reshape(1, 16) * sigmas[0], seeds.image_keys([0])
    weight = jnp.eye(16)

    def loss(weight, x, remat):
        def denoise(x, sigma):
            hidden = x
            for _ in range(4):  # activations worth recomputing
                hidden = jnp.tanh(hidden @ weight * 1e-3) * 1e3
            return bed.denoise(hidden, sigma)

        return jnp.sum(info(denoise, x, sigmas, keys, remat=remat))

    plain, bounded = (
        jax.jit(jax.value_and_grad(functools.partial(loss, remat=remat), argnums=(0, 1)))
        .lower(weight, x)
        .compile()
        for remat in (False, True)
    )
    _, gradients = plain(weight, x)
    for one, other in zip(gradients, bounded(weight, x)[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    step = jnp.zeros_like(x).at[0, 3].set(1e-2)
    difference = (plain(weight, x + step)[0] - plain(weight, x - step)[0]) / 2e-2
    np.testing.assert_allclose(gradients[1][0, 3], difference, rtol=1e-5)
    used = [program.memory_analysis().temp_size_in_bytes for program in (bounded, plain)]
    assert used[0] < 0.8 * used[1]


@pytest.mark.parametrize("name", ["heun", "general", "edm", "unipc_2", "ve_predictor_corrector"])
def test_progress_from_inside_the_loop(name):
    info, bed = SAMPLERS[name], exact.Gaussian(0.3, 0.5)
    sigmas, keys = grids.karras_sigmas(6), seeds.image_keys([0, 1])
    x, seen = jnp.ones((2, 3)), []

    def run(progress):
        return jax.jit(lambda x: info(bed.denoise, x, sigmas, keys, progress=progress))

    shown = run(lambda done, total: seen.append((done, total)))
    result = shown(x)
    jax.effects_barrier()
    assert seen == [(i, 6) for i in range(7)]  # one device: each after what it reports
    np.testing.assert_array_equal(result, run(False)(x))
    # Off, nothing of it is in the program.
    assert "callback" in shown.lower(x).as_text()
    assert "callback" not in run(False).lower(x).as_text()
    jax.vmap(shown)(jnp.ones((3, 2, 3)))  # reports are unordered, so vmap works


def test_eta_zero_is_the_ode_method():
    bed, sigmas, keys = exact.Gaussian(0.3, 0.5), grids.karras_sigmas(12), seeds.image_keys([0, 1])
    x = jnp.array([[1.0, -0.5], [0.2, 2.0]]) * sigmas[0]
    run = lambda name, **o: jax.jit(  # noqa: E731
        lambda x: SAMPLERS[name](bed.denoise, x, sigmas, keys, **o),
        compiler_options=compiler.as_users_compile(),
    )(x)
    np.testing.assert_array_equal(run("dpmpp_2m_sde", eta=0.0), run("dpmpp_2m"))
    np.testing.assert_array_equal(run("dpmpp_3m_sde", eta=0.0), run("dpmpp_3m", variant="taylor"))
    np.testing.assert_array_equal(run("edm", churn=Churn()), run("heun"))
    # DDIM is EDM's Euler on sigma(t) = t; the general sampler groups its terms otherwise.
    np.testing.assert_allclose(run("ddim"), run("euler"), rtol=1e-4)
    # eta = 1 is DDPM with the small variance.
    np.testing.assert_allclose(run("ddim", eta=1.0), run("ddpm"), rtol=1e-4)


def _loop(denoise, x, sigmas, table, draw=None, slopes=False):
    """Rows executed one by one in Python."""
    history, visited = [], [x]
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        history.insert(0, (x - denoised) / sigmas[i] if slopes else denoised)
        x = table.a[i] * x + sum(b * m for b, m in zip(table.b[i], history, strict=False))
        x = x if table.c is None else x + table.c[i] * draw(i)
        visited.append(x)
    return visited


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_scan_equals_python_loop_and_rows_sum_to_one(num_steps, x64):
    sigmas, bed = grids.karras_sigmas(num_steps), exact.Gaussian(0.3, 0.5)
    x, keys = jnp.ones((2, 3)) * sigmas[0], seeds.image_keys([0, 1])
    draw = lambda i: seeds.churn_noise(keys, i, x.shape, x.dtype)  # noqa: E731
    tables = {
        "dpmpp_2m": dpmpp.dpmpp_2m_rows(sigmas),
        "dpmpp_3m": dpmpp.dpmpp_3m_rows(sigmas),
        "dpmpp_2m_sde": dpmpp.dpmpp_2m_rows(sigmas, eta=1.0, noisy=True),
        "dpmpp_3m_sde": dpmpp.dpmpp_3m_rows(sigmas, eta=1.0, variant="taylor", noisy=True),
        "lms_3": lms.lms_rows(sigmas, 3),
    }
    for name, table in tables.items():
        if not name.startswith("lms"):
            # Data-family rows are affine: constant D is kept.
            np.testing.assert_allclose(table.a + table.b.sum(1), 1, rtol=1e-12)
            assert table.a[-1] == 0 and list(table.b[-1]) == [1] + [0] * (table.b.shape[1] - 1)
        if num_steps < SAMPLERS[name].min_steps:
            continue
        slow = _loop(bed.denoise, x, sigmas, table, draw, slopes=name.startswith("lms"))
        fast = SAMPLERS[name](bed.denoise, x, sigmas, keys, trajectory=True)
        np.testing.assert_allclose(fast.x, jnp.stack(slow), rtol=1e-12)


def test_phi_functions(x64):
    """Against their defining integral, int_0^1 e^((1-u) z) u^(k-1)/(k-1)! du."""
    for order in (1, 2, 3, 4):
        for z in (-8.0, -1.0, -0.999, -1e-3, -1e-9, 0.5):
            expected = quad(
                lambda u, z=z, k=order: np.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1),
                0,
                1,
                epsabs=1e-14,
                epsrel=1e-13,
            )[0]
            # The recursion from 1 upwards loses a digit an order.
            np.testing.assert_allclose(rows.phi(np, order, np.float64(z)), expected, rtol=1e-11)
            np.testing.assert_allclose(rows.phi(jnp, order, jnp.float64(z)), expected, rtol=1e-11)


def _mixture_denoiser(x, sigma):
    """Exact D of a mixture of three Gaussians, in NumPy."""
    means, stds, weights = (np.array(v)[:, None] for v in (MEANS, STDS, WEIGHTS))
    total = stds**2 + sigma**2
    density = weights / np.sqrt(total) * np.exp(-((x - means) ** 2) / (2 * total))
    posterior = density / density.sum(0)
    return (posterior * (means + stds**2 / total * (x - means))).sum(0)


MEANS, STDS, WEIGHTS = [-1.0, 0.2, 0.7], [0.15, 0.3, 0.1], [0.3, 0.5, 0.2]


@functools.cache
def _mixture_flow():
    return jax.jit(exact.GaussianMixture(np.array(MEANS), np.array(STDS), np.array(WEIGHTS)).flow)


def _exact_start_error(method, order, num_steps):
    """Error at sigma_min when the first states and the history come from the exact flow."""
    sigmas = grids.append_zero(np.geomspace(3.0, 0.05, num_steps + 1))
    flow = _mixture_flow()
    start = np.linspace(-4.0, 4.0, 32)
    states = [np.asarray(flow(start, sigmas[0], sigmas[k])) for k in range(order)]
    newest_first = [_mixture_denoiser(x, s) for x, s in zip(states, sigmas, strict=False)][::-1]
    combine = lambda b: sum(c * m for c, m in zip(b, newest_first, strict=False))  # noqa: E731
    x = states[-1]
    if method == "unipc":
        table = unipc.unipc_rows(sigmas, order=order, lower_order_final=False)
    else:
        table = method(sigmas)
    for i in range(order - 1, num_steps):
        if method == "unipc":
            predicted = table.predict.a[i] * x + combine(table.predict.b[i])
            new = _mixture_denoiser(predicted, sigmas[i + 1])
            x = table.correct.a[i + 1] * x + combine(table.correct.b[i + 1])
            x = x + table.new[i + 1] * new
        else:
            x = table.a[i] * x + combine(table.b[i])
            new = _mixture_denoiser(x, sigmas[i + 1])
        newest_first.insert(0, new)
    return float(np.max(np.abs(x - flow(start, sigmas[0], sigmas[-2]))))


@pytest.mark.parametrize(
    ("method", "history", "expected"),
    [
        (dpmpp.dpmpp_2m_rows, 2, 2),
        (functools.partial(dpmpp.dpmpp_2m_rows, variant="taylor"), 2, 2),
        (dpmpp.dpmpp_3m_rows, 3, 2),  # the released rule
        (functools.partial(dpmpp.dpmpp_3m_rows, kappa=2.0), 3, 3),
        ("unipc", 1, 2),
        ("unipc", 2, 3),
        ("unipc", 3, 4),
    ],
)
def test_orders_from_an_exact_start(method, history, expected, x64):
    coarse, fine = (_exact_start_error(method, history, n) for n in (80, 160))
    # A doubling at this fineness shows the order to within 0.25.
    np.testing.assert_allclose(np.log2(coarse / fine), expected, atol=0.25)


def test_lms_integrates_polynomial_slopes_exactly(x64):
    """d = p(sigma) of degree below the order is integrated without error."""
    sigmas = grids.karras_sigmas(9, sigma_max=5.0)
    for order in (1, 2, 3, 4):
        polynomial = np.polynomial.Polynomial(np.arange(1.0, order + 1))
        table = lms.lms_rows(sigmas, order)
        slopes = polynomial(sigmas[:-1])
        antiderivative = polynomial.integ()
        for i in range(order - 1, 9):
            change = sum(table.b[i, j] * slopes[i - j] for j in range(order))
            exact_change = antiderivative(sigmas[i + 1]) - antiderivative(sigmas[i])
            np.testing.assert_allclose(change, exact_change, rtol=1e-9)


def test_lower_order_final():
    """Near the end a step has at most as much order as there are steps left."""
    orders = rows.step_orders(6, 3, True)
    assert list(orders) == [1, 2, 3, 3, 2]
    assert list(rows.step_orders(6, 3, False)) == [1, 2, 3, 3, 3]
    sigmas = grids.karras_sigmas(6)
    table = dpmpp.dpmpp_3m_rows(sigmas, lower_order_final=True)
    np.testing.assert_array_equal(table.b[4], np.append(dpmpp.dpmpp_2m_rows(sigmas).b[4], 0))


def test_respects_what_the_network_knows():
    iddpm = precond.iddpm_preconditioning()
    seen, one_key = [], seeds.image_keys([0])
    bed = exact.Gaussian(0.3, 0.5)

    def denoise(x, sigma):
        jax.debug.callback(lambda s: seen.append(float(s)), sigma)
        return bed.denoise(x, sigma)

    rounded = grids.make_sigmas("edm", 60, preconditioning=iddpm)  # with repeats
    own = grids.karras_sigmas(24, sigma_min=0.01)
    table = {float(level) for level in schedules.iddpm_levels(dtype=np.float32)}
    between = {  # evaluate between the levels
        "adaptive", "dpm_2", "dpm_2_ancestral", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_sde",
        "midpoint", "ralston", "restart", "seeds_2", "seeds_3",
    }  # fmt: skip
    for name in sorted(set(NAMES) - between):
        if SAMPLERS[name].fn is samplers.sample_vp:
            continue  # even times only, which no rounded grid has
        for sigmas in (rounded, own):
            seen.clear()
            options = {"churn": Churn(20.0)} if name == "edm" else {}
            run = functools.partial(SAMPLERS[name], denoise, preconditioning=iddpm, **options)
            # One program, but a grid that is known.
            program = jax.jit(lambda x, keys, run=run, sigmas=sigmas: run(x, sigmas, keys))
            result = program(np.full((1, 2), sigmas[0], np.float32), one_key)
            jax.effects_barrier()
            assert set(seen) <= table, name
            assert np.all(np.isfinite(result)), name
            if sigmas is own and SAMPLERS[name].fn is not samplers.sample_stochastic:
                assert len(set(seen)) == 24
    # A traced grid is rounded in the program.
    seen.clear()
    x = jnp.ones((1, 2)) * own[0]
    run = jax.jit(lambda s: SAMPLERS["heun"](denoise, x, s, preconditioning=iddpm))
    run(own)
    jax.effects_barrier()
    assert len(set(seen)) == 24 and set(seen) <= table
    seen.clear()
    assert np.all(np.isfinite(run(grids.karras_sigmas(24))))  # 0.002 is below the network's range
    jax.effects_barrier()
    assert min(seen) == np.float32(iddpm.sigma_min)
    with pytest.raises(ValueError, match="outside the range"):
        SAMPLERS["heun"](
            denoise, x, grids.karras_sigmas(5), preconditioning=precond.ve_preconditioning()
        )


def test_bad_combinations_are_named_before_tracing():
    def never(x, sigma):
        raise AssertionError("traced before the arguments were checked")

    x, sigmas = jnp.zeros((2, 3)), grids.karras_sigmas(8)
    with pytest.raises(ValueError, match="did you mean 'dpmpp_2m'"):
        samplers.get("dpmp_2m")
    with pytest.raises(ValueError, match=r"no option 'churn'.*samplers with it: .*edm"):
        SAMPLERS["dpmpp_2m"](never, x, sigmas, churn=Churn(1.0))
    with pytest.raises(ValueError, match="did you mean 'eta'"):
        SAMPLERS["ddim"](never, x, sigmas, etta=1.0)
    for name, least in (("dpmpp_3m", 3), ("unipc_2", 2), ("lms_4", 4), ("vp_ancestral", 21)):
        with pytest.raises(ValueError, match=f"at least {least} steps"):
            SAMPLERS[name](never, x, grids.karras_sigmas(least - 1))
    for name in NAMES:
        info = SAMPLERS[name]
        with pytest.raises(ValueError, match="strictly decreasing"):
            info(never, x, np.append(np.ones(30), 0.0), seeds.image_keys([0, 1]))
        if info.stochastic:
            with pytest.raises(ValueError, match="needs a key"):
                info(never, x, grids.make_sigmas(info.grid, 30), None)
    with pytest.raises(ValueError, match="evenly spaced times"):
        SAMPLERS["vp_ode"](never, x, sigmas)
    with pytest.raises(ValueError, match="no ODE form"):
        samplers.sample_vp(never, x, sigmas, method="ancestral", ode=True)
    with pytest.raises(ValueError, match="order must be"):
        samplers.sample_unipc(never, x, sigmas, order=4)
    with pytest.raises(ValueError, match="order must be"):
        samplers.sample_lms(never, x, sigmas, order=0)
    with pytest.raises(ValueError, match="did you mean 'bh2'"):
        samplers.sample_unipc(never, x, sigmas, variant="bh3")
    with pytest.raises(ValueError, match="did you mean 'small'"):
        samplers.sample_ddpm(never, x, sigmas, jax.random.key(0), variance="smal")
    with pytest.raises(ValueError, match="corrector_steps"):
        samplers.sample_predictor_corrector(never, x, sigmas, corrector_steps=-1)
    with pytest.raises(ValueError, match="progress must be"):
        samplers.sample_heun(never, x, sigmas, progress=3)


def test_steps_within_a_budget():
    assert SAMPLERS["heun"].steps_within(35) == 18
    assert SAMPLERS["dpmpp_2m"].steps_within(35) == 35
    assert SAMPLERS["ve_predictor_corrector"].steps_within(35) == 17
    assert SAMPLERS["heun"].nfe(256) == 511
    assert SAMPLERS["general"].nfe(8, solver="euler") == 8
    assert SAMPLERS["adaptive"].nfe(8) is None
    with pytest.raises(ValueError, match="more than nfe=1"):
        SAMPLERS["ve_predictor_corrector"].steps_within(1)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        SAMPLERS["heun"].nfe(0)
