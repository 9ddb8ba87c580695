"""Networks against published numbers: parameter counts, and outputs for weights by rule.

The numbers are those of section 4.11 and 11.4 of the project's specification of the
published program: counted on, and float64 evaluations of, that program.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import models, noise, precond
from tests.support.models_golden import nhwc, parameter_names

RGB = {"in_channels": 3, "out_channels": 3}
AT_32, AT_64 = {"img_resolution": 32, **RGB}, {"img_resolution": 64, **RGB}
WIDE = {"channel_mult": [1, 2, 2, 2]}
NARROW = {"channel_mult": [1, 1, 2, 2, 2]}

# Preset, arguments, parameters, parameter tensors, buffer elements, buffers.
COUNTS = [
    ("ddpmpp", {**AT_32, "label_dim": 10, "augment_dim": 9}, 55_735_299, 419, 32, 8),
    ("ddpmpp", {**AT_32, "augment_dim": 9}, 55_733_891, 417, 32, 8),
    ("ncsnpp", {**AT_32, "label_dim": 10, "augment_dim": 9}, 56_400_643, 423, 288, 11),
    ("ncsnpp", {**AT_32, "augment_dim": 9}, 56_397_827, 421, 288, 11),
    ("ddpmpp", {**AT_64, **WIDE, "augment_dim": 9}, 61_805_571, 541, 48, 12),
    ("ncsnpp", {**AT_64, **WIDE, "augment_dim": 9}, 62_761_091, 547, 368, 16),
    ("adm", {**AT_64, "label_dim": 1000}, 295_899_267, 541, 48, 12),
    # The iDDPM preconditioner adds its own buffer of 1001 levels to these.
    ("adm", {**AT_64, "out_channels": 6, "label_dim": 1000}, 295_904_454, 541, 48, 12),
    ("ddpmpp", {**AT_32, **WIDE}, 61_804_419, 540, 48, 12),
    ("ncsnpp", {**AT_32, **WIDE}, 62_758_787, 546, 368, 16),
    ("ddpmpp", AT_32, 55_732_739, 416, 32, 8),
    ("ncsnpp", AT_32, 56_395_523, 420, 288, 11),
    ("ddpmpp", {**AT_64, **NARROW}, 66_715_267, 664, 64, 16),
    ("ncsnpp", {**AT_64, **NARROW}, 67_817_219, 672, 448, 21),
]


@pytest.mark.parametrize("preset, arguments, parameters, tensors, elements, buffers", COUNTS)
def test_counts_of_published_networks(preset, arguments, parameters, tensors, elements, buffers):
    net = models.build(preset, **arguments)
    assert models.param_count(net) == parameters
    names = parameter_names(net)
    assert len(names) == tensors
    shapes = models.state_dict_shapes(net)
    sizes = [math.prod(shape) for name, shape in shapes.items() if name not in set(names)]
    assert (sum(sizes), len(sizes)) == (elements, buffers)


def test_names_and_shapes_of_a_published_network():
    net = models.build("ncsnpp", **AT_32, label_dim=10, augment_dim=9)
    shapes = models.state_dict_shapes(net)
    expected = {
        "map_noise.freqs": (128,),
        "map_label.weight": (256, 10),
        "map_augment.weight": (256, 9),
        "enc.32x32_conv.weight": (128, 3, 3, 3),
        "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
        "enc.16x16_down.conv0.resample_filter": (1, 1, 4, 4),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3),
        "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
        "enc.16x16_block0.qkv.weight": (768, 256, 1, 1),
        "dec.8x8_block0.conv0.weight": (256, 512, 3, 3),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "map_augment.bias" not in shapes
    assert "enc.32x32_block0.qkv.weight" not in shapes


def test_heads_of_the_published_adm():
    net = models.build("adm", **AT_64, label_dim=1000)
    attention = {}
    for entry in net.plan:
        if entry.kind == "block" and entry.attention:
            attention.setdefault(entry.name[4:].split("_")[0], set()).add(entry.out_channels // 64)
    assert attention == {"32x32": {6}, "16x16": {9}, "8x8": {12}}


COMMON = {
    "img_resolution": 16, **RGB, "label_dim": 4, "augment_dim": 9, "num_blocks": 1,
    "attn_resolutions": [8], "dropout": 0.0, "channel_mult": [1, 2],
}  # fmt: skip
FOURIER = {"embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
# Network, arguments; parameters; mean, standard deviation; y[0,0,0,:4], y[1,2,15,12:],
# y[0,1,7,7] (channels first); mean and y[0,0,0,0] without augment labels.
RULE = {
    "T1": (
        "SongUNet", {"model_channels": 16},
        189_571, (0.310970, 0.607218),
        (0.655757, 0.970474, 1.077039, 1.136514), (-0.046187, -0.241883, -0.468597, -0.395466),
        0.975730, (0.310781, 0.656198),
    ),
    "T2": (
        "SongUNet", {"model_channels": 16, "encoder_type": "residual", **FOURIER},
        191_267, (0.228199, 0.541718),
        (0.555711, 0.804276, 0.881327, 0.949556), (0.000382, -0.126159, -0.231069, -0.192734),
        0.883950, (0.238899, 0.568448),
    ),
    "T3": (
        "SongUNet",
        {"model_channels": 16, "encoder_type": "skip", "decoder_type": "skip", **FOURIER},
        191_814, (-0.085975, 0.762242),
        (-0.425932, -0.713325, -0.945295, -1.234613), (0.755678, 0.812461, 0.835112, 0.604518),
        -0.080019, (-0.084701, -0.422686),
    ),
    "T4": (
        "DhariwalUNet", {"model_channels": 64},
        3_294_979, (0.147700, 0.479330),
        (-0.060044, -0.019913, 0.091938, 0.284102), (0.061957, 0.041565, 0.071047, 0.088148),
        -0.579046, (0.147694, -0.060044),
    ),
}  # fmt: skip
# Float32 evaluation agrees with the float64 numbers to 3e-6; they have six decimals.
RULE_ATOL = 1e-5


def variables_by_rule(net):
    """s = sin(1 + 0.7 k + 0.3 e) for parameter k in order of names, element e."""
    shapes = models.state_dict_shapes(net)
    state_dict = {}
    for k, name in enumerate(sorted(parameter_names(net))):
        shape = shapes[name]
        s = np.sin(1 + 0.7 * k + 0.3 * np.arange(math.prod(shape))).reshape(shape)
        if len(shape) > 1:
            s = s / math.sqrt(math.prod(shape[1:]))
        else:
            s = 0.1 * s if name.endswith(".bias") else 1 + 0.1 * s
        state_dict[name] = s.astype(np.float32)
    if "map_noise.freqs" in shapes:
        e = np.arange(*shapes["map_noise.freqs"])
        state_dict["map_noise.freqs"] = np.sin(1 + 0.5 * e).astype(np.float32)
    return models.from_state_dict(state_dict)


def wave(phase, *rates):
    """sum of rates times indices, plus phase, on (2, 3, 16, 16)."""
    indices = np.indices((2, 3, 16, 16))
    return phase + sum(rate * index for rate, index in zip(rates, indices, strict=True))


X = np.sin(wave(0.1, 1.3, 0.9, 0.5, 0.35))
CLASSES = np.eye(4, dtype=np.float32)[[1, 3]]
AUGMENT = np.cos(0.8 * (9 * np.arange(2)[:, None] + np.arange(9))).astype(np.float32)


@pytest.mark.parametrize("name", RULE)
def test_output_for_weights_by_rule(name):
    network, arguments, count, moments, first, last, centre, unaugmented = RULE[name]
    net = models.build(network, **COMMON, **arguments)
    assert models.param_count(net) == count
    variables = variables_by_rule(net)
    apply = jax.jit(net.apply)
    c_noise = np.array([-0.5, 0.4], np.float32)
    y = np.asarray(apply(variables, nhwc(X), c_noise, CLASSES, AUGMENT), np.float64)
    y = y.transpose(0, 3, 1, 2)
    got = [y.mean(), y.std(), *y[0, 0, 0, :4], *y[1, 2, 15, 12:], y[0, 1, 7, 7]]
    np.testing.assert_allclose(got, [*moments, *first, *last, centre], atol=RULE_ATOL, rtol=0)
    y = np.asarray(apply(variables, nhwc(X), c_noise, CLASSES), np.float64)
    np.testing.assert_allclose([y.mean(), y[0, 0, 0, 0]], unaugmented, atol=RULE_ATOL, rtol=0)


def test_denoiser_and_loss_for_weights_by_rule():
    net = models.build("SongUNet", **COMMON, model_channels=16)
    net_fn = functools.partial(jax.jit(net.apply), variables_by_rule(net))
    denoise = precond.precondition(net_fn, precond.edm_preconditioning())
    sigma = np.array([0.3, 2.0], np.float32)
    noisy = X + sigma.reshape(2, 1, 1, 1) * np.cos(wave(0.2, 0.7, 0.4, 0.9, 1.1))
    d = denoise(nhwc(noisy).astype(np.float32), sigma, CLASSES, AUGMENT)
    d = np.asarray(d, np.float64).transpose(0, 3, 1, 2)
    got = [d.mean(), d.std(), *d[0, 0, 0, :3], *d[1, 2, 15, 13:]]
    expected = [0.124306, 0.525602, 0.467915, 0.663435, 0.698441, -0.104649, -0.166021, -0.117062]
    np.testing.assert_allclose(got, expected, atol=RULE_ATOL, rtol=0)

    loss = np.asarray(noise.edm_weight(sigma)).reshape(2, 1, 1, 1) * np.square(d - X)
    np.testing.assert_allclose(loss.mean((1, 2, 3)), [0.661477, 1.767287], rtol=2e-5)
    np.testing.assert_allclose(loss.sum(), 1865.2911, rtol=2e-5)

    d = denoise(nhwc(noisy).astype(np.float32), jnp.float32(0.3))
    d = np.asarray(d, np.float64).transpose(0, 3, 1, 2)
    got = [*d[0, 0, 0, :3], d.mean()]
    np.testing.assert_allclose(got, [0.464371, 0.658207, 0.692783, 0.073428], atol=RULE_ATOL)
