"""The objective: golden terms and gradients, and its mean over all orders and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.ardm import objective, orders
from edm_jax.ardm.outputs import Softmax
from edm_jax.ardm.process import Absorbing, check_values
from edm_jax.ardm.profile import LossProfile
from tests.support import ardm as models

# float32 sums of some hundred log probabilities against float64.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def archive(golden):
    return golden("14_ardm")


def _case(archive, golden_json, name):
    config = golden_json(archive, f"loss/{name}/config")
    process = Absorbing(Softmax(config["num_classes"]), config["absorbing"])
    x, t = jnp.asarray(archive[f"loss/{name}/x"]), jnp.asarray(archive[f"loss/{name}/t"])
    ranks = jnp.asarray(archive[f"loss/{name}/ranks"]).reshape(x.shape)
    return process, config["ce_weight"], x, ranks, t


@pytest.mark.parametrize("name", ["image", "tokens"])
def test_terms(archive, golden_json, name):
    process, ce_weight, x, ranks, t = _case(archive, golden_json, name)
    seen = {}

    def predict(x_in, known, t, stage):
        seen.update(x_in=x_in, known=known)
        return jnp.asarray(archive[f"loss/{name}/logits"])

    terms = objective.step_terms(predict, process, x, ranks, t, jnp.zeros_like(t))
    np.testing.assert_array_equal(seen["known"], archive[f"loss/{name}/known"])
    np.testing.assert_array_equal(seen["x_in"], archive[f"loss/{name}/x_in"])
    np.testing.assert_allclose(terms.nll, archive[f"loss/{name}/nll_unknown"], **TOLERANCE)
    np.testing.assert_allclose(terms.elbo_per_t, archive[f"loss/{name}/elbo_per_t"], **TOLERANCE)
    np.testing.assert_allclose(terms.elbo, archive[f"loss/{name}/elbo"], **TOLERANCE)
    np.testing.assert_allclose(terms.ce, archive[f"loss/{name}/ce"], **TOLERANCE)
    loss = terms.elbo + ce_weight * terms.ce
    np.testing.assert_allclose(loss, archive[f"loss/{name}/loss"], **TOLERANCE)


@pytest.mark.parametrize("name", ["image", "tokens"])
def test_gradient(archive, golden_json, name):
    """That of unknown variables, and exactly none for known ones."""
    process, ce_weight, x, ranks, t = _case(archive, golden_json, name)

    def loss(logits):
        terms = objective.step_terms(
            lambda *inputs: logits, process, x, ranks, t, jnp.zeros_like(t)
        )
        return jnp.mean(terms.elbo + ce_weight * terms.ce)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(archive[f"loss/{name}/logits"]))
    np.testing.assert_allclose(value, archive[f"loss/{name}/batch_loss"], **TOLERANCE)
    np.testing.assert_allclose(gradient, archive[f"loss/{name}/grad_logits"], **TOLERANCE)
    assert np.all(np.asarray(gradient)[archive[f"loss/{name}/known"]] == 0)


@pytest.mark.parametrize("table", ["free", "consistent"])
def test_unbiased_over_all_orders(archive, table):
    """Each of the 24 orders and 4 steps of the enumerated model, and their mean."""
    logits = archive["tabular/logits" if table == "free" else "tabular/consistent_logits"]
    predict, process = models.table_predict(logits), models.table_process()
    x = jnp.asarray(archive["tabular/x"])
    order, t = np.repeat(archive["tabular/orders"], 4, axis=0), np.tile(np.arange(4), 24)

    @jax.jit
    def term(order, t):
        ranks = jnp.broadcast_to(orders.ranks_of_order(order), x.shape)
        t = jnp.full(len(x), t)
        return objective.step_terms(predict, process, x, ranks, t, jnp.zeros_like(t)).elbo

    nats = 4 * np.log(2) * np.stack([term(*pair) for pair in zip(order, t, strict=True)])
    estimator = nats.reshape(24, 4, 81)
    np.testing.assert_allclose(estimator, archive[f"tabular/{table}/estimator"], **TOLERANCE)
    mean = estimator.mean(axis=(0, 1))
    np.testing.assert_allclose(mean, -archive[f"tabular/{table}/elbo"], **TOLERANCE)
    losses = estimator.mean(axis=0) / 4
    np.testing.assert_allclose(losses, archive[f"tabular/{table}/loss_t"], **TOLERANCE)


@pytest.mark.parametrize("case", range(4))
def test_step_grid(archive, case):
    names = ("batch", "num_steps", "draws", "t")
    batch, steps, draws, t = (archive[f"grid_t/{case}/{name}"] for name in names)
    got = orders.step_grid(jnp.asarray(draws), int(batch), int(steps))
    np.testing.assert_array_equal(got, t)


def test_grid_steps_are_a_grid_and_each_is_uniform():
    draw = jax.jit(jax.vmap(lambda key: orders.grid_steps(key, 12, 8)))
    steps = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    # Of four points each, two apart: as many even as the draws say, each draw four times.
    assert np.all(np.sum(steps % 2 == 0, axis=1) % 4 == 0)
    for position in range(12):
        counts = np.bincount(steps[:, position], minlength=8)
        # Binomial with mean 250 and standard deviation 15.
        assert np.all(np.abs(counts - 250) < 75)


def test_random_ranks_are_uniform_permutations():
    keys = jax.random.split(jax.random.key(1), 12000)
    ranks = np.asarray(orders.random_ranks(keys, (1, 3, 1)))
    assert ranks.shape == (12000, 1, 3, 1)
    counts = np.bincount(ranks.reshape(-1, 3) @ np.array([9, 3, 1]), minlength=27)
    # Six permutations, 2000 each with a standard deviation of 41.
    assert np.sum(counts > 0) == 6 and np.all(np.abs(counts[counts > 0] - 2000) < 205)


def test_ranks_put_given_variables_first():
    keys = jax.random.split(jax.random.key(2), 3)
    given = jnp.array([[0, 1, 0, 1, 0], [0] * 5, [1, 1, 1, 1, 0]], bool)
    free = orders.random_ranks(keys, (5,))
    ranks = np.asarray(orders.random_ranks(keys, (5,), given))
    orders.check_ranks(ranks, (3, 5))
    assert set(ranks[0, [1, 3]]) == {0, 1} and ranks[2, 4] == 4
    np.testing.assert_array_equal(ranks[1], free[1])


def test_ranks_of_one_order():
    """Row by row for every image, whatever its key; nothing can be given to such a model."""
    keys = jax.random.split(jax.random.key(3), 2)
    ranks = orders.drawn_ranks("raster", keys, (2, 2, 1))
    np.testing.assert_array_equal(ranks[..., 0], [[[0, 1], [2, 3]]] * 2)
    given = jnp.zeros((2, 2, 2, 1), bool)
    with pytest.raises(ValueError, match="only be given to a model of random orders"):
        orders.drawn_ranks("raster", keys, (2, 2, 1), given)
    free = orders.drawn_ranks("random", keys, (2, 2, 1))
    np.testing.assert_array_equal(free, orders.random_ranks(keys, (2, 2, 1)))
    with pytest.raises(ValueError, match="order must be one of random, raster, got 'spiral'"):
        Absorbing(Softmax(5), order="spiral")


def test_a_model_of_one_order_knows_the_first_pixels():
    seen = []

    def apply(variables, x, time, known, stage, **kwargs):
        seen.append((np.asarray(known), np.asarray(time)))
        return jnp.zeros((*x.shape, 5))

    made = objective.OrderAgnostic(apply, Absorbing(Softmax(5), order="raster"), (2, 2, 1), 8)
    images = jnp.zeros((8, 2, 2, 1), jnp.int32)
    made.per_image({}, {}, {"image": images}, jax.random.key(0), jnp.arange(8))
    known, time = seen[0]
    expected = np.arange(4) < np.rint(4 * time)[:, None]
    np.testing.assert_array_equal(known.reshape(8, 4), expected)
    assert len(np.unique(time)) > 1


def test_a_model_of_one_order_is_trained_on_the_next_pixel_alone():
    """Its loss is D times the bits of that pixel, over D; others have no gradient."""
    made = objective.OrderAgnostic(
        lambda variables, x, *inputs, **kwargs: variables["params"],
        Absorbing(Softmax(5), order="raster"),
        (2, 2, 1),
        8,
        ce_weight=0.5,
    )
    outputs = jax.random.normal(jax.random.key(1), (8, 2, 2, 5))
    images = jax.random.randint(jax.random.key(2), (8, 2, 2, 1), 0, 5)

    def loss(outputs):
        key, ids = jax.random.key(0), jnp.arange(8)
        values, step = made.per_image(outputs, {}, {"image": images}, key, ids)
        return values.sum(), (values, step)

    gradient, (values, step) = jax.grad(loss, has_aux=True)(outputs)
    step = np.asarray(step).astype(int)
    follows = np.any(np.asarray(gradient).reshape(8, 4, 5) != 0, axis=-1)
    np.testing.assert_array_equal(follows, np.arange(4) == step[:, None])
    log_p = np.asarray(jax.nn.log_softmax(outputs), np.float64).reshape(8, 4, 5)
    bits = -log_p[np.arange(8), step, np.asarray(images).reshape(8, 4)[np.arange(8), step]]
    bits /= np.log(2)
    # Float32 sums of a few terms.
    np.testing.assert_allclose(values, bits * (1 + 0.5 / 4), rtol=1e-5)
    np.testing.assert_allclose(made.elbo_per_t(values, jnp.asarray(step)), bits / 4, rtol=1e-5)


def test_labels_reach_the_network():
    def apply(variables, x, time, known, stage, rows, **kwargs):
        return jnp.broadcast_to(rows[:, None, None, None, :] * 9, (*x.shape, 5))

    made = objective.OrderAgnostic(apply, Absorbing(Softmax(5)), (2, 2, 1), 2, num_classes=5)
    batch = {"image": jnp.full((2, 2, 2, 1), 3), "label": jnp.array([3, 1])}
    loss, _ = made.per_image({}, {}, batch, jax.random.key(0), jnp.arange(2))
    assert loss[0] < 0.01 < 1 < loss[1]


def test_bins_of_the_running_loss():
    """22 equal shares of the steps: the first and last of 44 steps are in the end bins."""
    edges = objective.OrderAgnostic(None, Absorbing(Softmax(5)), (4, 11), 2).level_edges
    bins = np.searchsorted(edges, np.arange(44))
    np.testing.assert_array_equal(np.bincount(bins), [2] * 22)


def test_what_a_description_is_told():
    made = _objective(levels=True)
    profile = made.update(made.initial_state(), jnp.full(2, 2.0), jnp.array([1.0, 3.0]))
    told = made.told(profile)
    assert told["levels"] and len(told["loss_per_step"]) == 4
    # Unseen steps are the uniform code over D; of the others 4 (or 1) unknown variables.
    uniform = np.log2(5) / 4
    np.testing.assert_allclose(np.array(told["loss_per_step"])[[0, 2]], uniform, rtol=1e-5)
    np.testing.assert_allclose(told["loss_per_step"][3], 2 / (4 + 0.001), rtol=1e-5)


def test_ranks_invert_an_order():
    order = np.array([2, 0, 3, 1])
    ranks = np.asarray(orders.ranks_of_order(order))
    np.testing.assert_array_equal(ranks[order], np.arange(4))
    np.testing.assert_array_equal(ranks, [1, 3, 0, 2])


def _objective(**options):
    """A network without parameters that answers zero logits: every loss is known."""
    apply = lambda variables, x, time, known, stage, **kwargs: jnp.zeros((*x.shape, 5))  # noqa: E731
    process = Absorbing(Softmax(5))
    return objective.OrderAgnostic(apply, process, (2, 2, 1), 8, **options)


def _batch():
    x = np.random.default_rng(0).integers(0, 5, (8, 2, 2, 1))
    return {"image": jnp.asarray(x, jnp.uint8)}


def test_loss_of_the_uniform_model():
    """Every unknown variable costs log2 5 bits, whatever the order."""
    key = jax.random.key(0)
    loss, step = _objective(ce_weight=0.5).per_image({}, {}, _batch(), key, jnp.arange(8))
    expected = np.log2(5) * (1 + 0.5 * (4 - np.asarray(step)) / 4)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("steps", objective.STEPS)
def test_an_image_depends_on_its_position_alone(steps):
    """Half the batch at a time draws the same steps and orders."""
    seen = []

    def apply(variables, x, time, known, stage, **kwargs):
        seen.append((np.asarray(time), np.asarray(known)))
        return jnp.zeros((*x.shape, 5))

    loss = objective.OrderAgnostic(apply, Absorbing(Softmax(5)), (2, 2, 1), 8, steps=steps)
    key, batch = jax.random.key(3), _batch()
    loss.per_image({}, {}, batch, key, jnp.arange(8))
    for part in (slice(0, 8, 2), slice(1, 8, 2)):
        rows = {"image": batch["image"][part]}
        loss.per_image({}, {}, rows, key, jnp.arange(8)[part])
    for whole, first, second in zip(*seen, strict=True):
        np.testing.assert_array_equal(whole[0::2], first)
        np.testing.assert_array_equal(whole[1::2], second)
    time, known = seen[0]
    np.testing.assert_array_equal(known.reshape(8, -1).sum(axis=1), 4 * time)


def test_the_history_is_the_profile():
    """Of the uniform model: log2(K) / D wherever a step was seen."""
    whole = _objective(ce_weight=0.5)
    loss, step = whole.per_image({}, {}, _batch(), jax.random.key(0), jnp.arange(8))
    profile = whole.with_state(whole.initial_state()).update(whole.initial_state(), loss, step)
    np.testing.assert_array_equal(profile.count, np.bincount(step.astype(int), minlength=4))
    seen = np.asarray(profile.count) > 0
    np.testing.assert_allclose(np.asarray(profile.value)[seen], np.log2(5) / 4, rtol=1e-6)


@pytest.mark.parametrize("num_values", [2, 16, 17, 256])
def test_grey_levels(num_values):
    x = jnp.arange(num_values)
    pixels = objective.to_uint8(x, num_values)
    assert pixels.dtype == jnp.uint8 and pixels[0] == 0 and pixels[-1] == 255
    np.testing.assert_array_equal(objective.to_levels(pixels, num_values), x)


def test_profile_follows_the_recursion(archive):
    profile = LossProfile.zeros(8)
    momentum = float(archive["tracker/momentum"])
    update = jax.jit(LossProfile.update)
    for step, value, expected in zip(
        archive["tracker/t"], archive["tracker/value"], archive["tracker/loss_t"], strict=True
    ):
        profile = update(profile, jnp.asarray(step), jnp.asarray(value, jnp.float32), momentum)
        # The golden file counts unseen steps as 8 / D, with D = 8 and 256 values.
        np.testing.assert_allclose(profile.loss_per_step(256, 8), expected, rtol=1e-6)
    np.testing.assert_array_equal(profile.count, archive["tracker/count"])


def test_profile_passes_over_what_is_not_finite():
    profile = LossProfile.zeros(3).update(jnp.array([0, 1, 1]), jnp.array([jnp.nan, 2.0, jnp.inf]))
    np.testing.assert_array_equal(profile.count, [0, 1, 0])
    np.testing.assert_allclose(profile.loss_per_step(4, 3), [2 / 3, 2, 2 / 3])


@pytest.mark.parametrize("x", [np.array([0, 5]), np.array([-1, 0]), np.array([0.0, 1.0])])
def test_refused_values(x):
    with pytest.raises(ValueError, match=r"integers 0\.\.4"):
        check_values(x, 5)


def test_refused_settings():
    with pytest.raises(ValueError, match="steps must be one of uniform, grid"):
        _objective(steps="antithetic")
    with pytest.raises(ValueError, match="absorbing must be a value"):
        Absorbing(Softmax(5), 6)
    with pytest.raises(ValueError, match="ce_weight must be "):
        _objective(ce_weight=-1)
