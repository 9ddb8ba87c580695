"""The mixture of golden file 12: exact denoisers with and without label, exact classifier."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact
from tests.support.paths import GOLDEN


def arrays():
    with np.load(GOLDEN / "12_guidance.npz") as archive:
        return dict(archive)


def settings(golden, name):
    return json.loads(str(golden[name]))


def parts(golden, prefix=""):
    """The whole mixture, and that of each class with its share; prefix "bad_" for the bad one."""
    means, classes = golden["mixture/means"], golden["mixture/class"]
    stds, weights = golden[f"mixture/{prefix}stds"], golden[f"mixture/{prefix}weights"]
    shares = [weights[classes == c].sum() / weights.sum() for c in range(classes.max() + 1)]
    each = [
        exact.GaussianMixture(means[classes == c], stds[classes == c], weights[classes == c])
        for c in range(classes.max() + 1)
    ]
    return exact.GaussianMixture(means, stds, weights), each, np.array(shares)


class Exact:
    """``denoise(x, sigma, rows)`` of a labelled mixture; rows of zeros or None: no label.

    Both functions are compiled, once for a shape: op by op everything would be.
    """

    def __init__(self, golden, prefix=""):
        self.all, self.each, self.shares = parts(golden, prefix)
        self.denoise, self.logits = jax.jit(self._denoise), jax.jit(self._logits)

    def _denoise(self, x, sigma, rows=None):
        unlabelled = self.all.denoise(x, sigma)
        if rows is None:
            return unlabelled
        column = jnp.asarray(rows, x.dtype).reshape(rows.shape + (1,) * (x.ndim - 1))
        labelled = sum(column[:, c] * self.each[c].denoise(x, sigma) for c in range(3))
        return jnp.where(jnp.any(column != 0, axis=1), labelled, unlabelled)

    def _logits(self, x, sigma):
        """log p(x, c; sigma)."""
        each = [
            mixture.log_density(x, sigma) + np.log(share)
            for mixture, share in zip(self.each, self.shares, strict=True)
        ]
        return jnp.stack(each, axis=-1)


def one_hot(y):
    return jax.nn.one_hot(jnp.asarray(y), 3)


def fails(*_):
    """A second network that must not be evaluated."""
    raise AssertionError("the second network was called")
