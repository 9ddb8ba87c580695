"""Whether images feel each other, asked of functions of which it is known."""

import jax
import numpy as np
import pytest

from edm_jax.exact import contract
from edm_jax.exact.bed import Subject


def noise(keys):
    """One number of each key."""
    return np.asarray(jax.vmap(jax.random.normal)(keys)).reshape(-1, 1, 1, 1)


def own(x, keys):
    return np.asarray(x) + noise(keys)


def deterministic(x, keys):
    return np.sin(np.asarray(x))


def beside_the_mean(x, keys):
    return own(x, keys) + 1e-3 * np.asarray(x).mean()


def by_place(x, keys):
    """An image's place decides; exchanging another one changes nothing."""
    return own(x, keys) + np.arange(6).reshape(-1, 1, 1, 1)


def noise_of_all(x, keys):
    return np.asarray(x) + noise(keys).sum()


def noise_of_the_place(x, keys):
    """The first image hears its key, the others do not."""
    heard = np.array(noise(keys))
    heard[1:] = heard[1]
    return np.asarray(x) + heard


@pytest.mark.parametrize(
    ("run", "stochastic", "expected"),
    [
        (own, True, (True, True)),
        (deterministic, False, (True, True)),
        (own, False, (True, False)),
        (deterministic, True, (True, False)),
        (beside_the_mean, True, (False, True)),
        (by_place, True, (False, True)),
        (noise_of_all, True, (False, False)),
        (noise_of_the_place, True, (False, False)),
    ],
)
def test_independence(run, stochastic, expected, x64):
    subject = Subject("s", None, 1, stochastic=stochastic)
    assert contract.independence(subject, run) == expected
