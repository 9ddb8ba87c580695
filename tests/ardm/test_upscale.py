"""Upscale models: digits, golden losses, an enumerated two-stage model, sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import seeds
from edm_jax.ardm import likelihood, objective, orders, policy, upscale
from edm_jax.ardm.sample import sample_ardm
from tests.support import ardm as models

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums against float64
MAPS = [(256, 4), (256, 2), (256, 16), (17, 4), (16, 2), (10, 3), (125, 5)]


@pytest.fixture(scope="module")
def archive(golden):
    return golden("14_ardm")


@pytest.mark.parametrize("num_values, base", MAPS)
def test_maps(archive, num_values, base):
    process = upscale.Upscale(num_values, base, augmented=True)
    prefix = f"upscale/maps/K{num_values}_b{base}"
    stages = int(archive[f"{prefix}/num_stages"])
    assert process.num_stages == stages
    assert process.num_inputs == archive[f"{prefix}/augmented_classes"]
    v = jnp.arange(num_values)
    for s in range(stages + 1):
        np.testing.assert_array_equal(process.level(v, s), archive[f"{prefix}/level"][s])
        np.testing.assert_array_equal(process.symbol(v, s), archive[f"{prefix}/augmented"][s])
    for s in range(stages):
        np.testing.assert_array_equal(process.digit(v, s), archive[f"{prefix}/digit"][s])


def test_stages_are_counted_in_integers():
    assert upscale.num_stages(125, 5) == 3  # logarithms in floating point say 4
    assert upscale.num_stages(216, 6) == 3
    assert upscale.num_stages(65536, 2) == 16


@pytest.mark.parametrize("parameterization", upscale.PARAMETERIZATIONS)
def test_loss(archive, golden_json, parameterization):
    config = golden_json(archive, "upscale/loss/config")
    process = upscale.Upscale(config["num_classes"], config["branch"], parameterization)
    names = ("x", "stage", "t", "ranks")
    x, stage, t, ranks = (jnp.asarray(archive[f"upscale/loss/{name}"]) for name in names)
    logits = jnp.asarray(archive[f"upscale/loss/{parameterization}/logits"])
    seen = {}

    def predict(x_in, known, t, stage):
        seen.update(x_in=x_in, known=known)
        return logits

    terms = objective.step_terms(predict, process, x, ranks.reshape(x.shape), t, stage)
    np.testing.assert_array_equal(seen["x_in"], archive["upscale/loss/x_in"])
    np.testing.assert_array_equal(seen["known"], archive["upscale/loss/extra_input"][..., :1] == 1)
    for name, value in (("nll_unknown", terms.nll), ("elbo", terms.elbo), ("ce", terms.ce)):
        expected = archive[f"upscale/loss/{parameterization}/{name}"]
        np.testing.assert_allclose(value, expected, **TOLERANCE, err_msg=name)
    log_prob = process.log_prob(logits, x, stage)
    expected = archive[f"upscale/loss/{parameterization}/log_prob"]
    np.testing.assert_allclose(log_prob, expected, **TOLERANCE)


def test_probabilities_of_the_next_level(archive):
    process = upscale.Upscale(17, 4)
    logits = jnp.asarray(archive["upscale/loss/data/logits"][1:2])
    past, stage = (
        archive["upscale/loss/x_past"][1:2],
        jnp.asarray(archive["upscale/loss/stage"][1:2]),
    )
    for value in range(17):
        # Only a value that continues the past at each position is a question to ask.
        x = jnp.full(past.shape, value)
        child = np.asarray(process.level(x, stage[0] + 1) == value)
        fits = child & (np.asarray(process.level(x, stage[0])) == past)
        got = np.exp(process.log_prob(logits, x, stage))
        expected = archive["upscale/loss/data/prob_sample1"][None, ..., value]
        np.testing.assert_allclose(np.where(fits, got, 0), expected, **TOLERANCE)


@pytest.fixture(scope="module")
def lengths(archive):
    """Code lengths of all 16 examples: (ranks of the stages, policy) -> (16,)."""
    process, predict = upscale.Upscale(4, 2), models.two_stage_predict(archive)
    x = archive["upscale/tabular/x"]

    @jax.jit
    def run(ranks, policies):
        ranks = jnp.broadcast_to(ranks[:, None], (2, *x.shape))
        return likelihood.code_length(predict, process, x, ranks, policies)

    return lambda first, second, policies: np.asarray(
        run(jnp.array([first, second]), jnp.asarray(policies)), np.float64
    )


ORDERS = ([0, 1], [1, 0])


@pytest.mark.parametrize("first, second", itertools.product(range(2), range(2)))
def test_code_lengths_of_the_enumerated_model(archive, lengths, first, second):
    """Both orders in both stages: what the stages add up to."""
    stages = archive["upscale/tabular/log_p_stage_order"]
    got = lengths(ORDERS[first], ORDERS[second], [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(got, -stages[0, first] - stages[1, second], **TOLERANCE)


def test_estimates_of_the_enumerated_model(archive):
    """Every stage, step and order, and their mean, which is the bound."""
    process, predict = upscale.Upscale(4, 2), models.two_stage_predict(archive)
    x = jnp.asarray(archive["upscale/tabular/x"])
    nats = 2 * np.log(2)
    got = np.zeros((2, 2, 2, 16))
    for stage in range(2):
        for i, order in enumerate(([0, 1], [1, 0])):
            ranks = jnp.broadcast_to(orders.ranks_of_order(np.array(order)), x.shape)
            for t in range(2):
                steps = jnp.full(16, t), jnp.full(16, stage)
                terms = objective.step_terms(predict, process, x, ranks, *steps)
                got[stage, i, t] = nats * terms.elbo
    np.testing.assert_allclose(got, archive["upscale/tabular/estimator"], **TOLERANCE)
    np.testing.assert_allclose(got.mean((0, 1, 2)), -archive["upscale/tabular/elbo"], **TOLERANCE)


@pytest.mark.parametrize("policies", [[[0, 1, 2], [0, 1, 2]], [[0, 1, 2], [0, 2, 2]]])
def test_frequencies_of_the_enumerated_model(archive, lengths, policies):
    """All 16 outcomes, with a new order in each stage."""
    count = 20000
    process, predict = upscale.Upscale(4, 2), models.two_stage_predict(archive)
    drawn = sample_ardm(
        predict, process, jax.random.split(jax.random.key(0), count), (2,), policies
    )
    each = [np.exp(-lengths(*pair, policies)) for pair in itertools.product(ORDERS, ORDERS)]
    probabilities = np.mean(each, axis=0)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)  # 16 float32 numbers
    counts = np.bincount(np.asarray(drawn) @ np.array([4, 1]), minlength=16)
    expected = count * probabilities
    # 15 degrees of freedom: mean 15, standard deviation 5.5.
    assert np.sum((counts - expected) ** 2 / expected) < 15 + 5 * 5.5


@pytest.mark.parametrize("parameterization", upscale.PARAMETERIZATIONS)
@pytest.mark.parametrize("num_values, base", [(17, 4), (10, 3)])
def test_draws_stay_below_their_past(parameterization, num_values, base):
    """Where K is no power of b too; and every stage keeps the digits of those before."""
    process = upscale.Upscale(num_values, base, parameterization)
    width = process.num_outputs(1)

    def predict(x_in, known, t, stage):
        # Depends on what is known, and is not small, so that a wrong group would show.
        return 3 * jnp.sin(
            x_in[..., None] + 7.0 * jnp.arange(width)[None, None] + stage[:, None, None]
        )

    keys = seeds.image_keys(range(200))
    path = sample_ardm(predict, process, keys, (6,), policy.uniform_policy(3, 6), trajectory=True)
    states = np.asarray(path.x)
    # Two more variables in every call; a stage that begins knows nothing of its digits.
    known = np.asarray(path.known).sum(axis=2)
    np.testing.assert_array_equal(known[:, 0], [0] + [2, 4, 6] * process.num_stages)
    assert states[-1].min() >= 0 and states[-1].max() < num_values
    assert len(np.unique(states[-1])) > num_values / 2
    for stage in range(process.num_stages + 1):
        np.testing.assert_array_equal(process.level(states[-1], stage), states[3 * stage])


def test_given_values_show_only_the_digits_of_the_stage():
    """The model copies what variable 0 shows: in stage 0 five times that (mod 16), in stage 1
    the value itself.  Of the given 13 = (3, 1) stage 0 must show 12, and 5 * 12 = 12 (mod 16);
    if it showed 13 the others would be below 4."""
    process = upscale.Upscale(16, 4)

    def predict(x_in, known, t, stage):
        wanted = jnp.where(stage == 0, x_in[:, 0] * 5 % 16, x_in[:, 0])
        return 100 * jax.nn.one_hot(jnp.broadcast_to(wanted[:, None], x_in.shape), 16)

    values, given = np.array([[13, 0, 0]]), np.array([[True, False, False]])
    keys = seeds.image_keys([0])
    drawn = sample_ardm(predict, process, keys, (3,), [1, 2, 3], values=values, given=given)
    np.testing.assert_array_equal(drawn, [[13, 13, 13]])


def test_refusals():
    with pytest.raises(ValueError, match="base must be an integer of at least 2, got 1"):
        upscale.Upscale(16, 1)
    with pytest.raises(ValueError, match="parameterization must be one of data, direct"):
        upscale.Upscale(16, 4, "logits")
    with pytest.raises(ValueError, match="augmented symbols need"):
        upscale.Upscale(16, 4, "direct", augmented=True)
