"""Compression: golden code lengths of floored probabilities, round trips, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.ardm import codec, likelihood, upscale
from edm_jax.ardm.outputs import Softmax
from edm_jax.ardm.process import Absorbing
from tests.support import ardm as models


@pytest.fixture(scope="module")
def archive(golden):
    return golden("14_ardm")


def test_floored_code_lengths(archive):
    """Through a model whose logits are those of the floored probabilities."""
    process, plain = Absorbing(Softmax(5), 2), models.linear_predict(archive)
    floor = float(archive["coding/floor"])

    def predict(*inputs):
        return jnp.log(codec.floored(jax.nn.softmax(plain(*inputs)), floor))

    x, ranks = archive["coding/x"], archive["sampling/ranks"]
    nats = likelihood.code_length(predict, process, x, ranks, None)
    # float32 sums of nine logarithms.
    np.testing.assert_allclose(
        nats / np.log(2), archive["coding/sequential/bits_safe"], rtol=1e-5, atol=1e-5
    )
    assert floor == codec.FLOOR


@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
def test_round_trip(archive, schedule):
    pytest.importorskip("constriction")
    process, predict = Absorbing(Softmax(5), 2), models.linear_predict(archive)
    x, ranks = np.tile(archive["coding/x"], (20, 1)), np.tile(archive["sampling/ranks"], (20, 1))
    policy = np.append(archive[f"sampling/{schedule}/policy"], 9)
    words = codec.encode(predict, process, x, ranks, policy)
    np.testing.assert_array_equal(codec.decode(predict, process, words, ranks, policy), x)
    ideal = 20 * archive[f"coding/{schedule}/bits_safe"].sum()
    # Whole words at the end, and 24 bits for the quantised probabilities.
    assert ideal <= 32 * len(words) <= 1.002 * ideal + 64


def test_the_coder_sees_known_values_only(archive):
    """Encoder and decoder show the network the same thing: values not yet coded do not enter."""
    process, predict = Absorbing(Softmax(5), 2), models.linear_predict(archive)
    ranks = archive["sampling/ranks"]
    x = archive["coding/x"]
    hidden = np.where(ranks < 4, x, (x + 1) % 5)
    for current, probabilities in codec._calls(predict, process, ranks, [0, 2, 4, 9], x.shape):
        np.testing.assert_array_equal(probabilities(x), probabilities(hidden))
        assert current.sum() in (12, 30)


def test_refusals(archive):
    ranks = archive["sampling/ranks"]
    predict = models.linear_predict(archive)
    with pytest.raises(ValueError, match="plain model with softmax outputs"):
        next(codec._calls(predict, upscale.Upscale(5, 2), ranks, [0, 9], (6, 9)))
    with pytest.raises(ValueError, match="must end in D = 9"):
        next(codec._calls(predict, Absorbing(Softmax(5), 2), ranks, [0, 8], (6, 9)))
