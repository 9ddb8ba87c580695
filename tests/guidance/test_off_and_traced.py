"""Off means off, numbers are traced, images do not mix, and the cost is counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import guidance as g
from edm_jax.guidance import base
from edm_jax.samplers import sample_dpmpp_2m, sample_heun
from edm_jax.schedules import karras_sigmas
from edm_jax.train import sharding
from tests.support import compiler
from tests.support import guided_mixture as gm


@pytest.fixture(scope="module")
def model():
    return gm.Exact(gm.arrays())


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    x = 2 * rng.standard_normal((4, 2, 2, 3)).astype(np.float32)
    return jnp.asarray(x), gm.one_hot([0, 1, 2, 1])


class FailingClassifier:
    num_classes = 3

    def logits(self, x, sigma):
        gm.fails()


OFF = {
    "classifier_free": lambda: g.classifier_free(1.0, unconditional=gm.fails),
    "autoguidance": lambda: g.autoguidance(gm.fails, 1),
    "classifier": lambda: g.classifier_guidance(FailingClassifier(), 0.0),
    "added": lambda: g.added(g.autoguidance(gm.fails), g.classifier_free(1.0)),
}


@pytest.mark.parametrize("name", OFF)
def test_known_to_be_off(model, batch, name):
    """Bit for bit, and the second network is not even traced."""
    x, rows = batch
    guided = OFF[name]().guide(model.denoise)
    for sigma in (0.7, np.full(4, 0.7, np.float32)):
        np.testing.assert_array_equal(guided(x, sigma, rows), model.denoise(x, sigma, rows))


def test_own_null_label_off(model, batch):
    """Scale 1 with the model's own null label: one call, with the labels as they are."""
    x, rows = batch
    calls = []

    def denoise(x, sigma, labels):
        calls.append(labels)
        return model.denoise(x, sigma, labels)

    for together in (False, True):
        got = g.classifier_free(1.0, together=together).guide(denoise)(x, 0.7, rows)
        np.testing.assert_array_equal(got, model.denoise(x, 0.7, rows))
    assert len(calls) == 2 and all(labels is rows for labels in calls)


def counting(fn, count):
    """fn, counting the evaluations that really run, in images."""

    def counted(x, sigma, *rest):
        jax.debug.callback(lambda: count.append(x.shape[0]))
        return fn(x, sigma, *rest)

    return counted


TRACED = {
    "apart": lambda second, w: g.ClassifierFree(w),
    "together": lambda second, w: g.ClassifierFree(w, together=True),
    "unconditional": lambda second, w: g.ClassifierFree(
        w, unconditional=jax.tree_util.Partial(second)
    ),
    "autoguidance": lambda second, w: g.Autoguidance(jax.tree_util.Partial(second), w),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_off(model, batch, name):
    """A traced scale of 1 gives the bits of the unguided model, and skips the second pass."""
    x, rows = batch
    count = []
    main = counting(model.denoise, count)
    second = counting(lambda x, sigma, rows: model.denoise(x, sigma), count)

    jit = functools.partial(jax.jit, compiler_options=compiler.as_users_compile())

    @jit
    def run(w, sigma):
        return TRACED[name](second, w).guide(main)(x, sigma, rows)

    plain = jit(model.denoise)(x, jnp.float32(0.7), rows)
    np.testing.assert_array_equal(run(1.0, 0.7), plain)
    jax.effects_barrier()
    assert count == [4]
    count.clear()
    want = plain + 1.5 * (plain - model.denoise(x, 0.7))
    # Rounding of float32, times the weight.
    np.testing.assert_allclose(run(2.5, 0.7), want, atol=1e-5)
    jax.effects_barrier()
    assert sum(count) == 8
    # Off for two images, on for the others: those keep their bits.
    mixed = run(jnp.array([1.0, 2.5, 1.0, 2.5]), 0.7)
    np.testing.assert_array_equal(mixed[::2], plain[::2])
    np.testing.assert_allclose(mixed[1::2], want[1::2], atol=1e-5)
    assert run._cache_size() == 2  # a number, one per image; no new value compiles


def test_a_gradient_that_is_not_finite_stays_out(batch):
    x, rows = batch

    class Broken:
        def logits(self, x, sigma):
            return jnp.sum(x, axis=(1, 2, 3))[:, None] * jnp.array([[jnp.inf, 0.0, 0.0]])

    guidance = g.classifier_guidance(Broken(), jnp.array([0.0, 1.0, 0.0, 0.0]))
    got = guidance.guide(lambda x, sigma, rows: x)(x, 1.0, rows)
    np.testing.assert_array_equal(got[0], x[0])
    assert not np.all(np.isfinite(got[1]))


@pytest.mark.parametrize("together", [False, True])
def test_interval_skips_the_second_pass(model, batch, together):
    """Network rows as counted by the program are those that `network_rows` says."""
    x, rows = batch
    count = []
    guidance = g.classifier_free(2.0, (0.3, 3.0), together=together)
    guided = guidance.guide(counting(model.denoise, count))
    sigmas = karras_sigmas(6, sigma_min=0.02, sigma_max=20.0).astype(np.float32)
    run = jax.jit(lambda x: sample_heun(lambda x, s: guided(x, s, rows), x, sigmas))
    jax.block_until_ready(run(x * sigmas[0]))
    jax.effects_barrier()
    levels = g.visited_levels(lambda d, x: sample_heun(d, x, sigmas))
    want = np.concatenate([[sigmas[0]], np.repeat(sigmas[1:-1], 2)])
    np.testing.assert_allclose(sorted(levels), sorted(want), rtol=1e-6)
    inside = int(np.sum((np.array(levels) > 0.3) & (np.array(levels) <= 3.0)))
    rows_counted = g.network_rows(guidance, levels, batch_size=4)
    assert rows_counted == {"denoiser": 4 * (11 + inside)} == {"denoiser": sum(count)}
    assert 0 < inside < 11
    assert g.network_rows(None, levels) == {"denoiser": 11}


def test_network_rows_of_compositions(model):
    """Counted by hand: a chain multiplies, a sum shares D."""
    weak = g.autoguidance(model.denoise, 2.0)
    cfg = g.classifier_free(2.0, (0.1, 1.0))
    classifier = g.classifier_guidance(model, 1.0)
    levels = [0.5, 5.0]
    assert g.network_rows(g.added(weak, cfg, classifier), levels) == {
        "denoiser": 3, "weaker": 2, "classifier": 2,
    }  # fmt: skip
    assert g.network_rows(g.chain(weak, cfg, g.dynamic_threshold()), levels) == {
        "denoiser": 3, "weaker": 3,
    }  # fmt: skip


def test_pair_in_one_call_or_two(model, batch):
    """Equal within rounding, also with one sigma and one weight per image."""
    x, rows = batch
    sigma, w = np.float32([0.1, 0.5, 2.0, 9.0]), np.float32([0.5, 1.0, 2.0, -1.0])
    apart = g.classifier_free(w).guide(model.denoise)(x, sigma, rows)
    together = g.classifier_free(w, together=True).guide(model.denoise)(x, sigma, rows)
    np.testing.assert_allclose(apart, together, atol=1e-6)  # sums of size 1, the order may differ


@pytest.mark.parametrize("together", [False, True])
def test_images_do_not_mix(model, batch, together):
    x, rows = batch
    sigma, w = np.float32([0.1, 0.5, 2.0, 9.0]), np.float32([0.5, 1.0, 2.0, -1.0])

    numbers = (w, np.float32([0.5, 0.8, 0.9, 1.0]), x, sigma, rows)

    @jax.jit
    def guided(w, percentile, x, sigma, rows):
        guidance = g.chain(
            g.classifier_free(w, (0.2, 5.0), together=together), g.dynamic_threshold(percentile)
        )
        return guidance.guide(model.denoise)(x, sigma, rows)

    def run(index):
        return guided(*(np.asarray(v)[index] for v in numbers))

    whole, order = run(np.arange(4)), np.array([2, 0, 3, 1])
    np.testing.assert_allclose(run(order), whole[order], atol=1e-6)
    for i in range(4):
        np.testing.assert_allclose(run(np.array([i]))[0], whole[i], atol=1e-6)


def test_guidance_is_an_argument(model, batch):
    """One compilation for all numbers; sweeps by vmap."""
    x, rows = batch

    @jax.jit
    def run(guidance, sigma):
        return guidance.guide(model.denoise)(x, sigma, rows)

    def build(w, low, high, p):
        return g.chain(g.classifier_free(w, (low, high)), g.dynamic_threshold(p))

    values = [(2.0, 0.1, 1.0, 0.9), (3.0, 0.0, np.inf, 0.5), (1.0, 0.3, 0.3, 1.0)]
    each = [run(build(*v), 0.5) for v in values]
    assert run._cache_size() == 1
    numbers = [jnp.asarray(v, jnp.float32) for v in zip(*values, strict=True)]
    swept = jax.jit(jax.vmap(lambda *v: build(*v).guide(model.denoise)(x, 0.5, rows)))(*numbers)
    np.testing.assert_allclose(swept, jnp.stack(each), atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 4, 2)])
def test_other_ranks_and_precisions(shape):
    x = jnp.ones(shape)
    rows = jnp.eye(3)

    def denoise(x, sigma, rows):
        return (x * 0.5).astype(x.dtype) + rows[:, 0].reshape((-1,) + (1,) * (x.ndim - 1))

    guidance = g.chain(g.classifier_free(2.0), g.dynamic_threshold(1.0))
    for sigma in (1.0, np.ones(3, np.float32)):
        got = guidance.guide(denoise)(x, sigma, rows)
        # D_c = 1.5 and D_0 = 0.5 for image 0: 2.5, thresholded to 1; 0.5 elsewhere.
        np.testing.assert_allclose(
            got,
            np.where(np.asarray(rows[0]).reshape((-1,) + (1,) * (x.ndim - 1)), 1.0, 0.5)
            * np.ones(shape),
            rtol=1e-6,
        )
    half = guidance.guide(denoise)(x.astype(jnp.bfloat16), 1.0, rows)
    assert half.dtype == jnp.float32


def test_other_samplers_and_gradients(model, batch):
    """Multistep samplers scan over guided denoisers; reverse mode passes through."""
    x, rows = batch
    sigmas = karras_sigmas(5, sigma_min=0.02, sigma_max=20.0).astype(np.float32)

    @jax.jit
    def loss(x, w):
        guided = g.classifier_free(w, (0.1, 5.0)).guide(model.denoise)
        return jnp.sum(sample_dpmpp_2m(lambda x, s: guided(x, s, rows), x, sigmas) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(x * sigmas[0], 1.5)
    assert all(np.all(np.isfinite(v)) for v in gradient)
    step = 1e-2
    slope = (loss(x * sigmas[0], 1.5 + step) - loss(x * sigmas[0], 1.5 - step)) / (2 * step)
    np.testing.assert_allclose(gradient[1], slope, rtol=1e-2)  # second order in the step


@pytest.mark.parametrize("together", [False, True])
def test_sharded_batch(model, together):
    """Images split over eight devices come out as on one."""
    split = sharding.batch_sharding(sharding.make_mesh())
    x = jnp.asarray(np.random.default_rng(1).standard_normal((16, 2, 2, 3)), jnp.float32)
    rows = gm.one_hot(np.arange(16) % 3)
    run = jax.jit(lambda guidance, x, rows: guidance.guide(model.denoise)(x, 0.5, rows))
    guidance = g.classifier_free(2.0, (0.1, 1.0), together=together)
    one = run(guidance, x, rows)
    many = run(guidance, *(jax.device_put(v, split) for v in (x, rows)))
    assert many.sharding.is_equivalent_to(split, many.ndim)
    # Sums in another order, in the exponents (of size 30) of the exact posterior.
    np.testing.assert_allclose(many, one, atol=1e-5)


@pytest.mark.parametrize("ends", [(0.0, 0.002), (0.002, 2.0), (0.2, 80.0), (0.1, 0.1)])
def test_rows_are_counted_where_the_interval_acts(ends):
    """Ends that are levels of the grid: float32 there, float64 as a person gives them."""
    interval = base.as_interval(ends)
    for sigma in np.float32([80.0, 2.0, 0.2, 0.1, 0.002]):
        acts = bool(interval.contains(sigma))
        assert base.is_evaluated(2.0, 1, interval, sigma) == acts
        assert acts == (np.float32(ends[0]) < sigma <= np.float32(ends[1]))


def test_steps_in_the_wrong_order_are_refused():
    sigmas = np.array([2.0, 1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="first must be at most last, got 3 and 1"):
        g.sample_heun_by_step(
            g.classifier_free(2.0), lambda x, s: x, np.zeros((1, 2, 2, 1)), sigmas, None,
            first=3, last=1,
        )  # fmt: skip
