"""Sampling: recorded uniforms, frequencies of an enumerated model, conditioning, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import seeds
from edm_jax.ardm import orders, policy
from edm_jax.ardm.outputs import Softmax
from edm_jax.ardm.process import Absorbing
from edm_jax.ardm.sample import sample_ardm
from tests.support import ardm as models


@pytest.fixture(scope="module")
def archive(golden):
    return golden("14_ardm")


@pytest.mark.parametrize("schedule", ["sequential", "parallel", "single"])
def test_recorded_draws(archive, golden_json, schedule):
    """Every state, exactly: the golden file keeps clear of ties."""
    config = golden_json(archive, "sampling/config")
    process = Absorbing(Softmax(config["num_classes"]), config["absorbing"])
    uniforms = jnp.asarray(archive[f"sampling/{schedule}/uniforms"])
    states = sample_ardm(
        models.linear_predict(archive),
        process,
        seeds.image_keys(range(6)),
        (9,),
        np.append(archive[f"sampling/{schedule}/policy"], 9),
        ranks=archive["sampling/ranks"],
        uniform_fn=lambda index: uniforms[index],
        trajectory=True,
    )
    np.testing.assert_array_equal(states.x, archive[f"sampling/{schedule}/x_traj"])


def _policies(archive):
    return [np.append(row[row >= 0], 4) for row in archive["tabular/policies"]]


@pytest.mark.parametrize("index", range(6))
def test_frequencies_are_the_mixture_over_orders(archive, index):
    """All 81 outcomes of the enumerated table; the mixture depends on the policy."""
    count = 20000
    drawn = sample_ardm(
        models.table_predict(archive["tabular/logits"]),
        models.table_process(),
        jax.random.split(jax.random.key(index), count),
        (4,),
        models.padded(_policies(archive)[index], 4),
    )
    counts = np.bincount(np.asarray(drawn) @ np.array([27, 9, 3, 1]), minlength=81)
    expected = count * archive["tabular/free/policy_sample_prob"][index]
    chi_square = np.sum((counts - expected) ** 2 / expected)
    # 80 degrees of freedom: mean 80, standard deviation 12.6; another policy's mixture gives
    # a few hundred.
    assert chi_square < 80 + 5 * 12.6


def test_policies_differ_in_what_they_draw(archive):
    """The bar of the test above separates the policies: one call against four."""
    probabilities = archive["tabular/free/policy_sample_prob"]
    distance = 20000 * np.sum((probabilities[1] - probabilities[0]) ** 2 / probabilities[0])
    assert distance > 300


def _linear(archive, seed_list, **options):
    process = Absorbing(Softmax(5), 2)
    keys = seeds.image_keys(seed_list)
    drawn = sample_ardm(models.linear_predict(archive), process, keys, (9,), **options)
    return jax.tree.map(np.asarray, drawn)


def test_an_image_depends_on_its_key_alone(archive):
    steps = policy.uniform_policy(4, 9)
    whole = _linear(archive, range(6), policy=steps)
    np.testing.assert_array_equal(_linear(archive, [4, 1], policy=steps), whole[[4, 1]])
    assert len(np.unique(whole, axis=0)) == 6


def test_progress_counts_the_calls(archive):
    told = []
    _linear(archive, range(2), policy=[0, 4, 9], progress=lambda *call: told.append(call))
    jax.effects_barrier()
    assert sorted(tuple(map(int, call)) for call in told) == [(0, 2), (1, 2), (2, 2)]


def test_padded_calls_draw_nothing(archive):
    steps = policy.uniform_policy(4, 9)
    padded = models.padded(steps, 7)
    expected = _linear(archive, range(4), policy=steps)
    np.testing.assert_array_equal(_linear(archive, range(4), policy=padded), expected)


def test_one_program_for_all_policies_of_a_length(archive):
    traces = []

    @jax.jit
    def draw(steps):
        traces.append(1)
        keys = seeds.image_keys(range(2))
        return sample_ardm(
            models.linear_predict(archive), Absorbing(Softmax(5), 2), keys, (9,), steps
        )

    for steps in ([0, 1, 9], [0, 4, 9]):
        expected = _linear(archive, range(2), policy=np.array(steps))
        np.testing.assert_array_equal(draw(jnp.array(steps)), expected)
    assert len(traces) == 1


def test_given_values_stay_and_condition(archive):
    """p(x_1 | x_0, x_2, x_3) of the true conditionals of the joint, by its frequencies."""
    count, values = 20000, np.array([2, 0, 1, 0])
    given = np.array([True, False, True, True])
    drawn = np.asarray(
        sample_ardm(
            models.table_predict(archive["tabular/consistent_logits"]),
            models.table_process(),
            jax.random.split(jax.random.key(5), count),
            (4,),
            np.array([3, 4]),
            values=np.broadcast_to(values, (count, 4)),
            given=np.broadcast_to(given, (count, 4)),
        )
    )
    assert np.all(drawn[:, given] == values[given])
    joint = archive["tabular/joint"].reshape(3, 3, 3, 3)[2, :, 1, 0]
    expected = count * joint / joint.sum()
    counts = np.bincount(drawn[:, 1], minlength=3)
    # Five standard deviations of a multinomial count.
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_given_values_of_different_number(archive):
    """A policy from 0 skips what is given, image by image."""
    given = np.zeros((3, 9), bool)
    given[1, :4], given[2, :8] = True, True
    values = np.full((3, 9), 4)
    drawn = _linear(
        archive, range(3), policy=policy.sequential_policy(9), values=values, given=given
    )
    assert np.all(drawn[given] == 4)
    free = _linear(archive, range(3), policy=policy.sequential_policy(9))
    np.testing.assert_array_equal(drawn[0], free[0])


def test_everything_is_drawn_whatever_a_traced_policy_begins_with(archive):
    """A policy that cannot be looked at and begins too late: its first call draws what is left."""
    process = Absorbing(Softmax(5), 2)
    keys, predict = seeds.image_keys(range(4)), models.linear_predict(archive)
    drawn = jax.jit(lambda steps: sample_ardm(predict, process, keys, (9,), steps))
    expected = _linear(archive, range(4), policy=[0, 7, 9])
    np.testing.assert_array_equal(drawn(jnp.array([5, 7, 9])), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"policy": [0, 4, 8]}, "must end in D = 9"),
        ({"policy": [2, 9]}, "begin with 0 or the number of variables given, 0, got 2"),
        ({"policy": [[0, 9], [0, 9]]}, "with one for each stage"),
        ({"policy": [0, 9], "ranks": np.zeros((2, 9), int)}, "each of 0..8 once"),
        ({"policy": [0, 9], "ranks": np.zeros((9,), int)}, "ranks must have shape"),
        ({"policy": [0, 9], "given": np.ones((2, 9), bool)}, "values and given"),
    ],
)
def test_refusals(archive, options, message):
    with pytest.raises(ValueError, match=message):
        _linear(archive, range(2), **options)


def test_a_mask_that_knows_everything_is_refused(archive):
    given = np.array([[False] * 9, [True] * 9])
    values = np.zeros((2, 9), int)
    with pytest.raises(ValueError, match="mask of image 1 knows everything"):
        _linear(archive, range(2), policy=[0, 9], given=given, values=values)
    with pytest.raises(ValueError, match=r"values must hold .* got 7 to 7"):
        _linear(archive, range(2), policy=[0, 9], given=given[:1].repeat(2, 0), values=values + 7)
    order = np.broadcast_to(np.arange(9), (2, 9))
    late = np.broadcast_to(np.arange(9) == 4, (2, 9))
    with pytest.raises(ValueError, match="ranks must put the given variables first"):
        _linear(archive, range(2), policy=[1, 9], given=late, values=values, ranks=order)
    with pytest.raises(ValueError, match="given must be a bool mask"):
        _linear(archive, range(2), policy=[0, 9], given=given * 1, values=values)


def test_ranks_are_not_an_order(archive):
    """With a prescribed order the variable named first is drawn first (pitfall of the paper's
    notation: ranks are its inverse)."""
    order = np.array([[4, 8, 0, 1, 2, 3, 5, 6, 7]])
    states = _linear(
        archive,
        range(1),
        policy=policy.sequential_policy(9),
        ranks=orders.ranks_of_order(order),
        uniform_fn=lambda index: jnp.full((1, 9, 5), 0.5).at[..., 0].set(0.999999),
        trajectory=True,
    )
    changed = [
        np.flatnonzero(a != b).tolist()
        for a, b in zip(states.x[:-1, 0], states.x[1:, 0], strict=True)
    ]
    assert changed[:3] == [[4], [8], [0]]
