"""The general sampler: golden trajectories, published tables, Algorithm 2, sweeps, errors."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import grids, precond, samplers, schedules
from edm_jax.samplers import Churn, general

ARCHIVE = pathlib.Path(__file__).parents[1] / "golden/03_samplers.npz"
with np.load(ARCHIVE) as _archive:
    CASES = sorted(name[:-7] for name in _archive.files if name.endswith("/config"))


def _cases(prefix):
    return [case for case in CASES if case.startswith(prefix)]


@functools.cache
def _archive():
    return dict(np.load(ARCHIVE))


def _ideal_denoiser(x, sigma):
    """The denoiser behind the golden trajectories, written out independently."""
    points = jnp.asarray(_archive()["data_points"])
    squared = jnp.sum((x[:, None] - points[None]) ** 2, axis=(2, 3, 4))
    return jnp.einsum("bk,kchw->bchw", jax.nn.softmax(-squared / (2 * sigma**2)), points)


def _churn_of(config):
    if "S_churn" not in config:
        return None
    return Churn(config["S_churn"], config["S_min"], config["S_max"], config["S_noise"])


@functools.cache
def _run_general(solver, churned):
    """One program for every discretization, schedule constant, alpha and churn."""

    @jax.jit
    def run(setting, latents, alpha, churn, noise):
        sigmas, schedule, scaling = setting
        return samplers.sample_general(
            _ideal_denoiser,
            latents * sigmas[0],
            sigmas,
            solver=solver,
            schedule=schedule,
            scaling=scaling,
            alpha=alpha,
            churn=churn,
            noise_fn=(lambda i: noise[i]) if churned else None,
            trajectory=True,
        )

    return run


@pytest.mark.parametrize("case", _cases("abl/"))
def test_golden_trajectories(case, x64):
    archive = _archive()
    config = json.loads(str(archive[f"{case}/config"]))
    levels = {"levels": archive["iddpm_u"]} if config["discretization"] == "iddpm" else {}
    setting = general.table1(
        config["num_steps"],
        discretization=config["discretization"],
        schedule=config["schedule"],
        scaling=config["scaling"],
        **levels,
    )
    np.testing.assert_allclose(setting.sigmas[:-1], archive[f"{case}/sigma_steps"], rtol=1e-10)
    np.testing.assert_allclose(
        setting.schedule.inverse(setting.sigmas[:-1]), archive[f"{case}/t_steps"][:-1], rtol=1e-7
    )
    churn, noise = _churn_of(config), archive.get(f"{case}/noise")
    run = _run_general(config["solver"], churn is not None)
    latents = archive["latents"].astype(np.float64)
    visited = run(setting, latents, config.get("alpha", 1.0), churn, noise)
    expected = archive[f"{case}/x_traj"]
    # The tolerance recommended with the arrays; rounding alone gives about 1e-12.
    np.testing.assert_allclose(visited.x, expected, rtol=0, atol=1e-7 * np.max(np.abs(expected)))
    if case == "abl/euler-iddpm-linear-none-N18":
        # With our own table, exact where the reference rounds cosines to float32, the
        # final images still agree to 1e-6.
        own = general.table1(18, discretization="iddpm")
        final = run(own, latents, 1.0, None, None).x[-1]
        np.testing.assert_allclose(final, expected[-1], atol=1e-6 * np.max(np.abs(expected[-1])))


@functools.cache
def _run_stochastic():
    @jax.jit
    def run(sigmas, latents, churn, noise):
        x = latents * sigmas[0]
        replay = lambda i: noise[i]  # noqa: E731
        return (
            samplers.sample_stochastic(
                _ideal_denoiser, x, sigmas, churn=churn, noise_fn=replay, trajectory=True
            ),
            samplers.sample_general(
                _ideal_denoiser, x, sigmas, churn=churn, noise_fn=replay, trajectory=True
            ),
            samplers.sample_heun(_ideal_denoiser, x, sigmas, trajectory=True),
        )

    return run


@pytest.mark.parametrize("case", _cases("edm/"))
def test_golden_edm_trajectories_and_equality_with_algorithm_2(case, x64):
    archive = _archive()
    config = json.loads(str(archive[f"{case}/config"]))
    sigmas = grids.karras_sigmas(config["num_steps"])
    np.testing.assert_allclose(sigmas, archive[f"{case}/t_steps"], rtol=1e-12)
    expected, churn = archive[f"{case}/x_traj"], _churn_of(config)
    noise = archive.get(f"{case}/noise", np.zeros_like(expected[:-1]))
    latents = archive["latents"].astype(np.float64)
    edm, mixed, heun = _run_stochastic()(sigmas, latents, churn or Churn(), noise)
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(edm.x, expected, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(edm.x[-1], archive[f"{case}/x_final"], rtol=1e-9, atol=1e-12)
    # EDM's choices in the general sampler are Algorithm 2: equal up to rounding.
    np.testing.assert_allclose(mixed.x, edm.x, rtol=0, atol=1e-13 * scale)
    if churn is None:
        np.testing.assert_allclose(heun.x, expected, rtol=0, atol=1e-10 * scale)
    else:
        gamma = churn.gamma(jnp.asarray(sigmas[:-1]), config["num_steps"])
        np.testing.assert_allclose(gamma, archive[f"{case}/gamma"], rtol=1e-12)


@pytest.mark.parametrize("case", _cases("precond/"))
def test_golden_networks_with_ranges_and_rounding(case, x64):
    """The float32 stand-in network inside each preconditioning, under Algorithm 2."""
    archive = _archive()
    config, name = json.loads(str(archive[f"{case}/config"])), case.split("/")[1].split("_")[0]
    with np.load(ARCHIVE.parent / "01_preconditioning.npz") as tables:
        options = {"levels": tables["iddpm/u"]} if name == "iddpm" else {}
    made = precond.PRECONDITIONINGS[name](**options)

    def stand_in(x, c_noise):
        f_x = 0.3 * x + 0.1 * jnp.sin(c_noise)
        return jnp.concatenate([f_x, 1 - f_x], -1) if name == "iddpm" else f_x

    denoise = precond.precondition(stand_in, made)

    def float32_denoise(x, sigma):
        return denoise(x.astype(jnp.float32), jnp.asarray(sigma, jnp.float32))

    sigmas = grids.make_sigmas("edm", config["num_steps"], preconditioning=made)
    np.testing.assert_allclose(sigmas, archive[f"{case}/t_steps"], rtol=1e-9)
    expected, churn = archive[f"{case}/x_traj"], _churn_of(config)
    noise = jnp.moveaxis(jnp.asarray(archive.get(f"{case}/noise", np.zeros_like(expected))), 2, -1)
    latents = np.moveaxis(archive["latents"], 1, -1).astype(np.float64)
    runs = [
        functools.partial(
            sampler,
            float32_denoise,
            latents * sigmas[0],
            sigmas,
            churn=churn or Churn(),
            noise_fn=lambda i: noise[i],
            round_sigma=made.round_sigma,
            trajectory=True,
        )
        for sampler in (samplers.sample_stochastic, samplers.sample_general)
    ]
    for run in runs:
        x = np.moveaxis(np.asarray(jax.jit(run)().x), -1, 2)
        # The tolerance recommended for float32 networks.
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))
    if churn is not None:
        levels = jnp.asarray(sigmas[:-1])
        raised = made.round_sigma(levels * (1 + churn.gamma(levels, 8)))
        np.testing.assert_allclose(raised, archive[f"{case}/t_hat"], rtol=1e-7)


# Published results for Gaussian data (mean 0.3, std 0.5), latents 1 and -0.5, every
# noise draw replaced by 1: N, solver, grid, schedule, scaling, alpha, churn -> results.
PUBLISHED = [
    (8, "euler", "edm", "linear", "none", 1.0, 0, 0.63154112, 0.13235750),
    (8, "heun", "edm", "linear", "none", 1.0, 0, 0.99438007, -0.05111063),
    (8, "heun", "edm", "linear", "none", 0.5, 0, 0.76950561, 0.06259628),
    (8, "heun", "edm", "linear", "none", 1.1, 0, 1.09353236, -0.10124660),
    (8, "euler", "vp", "vp", "vp", 1.0, 0, 0.79940987, 0.06630775),
    (8, "heun", "vp", "vp", "vp", 1.0, 0, 0.81539276, 0.03242730),
    (8, "euler", "ve", "ve", "none", 1.0, 0, 5.88944652, -2.51995146),
    (8, "heun", "ve", "ve", "none", 1.0, 0, 3.18160904, -1.15381078),
    (8, "euler", "iddpm", "linear", "none", 1.0, 0, 0.69967936, 0.09790941),
    (8, "heun", "iddpm", "linear", "none", 1.0, 0, 0.88030093, 0.00658141),
    (8, "heun", "edm", "vp", "vp", 1.0, 0, 0.80475141, 0.01946013),
    (8, "heun", "edm", "linear", "vp", 1.0, 0, 0.73791948, 0.14137179),
    (8, "heun", "edm", "vp", "none", 1.0, 0, 2.61054708, -0.86831929),
    (8, "heun", "edm", "ve", "none", 1.0, 0, 0.29886104, 0.30057591),
    (8, "heun", "edm", "vp", "vp", 1.0, 4, 1.50002449, 1.31654109),
    (512, "euler", "vp", "vp", "vp", 1.0, 0, 0.79875040, 0.04942902),
    (5, "heun", "edm", "linear", "none", 1.0, 0, 1.55316923, -0.33366023),
    (18, "heun", "edm", "linear", "none", 1.0, 0, 0.82564604, 0.03420909),
    (40, "heun", "edm", "linear", "none", 1.0, 0, 0.80298358, 0.04566828),
    (18, "heun", "edm", "linear", "none", 1.0, 40, 1.99330927, 1.96317653),
    (256, "heun", "edm", "linear", "none", 1.0, 40, 4.05590390, 4.05590390),
]


def _gaussian_denoiser(x, sigma):
    return 0.3 + 0.25 / (0.25 + sigma**2) * (x - 0.3)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: "-".join(map(str, row[:7])))
def test_published_results_on_gaussian_data(row, x64):
    num_steps, solver, grid, schedule, scaling, alpha, s_churn, *expected = row
    levels = {"levels": _archive()["iddpm_u"]} if grid == "iddpm" else {}
    sigmas, made_schedule, made_scaling = general.table1(
        num_steps, discretization=grid, schedule=schedule, scaling=scaling, **levels
    )
    calls = []

    def denoise(x, sigma):
        calls.append(0)
        return _gaussian_denoiser(x, sigma)

    @jax.jit
    def run(x):
        return samplers.sample_general(
            denoise,
            x,
            sigmas,
            solver=solver,
            alpha=alpha,
            schedule=made_schedule,
            scaling=made_scaling,
            churn=Churn(s_churn, 0.05, 50.0, 1.003) if s_churn else None,
            noise_fn=lambda i: jnp.ones(2),
        )

    result = run(np.array([1.0, -0.5]) * sigmas[0])
    # Eight published digits; both results of the 512-step row are 7e-8 above what
    # float64 NumPy gives for the same formula.
    atol = 1e-7 if num_steps == 512 else 2e-8
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)
    assert len(calls) == 1  # the program holds the network once


def test_published_result_on_a_narrow_range(x64):
    sigmas = grids.karras_sigmas(5, sigma_min=0.02, sigma_max=100.0)
    clamped = grids.make_sigmas(
        "edm", 5, sigma_min=0.002, sigma_max=150.0, preconditioning=precond.ve_preconditioning()
    )
    np.testing.assert_array_equal(clamped, sigmas)
    # Requested 0.002..80 on a network that knows 0.02..100.
    sigmas = grids.make_sigmas("edm", 5, preconditioning=precond.ve_preconditioning())
    run = jax.jit(lambda x: samplers.sample_heun(_gaussian_denoiser, x, sigmas))
    result = run(np.array([1.0, -0.5]) * sigmas[0])
    np.testing.assert_allclose(result, [1.36533001, -0.23868004], atol=2e-8)


def test_numeric_settings_never_recompile_and_can_be_vmapped(x64):
    traces = []

    def denoise(x, sigma):
        traces.append(0)
        return _gaussian_denoiser(x, sigma)

    x = jnp.array([[1.0], [-0.5]])

    @jax.jit
    def run(sigmas, alpha, schedule, churn, noise):
        return samplers.sample_general(
            denoise,
            x * sigmas[0],
            sigmas,
            alpha=alpha,
            schedule=schedule,
            scaling=schedules.VPScaling(),
            churn=churn,
            noise_fn=lambda i: jnp.broadcast_to(noise, x.shape),
        )

    settings = []
    for i, rho in enumerate([3.0, 5.0, 7.0]):
        low, high = 0.002 * (1 + i), 60.0 + 10 * i
        settings.append(
            (
                grids.karras_sigmas(8, sigma_min=low, sigma_max=high, rho=rho),
                0.5 + 0.25 * i,
                schedules.VPSchedule.fit(low, high),
                Churn(2.0 * i, 0.05 * i, 10.0 + i, 1.0 + 0.001 * i),
                1.0 - i,
            )
        )
    alone = [run(*setting) for setting in settings]
    assert len(traces) == 1
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(v) for v in leaves]), *settings)
    together = jax.jit(jax.vmap(run))(*stacked)
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-10)


def test_float32_without_churn_is_deterministic_on_every_schedule():
    """No noise may leak in through the round trip sigma -> t -> sigma."""

    @jax.jit
    def run(setting, seed):
        return samplers.sample_general(
            _gaussian_denoiser,
            jnp.ones((2, 3)) * setting.sigmas[0],
            setting.sigmas,
            jax.random.key(seed),
            schedule=setting.schedule,
            scaling=setting.scaling,
            churn=Churn(),
        )

    for schedule in ("vp", "ve", "linear"):
        setting = general.table1(6, schedule=schedule, scaling="vp")
        np.testing.assert_array_equal(run(setting, 0), run(setting, 1))


def test_repeated_levels_are_allowed_with_rounding_only(x64):
    made = precond.iddpm_preconditioning()
    repeated = grids.make_sigmas("edm", 120, preconditioning=made)
    merged = grids.make_sigmas("edm", 120, preconditioning=made, merge=True)
    x = jnp.ones((1, 3)) * repeated[0]
    with pytest.raises(ValueError, match="strictly decreasing"):
        samplers.sample_general(_gaussian_denoiser, x, repeated)
    run = functools.partial(samplers.sample_general, _gaussian_denoiser)
    rounded = {"round_sigma": made.round_sigma, "churn": Churn(), "key": jax.random.key(0)}
    full = jax.jit(lambda x: run(x, repeated, **rounded))(x)
    short = jax.jit(lambda x: run(x, merged))(x)
    np.testing.assert_allclose(full, short, rtol=1e-12)  # a step between equal levels is none


def test_bad_combinations_are_named():
    def never(x, sigma):
        raise AssertionError("traced before the arguments were checked")

    x, sigmas = jnp.zeros((2, 3)), grids.karras_sigmas(8)
    run = functools.partial(samplers.sample_general, never, x, sigmas)
    with pytest.raises(ValueError, match="did you mean 'heun'"):
        run(solver="huen")
    with pytest.raises(ValueError, match="needs a key"):
        run(churn=Churn(4.0))
    with pytest.raises(ValueError, match="alpha must be positive"):
        run(alpha=0.0)
    with pytest.raises(ValueError, match="alpha must be positive"):
        run(alpha=float("nan"), solver="euler")  # which has no second evaluation
    with pytest.raises(ValueError, match="smaller alpha"):
        run(alpha=1.6, schedule=schedules.VESchedule())
    # sigma = sqrt(t): 15.21 + 1.6 (1 - 15.21), where the step before it has a level.
    with pytest.raises(ValueError, match=r"evaluation of step 1 at time -7\.53,"):
        samplers.sample_general(
            lambda x, sigma: x, jnp.ones((1, 2)), np.array([4.0, 3.9, 1.0, 0.0]),
            alpha=1.6, schedule=schedules.VESchedule(),
        )  # fmt: skip
    with pytest.raises(ValueError, match="strictly decreasing"):
        samplers.sample_general(never, x, [1.0, 2.0, 0.0])
    for options in ({"discretization": "edn"}, {"schedule": "vq"}, {"scaling": "nome"}):
        with pytest.raises(ValueError, match="did you mean"):
            general.table1(8, **options)


@pytest.mark.parametrize("eps_s", [1e-3, 1e-2, 0.1])
def test_another_last_time_of_the_vp_schedule(eps_s, x64):
    """t_i = 1 + i/(N-1) (eps_s - 1) on the schedule of Table 1, whatever eps_s."""
    setting = general.table1(7, discretization="vp", schedule="vp", scaling="vp", eps_s=eps_s)
    times = 1 + np.arange(7) / 6 * (eps_s - 1)
    expected = np.sqrt(np.expm1(0.5 * 19.9 * times**2 + 0.1 * times))
    # The default range is rounded to float64, others go through float32.
    np.testing.assert_allclose(setting.sigmas, [*expected, 0.0], rtol=1e-5)
    np.testing.assert_allclose(setting.schedule.beta_d, 19.9, rtol=1e-4)
    np.testing.assert_allclose(setting.schedule.beta_min, 0.1, rtol=1e-2)


def test_the_schedule_is_fitted_to_the_range_and_the_last_time():
    setting = general.table1(7, schedule="vp", sigma_min=0.01, sigma_max=50.0, eps_s=0.02)
    np.testing.assert_allclose(setting.schedule.sigma(np.array([0.02, 1.0])), [0.01, 50], rtol=1e-4)
    np.testing.assert_array_equal(
        setting.sigmas, grids.karras_sigmas(7, sigma_min=0.01, sigma_max=50.0)
    )
    clamped = general.table1(7, schedule="vp", preconditioning=precond.ve_preconditioning())
    np.testing.assert_allclose(clamped.schedule.sigma(np.array([1e-3, 1.0])), [0.02, 80], rtol=1e-3)
    assert clamped.sigmas[0] == 80 and clamped.sigmas[-2] == 0.02
