"""Dropout, label dropout, precision, recomputation, and what must not depend on the batch."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import models
from edm_jax.models import blocks
from tests.support.drawn import drawn_variables
from tests.support.models_golden import labels, load_network, nhwc

KEY = jax.random.key(3)
TINY = {
    "img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "label_dim": 3,
    "resample_filter": [1, 3, 3, 1], "encoder_type": "residual",
}  # fmt: skip
# The same without changes of resolution, for what does not depend on them.
ONE_LEVEL = {**TINY, "img_resolution": 4, "channel_mult": [2], "encoder_type": "standard"}
X = np.random.default_rng(1).standard_normal((6, 8, 8, 1)).astype(np.float32)
SMALL_X = X[:, :4, :4]
C_NOISE = np.linspace(-1, 1, 6, dtype=np.float32)
CLASSES = np.eye(3, dtype=np.float32)[np.arange(6) % 3]


def random_network(**changes):
    """A network none of whose parameters is at its (nearly zero) initial value."""
    net = models.build("SongUNet", **{**ONE_LEVEL, **changes})
    return net, drawn_variables(net)


def masks(image_ids, layer=1, key=KEY, rate=0.3, shape=(32, 32, 8)):
    """(B, H, W, C) of dropout of ones, times 1 - rate: zeros and ones."""
    seeds = blocks.dropout_seeds(key, jnp.asarray(image_ids), layer + 1)[layer]
    ones = jnp.ones((len(image_ids), *shape))
    return np.asarray(blocks.dropout(ones, rate, seeds)) * (1 - rate)


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("rate", [0.05, 0.13, 0.5, 0.9])
def test_dropout_rate_and_scale(rate):
    kept = masks(range(8), rate=rate)
    assert np.allclose(kept[kept != 0], 1, atol=1e-6)
    # Five standard errors of a binomial.
    error = 5 * np.sqrt(rate * (1 - rate) / kept.size)
    np.testing.assert_allclose(1 - kept.mean(), rate, atol=error)
    # Every image and every channel, not only their mean.
    error = 6 * np.sqrt(rate * (1 - rate) / (kept.size / 8))
    np.testing.assert_allclose(1 - kept.mean((1, 2, 3)), rate, atol=error)
    np.testing.assert_allclose(1 - kept.mean((0, 1, 2)), rate, atol=error)


def test_dropout_masks_are_independent():
    m = masks(range(8))
    bound = 5 / np.sqrt(m[0].size)
    # Neighbours in each direction, and far apart.
    for axis in (1, 2, 3):
        for shift in (1, 2, 4):
            assert abs(correlation(m, np.roll(m, shift, axis))) < 5 / np.sqrt(m.size)
    others = {
        "image": masks(range(1, 9)),
        "layer": masks(range(8), layer=2),
        "key": masks(range(8), key=jax.random.key(4)),
    }
    for name, other in others.items():
        assert abs(correlation(m, other)) < bound, name
    # Dropped pairs of neighbours are as frequent as independence says.
    pairs = ((m[:, :, :, 1:] == 0) & (m[:, :, :, :-1] == 0)).mean()
    np.testing.assert_allclose(pairs, 0.09, atol=5 * np.sqrt(0.09 / m.size))


def test_dropout_of_an_image_depends_on_key_and_id_alone():
    whole = masks([5, 7, 2**31 - 1, 0])
    np.testing.assert_array_equal(masks([2**31 - 1, 5]), whole[[2, 0]])
    jitted = jax.jit(lambda ids: blocks.dropout_seeds(KEY, ids, 4))(jnp.arange(4))
    np.testing.assert_array_equal(jitted, blocks.dropout_seeds(KEY, jnp.arange(4), 4))


def test_dropout_keeps_the_dtype_and_scales_gradients():
    seeds = blocks.dropout_seeds(KEY, jnp.arange(2), 1)[0]
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16)
    assert blocks.dropout(x, 0.5, seeds).dtype == jnp.bfloat16
    x = x.astype(jnp.float32)
    grad = jax.grad(lambda x: blocks.dropout(x, 0.5, seeds).sum())(x)
    np.testing.assert_array_equal(grad, blocks.dropout(x, 0.5, seeds))


def test_training_pass_does_not_depend_on_the_split_into_batches():
    net, variables = random_network(dropout=0.2, label_dropout=0.5)

    @jax.jit
    def run(x, c_noise, classes, ids=None):
        return net.apply(
            variables, x, c_noise, classes, train=True, image_ids=ids, rngs={"dropout": KEY}
        )

    ids = np.arange(6, dtype=np.int32)
    whole = run(SMALL_X, C_NOISE, CLASSES, ids)
    default = run(SMALL_X, C_NOISE, CLASSES)
    # Masks are equal; sums over other batch sizes may round differently.
    np.testing.assert_allclose(default, whole, atol=1e-5)
    halves = [run(SMALL_X[i : i + 3], C_NOISE[i : i + 3], CLASSES[i : i + 3], ids[i : i + 3])
              for i in (0, 3)]  # fmt: skip
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-5)
    order = np.array([4, 2, 0, 5, 1, 3])
    shuffled = run(SMALL_X[order], C_NOISE[order], CLASSES[order], ids[order])
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-5)
    # And it is a training pass.
    assert np.abs(whole - run(SMALL_X, C_NOISE, CLASSES, ids + 6)).max() > 0.1


def test_evaluation_needs_no_key_and_is_deterministic():
    net, variables = random_network(dropout=0.5, label_dropout=0.5)
    apply = jax.jit(net.apply)
    first = apply(variables, SMALL_X, C_NOISE, CLASSES)
    np.testing.assert_array_equal(first, apply(variables, SMALL_X, C_NOISE, CLASSES))
    without, _ = random_network(dropout=0.0, label_dropout=0.0)
    np.testing.assert_array_equal(
        first, jax.jit(without.apply)(variables, SMALL_X, C_NOISE, CLASSES)
    )
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(lambda: net.apply(variables, SMALL_X, C_NOISE, CLASSES, train=True))
    # Nothing random in it: no key needed.
    jax.eval_shape(lambda: without.apply(variables, SMALL_X, C_NOISE, CLASSES, train=True))


def test_label_dropout_zeroes_whole_rows_at_its_rate():
    net, variables = random_network(dropout=0.0, label_dropout=0.3)
    n = 512
    x = np.broadcast_to(SMALL_X[:1], (n, 4, 4, 1))

    @functools.partial(jax.jit, static_argnames="train")
    def run(labels, train=False):
        return net.apply(variables, x, 0.0, labels, train=train, rngs={"dropout": KEY})

    classes = np.broadcast_to(CLASSES[1:2], (n, 3))
    trained = run(classes, train=True)
    kept, dropped = run(classes), run(np.zeros((n, 3), np.float32))
    is_kept = np.abs(trained - kept).max((1, 2, 3)) < 1e-4
    is_dropped = np.abs(trained - dropped).max((1, 2, 3)) < 1e-4
    np.testing.assert_array_equal(is_kept, ~is_dropped)
    np.testing.assert_allclose(is_dropped.mean(), 0.3, atol=5 * np.sqrt(0.21 / n))
    shared = run(classes[:1], train=True)
    np.testing.assert_allclose(shared, trained, atol=1e-5)


def test_scalar_c_noise_and_shared_labels_equal_repeated_ones():
    net, variables = random_network()
    apply = jax.jit(net.apply)
    expected = apply(variables, SMALL_X, np.full(6, 0.3, np.float32), CLASSES[[0] * 6])
    for c_noise in (0.3, np.float32([0.3]), np.float32(0.3)):
        out = apply(variables, SMALL_X, c_noise, CLASSES[:1])
        np.testing.assert_allclose(out, expected, atol=1e-5)
    zeros = apply(variables, SMALL_X, 0.3, np.zeros((1, 3), np.float32))
    np.testing.assert_allclose(apply(variables, SMALL_X, 0.3), zeros, atol=1e-5)
    # An image alone: another batch size, another order of summation.
    alone = apply(variables, SMALL_X[1:2], np.float32([0.3]), CLASSES[:1])
    np.testing.assert_allclose(alone[0], expected[1], atol=1e-5)
    # One embedding for the batch, not six.
    _, state = jax.eval_shape(
        lambda: net.apply(
            variables, SMALL_X, 0.3, capture_intermediates=True, mutable="intermediates"
        )
    )
    assert state["intermediates"]["map_layer1"]["__call__"][0].shape == (1, 64)


# Relative root mean square deviation of the output from float32, measured 0.8-1.2 % and
# 0.10-0.15 % on these networks (bfloat16 keeps 8 bits, float16 keeps 11, and some thirty
# roundings add up); twice that is the bound.
@pytest.mark.parametrize("dtype, bound", [("bfloat16", 0.025), ("float16", 0.003)])
@pytest.mark.parametrize("name", ["ncsnpp_cond", "adm_cond"])
def test_mixed_precision(name, dtype, bound):
    archive, net, variables = load_network(name, dtype=dtype)
    expected = nhwc(archive["out_f64"])

    def run(variables, x, c_noise, labels):
        return net.apply(
            variables, x, c_noise, **labels, capture_intermediates=True, mutable="intermediates"
        )

    arguments = (nhwc(archive["x"]), archive["noise_labels"], labels(archive))
    out, state = jax.jit(run)(variables, *arguments)
    assert out.dtype == jnp.float32
    deviation = np.sqrt(np.mean(np.square(out - expected)) / np.mean(np.square(expected)))
    assert deviation < bound
    # More than rounding of the last step: the feature maps are in half precision.
    assert deviation > bound / 20
    for module, outputs in state["intermediates"].items():
        if module.startswith("map_"):
            assert outputs["__call__"][0].dtype == jnp.float32, module
        elif "__call__" in outputs and module != "__call__":
            assert outputs["__call__"][0].dtype == jnp.dtype(dtype), module


def test_gradients_of_mixed_precision_are_float32_and_close():
    net, variables = random_network()

    def gradients(net):
        def loss(params):
            out = net.apply({"params": params}, SMALL_X, C_NOISE, CLASSES)
            return jnp.mean(jnp.square(out))

        return jax.jit(jax.grad(loss))(variables["params"])

    full, rounded = (jax.tree.leaves(gradients(n)) for n in (net, net.clone(dtype="bfloat16")))
    assert all(leaf.dtype == jnp.float32 for leaf in rounded)
    full, rounded = (
        np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in (full, rounded)
    )
    cosine = full @ rounded / np.linalg.norm(full) / np.linalg.norm(rounded)
    assert cosine > 0.999
    assert not np.array_equal(full, rounded)


@pytest.mark.parametrize("name", ["SongUNet", "DhariwalUNet"])
def test_recomputation_changes_memory_and_nothing_else(name):
    # One with changes of resolution, one with attention: the blocks are the same ones.
    if name == "SongUNet":
        net = models.build(name, **{**ONE_LEVEL, "img_resolution": 8, "attn_resolutions": [8]},
                           dropout=0.2)  # fmt: skip
    else:
        kept = {k: v for k, v in TINY.items() if k not in ("resample_filter", "encoder_type")}
        net = models.build(name, **kept, dropout=0.2)
    variables = drawn_variables(net)
    # Enough images for activations to outweigh parameters.
    x, c_noise, classes = (np.repeat(v, 8, 0) for v in (X, C_NOISE, CLASSES))

    def compiled(net):
        def loss(params):
            out = net.apply(
                {"params": params}, x, c_noise, classes, train=True, rngs={"dropout": KEY}
            )
            return jnp.mean(jnp.square(out))

        return jax.jit(jax.value_and_grad(loss)).lower(variables["params"]).compile()

    plain, remat = compiled(net), compiled(net.clone(remat="blocks"))
    value, grads = plain(variables["params"])
    value_remat, grads_remat = remat(variables["params"])
    # The same operations, fused and so rounded differently.
    np.testing.assert_allclose(value_remat, value, rtol=1e-5)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-12)

    jax.tree.map(close, grads_remat, grads)
    used = [c.memory_analysis().temp_size_in_bytes for c in (remat, plain)]
    assert used[0] < 0.7 * used[1]
