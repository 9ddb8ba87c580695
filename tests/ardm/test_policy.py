"""Policies: golden tables (checked against enumeration), brute force, refusals."""

import itertools

import numpy as np
import pytest

from edm_jax.ardm import policy as policies

PROFILES = ["release_test", "convex", "linear", "concave", "steps", "flat", "noisy", "noisy/sorted"]


@pytest.fixture(scope="module")
def archive(golden):
    return golden("14_ardm")


def _with_end(row, num_variables):
    """A golden row, padded with -1 and without D, as a policy."""
    return np.append(row[row >= 0], num_variables)


@pytest.mark.parametrize("profile", PROFILES)
def test_costs_and_policies(archive, profile):
    loss = archive[f"policy/{profile}/loss_t"]
    table = policies.policy_table(loss)
    # float64 sums in another order.
    np.testing.assert_allclose(table.costs, archive[f"policy/{profile}/cost"], rtol=1e-12)
    at_most = archive[f"policy/{profile}/cost_at_most"]
    np.testing.assert_allclose(table.costs_at_most, at_most, rtol=1e-12)
    for i, row in enumerate(archive[f"policy/{profile}/policy"]):
        got = table.policy(i + 1)
        assert policies.policy_cost(loss, got) == pytest.approx(table.costs[i], rel=1e-12)
        if archive[f"policy/{profile}/unique"][i]:
            np.testing.assert_array_equal(got, _with_end(row, len(loss)))


@pytest.mark.parametrize("profile", PROFILES)
def test_uniform_policies(archive, profile):
    loss = archive[f"policy/{profile}/loss_t"]
    for i, row in enumerate(archive[f"policy/{profile}/uniform_policy"]):
        got = policies.uniform_policy(i + 1, len(loss))
        np.testing.assert_array_equal(got, _with_end(row, len(loss)))
        cost = archive[f"policy/{profile}/uniform_cost"][i]
        assert policies.policy_cost(loss, got) == pytest.approx(cost, rel=1e-12)


def test_long_profile(archive):
    loss, budgets = archive["policy/long/loss_t"], archive["policy/long/budgets"]
    table = policies.policy_table(loss)
    np.testing.assert_allclose(table.costs[budgets - 1], archive["policy/long/cost"], rtol=1e-12)
    for budget, row in zip(budgets, archive["policy/long/policy"], strict=True):
        np.testing.assert_array_equal(table.policy(budget), _with_end(row, 128))


def test_policies_per_stage(archive):
    stages, budget = int(archive["policy/stages/num_stages"]), int(archive["policy/stages/budget"])
    loss = archive["policy/stages/loss_t"]
    got = policies.optimal_policies(loss, budget, stages)
    assert got.shape == (stages, budget + 1) and np.all(got[:, -1] == 10)
    np.testing.assert_array_equal(got[:, :-1], archive["policy/stages/policy"])
    sorted_loss = policies.monotone_profile(loss, stages).reshape(stages, -1)
    costs = [policies.policy_cost(*pair) for pair in zip(sorted_loss, got, strict=True)]
    assert sum(costs) == pytest.approx(float(archive["policy/stages/cost"]), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_brute_force(seed):
    """Every policy of nine variables, of profiles that need not descend."""
    loss = np.random.default_rng(seed).uniform(0.5, 2, 9)
    table = policies.policy_table(loss)
    for calls in range(1, 10):
        every = itertools.combinations(range(1, 9), calls - 1)
        costs = [policies.policy_cost(loss, [0, *inner, 9]) for inner in every]
        assert table.costs[calls - 1] == pytest.approx(min(costs), rel=1e-12)
        assert policies.policy_cost(loss, table.policy(calls)) == pytest.approx(min(costs))


def test_fewer_budgets_are_the_head_of_all():
    """Across the edge of a block of budgets."""
    loss = np.sort(np.random.default_rng(0).uniform(0, 1, 200))[::-1]
    whole, part = policies.policy_table(loss), policies.policy_table(loss, 70)
    np.testing.assert_array_equal(part.cost, whole.cost[:71])
    assert np.all(np.diff(whole.costs) <= 1e-12)  # of a descending profile


def test_sorting_undoes_what_noise_promises(archive):
    """Unsorted, fewer calls seem to cost less than the bound itself (golden case "noisy")."""
    loss = archive["policy/noisy/loss_t"]
    table = policies.policy_table(loss)
    assert table.costs_at_most[-1] < table.costs[-1] - 1
    table = policies.policy_table(policies.monotone_profile(loss))
    np.testing.assert_array_equal(table.costs_at_most, table.costs)


def test_calls_at_the_end_may_draw_nothing():
    """Policies of several lengths are one program: the shorter ones end in D, D, .."""
    padded = [0, 2, 5, 5, 5]
    np.testing.assert_array_equal(policies.check_policy(padded, 5), padded)
    assert policies.policy_cost([5, 4, 3, 2, 1], padded) == 2 * 5 + 3 * 3


@pytest.mark.parametrize(
    "policy, message",
    [
        ([0, 2, 4], "must end in D = 5, got last entry 4"),
        ([1, 5], "must begin with 0"),
        ([0, 3, 3, 5], "must increase, got 3 then 3 at entry 1"),
        ([5], "at least two integers"),
        ([0.0, 5.0], "at least two integers"),
    ],
)
def test_refused_policies(policy, message):
    with pytest.raises(ValueError, match=message):
        policies.check_policy(policy, 5)


@pytest.mark.parametrize("budget", [0, 6, 2.5, None])
def test_refused_budgets(budget):
    with pytest.raises(ValueError, match=r"num_calls must be an integer 1\.\.5 for 5 variables"):
        policies.uniform_policy(budget, 5)
    with pytest.raises(ValueError, match=r"must be an integer 1\.\.5"):
        policies.policy_table([5.0, 4, 3, 2, 1]).policy(budget)


def test_refused_profiles():
    with pytest.raises(ValueError, match="finite numbers"):
        policies.policy_table([1.0, np.nan])


@pytest.mark.slow
def test_all_budgets_of_a_cifar_image():
    """3072 variables, 3072 budgets; a linear profile has equal shares as its best policies."""
    loss = np.linspace(5, 2, 3072)
    table = policies.policy_table(loss)
    for calls in (1, 2, 3, 4, 6, 512, 3072):
        equal = policies.uniform_policy(calls, 3072)
        assert table.costs[calls - 1] == pytest.approx(policies.policy_cost(loss, equal), rel=1e-12)
