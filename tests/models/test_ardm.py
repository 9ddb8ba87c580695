"""The networks of autoregressive diffusion: inputs, structure, symmetry, refusals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.ardm import policy, upscale
from edm_jax.ardm.objective import OrderAgnostic
from edm_jax.ardm.outputs import DiscretizedLogisticRGB, Softmax
from edm_jax.ardm.process import Absorbing, network_predictor
from edm_jax.ardm.sample import sample_ardm
from edm_jax.models.ardm_transformer import ArdmTransformer
from edm_jax.models.ardm_unet import ArdmUNet, DiscreteInput, time_embedding

B, R, C = 3, 4, 2


def _unet(**changes):
    sizes = {"img_resolution": R, "in_channels": C, "out_channels": C * 5, "num_inputs": 5}
    return ArdmUNet(**{**sizes, "model_channels": 8, "num_blocks": 1, **changes})


def _transformer(**changes):
    sizes = {"length": 6, "out_channels": 5, "num_inputs": 6, "model_channels": 8}
    return ArdmTransformer(
        **{**sizes, "num_blocks": 2, "num_heads": 2, "mlp_channels": 16, **changes}
    )


def _inputs(shape, values=5, mask_shape=None):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, values, (B, *shape)))
    known = jnp.asarray(rng.random((B, *(mask_shape or shape))) < 0.5)
    return x, jnp.asarray(np.float32([0.0, 0.25, 0.75])), known


def _drawn(net, *inputs, noise=0.3):
    """Variables none of which is zero; nothing is compiled for them."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        std, one = noise, "scale" in jax.tree_util.keystr(path)
        if leaf.ndim > 1:  # around an initial value of usual size
            std = np.hypot(noise, np.prod(leaf.shape[:-1]) ** -0.5)
        return jnp.asarray(one + std * rng.standard_normal(leaf.shape), leaf.dtype)

    abstract = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(draw, abstract)


def test_time_embedding(golden):
    archive = golden("14_ardm")
    time = archive["time_embedding/t"] / archive["time_embedding/num_steps"]
    got = time_embedding(jnp.asarray(time), int(archive["time_embedding/channels"]))
    # float32 phases of up to 1000 are rounded by 3e-5, and t / T before them by as much.
    np.testing.assert_allclose(got, archive["time_embedding/out"], atol=1e-4)


@pytest.mark.parametrize("case", ["image", "tokens"])
def test_float_input(golden, golden_json, case):
    """What the convolution sees, by a kernel that passes the first channel on."""
    archive = golden("14_ardm")
    config = golden_json(archive, f"loss/{case}/config")
    classes = max(config["num_classes"], config["absorbing"] + 1)
    x = jnp.asarray(archive[f"loss/{case}/x_in"])
    expected = archive[f"loss/{case}/x_float"]
    x = x if x.ndim == 4 else x[:, None, :, None]
    module = DiscreteInput(4, classes, 1, "float", "float32")
    known = jnp.zeros(x.shape, bool)
    stage = jnp.zeros(len(x), jnp.int32)
    abstract = jax.eval_shape(module.init, jax.random.key(0), x, known, stage)
    kernel = np.zeros(jax.tree.leaves(abstract)[-1].shape, np.float32)
    kernel[1, 1, 0, 0] = 1
    bias = np.zeros(4, np.float32)
    got = jax.jit(module.apply)(
        {"params": {"conv": {"kernel": kernel, "bias": bias}}}, x, known, stage
    )
    expected = expected if expected.ndim == 4 else expected[:, None, :, None]
    np.testing.assert_allclose(got[..., 0], expected[..., 0], atol=1e-6)


@pytest.mark.parametrize("net, shape", [(_unet(), (R, R, C)), (_transformer(), (6,))])
def test_starts_at_the_uniform_distribution(net, shape):
    inputs = _inputs(shape)
    variables = jax.jit(lambda key: net.lazy_init(key, *inputs))(jax.random.key(0))
    outputs = jax.jit(net.apply)(variables, *inputs)
    assert outputs.size == B * np.prod(shape) * 5
    assert np.all(np.asarray(outputs) == 0)


@pytest.mark.parametrize(
    "changes, shape",
    [
        ({}, (R, R, C)),
        ({"inputs": "one_hot", "attention": "all", "position_map": True}, (R, R, C)),
        ({"inputs": "float", "num_stages": 3}, (R, R, C)),
        ({"num_stages": 3}, (6,)),
    ],
)
def test_every_parameter_matters(changes, shape):
    """Every parameter moves the outputs, and so do time, mask and stage."""
    net = _unet(**changes) if len(shape) == 3 else _transformer(**changes)
    x, time, known = _inputs(shape)
    stage = jnp.array([0, 1, 2]) % net.num_stages
    variables = _drawn(net, x, time, known, stage)
    outputs = jax.eval_shape(net.apply, variables, x, time, known)
    weight = np.random.default_rng(2).standard_normal(outputs.shape).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def total(variables, time, known, stage):
        return jnp.sum(weight * net.apply(variables, x, time, known, stage))

    value, gradient = total(variables, time, known, stage)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)
    assert total(variables, time + 0.1, known, stage)[0] != value
    assert total(variables, time, ~known, stage)[0] != value
    if net.num_stages > 1:
        assert total(variables, time, known, stage[::-1])[0] != value


def test_number_of_parameters_of_the_text_network():
    """12 layers of 768 with an MLP of 3072: 7.1 million each, as in BERT base."""
    net = ArdmTransformer(250, 27, 28)
    params = jax.eval_shape(net.init, jax.random.key(0), *net.example_inputs())["params"]
    block = sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(params["block0"])))
    w, h, e = 768, 3072, 4 * 768
    assert block == 4 * (w * w + w) + 2 * w * h + w + h + 4 * w + (e * w + w)
    assert len([name for name in params if name.startswith("block")]) == 12


def test_every_position_sees_every_other():
    """No causal mask: the first token moves the last output and the last the first."""
    net = _transformer()
    x, time, known = _inputs((6,))
    variables = _drawn(net, x, time, known)
    apply = jax.jit(net.apply)
    base = apply(variables, x, time, known)
    x = np.asarray(x)
    for position in (0, 5):
        other = x.copy()
        other[:, position] = (x[:, position] + 1) % 5
        moved = apply(variables, other, time, known)
        assert np.all(np.any(np.asarray(moved) != np.asarray(base), axis=-1))


def test_number_of_blocks_of_the_published_network():
    """32 down, 2 in the middle, 33 up; the mask and the values of three channels come in."""
    net = ArdmUNet(32, 3, 3 * 256, 256)
    params = jax.eval_shape(net.init, jax.random.key(0), *net.example_inputs())["params"]
    blocks = [name for name in params if "_block" in name]
    assert len(blocks) == 67
    with_attention = [name for name in blocks if "qkv" in params[name]]
    assert with_attention == ["middle_block0"]
    kernel = params["input"]["conv"]["kernel"].unbox()
    assert kernel.shape == (3, 3, 6, 192)


@pytest.mark.parametrize(
    "net, shape", [(_unet(dropout=0.5), (R, R, C)), (_transformer(dropout=0.5), (6,))]
)
def test_dropout_goes_by_image(net, shape):
    x, time, known = _inputs(shape)
    variables = _drawn(net, x, time, known)

    @jax.jit
    def run(x, time, known, ids):
        rngs = {"dropout": jax.random.key(0)}
        return net.apply(variables, x, time, known, train=True, image_ids=ids, rngs=rngs)

    ids = jnp.array([5, 6, 7])
    whole = run(x, time, known, ids)
    flipped = run(x[::-1], time[::-1], known[::-1], ids[::-1])
    # The same numbers in another row: float32 sums.
    np.testing.assert_allclose(whole, flipped[::-1], rtol=1e-4, atol=1e-4)
    assert np.max(np.abs(np.asarray(whole - run(x, time, known, ids + 1)))) > 0.01


@pytest.mark.parametrize("net, shape", [(_unet(), (R, R, C)), (_transformer(), (6,))])
def test_recomputing_blocks_changes_nothing(net, shape):
    x, time, known = _inputs(shape)
    variables = _drawn(net, x, time, known)

    def gradient(net):
        return jax.jit(jax.grad(lambda v: jnp.sum(net.apply(v, x, time, known) ** 2)))(variables)

    plain, recomputed = gradient(net), gradient(net.clone(remat="blocks"))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(one).max())


@pytest.mark.parametrize(
    "net, process, shape",
    [
        (_unet(), Absorbing(Softmax(5)), (R, R, C)),
        (
            _unet(num_stages=2, num_inputs=16, out_channels=2 * 16),
            upscale.Upscale(16, 4),
            (R, R, C),
        ),
        (
            _unet(in_channels=3, mask_channels=1, out_channels=20),
            Absorbing(DiscretizedLogisticRGB(5, 2)),
            (R, R, 3),
        ),
        (_transformer(), Absorbing(Softmax(5), 5), (6,)),
    ],
)
def test_objective_and_sampling(net, process, shape):
    """One training loss with its gradient, and samples in two calls per stage."""
    x, time, known = _inputs(shape, mask_shape=process.mask_shape(shape))
    variables = _drawn(net, x, time, known, jnp.zeros(B, jnp.int32), noise=0.1)
    loss = OrderAgnostic(net.apply, process, shape, B)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(params):
        key = jax.random.key(0)
        return jnp.mean(loss.per_image(params, {}, {"image": x}, key, jnp.arange(B))[0])

    value, gradient = mean_loss(variables["params"])
    assert np.isfinite(value) and value > 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    predict = network_predictor(functools.partial(net.apply, variables), process, shape)
    calls = policy.uniform_policy(2, int(np.prod(process.mask_shape(shape))))
    drawn = jax.jit(lambda keys: sample_ardm(predict, process, keys, shape, calls))
    drawn = np.asarray(drawn(jax.random.split(jax.random.key(1), 2)))
    assert drawn.shape == (2, *shape) and drawn.min() >= 0 and drawn.max() < process.num_values


def test_refusals():
    x, time, known = _inputs((R, R, C))
    tokens, _, mask = _inputs((6,))
    key = jax.random.key(0)

    def init(net, *inputs):
        jax.eval_shape(net.init, key, *inputs)

    with pytest.raises(ValueError, match=r"x must have shape \(B, 6\).*images go to ArdmUNet"):
        init(_transformer(), x, time, known)
    with pytest.raises(ValueError, match=r"\(B, 4, 4, 2\).*sequences go to ArdmTransformer"):
        init(_unet(), tokens, time, mask)
    with pytest.raises(ValueError, match="integers below 5, got float32"):
        init(_unet(), x.astype(jnp.float32), time, known)
    with pytest.raises(ValueError, match="known must have shape"):
        init(_unet(), x, time, known[..., :1])
    with pytest.raises(ValueError, match="inputs must be one of embed, one_hot, float"):
        _unet(inputs="onehot")
    with pytest.raises(ValueError, match="mask_channels must be 1 or in_channels = 2, got 3"):
        _unet(mask_channels=3)
    with pytest.raises(ValueError, match="divisible by num_heads = 3"):
        _transformer(num_heads=3)


@pytest.mark.parametrize(
    "net, shape", [(_unet(label_dim=3), (R, R, C)), (_transformer(label_dim=3), (6,))]
)
def test_classes(net, shape):
    """None is the all-zero row; each class has outputs of its own."""
    x, time, known = _inputs(shape)
    stage, rows = jnp.zeros(B, jnp.int32), jnp.eye(3)
    variables = _drawn(net, x, time, known, stage, rows)
    apply = jax.jit(net.apply)
    none = apply(variables, x, time, known, stage)
    # Two programs, which round differently: some units of outputs of size 5.
    zeros = apply(variables, x, time, known, stage, 0 * rows)
    np.testing.assert_allclose(zeros, none, rtol=0, atol=1e-5)
    told = np.asarray(apply(variables, x, time, known, stage, rows))
    assert np.all(np.abs(told - none).reshape(B, -1).max(1) > 1e-3)
    with pytest.raises(ValueError, match=r"class_labels must have shape \(3, 3\), got \(3, 2\)"):
        jax.eval_shape(net.apply, variables, x, time, known, stage, rows[:, :2])
    plain = _unet() if len(shape) == 3 else _transformer()
    with pytest.raises(ValueError, match="class_labels must be left out: there are none"):
        jax.eval_shape(plain.apply, variables, x, time, known, stage, rows)
    with pytest.raises(ValueError, match="label_dim must be an integer >= 0"):
        net.clone(label_dim=-1)
