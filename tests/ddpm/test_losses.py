"""Losses and their gradients against guided-diffusion (golden 20), and their identities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import ddpm
from edm_jax.ddpm import bound
from edm_jax.train.ddpm import DDPMObjective, ResampledDDPMObjective
from tests.support import ddpm_golden as dg


def inputs(schedule, dtype=jnp.float64):
    z = dg.arrays()
    y, noise = (dg.nhwc(z[f"{schedule}/loss/{k}"], dtype) for k in ("x0", "noise"))
    return y, noise, jnp.asarray(z[f"{schedule}/loss/t"])


@pytest.mark.parametrize("schedule", dg.SCHEDULES)
def test_tables(schedule):
    z, process = dg.arrays(), dg.process(schedule)
    tables = process.tables
    np.testing.assert_allclose(tables["sigma"], z[f"{schedule}/sigma"], rtol=1e-9)
    np.testing.assert_allclose(tables["log_small"][0], z[f"{schedule}/log_var_small"][0], rtol=1e-9)
    beta = z[f"{schedule}/betas"]
    log_ratio = np.log(beta) - z[f"{schedule}/log_var_small"]
    # Differences of logarithms of size 10 carry 1e-15 each.
    np.testing.assert_allclose(tables["log_ratio"], log_ratio, rtol=1e-8, atol=1e-12)
    t = z[f"{schedule}/loss/t"]
    np.testing.assert_allclose(process.labels[t], z[f"{schedule}/loss/label"], rtol=1e-12)
    assert all(np.all(np.isfinite(v)) for v in tables.values())
    back = process.time_step(jnp.asarray(tables["sigma"], jnp.float32))
    np.testing.assert_array_equal(back, np.arange(process.num_steps))


@pytest.mark.parametrize("schedule", dg.SCHEDULES)
def test_losses_and_gradients(schedule, x64):
    """Suggested in float64: 1e-9 for eps, 1e-6 for x0, gradients relative to the largest."""
    z, process = dg.arrays(), dg.process(schedule)
    y, noise, t = inputs(schedule)
    output = dg.nhwc(z[f"{schedule}/loss/out_f64"])
    for name, kind in dg.cases(schedule):
        prefix = f"{schedule}/loss/{name}"
        used = output if kind.variance == "learned" else output[..., :3]

        def total(used, kind=kind):
            losses = ddpm.per_image_losses(kind, process, used, y, noise, t)
            return jnp.sum(losses.loss), losses

        grad, losses = jax.jit(jax.grad(total, has_aux=True))(used)
        rtol = 1e-9 if kind.prediction == "eps" else 1e-6
        np.testing.assert_allclose(losses.loss, z[f"{prefix}/loss_f64"], rtol=rtol)
        for ours, theirs in (("mse", "mse"), ("bound", "vb")):
            if f"{prefix}/{theirs}_f64" in z:
                got = getattr(losses, ours)
                np.testing.assert_allclose(got, z[f"{prefix}/{theirs}_f64"], rtol=rtol)
        want = dg.nhwc(z[f"{prefix}/grad_f64"])
        largest = np.abs(want).max(axis=(1, 2, 3), keepdims=True)
        error = np.max(np.abs(grad - want) / largest, axis=(1, 2, 3))
        if kind.prediction == "x0":
            # Probabilities near 1e-12 from differences of numbers near 1: 1e-16 / 1e-12.
            assert error[np.asarray(t) == 0].max() < 1e-3, name
            error = error[np.asarray(t) > 0]
        assert error.max() < rtol, name


@pytest.mark.parametrize("schedule", dg.SCHEDULES)
def test_float32(schedule):
    """Suggested against float64: mse and hybrid loss 1e-5, bound 1e-5 in this form."""
    z, process = dg.arrays(), dg.process(schedule)
    y, noise, t = inputs(schedule, jnp.float32)
    output = dg.nhwc(z[f"{schedule}/loss/out"], jnp.float32)
    for name, kind in dg.cases(schedule):
        if kind.prediction != "eps":
            continue
        used = output if kind.variance == "learned" else output[..., :3]

        def total(used, kind=kind):
            losses = ddpm.per_image_losses(kind, process, used, y, noise, t)
            return jnp.sum(losses.loss), losses

        grad, losses = jax.jit(jax.grad(total, has_aux=True))(used)
        prefix = f"{schedule}/loss/{name}"
        np.testing.assert_allclose(
            losses.loss[1:], z[f"{prefix}/loss_f64"][1:], rtol=1e-5, err_msg=name
        )
        # The decoder at t = 0: differences of two numbers of size 1.
        np.testing.assert_allclose(
            losses.loss[:1], z[f"{prefix}/loss_f64"][:1], rtol=1e-3, err_msg=name
        )
        assert np.all(np.isfinite(grad))
        want = dg.nhwc(z[f"{prefix}/grad_f64"])
        largest = np.abs(want).max(axis=(1, 2, 3), keepdims=True)
        error = (np.abs(grad - want) / largest)[1:]
        assert error.max() < 1e-4, name  # suggested


@pytest.mark.parametrize("schedule", dg.SCHEDULES)
@pytest.mark.parametrize("loss", ["rescaled_mse", "rescaled_kl"])
def test_parameter_gradients(schedule, loss, x64):
    """Through the network, importance weights included: one call, the mean stopped in hybrid."""
    z = dg.arrays()
    y, noise, t = inputs(schedule)
    weights = jnp.asarray(z[f"{schedule}/loss/weights"], jnp.float64)
    objective = DDPMObjective(None, dg.process(schedule), dg.kind("eps", "learned_range", loss))

    def weighted(params):
        calls = []

        def network(x, label):
            calls.append(1)
            return dg.network(params, x, label, 6)

        value = jnp.mean(weights * objective.losses(network, y, noise, t))
        assert len(calls) == 1
        return value

    params = (jnp.asarray(z["net/A"], jnp.float64), jnp.asarray(z["net/b"], jnp.float64))
    value, (grad_a, grad_b) = jax.jit(jax.value_and_grad(weighted))(params)
    prefix = f"{schedule}/loss/param/{loss}"
    np.testing.assert_allclose(value, z[f"{prefix}/loss_f64"], rtol=1e-9)  # suggested
    for got, name in ((grad_a, "grad_A_f64"), (grad_b, "grad_b_f64")):
        want = z[f"{prefix}/{name}"]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.abs(want).max())


def test_mean_rows_see_the_simple_loss_alone(x64):
    """In the hybrid loss the mean's channels get the gradient of mse, bit for bit."""
    schedule = "cosine50"
    process = dg.process(schedule)
    y, noise, t = inputs(schedule)
    output = dg.nhwc(dg.arrays()[f"{schedule}/loss/out_f64"])

    def gradient(kind, output):
        return jax.grad(
            lambda o: jnp.sum(ddpm.per_image_losses(kind, process, o, y, noise, t).loss)
        )(output)

    hybrid = gradient(ddpm.LossKind("hybrid"), output)
    simple = gradient(ddpm.LossKind("simple", "small"), output[..., :3])
    pure = gradient(ddpm.LossKind("bound", bound_factor=50 / 1000), output)
    np.testing.assert_array_equal(hybrid[..., :3], simple)
    np.testing.assert_allclose(hybrid[..., 3:], pure[..., 3:], rtol=1e-12)
    assert np.abs(pure[..., :3]).max() > 0


def test_factors():
    """MSE and RESCALED_MSE are the same loss at T = 1000; T is that of the respaced process."""
    hybrid = ddpm.LossKind("hybrid")
    assert hybrid.factor(1000) == dataclasses.replace(hybrid, bound_factor=1.0).factor(1000) == 1
    assert hybrid.factor(4000) == 4 and hybrid.factor(50) == 0.05
    assert ddpm.LossKind("bound").factor(4000) == 4000
    assert dg.process("cosine50").num_steps == 50


def test_kl_identities(x64):
    """v = 0 gives Q e^2 / 2; the derivative in v vanishes at ln(1 + Q e^2)/ln r."""
    error, log_ratio = jnp.array([0.0, 0.3, 2.0]), jnp.array([0.4, 0.7, 3.0])
    np.testing.assert_allclose(bound.kl_term(0.0, log_ratio, error), error / 2, rtol=1e-14)
    best = jnp.log1p(error) / log_ratio
    slope = jax.grad(lambda v: jnp.sum(bound.kl_term(v, log_ratio, error)))(best)
    np.testing.assert_allclose(slope, 0, atol=1e-14)
    # KL of two Gaussians, from its textbook form.
    v, small = 0.3, 0.01
    large = small * np.exp(log_ratio)
    variance = small ** (1 - v) * large**v
    squares = error * small  # (difference of means)^2 for a posterior of variance `small`
    want = 0.5 * (np.log(variance / small) - 1 + (small + squares) / variance)
    np.testing.assert_allclose(bound.kl_term(v, log_ratio, error), want, rtol=1e-10, atol=1e-15)


def test_decoder(x64):
    z = dg.arrays()
    y, mean, log_std = np.meshgrid(
        z["decoder/x"], z["decoder/mean"], z["decoder/log_scale"], indexing="ij"
    )
    got = ddpm.decoder_log_likelihood(jnp.asarray(y), jnp.asarray(mean), jnp.asarray(log_std))
    want = z["decoder/log_prob_f64"]
    likely = want > -16  # beyond, digits of the probability are lost on either side
    np.testing.assert_allclose(got[likely], want[likely], rtol=1e-7, atol=1e-7)  # suggested
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    for argument, name in ((1, "grad_mean_f64"), (2, "grad_log_scale_f64")):
        grad = jax.grad(lambda *a: jnp.sum(ddpm.decoder_log_likelihood(*a)), argument)(
            jnp.asarray(y), jnp.asarray(mean), jnp.asarray(log_std)
        )
        wanted = z[f"decoder/{name}"]
        np.testing.assert_allclose(grad[likely], wanted[likely], rtol=1e-6, atol=1e-9)
        clamped = want < np.log(2e-12)
        np.testing.assert_array_equal(grad[clamped], 0)
    levels = np.arange(256) / 127.5 - 1
    p = jnp.exp(
        ddpm.decoder_log_likelihood(
            levels.reshape(-1, 1, 1), mean[0].reshape(1, 10, 6), log_std[0].reshape(1, 10, 6)
        )
    )
    np.testing.assert_allclose(p.sum(0), z["decoder/sum_levels_f64"], rtol=1e-12)
    assert np.all(np.abs(p.sum(0) - 1) < 3e-10)


def test_decoder_float32():
    """Suggested: atol 1e-3 where ln P > -7."""
    z = dg.arrays()
    grid = np.meshgrid(
        *(np.float32(z[f"decoder/{k}"]) for k in ("x", "mean", "log_scale")), indexing="ij"
    )
    got = ddpm.decoder_log_likelihood(*map(jnp.asarray, grid))
    want = z["decoder/log_prob_f64"]
    kept = want > -7
    np.testing.assert_allclose(got[kept], want[kept], atol=1e-3)


def test_prior(x64):
    z = dg.arrays()
    for schedule in dg.SCHEDULES:
        y = inputs(schedule)[0]
        got = ddpm.prior_term(dg.process(schedule), y)
        want = z[f"{schedule}/loss/prior_bpd_f64"]
        np.testing.assert_allclose(got, want, rtol=1e-7)  # suggested


@pytest.mark.parametrize("variance", ["learned", "small", "large"])
def test_gradients_are_finite_at_both_ends(variance):
    """Under jit in float32, with a variance far outside its range at the other images."""
    process = ddpm.ddpm_process("cosine", 1000)
    kind = ddpm.LossKind("bound", variance)
    rng = np.random.default_rng(0)
    y = jnp.asarray(np.round(rng.uniform(0, 255, (2, 4, 4, 3))) / 127.5 - 1, jnp.float32)
    noise = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    output = rng.standard_normal((2, 4, 4, 6 if variance == "learned" else 3))
    output[..., 3:] *= 30

    @jax.jit
    @jax.grad
    def gradient(output):
        t = jnp.array([0, 999])
        return jnp.sum(ddpm.per_image_losses(kind, process, output, y, noise, t).loss)

    assert np.all(np.isfinite(gradient(jnp.asarray(output, jnp.float32))))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ddpm.LossKind("hybird"), "did you mean 'hybrid'"),
        (lambda: ddpm.LossKind("hybrid", "small"), "hybrid loss trains a variance"),
        (lambda: ddpm.LossKind("simple", "learned"), "simple loss trains no variance"),
        (lambda: ddpm.LossKind("bound", "learned", "v"), "unknown prediction 'v'"),
        (lambda: ddpm.Process(np.array([1.0, 0.0])), "at least 2 time steps"),
        (lambda: ddpm.Process(np.array([2.0, 1.0, 0.0]), np.arange(3)), r"labels must have shape"),
        (lambda: ddpm.Process(np.array([2.0, 1.0])), "must end in 0"),
        (lambda: ddpm.LossSecondMoment(5, uniform_prob=0.0), "uniform_prob must be positive"),
        (
            lambda: ResampledDDPMObjective(
                None, ddpm.ddpm_process("cosine", 10), resampler=ddpm.LossSecondMoment(5)
            ),
            "must have the 10 time steps",
        ),
        (
            lambda: ddpm.losses.split_output(jnp.zeros((1, 2, 2, 3)), 3, "learned"),
            "needs 6 output channels, got 3",
        ),
    ],
)
def test_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
