"""The validator: it passes what is right and fails what is wrong, with the reason."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import samplers, seeds
from edm_jax.exact import bed, contract, promises, subjects


def right(denoise, x, sigmas):
    """Heun's method, promised as such."""
    return samplers.sample_heun(denoise, x, sigmas)


right.order = 2


def wrong_coefficient(denoise, x, sigmas):
    """Euler with a slope ten per cent too small."""

    def step(i, x):
        return x + 0.9 * (sigmas[i + 1] - sigmas[i]) * (x - denoise(x, sigmas[i])) / sigmas[i]

    return jax.lax.fori_loop(0, len(sigmas) - 1, step, x)


def overpromised(denoise, x, sigmas):
    """Euler that claims order 2."""
    return samplers.sample_ddim(denoise, x, sigmas)


overpromised.order = 2


def batch_norm(denoise, x, sigmas):
    """Lets images influence each other."""
    return right(denoise, x, sigmas) + 1e-3 * jnp.mean(x)


def shared_noise(denoise, x, sigmas, key):
    """Draws the noise of every image from the first key."""
    noise = seeds.normal(key[0], x.shape[1:], x.dtype)
    return right(denoise, x, sigmas) + 1e-3 * noise[None]


def ancestral(denoise, x, sigmas, key):
    """A correct stochastic sampler, measured by sampling."""
    return samplers.sample_ddpm(denoise, x, sigmas, key, variance="large")


ancestral.order = 1


def second_order_sde(denoise, x, sigmas, key):
    """A correct stochastic sampler of order 2 that cannot replay noise."""
    return samplers.sample_dpmpp_2m_sde(denoise, x, sigmas, key)


second_order_sde.order = 2


def second_order_sde_replayed(denoise, x, sigmas, key=None, noise_fn=None):
    """The same, measured by its impulse responses."""
    return samplers.sample_dpmpp_2m_sde(denoise, x, sigmas, key, noise_fn=noise_fn)


second_order_sde_replayed.order = 2


def too_little_noise(denoise, x, sigmas, key):
    """The same with noise a tenth too small, whose variance is wrong at any N."""
    return samplers.sample_dpmpp_2m_sde(denoise, x, sigmas, key, s_noise=0.9)


too_little_noise.order = 2


def deaf(denoise, x, sigmas, key, noise_fn=None):
    """Accepts noise_fn and does not use it."""
    return samplers.sample_dpmpp_2m_sde(denoise, x, sigmas, key)


def not_traceable(denoise, x, sigmas):
    """Euler with Python numbers."""
    levels = [float(sigma) for sigma in sigmas]
    for sigma, after in zip(levels, levels[1:], strict=False):  # noqa: RUF007
        x = x + (after - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def one_image(denoise, x, sigmas):
    """Returns one image of the batch."""
    return x[:1]


def single_precision(denoise, x, sigmas):
    """Forgets the dtype of x."""
    return right(denoise, x, sigmas).astype(jnp.float32)


def fails_for_many_steps(denoise, x, sigmas):
    """Raises, but not for the first number of steps that is tried."""
    if len(sigmas) > 100:
        raise ValueError("too many steps")
    return right(denoise, x, sigmas)


def for_images_only(denoise, x, sigmas):
    """Euler with a column of levels, as written for (B, H, W, C)."""

    def step(i, x):
        sigma = jnp.full((x.shape[0],), sigmas[i])[:, None, None, None]
        return x + (sigmas[i + 1] - sigma) * (x - denoise(x, sigma[:, 0, 0, 0])) / sigma

    return jax.lax.fori_loop(0, len(sigmas) - 1, step, x)


def not_a_number(denoise, x, sigmas):
    """NaN."""
    return right(denoise, x, sigmas) * jnp.nan


def breaks(denoise, x, sigmas):
    """Raises."""
    raise RuntimeError("boom")


def _loaded(name):
    return subjects.load_subject(f"{__name__}:{name}")


@pytest.fixture
def few_samples(monkeypatch):
    monkeypatch.setattr(bed, "SAMPLED_SHAPE", (1024, 256))


def test_what_a_sampler_of_the_registry_promises():
    heun, adaptive, restart, corrected, sde = (
        subjects.subject_of(samplers.SAMPLERS[name])
        for name in ("heun", "adaptive", "restart", "ve_predictor_corrector", "dpmpp_2m_sde")
    )
    # The error of an adaptive one follows its tolerance in proportion.
    assert adaptive.order == 1 and len(adaptive.tolerances) > 2 and adaptive.nfe is None
    assert heun.order == 2 and heun.tolerances == () and heun.nfe(10) == 19 and not heun.stochastic
    # Linear ones of Gaussian data are measured without sampling error.
    assert sde.replay is not None and sde.stochastic and sde.steps == subjects.FINE_STEPS
    assert corrected.replay is None and corrected.steps == (32, 64, 128) and corrected.grid == "ve"
    assert restart.bias > 0 and restart.steps == subjects.BIASED_STEPS
    setting = samplers.Measured("eta 0", {"eta": 0.0}, order=3, stochastic=False, tight=False)
    ode = subjects.subject_of(samplers.SAMPLERS["seeds_3"], setting)
    assert (ode.name, ode.order, ode.stochastic, ode.tight) == ("seeds_3 (eta 0)", 3, False, False)
    assert ode.nfe(4) == 10 and ode.replay is None


def test_calls_are_counted_as_the_program_makes_them(x64):
    """In loops, branches not taken, under vmap and with half a batch."""
    counter = bed.CallCounter()
    denoise = counter.wrap(lambda x, sigma: x / (1 + sigma))
    x = jnp.ones((4, 3))
    once = jax.jit(lambda x: denoise(x, 1.0))
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, 7, lambda i, x: denoise(x, i), x))
    branch = jax.jit(lambda x: jax.lax.cond(x[0, 0] > 5, lambda x: denoise(x, 1.0), jnp.sin, x))
    lanes = jax.jit(jax.vmap(lambda x: denoise(x, 1.0)))
    half = jax.jit(lambda x: denoise(x[:2], 1.0))
    unused = jax.jit(lambda x: (denoise(x, 1.0), x)[1])
    slope = jax.jit(jax.grad(lambda x: jnp.sum(denoise(x, 1.0))))
    cases = ((once, 1), (loop, 7), (branch, 0), (lanes, 1), (half, 0.5), (unused, 1), (slope, 1))
    for program, calls in cases:
        program(x).block_until_ready()
        assert counter.take(x.size) == calls
    assert counter.take(x.size) == 0


def test_a_right_sampler_passes():
    report = promises.validate(_loaded("right"))
    assert report.passed and not report.stochastic
    # 2N - 1 calls, counted: the function states nothing.
    assert report.num_steps == (32, 64, 128) and report.nfe == (63, 127, 255)
    assert report.nfe_at_budget == 63 and report.error_at_budget == report.errors[0]
    np.testing.assert_allclose(report.measured_order, 2, atol=0.1)
    text = promises.table([report])
    assert "pass" in text and f"{report.error_at_budget:.2e}" in text
    assert promises.to_json([report])[0]["passed"] is True


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong_coefficient", "converges with order"),
        ("overpromised", "promised 2"),
        ("batch_norm", "images influence each other"),
        ("shared_noise", "noise of an image depends on other keys"),
        ("too_little_noise", "promised 2"),
        ("one_image", "returns shape (1, 2, 2, 1) for x of shape (6, 2, 2, 1)"),
        ("single_precision", "returns float32 for x of float64"),
        ("not_a_number", "not finite"),
        ("fails_for_many_steps", "it raises ValueError (test_promises.py:"),
        ("breaks", "it raises RuntimeError (test_promises.py:"),
    ],
)
def test_a_wrong_sampler_fails_with_its_reason(name, reason, few_samples):
    subject = _loaded(name)
    if name != "fails_for_many_steps":  # what is wrong shows at any number
        subject = dataclasses.replace(subject, steps=(16, 32))
    report = promises.validate(subject)
    assert not report.passed and reason in "; ".join(report.failures)
    assert "FAIL" in promises.table([report])


def test_a_sampler_of_images_is_measured_on_images():
    subject = dataclasses.replace(_loaded("for_images_only"), steps=(16, 32))
    report = promises.validate(subject)
    assert report.passed and report.nfe[:2] == (16, 32)


def test_a_broken_contract_is_one_line_and_plain_data():
    report = promises.validate(_loaded("breaks"))
    assert len(report.failures) == 1 and report.failures[0].endswith("boom")
    assert len(promises.table([report]).splitlines()) == 3
    json.dumps(promises.to_json([report]), allow_nan=False)


def test_calls_other_than_stated_fail():
    """Heun's method that states one call a step."""
    heun = subjects.subject_of(samplers.SAMPLERS["heun"])
    lying = dataclasses.replace(heun, nfe=lambda n: n, steps=(32, 64))
    (failure,) = promises.validate(lying).failures
    assert failure == "it calls the network 63 times for 32 steps, stated 32"


def test_an_order_better_than_documented_fails_for_the_library_only():
    heun = subjects.subject_of(samplers.SAMPLERS["heun"], samplers.Measured(order=1))
    (failure,) = promises.validate(heun).failures
    assert "stated as 1 only" in failure
    assert promises.validate(dataclasses.replace(heun, tight=False, steps=(32, 64))).passed


def test_the_uncertainty_of_a_sampled_order(monkeypatch):
    """Of the finest pair that noise of 0.001 leaves visible: 0.016 and 0.008, N = 20 and 40."""
    monkeypatch.setattr(bed, "sampled_floor", lambda: 1e-3)
    order, uncertainty = promises._resolved_slope((10, 20, 40, 80), [0.05, 0.016, 0.008, 0.002])
    assert order == pytest.approx(1)
    expected = 3 * np.hypot(1e-3 / 0.016, 1e-3 / 0.008) / np.log(2)
    assert uncertainty == pytest.approx(expected)


def test_a_sampler_that_promises_no_order_may_have_any():
    subject = bed.Subject("s", None, 0, bias=0.1, tight=True)
    runs = {8: bed.Measurement(0.05, 8.0)}
    assert promises._order_failure(subject, promises.Convergence(1.7, 0.0, runs)) is None
    promised = dataclasses.replace(subject, order=1)
    assert "stated as 1" in promises._order_failure(promised, promises.Convergence(1.7, 0.0, runs))


def test_the_table_says_what_is_promised():
    reports = [
        promises.Report("a", 2, False, measured_order=1.98),
        promises.Report("b", 0, True, measured_order=1.4),
        promises.Report("c", 1, False, adaptive=True, measured_order=1.2),
    ]
    found = [line.split()[2:4] for line in promises.table(reports).splitlines()[2:]]
    assert found == [["2", "1.98"], ["bias", "-"], ["tol^1", "1.20"]]


def keyed_by_another_name(denoise, x, sigmas, rng):
    return x + jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(rng)


def test_a_fourth_argument_is_the_key_whatever_its_name():
    subject, x = _loaded("keyed_by_another_name"), jnp.zeros((2, 3))
    keys = jax.random.split(jax.random.key(0), 2)
    expected = keyed_by_another_name(None, x, None, keys)
    np.testing.assert_array_equal(subject.run(None, x, None, keys), expected)


def test_budget_of_calls_is_met_whatever_a_step_costs():
    """Three calls a step: N = 21 is the most within 64."""
    runs = {n: bed.Measurement(0.1, 3.0 * n) for n in (32, 64)}
    assert promises._budget_steps(runs) == 21
    runs = {n: bed.Measurement(0.1, 2.0 * n - 1) for n in (128, 256)}
    assert promises._budget_steps(runs) == 32
    runs = {n: bed.Measurement(0.1, 1.0) for n in (32, 64)}
    assert promises._budget_steps(runs) is None


def test_a_sampler_that_cannot_be_traced_is_run_without(monkeypatch):
    monkeypatch.setattr(contract, "CONTRACT_STEPS", 8)
    subject = dataclasses.replace(_loaded("not_traceable"), steps=(16, 32))
    with jax.enable_x64(True):
        subject, _, wrong = contract.contract(subject)
        assert wrong is None and not subject.jit
        (one,) = bed.deterministic_runs(subject, (16,))
    assert one.calls == 16


@pytest.mark.parametrize("name", ["ancestral", "second_order_sde", "second_order_sde_replayed"])
def test_right_stochastic_samplers_of_a_user_pass(name, few_samples):
    subject, sampled = _loaded(name), name != "second_order_sde_replayed"
    if sampled:  # hundreds of thousands of draws a step
        subject = dataclasses.replace(subject, steps=(16, 32))
    report = promises.validate(subject)
    assert report.passed and report.stochastic, report.failures
    assert report.nfe == ((16, 32, 64) if sampled else (32, 64, 128))
    assert any("sampling" in note for note in report.notes) == sampled
    if not sampled:  # as the library's own, exactly: its third digit is 2.08
        np.testing.assert_allclose(report.measured_order, 2.08, atol=0.005)


def test_noise_that_is_not_replayed_is_noticed(x64, few_samples):
    replayed, deaf = _loaded("second_order_sde_replayed"), _loaded("deaf")
    assert bed.replays_faithfully(replayed) and not bed.replays_faithfully(deaf)


def test_sampling_error_is_as_stated(x64, few_samples):
    """Against the impulse responses, which have none."""
    subject = _loaded("ancestral")
    sampled = bed.sampled_run(subject, 16)
    info = subjects.subject_of(samplers.SAMPLERS["ddpm"], variance="large")
    exact = bed.impulse_run(dataclasses.replace(info, grid=subject.grid), 16)
    assert sampled.calls == exact.calls == 16
    # 262144 draws of deviation 0.5: standard error 0.0012; two of them.
    np.testing.assert_allclose(bed.sampled_floor(), 0.0012, rtol=0.01)
    np.testing.assert_allclose(sampled.error, exact.error, atol=0.0024)
    np.testing.assert_allclose(sampled.law, exact.law, atol=0.0024)


def test_order_is_read_where_sampling_error_does_not_hide_it():
    floor = bed.sampled_floor()
    slope, doubt = promises._resolved_slope((32, 64, 128), [80 * floor, 20 * floor, 1.5 * floor])
    np.testing.assert_allclose(slope, 2)  # of the first pair
    assert 0.1 < doubt < 0.3
    assert np.isnan(promises._resolved_slope((32, 64), [2 * floor, floor])[0])


def test_impulse_error_has_a_closed_form(x64):
    """One step to 0 on Gaussian data: the result is D of the start."""
    measured = bed.impulse_run(subjects.subject_of(samplers.SAMPLERS["ddpm"]), 1)
    # D(x_0) has deviation 0.25 / sqrt(0.25 + sigma^2), as has the exact law at sigma.
    np.testing.assert_allclose(measured.error, 0, atol=1e-12)
    assert measured.calls == 1


@pytest.mark.parametrize("name", ["heun", "unipc_2", "ve_ode", "lms_4", "adaptive"])
def test_deterministic_samplers_of_the_registry_keep_their_promises(name):
    if name == "adaptive":
        pytest.importorskip("diffrax")
    report = promises.validate(subjects.subject_of(samplers.SAMPLERS[name]))
    assert report.passed, report.failures


@pytest.mark.parametrize("name", ["edm", "dpmpp_2m_sde", "vp_ancestral"])
def test_stochastic_samplers_of_the_registry_keep_their_promises(name):
    info = samplers.SAMPLERS[name]
    report = promises.validate(subjects.subject_of(info, info.measured[0]))
    assert report.passed, report.failures


@pytest.mark.soak
def test_every_sampler_of_the_registry_keeps_its_promises():
    reports = [promises.validate(subject) for subject in subjects.builtin_subjects()]
    # Those of a box have a bed of their own: tests/reflected/test_promises.py.
    everywhere = {n for n, info in samplers.SAMPLERS.items() if info.domain != "box"}
    assert {r.name.split(" ")[0] for r in reports} == everywhere
    assert all(r.passed for r in reports), promises.table(reports)


def test_the_promised_order_must_be_a_number(monkeypatch):
    monkeypatch.setattr(right, "order", "two", raising=False)
    with pytest.raises(ValueError, match="attribute order must be a number >= 0, got 'two'"):
        _loaded("right")


def test_bad_paths_are_named():
    for path in (
        "heun",
        "edm_jax.samplers:nope",
        "no_such_module:f",
        "edm_jax.exact.promises:NFE_BUDGET",
    ):
        with pytest.raises(ValueError, match=r"sampler|callable"):
            subjects.load_subject(path)
