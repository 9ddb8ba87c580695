"""Single layers against arrays of an independent implementation (golden 04_layers)."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import models
from edm_jax.models import blocks, names
from edm_jax.models.ops import initializers, layers, resample, target
from tests.support.models_golden import GOLDEN, assert_close, nhwc

ARCHIVE = np.load(GOLDEN / "04_layers.npz")
CONVS = sorted({k.split("/")[1] for k in ARCHIVE.files if k.startswith("conv2d/")})
NORMS = sorted({k.split("/")[1] for k in ARCHIVE.files if k.startswith("groupnorm/")})
BLOCKS = sorted({k.split("/")[1] for k in ARCHIVE.files if k.startswith("unetblock/")})
TAPS = {"f2": (1, 1), "f4": (1, 3, 3, 1)}


@pytest.mark.parametrize("case", CONVS)
def test_convolution(case):
    taps, kernel, *rest = case.split("-")
    arrays = {k: ARCHIVE[f"conv2d/{case}/{k}"] for k in ("x", "y")}
    layer = layers.Conv2d(
        features=arrays["y"].shape[1],
        kernel_size=int(kernel[1:]),
        up="up" in rest,
        down="down" in rest,
        resample_filter=TAPS[taps],
        fused_resample="fused" in rest,
    )
    variables = {}
    if layer.kernel_size:
        weight, bias = (ARCHIVE[f"conv2d/{case}/{k}"] for k in ("weight", "bias"))
        variables = {"params": {"kernel": names.to_flax_layout(weight), "bias": bias}}
    # Float32 against float64 is 7e-7 here.
    y = jax.jit(layer.apply)(variables, nhwc(arrays["x"]))
    assert_close(y, nhwc(arrays["y"]), atol=1e-5)


def transposed_convolution(x, taps, padding):
    """Up-sampling by definition: every pixel adds its multiple of the filter, gain 4."""
    kernel = 4 * np.outer(taps, taps) / np.sum(taps) ** 2
    size, (_, height, width, _) = len(taps), x.shape
    full = np.zeros((x.shape[0], 2 * height - 2 + size, 2 * width - 2 + size, x.shape[3]))
    for i in range(height):
        for j in range(width):
            patch = kernel[None, :, :, None] * x[:, i, j][:, None, None, :]
            full[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size] += patch
    return full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]


def strided_convolution(x, taps, padding):
    """Down-sampling by definition: the filter at every second pixel."""
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = len(taps)
    rows, columns = ((n - size) // 2 + 1 for n in x.shape[1:3])
    y = np.zeros((x.shape[0], rows, columns, x.shape[3]))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size]
            y[:, i, j] = (kernel[None, :, :, None] * patch).sum((1, 2))
    return y


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # box filters have a form for TPUs
@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 1), (3, 1), (1, 0, -2, 5, 4, 1)])
@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 7, 9, 2)])
def test_resampling_by_definition(taps, shape, platform):
    # Asymmetric filters tell a correlation from a convolution; odd sizes the end points.
    x = np.random.default_rng(0).standard_normal(shape)
    paddings = (0, (len(taps) - 1) // 2)

    @jax.jit
    def run(x):
        functions = (resample.upsample, resample.downsample)
        return [[f(x, taps, padding) for f in functions] for padding in paddings]

    with target.assumed(platform):
        results = run(x.astype(np.float32))
    for padding, (up, down) in zip(paddings, results, strict=True):
        np.testing.assert_allclose(up, transposed_convolution(x, taps, padding), atol=2e-6)
        np.testing.assert_allclose(down, strided_convolution(x, taps, padding), atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resampling_on_tpus(dtype):
    # The two are transposes of each other but for a factor of 4.
    rng = np.random.default_rng(0)
    small, large = (jnp.asarray(rng.standard_normal((2, n, n, 3)), dtype) for n in (4, 8))

    @jax.jit
    def run(small, large):
        up, to_small = jax.vjp(lambda x: resample.upsample(x, (1, 1)), small)
        down, to_large = jax.vjp(lambda x: resample.downsample(x, (1, 1)), large)
        return up, down, to_small(large)[0], to_large(small)[0]

    with target.assumed("tpu"):
        assert "reduce_window" in str(jax.make_jaxpr(run)(small, large))
        up, down, to_small, to_large = run(small, large)
    repeated = np.repeat(np.repeat(np.float64(small), 2, 1), 2, 2)
    mean = np.float64(large).reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    assert {up.dtype, down.dtype, to_small.dtype, to_large.dtype} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(np.float64(up), repeated)
    np.testing.assert_array_equal(np.float64(to_large), repeated / 4)
    # A rounding of the result, and in float32 those of three sums.
    tol = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(down), mean, atol=tol)
    np.testing.assert_allclose(np.float64(to_small), 4 * mean, atol=4 * tol)


def test_resampling_sums_in_float32():
    # One million + 1 + 1 + 1 keeps its units; bfloat16 sums would lose them.
    x = jnp.full((1, 2, 2, 1), 1.0078125, jnp.bfloat16)
    y = resample.downsample(x, (1, 1))
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0, 0]) == 1.0078125


@pytest.mark.parametrize("case", NORMS)
def test_group_norm(case):
    arrays = {
        k: ARCHIVE[f"groupnorm/{case}/{k}"]
        for k in ("x", "y", "weight", "bias", "eps", "num_groups")
    }
    channels = arrays["x"].shape[1]
    assert layers.num_groups(channels) == arrays["num_groups"]
    variables = {"params": {"scale": arrays["weight"], "bias": arrays["bias"]}}
    norm = layers.GroupNorm(float(arrays["eps"]))
    y = jax.jit(norm.apply)(variables, nhwc(arrays["x"]))
    assert_close(y, nhwc(arrays["y"]), atol=1e-5)


def test_group_norm_of_images_far_from_zero():
    # mean/std = 1e3: a variance from sums of squares would be all rounding (1e6 * 6e-8).
    x = 1000 + np.random.default_rng(0).standard_normal((2, 8, 8, 16))
    grouped = x.astype(np.float32).astype(np.float64).reshape(2, -1, 4, 4)
    expected = grouped - grouped.mean((1, 3), keepdims=True)
    expected /= np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    variables = {"params": {"scale": jnp.ones(16), "bias": jnp.zeros(16)}}
    y = jax.jit(layers.GroupNorm(1e-5).apply)(variables, x.astype(np.float32))
    # The mean is known to 1000 * 6e-8.
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=5e-4)


def test_group_norm_with_its_surroundings():
    rng = np.random.default_rng(0)
    x, shift, a, b = (rng.standard_normal(s).astype(np.float32) for s in
                      [(2, 4, 4, 8), (2, 8), (2, 8), (1, 8)])  # fmt: skip
    scale, bias = 1 + 0.1 * rng.standard_normal((2, 8)).astype(np.float32)
    variables = {"params": {"scale": scale, "bias": bias}}
    norm = layers.GroupNorm(1e-6)

    def wide(v):
        return v[:, None, None, :]

    @jax.jit
    def run(x, shift, a, b):
        modulated = jax.nn.silu(norm.apply(variables, x) * (1 + wide(a)) + wide(b))
        return (
            (norm.apply(variables, x, shift=shift), norm.apply(variables, x + wide(shift))),
            (layers.GroupNorm(1e-6, silu=True).apply(variables, x, modulation=(a, b)), modulated),
        )

    for fused, apart in run(x, shift, a, b):
        np.testing.assert_allclose(fused, apart, atol=2e-6)


def test_group_norm_of_joined_parts():
    rng = np.random.default_rng(2)
    parts = tuple(rng.standard_normal((2, 4, 4, c)).astype(np.float32) for c in (4, 20, 8))
    x = np.concatenate(parts, -1)  # groups of four channels, and more that cross a seam
    variables = {"params": {"scale": jnp.ones(32), "bias": jnp.zeros(32)}}
    norm = layers.GroupNorm(1e-5, groups=2)
    together = jax.jit(norm.apply)(variables, x)
    # The same sums of each channel, in one order or another.
    of_parts = jax.jit(norm.apply)(variables, x, parts=parts)
    np.testing.assert_allclose(of_parts, together, atol=2e-6)
    grouped = x.astype(np.float64).reshape(2, 16, 2, 16)
    expected = grouped - grouped.mean((1, 3), keepdims=True)
    expected /= np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(together, expected.reshape(x.shape), atol=5e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("ratio", [0, 3, 30, 300])
def test_moments_of_half_precision_in_one_pass(dtype, ratio):
    """They are as good as the numbers: rounding of these moves the variance by as much."""
    exact = ratio + np.random.default_rng(3).standard_normal((4, 16, 16, 32))
    x = exact.astype(jnp.dtype(dtype)).astype(np.float32)
    moments = jax.jit(lambda x: layers.channel_moments(x, once=True))
    mean, var = moments(x)
    wide = np.asarray(x, np.float64)
    square = 1 + ratio**2
    # Sums of 256 numbers, in float32: two units of rounding of the mean square.
    np.testing.assert_allclose(mean, wide.mean((1, 2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(var, wide.var((1, 2)), atol=4 * 2**-24 * square)
    assert (np.asarray(var) >= 0).all()
    # The variance that rounding adds: a twelfth of the square of the spacing of the numbers.
    spacing = float(jnp.finfo(dtype).eps) * 2.0 ** math.floor(math.log2(max(ratio, 1)))
    if dtype == "bfloat16" and ratio >= 3:
        assert 4 * 2**-24 * square < spacing**2 / 12
    # None of it is negative, or not a number, of a constant channel.
    constant = moments(np.full((1, 8, 8, 2), ratio + 0.1, np.float32))[1]
    assert (np.asarray(constant) >= 0).all()


def test_the_gradient_of_moments_is_that_of_two_passes():
    x = jnp.asarray(np.random.default_rng(4).standard_normal((2, 4, 4, 3)) + 2, jnp.float32)

    def total(x, once):
        mean, var = layers.channel_moments(x, once)
        return jnp.sum(jnp.sin(mean) + var**1.5)

    first, second = jax.jit(lambda x: [jax.grad(total)(x, once) for once in (True, False)])(x)
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_gradient_of_group_norm():
    rng = np.random.default_rng(1)
    x, shift, weight = (rng.standard_normal(s) for s in [(2, 3, 3, 8), (2, 8), (2, 3, 3, 8)])
    variables = {"params": {"scale": jnp.linspace(0.5, 2, 8), "bias": jnp.linspace(-1, 1, 8)}}

    def plain(x, shift, params):
        y = (x + shift[:, None, None]).reshape(2, 9, 2, 4)
        y = y - y.mean((1, 3), keepdims=True)
        y = y / jnp.sqrt(jnp.square(y).mean((1, 3), keepdims=True) + 1e-5)
        y = y.reshape(x.shape)
        y = y * params["scale"].reshape(1, 1, 1, 8) + params["bias"].reshape(1, 1, 1, 8)
        return jnp.sum(jax.nn.silu(y) * weight)

    def ours(x, shift, params):
        norm = layers.GroupNorm(1e-5, silu=True)
        return jnp.sum(norm.apply({"params": params}, x, shift=shift) * weight)

    arguments = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), (x, shift, variables["params"]))
    found, expected = jax.jit(lambda *a: [jax.grad(f, (0, 1, 2))(*a) for f in (ours, plain)])(
        *arguments
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("case", ["C16-noendpoint-max10000", "C16-endpoint-max10000",
                                  "C8-endpoint-max100"])  # fmt: skip
def test_positional_embedding(case):
    channels, endpoint, positions = case.split("-")
    layer = layers.PositionalEmbedding(
        int(channels[1:]), float(positions[3:]), endpoint == "endpoint"
    )
    x, y = (ARCHIVE[f"pos_embedding/{case}/{k}"] for k in "xy")
    # Phases up to 1000 radians carry a float32 error of 6e-5.
    assert_close(jax.jit(layer.apply)({}, x), y, atol=2e-4)


def test_positional_embedding_of_a_published_value():
    # Section 11.1 of the specification.
    expected = {
        True: [-0.801144, 0.993275, 0.999986, 1.0, 0.598472, 0.115779, 0.005386, 0.000250],
        False: [-0.801144, 0.968912, 0.999688, 0.999997, 0.598472, 0.247404, 0.024997, 0.002500],
    }
    for endpoint, values in expected.items():
        layer = layers.PositionalEmbedding(8, endpoint=endpoint)
        np.testing.assert_allclose(layer.apply({}, jnp.array([2.5]))[0], values, atol=1e-6)


def test_fourier_embedding():
    freqs, x, y = (ARCHIVE[f"fourier_embedding/{k}"] for k in ("freqs", "x", "y"))
    layer = layers.FourierEmbedding(2 * len(freqs))
    # Phases of hundreds of radians carry a float32 error of 5e-5.
    assert_close(layer.apply({"buffers": {"freqs": freqs}}, x), y, atol=2e-4)


def test_linear():
    weight, bias, x, y = (ARCHIVE[f"linear/{k}"] for k in ("weight", "bias", "x", "y"))
    variables = {"params": {"kernel": weight.T, "bias": bias}}
    assert_close(layers.Linear(7).apply(variables, x), y, atol=1e-5)


def attention_weights(q, k):
    """w (.., query, key) of q, k (.., channels, positions), through the API the blocks call.

    With the identity as values the output is the weights; queries and keys get zeros up
    to the number of positions, which change no logit, and the scale of their true size.
    """
    channels, positions = q.shape[1:]
    pad = ((0, 0), (0, 0), (0, positions - channels))
    q, k = (jnp.pad(v.transpose(0, 2, 1), pad)[:, :, None] for v in (q, k))
    v = jnp.broadcast_to(jnp.eye(positions, dtype=q.dtype), (len(q), positions, positions))
    w = jax.nn.dot_product_attention(q, k, v[:, :, None], scale=1 / math.sqrt(channels))
    return w[:, :, 0]


def test_attention_weights_and_gradients():
    q, k, w, weight, dq, dk = (ARCHIVE[f"attention/{n}"] for n in ("q", "k", "w", "R", "dq", "dk"))

    @jax.jit
    def run(q, k):
        total = lambda q, k: jnp.sum(attention_weights(q, k) * weight)  # noqa: E731
        return attention_weights(q, k), jax.grad(total, (0, 1))(q, k)

    found, grads = run(q, k)
    assert_close(found, w, atol=1e-6)
    assert_close(grads[0], dq, atol=1e-6)
    assert_close(grads[1], dk, atol=1e-6)


@pytest.mark.parametrize("dtype, bits", [("bfloat16", 8), ("float16", 11)])
def test_attention_softmax_is_float32_for_half_precision(dtype, bits):
    # Logits up to 60: rounded to bfloat16 they would be wrong by 0.1, the weights by 10 %.
    # What remains is the rounding of the result, 2**-bits relative.
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(6 * rng.standard_normal((3, 6, 10)), dtype) for _ in range(2))
    wide_q, wide_k = (np.asarray(v, np.float64) for v in (q, k))
    logits = np.einsum("bcq,bck->bqk", wide_q, wide_k) / math.sqrt(6)
    assert np.abs(logits).max() > 40
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    got = np.asarray(attention_weights(q, k), np.float64)
    # float16 has no normal numbers below 6e-5.
    np.testing.assert_allclose(got, expected, rtol=2.0**-bits, atol=1e-7)


def block_and_variables(case):
    config = json.loads(str(ARCHIVE[f"unetblock/{case}/config"]))
    for name in ("in_channels", "emb_channels"):  # ours takes them from its inputs
        config.pop(name)
    if "resample_filter" in config:
        config["resample_filter"] = tuple(config["resample_filter"])
    block = blocks.UNetBlock(**config)
    prefix = f"unetblock/{case}/params/"
    state_dict = {
        "block." + k.removeprefix(prefix): ARCHIVE[k] for k in ARCHIVE.files if k.startswith(prefix)
    }
    return block, {"params": names.from_state_dict(state_dict)["params"]["block"]}


@pytest.mark.parametrize("case", BLOCKS)
def test_block(case):
    block, variables = block_and_variables(case)
    assert block.heads == ARCHIVE[f"unetblock/{case}/num_heads"]
    x, emb, y = (ARCHIVE[f"unetblock/{case}/{k}"] for k in ("x", "emb", "y"))
    out, state = jax.jit(
        lambda variables, x: block.apply(
            variables, x, emb, capture_intermediates=True, mutable="intermediates"
        )
    )(variables, nhwc(x))
    assert_close(out, nhwc(y))

    acts = {k.split("/")[-1]: ARCHIVE[k] for k in ARCHIVE.files
            if k.startswith(f"unetblock/{case}/act/")}  # fmt: skip
    assert set(variables["params"]) <= set(acts)
    for name, expected in acts.items():
        (actual,) = state["intermediates"][name]["__call__"]
        if name == "affine":
            actual = actual[:1]
        elif name == "qkv":
            # Ours are three arrays (B, T, heads, c); theirs is interleaved.
            interleaved = jnp.stack(actual, -1).reshape(len(x), *x.shape[2:], -1)
            height, width = expected.shape[2:]
            actual = interleaved.reshape(len(x), height, width, -1)[:1]
            expected = nhwc(expected)
        else:
            actual, expected = actual[:1], nhwc(expected)
        if name == "norm0":
            expected = jax.nn.silu(expected)
        if name == "norm1" and not block.adaptive_scale:
            expected = jax.nn.silu(expected)
        if name == "norm1" and block.adaptive_scale:
            scale, shift = np.split(acts["affine"][:, None, None, :], 2, axis=-1)
            expected = jax.nn.silu(expected * (1 + scale) + shift)
        assert_close(actual, expected, err_msg=name)


@pytest.mark.parametrize("row", range(12))
def test_distribution_of_initial_weights(row):
    mode, fan_in, fan_out, std, kurtosis, absmax = (
        ARCHIVE[f"weight_init/{k}"][row]
        for k in ("mode", "fan_in", "fan_out", "std_theory", "kurtosis", "absmax")
    )
    n = 200_000
    init = initializers.weight_init(str(mode), int(fan_in), int(fan_out), gain=1.0)
    draw = np.asarray(jax.jit(lambda key: init(key, (n,), jnp.float32))(jax.random.key(row)), float)
    # Six standard errors of a mean, a standard deviation (at most 0.71/sqrt(n) relative)
    # and a kurtosis (at most 5/sqrt(n), measured for the normal, plus that of the golden).
    assert abs(draw.mean()) < 6 * std / math.sqrt(n)
    np.testing.assert_allclose(draw.std(), std, rtol=6 * 0.71 / math.sqrt(n))
    np.testing.assert_allclose(np.mean(draw**4) / draw.var() ** 2, kurtosis, atol=0.1)
    if mode.endswith("uniform"):
        np.testing.assert_allclose(np.abs(draw).max(), absmax, rtol=1e-3)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_initial_values_of_every_parameter(name):
    config = json.loads(str(ARCHIVE[f"init/{name}/config"]))
    net = models.build("DhariwalUNet" if name == "adm" else "SongUNet", **config)
    draws = 8
    keys = jax.vmap(jax.random.key)(np.arange(draws))
    drawn = jax.jit(jax.vmap(lambda key: models.init_variables(net, key)))(keys)
    state_dicts = [
        models.to_state_dict(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], drawn))
        for i in range(draws)
    ]
    arrays = {k: ARCHIVE[f"init/{name}/{k}"] for k in ("names", "numel", "rms", "absmax")}
    assert set(arrays["names"]) == set(state_dicts[0])
    for key, numel, rms, absmax in zip(*arrays.values(), strict=True):
        values = np.stack([s[key] for s in state_dicts]).astype(np.float64)
        assert values[0].size == numel
        if rms == 0 or absmax == 1:  # zeros, and the ones of norms
            np.testing.assert_array_equal(values, absmax)
            continue
        # Six standard errors of the rms, 0.71 sqrt(1/n) at most, of both samples (the
        # golden one has 40 draws).
        error = 6 * 0.71 * math.sqrt((1 / draws + 1 / 40) / numel)
        np.testing.assert_allclose(math.sqrt(np.mean(values**2)), rms, rtol=error, err_msg=key)
        if numel >= 1000:  # enough to reach the bound, if there is one
            bounded = absmax < 2 * rms
            ratio = np.abs(values).max() / rms
            assert (ratio < 1.75) if bounded else (ratio > 3), key


def test_unknown_initial_distribution():
    with pytest.raises(ValueError, match="xavier_uniform"):
        initializers.weight_init("lecun", 1, 1)


def test_bad_layers():
    x = jnp.zeros((1, 4, 4, 8))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="up or down"):
        layers.Conv2d(8, 3, up=True, down=True).init(key, x)
    with pytest.raises(ValueError, match="features=4"):
        layers.Conv2d(4, 0, down=True).init(key, x)
    for channels in (3, 18, 132):
        with pytest.raises(ValueError, match=f"{channels} channels"):
            layers.num_groups(channels)
    with pytest.raises(ValueError, match="must divide 8 channels"):
        blocks.UNetBlock(8, attention=True, num_heads=3).init(key, x, jnp.zeros((1, 4)))


def test_parameters_are_cast_to_the_activation():
    x = jnp.ones((1, 4, 4, 8), jnp.bfloat16)
    layer = layers.Conv2d(8, 3)
    variables = nn.meta.unbox(layer.init(jax.random.key(0), x))
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert layer.apply(variables, x).dtype == jnp.bfloat16


def test_derivatives_of_silu_and_moments():
    # Their own rules against those of the formulas, forward, reverse and twice.
    x = np.linspace(-30, 30, 241, dtype=np.float32)
    dx = np.cos(x)

    # 30, the largest x, times two roundings of a sigmoid near 1.
    first = [jax.jvp(f, (x,), (dx,)) for f in (layers.silu, jax.nn.silu)]
    np.testing.assert_allclose(*first, atol=4e-6)
    second = [jax.jit(jax.vmap(jax.grad(jax.grad(f))))(x) for f in (layers.silu, jax.nn.silu)]
    np.testing.assert_allclose(*second, atol=4e-6)

    def plain(x):
        mean = x.mean((1, 2), keepdims=True)
        return mean[:, 0, 0], jnp.square(x - mean).mean((1, 2))

    rng = np.random.default_rng(0)
    x, v, w = (rng.standard_normal((2, 3, 4, 5)).astype(np.float32) for _ in range(3))

    @jax.jit
    def of_moments(x, v, w):
        def derivatives(moments):
            grad = jax.grad(lambda x: sum(jnp.sum(jnp.sin(m)) for m in moments(x)))
            hessian = jax.jvp(grad, (x,), (v,))
            return moments(x), *hessian, jax.grad(lambda x: jnp.vdot(grad(x), w))(x)

        return [derivatives(f) for f in (layers.channel_moments, plain)]

    ours, theirs = of_moments(x + 3, v, w)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


BIASED_BLOCKS = {
    "plain": {},
    "skip": {"out_channels": 16},
    "down": {"down": True},
    "up": {"up": True, "resample_proj": True},
    "padded": {"up": True, "resample_filter": (1, 3, 3, 1)},  # constants do not stay constant
    "attention": {"attention": True, "num_heads": 2, "adaptive_scale": False, "skip_scale": 0.5},
}


@pytest.mark.parametrize("name", BIASED_BLOCKS)
def test_biases_apart_make_the_same_block(name, x64):
    """Value and gradients in double precision, of parts that lack a bias of their own."""
    settings = {"out_channels": 8} | BIASED_BLOCKS[name]
    whole = blocks.UNetBlock(**settings)
    apart = blocks.UNetBlock(**settings, biases_apart=True)
    rng = np.random.default_rng(0)
    x, skip = (jnp.asarray(rng.standard_normal((2, 6, 6, 4))) for _ in range(2))
    bias = jnp.asarray(rng.standard_normal(4))
    emb = jnp.asarray(rng.standard_normal((1, 5)))
    variables = whole.init(jax.random.key(0), (x, skip), emb)
    leaves, structure = jax.tree.flatten(variables)
    leaves = [jnp.asarray(rng.standard_normal(leaf.shape)) for leaf in leaves]  # no zeros
    variables = jax.tree.unflatten(structure, leaves)

    def of_whole(variables, x, bias):
        return whole.apply(variables, (x + bias.reshape(1, 1, 1, -1), skip), emb)

    def of_apart(variables, x, bias):
        out = apart.apply(variables, (layers.Biased(x, bias), skip), emb)
        assert isinstance(out, layers.Biased) and out.bias.shape == out.x.shape[-1:]
        return layers.joined(out)

    got, pullback = jax.vjp(of_apart, variables, x, bias)
    expected, other = jax.vjp(of_whole, variables, x, bias)
    cotangent = jnp.asarray(rng.standard_normal(got.shape))
    # Norms take statistics in float32, so the two differ by its rounding.
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for one, two in zip(
        jax.tree.leaves(pullback(cotangent)), jax.tree.leaves(other(cotangent)), strict=True
    ):
        size = max(np.abs(two).max(), 1.0)
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-4 * size)
