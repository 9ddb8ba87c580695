"""The request for examples: budgets, policies, what it refuses."""

import numpy as np
import pytest

from edm_jax.ardm import registry
from edm_jax.ardm.request import Decoding

PLAIN = registry.build("absorbing", num_values=4)
STAGES = registry.build("upscale", num_values=16, base=4)
SHAPE = (2, 3, 1)


def test_policies():
    whole = np.arange(7)
    np.testing.assert_array_equal(Decoding().policies(PLAIN, SHAPE), [whole])
    np.testing.assert_array_equal(Decoding(6, "optimal").policies(STAGES, SHAPE), [whole, whole])
    np.testing.assert_array_equal(Decoding(2).policies(STAGES, SHAPE), [[0, 3, 6], [0, 3, 6]])
    given = Decoding(policy=(0, 1, 6))
    np.testing.assert_array_equal(given.policies(PLAIN, SHAPE), [[0, 1, 6]])
    assert given.num_steps == 2


def test_the_optimal_policy_is_made_of_the_profile():
    """One expensive first step, then all alike: it alone is drawn by itself.  The other way
    round where the profile of a stage is flat, any policy costs the same."""
    profile = [9, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(
        Decoding(2, "optimal").policies(PLAIN, SHAPE, profile), [[0, 1, 6]]
    )
    both = Decoding(2, "optimal").policies(STAGES, SHAPE, [*profile, 5, 5, 5, 1, 1, 1])
    np.testing.assert_array_equal(both, [[0, 1, 6], [0, 3, 6]])


def test_one_order_goes_one_variable_at_a_time():
    process = registry.build("absorbing", num_values=4, order="raster")
    for decoding in (Decoding(), Decoding(6, "optimal"), Decoding(policy=tuple(range(7)))):
        np.testing.assert_array_equal(decoding.policies(process, SHAPE), [np.arange(7)])
    for decoding in (Decoding(5), Decoding(2, "optimal"), Decoding(policy=(0, 1, 6))):
        with pytest.raises(ValueError, match="raster order has learnt to draw the next variable"):
            decoding.policies(process, SHAPE, [1.0] * 6)


@pytest.mark.parametrize(
    "request_", [Decoding(), Decoding(5, "optimal"), Decoding(policy=(0, 4, 6))]
)
def test_json(request_):
    assert Decoding.from_json(request_.to_json()) == request_
    with pytest.raises(ValueError, match="a decoding has no 'rho'"):
        Decoding.from_json(request_.to_json() | {"rho": 7})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"policy": "best"}, "policy must be one of uniform, optimal, or numbers"),
        ({"policy": (3,)}, "a policy must be at least two integers"),
        ({"policy": (0, 0.5)}, "a policy must be at least two integers"),
        ({"num_steps": 3, "policy": (0, 1, 6)}, "num_steps is 3, but the policy has 2 calls"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": 2.5}, "num_steps must be an integer of at least 1, got 2.5"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**arguments)


@pytest.mark.parametrize(
    "decoding, profile, message",
    [
        (Decoding(7), None, "num_steps must be at most 6, the variables of .* shape 2x3x1, got 7"),
        (Decoding(policy=(0, 5)), None, "a policy must end in D = 6, got last entry 5"),
        (Decoding(policy=(2, 6)), None, "a policy must begin with 0"),
        (Decoding(policy=(0, 3, 3, 6)), None, "a policy must increase, got 3 then 3"),
        (Decoding(2, "optimal"), None, "this model has none; use policy='uniform'"),
        (Decoding(2, "optimal"), [1.0] * 5, "must be 6 numbers, one for each step"),
        (Decoding(2, "optimal"), "high", "must be 6 numbers, one for each step"),
        (Decoding(2, "optimal"), [1, 1, 1, 1, 1, np.nan], "1 that are not finite"),
    ],
)
def test_what_a_model_refuses(decoding, profile, message):
    with pytest.raises(ValueError, match=message):
        decoding.policies(PLAIN, SHAPE, profile)
