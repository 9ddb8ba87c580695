"""Likelihoods: exact code lengths of enumerated models, bounds of policies, estimates."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.ardm import likelihood, orders, policy
from edm_jax.ardm.objective import step_terms
from edm_jax.ardm.outputs import Softmax
from edm_jax.ardm.process import Absorbing
from tests.support import ardm as models

# Sums of a few float32 log probabilities against float64.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def archive(golden):
    return golden("14_ardm")


@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
def test_code_length(archive, schedule):
    process = Absorbing(Softmax(5), 2)
    steps = np.append(archive[f"sampling/{schedule}/policy"], 9)
    nats = likelihood.code_length(
        models.linear_predict(archive),
        process,
        archive["coding/x"],
        archive["sampling/ranks"],
        steps,
    )
    np.testing.assert_allclose(nats / np.log(2), archive[f"coding/{schedule}/bits"], **TOLERANCE)


@pytest.fixture(scope="module")
def order_lengths(archive):
    """Code lengths of the free table: policy -> (24 orders, 81 examples)."""
    predict, process = models.table_predict(archive["tabular/logits"]), models.table_process()
    x, every = jnp.asarray(archive["tabular/x"]), jnp.asarray(archive["tabular/orders"])

    @jax.jit
    def lengths(steps):
        def one(order):
            ranks = jnp.broadcast_to(orders.ranks_of_order(order), x.shape)
            return likelihood.code_length(predict, process, x, ranks, steps)

        return jax.lax.map(one, every)

    return lambda row: lengths(models.padded(np.append(row[row >= 0], 4), 4))


def test_every_order_of_a_table(archive, order_lengths):
    got = order_lengths(np.arange(4))
    np.testing.assert_allclose(got, -archive["tabular/free/log_p_order"], **TOLERANCE)
    np.testing.assert_allclose(got.mean(axis=0), -archive["tabular/free/elbo"], **TOLERANCE)


@pytest.mark.parametrize("index", range(6))
def test_mean_over_orders_is_the_bound_of_the_policy(archive, order_lengths, index):
    got = order_lengths(archive["tabular/policies"][index])
    bound = np.asarray(got).mean(axis=0)
    np.testing.assert_allclose(
        bound, np.abs(archive["tabular/free/policy_bound"][index]), **TOLERANCE
    )
    mixture = np.exp(-np.asarray(got, np.float64)).mean(axis=0)
    expected = archive["tabular/free/policy_sample_prob"][index]
    np.testing.assert_allclose(mixture, expected, rtol=1e-5)


def test_consistent_tables_have_the_same_length_in_every_order(archive):
    predict = models.table_predict(archive["tabular/consistent_logits"])
    x = archive["tabular/x"]
    ranks = orders.random_ranks(jax.random.split(jax.random.key(0), 81), (4,))
    nats = likelihood.code_length(predict, models.table_process(), x, ranks, None)
    np.testing.assert_allclose(nats, -np.log(archive["tabular/joint"]), **TOLERANCE)


@pytest.mark.parametrize("index", [0, 3, 5])
def test_cost_of_a_policy_is_its_bound(archive, index):
    """From the profile of one example, which is what `policy_cost` is a model of."""
    row = archive["tabular/policies"][index]
    steps = np.append(row[row >= 0], 4)
    profile = archive["tabular/free/loss_t"]
    costs = [policy.policy_cost(profile[:, i], steps) for i in range(81)]
    np.testing.assert_allclose(
        costs, np.abs(archive["tabular/free/policy_bound"][index]), rtol=1e-9
    )


def assert_mean_within(values, expected, sigmas=5):
    """The mean of independent values lies within five standard errors."""
    got = likelihood.estimate(np.asarray(values))
    # Where nothing is left to chance, float32 is: 1e-6.
    assert abs(got.mean - expected) < sigmas * got.standard_error + 1e-6 * abs(expected)


def test_random_steps_estimate_the_bound(archive):
    predict, process = models.table_predict(archive["tabular/logits"]), models.table_process()
    x = jnp.broadcast_to(archive["tabular/x"][40], (20000, 4))
    keys = jax.random.split(jax.random.key(1), 20000)
    nats = 4 * np.log(2)
    values = likelihood.bound_sample(predict, process, x, keys)
    assert_mean_within(nats * values, -archive["tabular/free/elbo"][40])


@pytest.mark.parametrize("index", [1, 3, 5])
def test_random_calls_estimate_the_bound_of_a_policy(archive, index):
    predict, process = models.table_predict(archive["tabular/logits"]), models.table_process()
    row = archive["tabular/policies"][index]
    steps = models.padded(np.append(row[row >= 0], 4), 4)
    x = jnp.broadcast_to(archive["tabular/x"][17], (20000, 4))
    keys = jax.random.split(jax.random.key(index), 20000)
    values = likelihood.policy_bound_sample(predict, process, x, keys, steps)
    assert_mean_within(4 * np.log(2) * values, abs(archive["tabular/free/policy_bound"][index, 17]))


@pytest.mark.parametrize("index", [0, 3])
def test_one_order_has_its_own_code_length(archive, index):
    """Not the mean over all pixels that are still unknown, which only a random order may take."""
    predict, process = models.table_predict(archive["tabular/logits"]), models.table_process()
    process = dataclasses.replace(process, order="raster")
    row = archive["tabular/policies"][index]
    steps = models.padded(np.append(row[row >= 0], 4), 4)
    # Every stage and call once: their sum is exact.
    x = jnp.asarray(archive["tabular/x"])
    ranks = jnp.broadcast_to(jnp.arange(4), x.shape)
    expected = likelihood.code_length(predict, process, x, ranks, steps)
    if index == 0:
        raster = np.flatnonzero(np.all(archive["tabular/orders"] == np.arange(4), axis=1))
        golden = -archive["tabular/free/log_p_order"][raster[0]]
        np.testing.assert_allclose(expected, golden, **TOLERANCE)
    stage = jnp.zeros(81, jnp.int32)
    total = np.zeros(81)
    for t, t_next in itertools.pairwise(steps):
        if t < 4:
            known, after = (jnp.full(81, value, jnp.int32) for value in (t, t_next))
            terms = step_terms(predict, process, x, ranks, known, stage, after)
            np.testing.assert_allclose(terms.elbo_per_t * (t_next - t), terms.ce, rtol=1e-6)
            total += np.asarray(terms.nll)
    np.testing.assert_allclose(total, expected, **TOLERANCE)
    # The random estimates, of one example.
    one = jnp.broadcast_to(x[17], (20000, 4))
    keys = jax.random.split(jax.random.key(index), 20000)
    if index == 0:
        values = likelihood.bound_sample(predict, process, one, keys)
        assert_mean_within(4 * np.log(2) * values, expected[17])
    values = likelihood.policy_bound_sample(predict, process, one, keys, steps)
    assert_mean_within(4 * np.log(2) * values, expected[17])


def test_long_calls_do_not_make_the_bound_of_a_policy_vary():
    """Of the uniform model every estimate is log2 K, however long the call that is drawn."""
    process = Absorbing(Softmax(5))
    x, keys = jnp.zeros((64, 9), jnp.int32), jax.random.split(jax.random.key(0), 64)
    got = likelihood.policy_bound_sample(
        lambda x_in, *rest: jnp.zeros((*x_in.shape, 5)), process, x, keys, [0, 1, 2, 9, 9]
    )
    np.testing.assert_allclose(got, np.log2(5), rtol=1e-6)  # float32 sums


def test_standard_error():
    values = np.array([[1.0, 2, 3, 4], [3.0, 4, 5, 6]])
    got = likelihood.estimate(values)
    assert got.mean == 3.5 and got.num_images == 4
    assert got.standard_error == pytest.approx(np.sqrt(5 / 3) / 2)
    assert np.isnan(likelihood.estimate([1.0]).standard_error)


def test_refusals(archive):
    predict, process = models.table_predict(archive["tabular/logits"]), models.table_process()
    ranks = np.broadcast_to(np.arange(4), (2, 4))
    with pytest.raises(ValueError, match=r"integers 0\.\.2, got 0 to 3"):
        likelihood.code_length(predict, process, np.array([[0, 0, 0, 3]] * 2), ranks, None)
    with pytest.raises(ValueError, match="must end in D = 4"):
        likelihood.code_length(predict, process, np.zeros((2, 4), int), ranks, [0, 3])
