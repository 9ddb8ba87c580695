"""Guidance of real networks: a Model is an argument, bits stay where nothing is guided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import guidance as g
from edm_jax import models
from edm_jax.model import describe, from_description
from tests.support import compiler

SHAPE = (8, 8, 3)


def tiny(seed, label_dim=4, label_dropout=0.1, **changes):
    network = {
        "name": "DhariwalUNet", "img_resolution": 8, "in_channels": 3, "out_channels": 3,
        "label_dim": label_dim, "model_channels": 8, "channel_mult": [1], "num_blocks": 1,
        "attn_resolutions": [], "label_dropout": label_dropout,
    } | changes  # fmt: skip
    description = describe(
        network=network, precond={"name": "edm"}, image_shape=SHAPE, num_classes=label_dim
    )
    net = models.build(**network)
    shapes = models.abstract_variables(net)
    rng = np.random.default_rng(seed)
    draw = lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32)  # noqa: E731
    return from_description(description, jax.tree.map(draw, shapes))


@pytest.fixture(scope="module")
def model():
    return tiny(0)


@pytest.fixture(scope="module")
def batch():
    x = np.random.default_rng(2).standard_normal((3, *SHAPE)).astype(np.float32)
    return jnp.asarray(x), jax.nn.one_hot(jnp.array([0, 3, 1]), 4)


traced = []  # grows whenever `run` is traced


@functools.partial(jax.jit, compiler_options=compiler.as_users_compile())
def run(model, guidance, x, sigma, rows):
    traced.append(sigma)
    return g.guided_denoiser(model, guidance)(x, sigma, rows)


@pytest.mark.parametrize("together", [False, True])
def test_classifier_free(model, batch, together):
    x, rows = batch
    plain, null = (run(model, None, x, 0.7, r) for r in (rows, jnp.zeros_like(rows)))
    before = len(traced)
    for w, interval in ((2.5, (0.1, 1.0)), (2.5, (0.8, 1.0)), (1.0, (0.0, np.inf))):
        got = run(model, g.classifier_free(w, interval, together=together), x, 0.7, rows)
        if w == 1 or interval[0] > 0.7:
            np.testing.assert_array_equal(got, plain)  # traced, and yet bit for bit
        else:
            # Networks of another batch size: rounding of layers of size 1.
            np.testing.assert_allclose(got, plain + 1.5 * (plain - null), atol=2e-5)
    assert len(traced) == before + 1
    assert np.abs(plain - null).max() > 1e-2


def test_a_weaker_model_is_an_argument(model, batch):
    """Another checkpoint of the weaker model compiles nothing."""
    x, rows = batch
    before = len(traced)
    for weaker in (tiny(1), tiny(2)):
        got = run(model, g.autoguidance(weaker, 2.0), x, 0.7, rows)
        plain = run(model, None, x, 0.7, rows)
        want = 2 * plain - weaker.denoise(x, 0.7, rows)
        np.testing.assert_allclose(got, want, atol=2e-5)
    assert len(traced) <= before + 2  # guided, and perhaps unguided
    unconditional = tiny(3, label_dim=0)
    got = run(model, g.classifier_free(2.0, unconditional=unconditional), x, 0.7, rows)
    np.testing.assert_allclose(got, 2 * plain - unconditional.denoise(x, 0.7), atol=2e-5)


def test_one_copy_of_the_network(model, batch):
    """With halves apart the program holds the network once, interval and all."""
    x, rows = batch

    def convolutions(guidance):
        text = run.lower(model, guidance, x, 0.7, rows).as_text()
        return text.count("stablehlo.convolution")

    plain = convolutions(None)
    assert convolutions(g.classifier_free(2.0, (0.1, 1.0))) == plain > 0
    assert convolutions(g.classifier_free(2.0, (0.1, 1.0), together=True)) == 2 * plain


def test_what_does_not_fit(model):
    for guidance, guided, message in (
        (g.classifier_free(2.0), tiny(0, label_dropout=0.0), "label_dropout 0"),
        (g.classifier_free(2.0), tiny(0, label_dim=0), "needs a conditional model"),
        (g.autoguidance(tiny(0, label_dim=0), 2.0), model, "weaker must have num_classes 4"),
    ):
        with pytest.raises(ValueError, match=message):
            g.guided_denoiser(guided, guidance)
