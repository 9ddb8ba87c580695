"""Construction: arguments, presets, errors; variables: shapes, axes, overview."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edm_jax import models
from tests.support.drawn import drawn_variables

TINY = {
    "img_resolution": 8, "in_channels": 3, "out_channels": 3, "model_channels": 8,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
}  # fmt: skip


def tiny(name="SongUNet", **changes):
    if name == "DhariwalUNet":  # attention needs 64 channels
        changes = {"model_channels": 32, **changes}
    return models.build(name, **{**TINY, **changes})


def test_lists_become_tuples_and_networks_are_hashable():
    net = tiny()
    assert net.channel_mult == (1, 2) and net.attn_resolutions == (4,)
    assert hash(net) == hash(tiny()) and net == tiny()
    assert net != tiny(num_blocks=2)
    assert models.SongUNet(**TINY) == net
    assert tiny(dtype=jnp.bfloat16).dtype == "bfloat16"


def test_presets():
    for name, network in models.PRESET_NETWORKS.items():
        sizes = {"img_resolution": 32, "in_channels": 3, "out_channels": 3}
        net = models.build(name, **sizes)
        assert type(net) is models.NETWORKS[network]
        assert net == models.NETWORKS[network](**models.PRESETS[name], **sizes)
    assert models.build("ddpmpp", **sizes, channel_mult=[1, 2]).channel_mult == (1, 2)


def test_defaults_are_those_of_the_published_program():
    sizes = {"img_resolution": 64, "in_channels": 3, "out_channels": 3}
    net = models.SongUNet(**sizes)
    assert (net.model_channels, net.channel_mult, net.num_blocks) == (128, (1, 2, 2, 2), 4)
    assert (net.attn_resolutions, net.dropout, net.label_dropout) == ((16,), 0.1, 0)
    net = models.DhariwalUNet(**sizes)
    assert (net.model_channels, net.channel_mult, net.num_blocks) == (192, (1, 2, 3, 4), 3)
    assert (net.attn_resolutions, net.dropout) == ((32, 16, 8), 0.1)


BAD = [
    ({"encoder_type": "resnet"}, "encoder_type must be one of standard, skip, residual"),
    ({"decoder_type": "residual"}, "decoder_type must be one of"),
    ({"embedding_type": "sinusoidal"}, "embedding_type must be one of"),
    ({"dtype": "float64"}, "dtype must be one of"),
    ({"remat": "all"}, "remat must be one of none, blocks"),
    ({"img_resolution": 9}, "img_resolution must be divisible by 2"),
    ({"img_resolution": 8.0}, "img_resolution must be a positive integer"),
    ({"model_channels": 6, "channel_mult": [3, 1]}, "18 channels"),
    ({"model_channels": 2}, "at least 4 channels"),
    ({"channel_mult": []}, "channel_mult must be"),
    ({"channel_mult": [1, 0]}, "channel_mult must be a list of positive integers"),
    ({"channel_mult": 2}, "channel_mult must be a list of positive integers"),
    ({"num_blocks": 0}, "num_blocks must be a positive integer"),
    ({"label_dim": -1}, "label_dim must be an integer >= 0"),
    ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\)"),
    ({"label_dropout": "0.1"}, "label_dropout must be a number"),
    ({"resample_filter": [1, 2, 1]}, "resample_filter must be a list of an even number"),
    ({"resample_filter": [1, -1]}, "resample_filter must be"),
    ({"model_channel": 8}, "did you mean 'model_channels'"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_bad_names():
    with pytest.raises(ValueError, match="did you mean 'SongUNet'"):
        models.build("SongUnet", **TINY)
    with pytest.raises(ValueError, match="needs the argument img_resolution, out_channels"):
        models.build("DhariwalUNet", in_channels=3)
    with pytest.raises(ValueError, match="argument of DhariwalUNet 'encoder_type'"):
        tiny("DhariwalUNet", encoder_type="skip")


def test_bad_inputs():
    net = tiny(label_dim=4, augment_dim=9)
    variables = models.abstract_variables(net)
    x, c_noise = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)
    eye = jnp.eye(4)[:2]

    def call(*args, network=net, variables=variables, **kwargs):
        return jax.eval_shape(lambda v: network.apply(v, *args, **kwargs), variables)

    assert call(x, c_noise, eye).shape == x.shape
    cases = [
        (lambda: call(x[0], c_noise), r"x must have shape \(B, 8, 8, 3\)"),
        (lambda: call(x[:, :, :, :1], c_noise), r"x must have shape"),
        (lambda: call(x[:, :4], c_noise), r"x must have shape"),
        (lambda: call(x, jnp.zeros(3)), r"c_noise must be a scalar or have shape \(2,\)"),
        (lambda: call(x, c_noise, jnp.eye(5)[:2]), r"class_labels must have shape \(2, 4\)"),
        (lambda: call(x, c_noise, jnp.arange(2)), r"class_labels must have shape \(2, 4\)"),
        (lambda: call(x, c_noise, eye, jnp.zeros((2, 8))), r"augment_labels must have shape"),
        (
            lambda: call(x, c_noise, eye, train=True, image_ids=jnp.arange(3),
                         rngs={"dropout": jax.random.key(0)}),
            r"image_ids must be integers of shape \(2,\)",
        ),
        (
            lambda: call(x, c_noise, eye, network=tiny(),
                         variables=models.abstract_variables(tiny())),
            "class_labels must be None",
        ),
    ]  # fmt: skip
    for run, message in cases:
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize("name", ["SongUNet", "DhariwalUNet"])
def test_initial_variables(name):
    fourier = {"embedding_type": "fourier"} if name == "SongUNet" else {}
    net = tiny(name, label_dim=4, augment_dim=9, **fourier)
    variables = models.init_variables(net, jax.random.key(0))
    assert set(variables) == ({"params", "buffers"} if fourier else {"params"})
    leaves = jax.tree.leaves(variables)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)
    abstract = jax.eval_shape(lambda key: models.init_variables(net, key), jax.random.key(0))
    expected = jax.tree.map(lambda leaf: leaf.shape, models.abstract_variables(net))
    assert jax.tree.map(jnp.shape, variables) == expected
    assert jax.tree.map(lambda leaf: leaf.shape, abstract) == expected
    jitted_init = jax.jit(lambda key: models.init_variables(net, key))
    jitted = jitted_init(jax.random.key(0))
    # Draws of normal numbers, alone and within a program: the last bits of float32.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, jitted, variables)
    other = jitted_init(jax.random.key(1))
    assert not np.array_equal(other["params"]["map_layer0"]["kernel"],
                              variables["params"]["map_layer0"]["kernel"])  # fmt: skip
    assert models.param_count(net) == sum(leaf.size for leaf in jax.tree.leaves(jitted["params"]))


def test_untrained_network_is_nearly_zero():
    # The last convolution starts at 1e-5 of its normal size.
    net = tiny()
    variables = models.init_variables(net, jax.random.key(0))
    out = jax.jit(net.apply)(variables, jnp.ones((1, 8, 8, 3)), jnp.zeros(1))
    assert 0 < float(jnp.abs(out).max()) < 1e-3


@pytest.mark.parametrize("name", ["SongUNet", "DhariwalUNet"])
def test_logical_axes_cover_every_parameter(name):
    net = tiny(name, label_dim=4, augment_dim=9)
    params = models.abstract_variables(net)["params"]
    axes = models.logical_axes(net)
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(params)
    known = {"height", "width", "channels_in", "channels_out", "channels", "qkv", "embed",
             "embed_in", "embed_out", "labels"}  # fmt: skip
    for names, leaf in zip(
        jax.tree.leaves(axes, is_leaf=is_axes), jax.tree.leaves(params), strict=True
    ):
        assert len(names) == leaf.ndim
        # Distinct, or a rule could put one mesh axis twice on an array.
        assert set(names) <= known and len(set(names)) == len(names)


def test_logical_axes_split_a_network_over_devices():
    net = tiny("DhariwalUNet", channel_mult=[1])
    # Blocks of ADM start as zero; random ones show a wrong split.
    variables = drawn_variables(net)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model"))
    rules = {"channels_out": "model", "embed_out": "model", "qkv": "model", "channels": "model"}

    def place(names, leaf):
        spec = [rules.get(n) if leaf.shape[i] % 4 == 0 else None for i, n in enumerate(names)]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    split = jax.tree.map(place, models.logical_axes(net), variables["params"], is_leaf=is_axes)
    kernel = split["enc_8x8_block0"]["conv0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 3, 32, 8)
    x = np.random.default_rng(2).standard_normal((2, 8, 8, 3)).astype(np.float32)
    sharded_x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    apply = jax.jit(net.apply)
    expected = np.asarray(apply(variables, x, jnp.zeros(2)))
    assert np.std(expected) > 0.1
    out = apply({"params": split}, sharded_x, jnp.zeros(2))
    np.testing.assert_allclose(out, expected, atol=5e-5)


def test_metadata_of_flax_init_names_the_same_axes():
    net = tiny()
    boxed = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))
    specs = nn.get_partition_spec(boxed)["params"]
    spec = specs["enc_8x8_conv"]["kernel"]
    assert spec == PartitionSpec("height", "width", "channels_in", "channels_out")


def test_parameter_table():
    net = tiny()
    abstract = models.parameter_table(models.abstract_variables(net))
    table = models.parameter_table(drawn_variables(net))
    for text in (abstract, table):
        assert "enc_8x8_block0/conv0/kernel" in text and "(3, 3, 8, 8)" in text
        assert f"Total: {models.param_count(net):,}" in text
    assert "Std" in table and "Std" not in abstract
