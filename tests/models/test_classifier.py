"""The noisy classifier against guided-diffusion (golden 11), and its published sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import models
from edm_jax.models.classifier import PUBLISHED, NoisyClassifier
from tests.support import guided_classifier as gc


@pytest.fixture(scope="module")
def arrays():
    return gc.arrays()


@pytest.fixture(scope="module")
def net(arrays):
    return models.build(**gc.network(arrays))


@pytest.fixture(scope="module")
def logits_and_gradient(arrays, net):
    """Of the published class of each image; and the gradient for every parameter."""
    rows = np.eye(7, dtype=np.float32)[arrays["y"]]
    x, t = nhwc(arrays["x"]), arrays["timesteps"]

    @jax.jit
    def run(x, variables):
        def total(x, variables):
            logits = net.apply(variables, x, t)
            return jnp.sum(rows * jax.nn.log_softmax(logits)), logits

        gradient, logits = jax.grad(total, (0, 1), has_aux=True)(x, variables)
        return logits, *gradient

    return run(x, gc.variables(arrays))


def nhwc(x):
    return np.transpose(x, (0, 2, 3, 1))


def test_logits_and_gradient(arrays, logits_and_gradient):
    logits, gradient, _ = logits_and_gradient
    np.testing.assert_allclose(logits, arrays["logits"], atol=2e-5)  # suggested with it
    np.testing.assert_allclose(gradient, nhwc(arrays["grad"]), atol=2e-6)  # suggested


def test_every_block(arrays, net):
    """Activations of the first sample, so that two errors cannot cancel."""
    x, t = nhwc(arrays["x"][:1]), arrays["timesteps"][:1]
    run = jax.jit(lambda v: net.apply(v, x, t, capture_intermediates=True))
    _, state = run(gc.variables(arrays))
    seen = state["intermediates"]
    names = {
        "input_blocks.0": "enc_8x8_conv",
        "input_blocks.1": "enc_8x8_block0",
        "input_blocks.2": "enc_4x4_down",
        "input_blocks.3": "enc_4x4_block0",
        "middle_block": "mid_block1",
    }
    for theirs, ours in names.items():
        want = nhwc(arrays[f"act/{theirs}"])
        np.testing.assert_allclose(seen[ours]["__call__"][0], want, atol=5e-5)  # layers: suggested
    norm = nhwc(arrays["act/out.0"])
    np.testing.assert_allclose(
        seen["out_norm"]["__call__"][0], jax.nn.silu(norm), atol=5e-5
    )  # ours has the activation inside
    np.testing.assert_allclose(
        seen["map_layer1"]["__call__"][0], arrays["act/time_embed"][:1], atol=5e-5
    )


def published():
    with np.load(gc.GOLDEN / "12_guidance.npz") as archive:
        return json.loads(str(archive["classifier_configs"]))


@pytest.mark.parametrize("config", published(), ids=lambda c: f"{c['image_size']}-{c['depth']}")
def test_published_sizes(config):
    """Parameter and tensor counts of guided-diffusion's own constructor."""
    net = NoisyClassifier(
        config["image_size"],
        channel_mult=config["channel_mult"],
        num_blocks=config["depth"],
        attn_resolutions=[config["image_size"] // rate for rate in config["attention_rates"]],
    )
    assert models.param_count(net) == config["params"]
    assert len(jax.tree.leaves(models.abstract_variables(net))) == config["tensors"]
    assert sum(e.kind in ("conv", "block") for e in net.plan) - 2 == config["input_blocks"]
    known = PUBLISHED[config["image_size"]]
    assert known["channel_mult"] == tuple(config["channel_mult"])
    if config["depth"] == known["num_blocks"]:
        assert net.attn_resolutions == NoisyClassifier(64).attn_resolutions


def test_initial_values(net):
    """Zero where published: second convolutions and body attention; the head is not."""
    params = jax.jit(lambda key: models.init_variables(net, key)["params"])(jax.random.key(0))
    block = params["enc_4x4_block0"]
    for layer in (block["conv1"], block["proj"]):
        assert not any(np.any(v) for v in jax.tree.leaves(layer))
    assert np.any(params["pool"]["proj"]["kernel"])
    embedding = params["pool"]["positional_embedding"]
    assert embedding.shape == (17, 64)
    # 1088 draws of N(0, 1/64): the standard deviation is known to 2 percent.
    assert abs(np.std(embedding) * 8 - 1) < 0.1


def test_half_precision_and_remat(arrays, net, logits_and_gradient):
    variables = gc.variables(arrays)
    x, t = nhwc(arrays["x"]), arrays["timesteps"]
    logits = jax.jit(net.clone(dtype="bfloat16").apply)(variables, x, t)
    assert logits.dtype == jnp.float32
    # Eight bits of mantissa over a dozen layers; logits are of size 1.
    np.testing.assert_allclose(logits, arrays["logits"], atol=0.1)
    recomputed = net.clone(remat="blocks")
    rows = np.eye(7, dtype=np.float32)[arrays["y"]]

    @jax.jit
    @jax.grad
    def gradient(variables):
        return jnp.sum(rows * jax.nn.log_softmax(recomputed.apply(variables, x, t)))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        gradient(variables), logits_and_gradient[2],
    )  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_channels": 48}, "multiple of the 32 groups"),
        ({"channel_mult": [1, 2, 2, 2, 2]}, "divisible by 16"),
        ({"channels_per_head": 48}, "multiple of 48"),
        ({"num_classes": 0}, "num_classes must be a positive integer"),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"dropout": 0.1}, "unknown argument of NoisyClassifier"),
    ],
)
def test_arguments(arrays, change, message):
    with pytest.raises(ValueError, match=message):
        models.build(**gc.network(arrays) | change)


def test_shapes(arrays, net):
    variables = gc.variables(arrays)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 8, 8, 3\)"):
        jax.eval_shape(net.apply, variables, np.zeros((2, 4, 4, 3)), 0.0)
    with pytest.raises(ValueError, match="c_noise must be a scalar"):
        jax.eval_shape(net.apply, variables, np.zeros((2, 8, 8, 3)), np.zeros(3))
