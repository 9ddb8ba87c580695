"""Attention: which kernel is taken, and that it is checked before it is trusted."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.models import blocks
from edm_jax.models.ops import attention as attention_lib
from edm_jax.models.ops import target
from edm_jax.models.ops.attention import attention, cudnn_works
from edm_jax.models.ops.initializers import Init

SHAPE = (16, 2, 8)
CUDA = jax.default_backend() == "gpu"


def _qkv(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((3, *SHAPE)), dtype) for _ in range(3)]


def _softmax_attention(q, k, v):
    """In float64 NumPy."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhc->bqhc", weights / weights.sum(-1, keepdims=True), v)


def test_a_head_at_a_time(monkeypatch):
    # As TPUs take many tokens; 16 are many here.
    monkeypatch.setattr(attention_lib, "TPU_TOKENS_BY_HEAD", SHAPE[0])
    q, k, v = _qkv("bfloat16")
    cotangent = _qkv("bfloat16", 1)[0]

    @jax.jit
    def run(q, k, v, cotangent):
        out, pullback = jax.vjp(attention, q, k, v)
        return [out, *pullback(cotangent)]

    with target.assumed("tpu"):
        products = str(jax.make_jaxpr(attention)(q, k, v)).count("dot_general")
        assert products == 2 * SHAPE[1]  # two of each head
        got = run(q, k, v, cotangent)
    assert {x.dtype for x in got} == {jnp.dtype("bfloat16")}
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    out, pullback = jax.vjp(jax.nn.dot_product_attention, *wide)
    np.testing.assert_allclose(out, _softmax_attention(*wide), atol=1e-5)  # float32
    # A few roundings of products, weights and results; gradients add up those of 16 tokens.
    expected = [out, *pullback(cotangent.astype(jnp.float32))]
    for one, other in zip(got, expected, strict=True):
        atol = 4 * float(jnp.finfo(jnp.bfloat16).eps) * max(1, float(jnp.abs(other).max()))
        np.testing.assert_allclose(np.float64(one), other, atol=atol)


@pytest.mark.parametrize(
    ("batch", "devices", "groups"),
    # At most 16 images of a device at once, else groups of 8 of them, no more than 8 groups.
    [(16, 1, 1), (256, 16, 1), (24, 1, 3), (32, 1, 4), (64, 1, 8), (64, 2, 4), (64, 4, 1)]
    + [(17, 1, 1), (34, 1, 2), (40, 2, 4), (1024, 1, 8), (1, 1, 1), (1, 4, 1), (0, 1, 1)]
    + [(66, 4, 1)],  # not the same for every device
)
def test_groups_of_images_whose_logits_stay_on_the_chip(batch, devices, groups):
    q, k, v = (jax.ShapeDtypeStruct((batch, 4, 1, 2), jnp.bfloat16) for _ in range(3))
    with target.assumed("tpu", devices):
        program = str(jax.make_jaxpr(lambda *qkv: attention_lib.by_head(*qkv))(q, k, v))
    assert program.count("dot_general") == 2 * groups  # a head has two


def test_groups_are_taken_where_their_images_are():
    """Each device attends to its own images: nothing is sent, and the result is that of all."""
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rng = np.random.default_rng(0)
    qkv = [jnp.asarray(rng.standard_normal((64, 5, 2, 4)), jnp.bfloat16) for _ in range(3)]

    def of_two(devices):
        def run(q, k, v):
            out, pullback = jax.vjp(attention_lib.by_head, q, k, v)
            return [out, *pullback(out)]

        placed = jax.device_put(qkv, split) if devices == 2 else qkv
        with target.assumed("tpu", devices):
            return jax.jit(run).lower(*placed).compile(), placed

    program, placed = of_two(2)
    sent = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    assert not any(kind in program.as_text() for kind in sent)
    whole, _ = of_two(64)  # an image of each: no groups
    for one, other in zip(program(*placed), whole(*qkv), strict=True):
        assert one.sharding.is_equivalent_to(split, one.ndim)
        # The same products of the same numbers; sums may be taken in another order.
        atol = 2 * float(jnp.finfo(jnp.bfloat16).eps) * max(1, float(jnp.abs(other).max()))
        np.testing.assert_allclose(np.float64(one), np.float64(other), rtol=0, atol=atol)


def test_directional_derivatives_a_head_at_a_time():
    # Exact divergences and curvatures go forwards.
    qkv, directions = _qkv("bfloat16"), _qkv("bfloat16", 1)
    out, change = jax.jvp(attention_lib.by_head, qkv, directions)
    wide, along = ([x.astype(jnp.float32) for x in some] for some in (qkv, directions))
    expected = jax.jvp(jax.nn.dot_product_attention, wide, along)
    for one, other in zip((out, change), expected, strict=True):
        atol = 4 * float(jnp.finfo(jnp.bfloat16).eps) * max(1, float(jnp.abs(other).max()))
        np.testing.assert_allclose(np.float64(one), other, atol=atol)  # as above


@pytest.mark.parametrize("tokens", [SHAPE[0], SHAPE[0] + 1])
def test_queries_keys_and_values_in_either_order_of_axes(tokens, monkeypatch):
    monkeypatch.setattr(attention_lib, "TPU_TOKENS_BY_HEAD", SHAPE[0] + 1)
    layer = blocks.QKV(heads=2, initial=Init())
    x = jax.random.normal(jax.random.key(0), (3, tokens, 8), jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x)
    bias = jnp.arange(24, dtype=jnp.float32) / 8
    variables = {"params": {**variables["params"], "bias": bias}}
    with target.assumed("tpu"):
        got = layer.apply(variables, x)
    kernel = np.float64(variables["params"]["kernel"].unbox()[0, 0].astype(x.dtype))
    # Stored as (head, channel of the head, q/k/v), the last fastest.
    expected = (np.float64(x) @ kernel + np.float64(bias)).reshape(3, tokens, 2, 4, 3)
    for i, one in enumerate(got):
        assert one.shape == (3, tokens, 2, 4)
        eps = float(jnp.finfo(jnp.bfloat16).eps)
        np.testing.assert_allclose(np.float64(one), expected[..., i], rtol=2 * eps, atol=4 * eps)


def test_large_logits_a_head_at_a_time():
    # exp(1000) is no number; the largest logit is taken off first.
    q = jnp.full((1, 4, 1, 2), 30, jnp.bfloat16)
    v = jnp.arange(8, dtype=jnp.bfloat16).reshape(1, 4, 1, 2)
    np.testing.assert_allclose(
        np.float64(attention_lib.by_head(q, q, v)[0, :, 0]), [[3, 4]] * 4, rtol=0.01
    )


def test_divided_last_exact_in_double_precision(x64):
    """Value, gradients and directional derivatives are those of the plain form."""
    rng = np.random.default_rng(0)
    draws = [rng.standard_normal((2, 6, 3, 4)) for _ in range(7)]
    arguments, tangents, cotangent = tuple(draws[:3]), tuple(draws[3:6]), draws[6]
    got, expected = [], []
    for attend, results in (
        (attention_lib.divided_last, got),
        (jax.nn.dot_product_attention, expected),
    ):
        results += jax.jvp(attend, arguments, tangents)
        results += jax.vjp(attend, *arguments)[1](cotangent)
    assert got[0].dtype == jnp.float64
    np.testing.assert_allclose(got[0], _softmax_attention(*arguments), rtol=0, atol=1e-14)
    # JAX's own keeps logits and softmax in float32.
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_gradient_divided_last_is_the_derivative(x64):
    rng = np.random.default_rng(1)
    q, k, v, cotangent, *steps = (rng.standard_normal((1, 5, 2, 3)) for _ in range(7))
    grads = jax.vjp(attention_lib.divided_last, q, k, v)[1](cotangent)
    predicted = sum(np.vdot(g, step) for g, step in zip(grads, steps, strict=True))

    def value(t):
        moved = (x + t * step for x, step in zip((q, k, v), steps, strict=True))
        return np.vdot(cotangent, _softmax_attention(*moved))

    # A central difference: an error of t^2 third derivatives, rounding 1e-16 / t.
    t = 1e-5
    np.testing.assert_allclose(predicted, (value(t) - value(-t)) / (2 * t), rtol=1e-8)


def test_large_logits_divided_last():
    # exp of a million is no number; the largest logit is taken off first.
    large = jnp.full((1, 4, 1, 2), 1000, jnp.float32)
    v = jnp.arange(8, dtype=jnp.float32).reshape(1, 4, 1, 2)
    got = attention_lib.divided_last(large, large, v)
    np.testing.assert_array_equal(got[0, :, 0], [[3, 4]] * 4)


@pytest.mark.parametrize(
    ("platform", "dtype", "last"),
    [("cpu", "float32", True), ("cpu", "bfloat16", False), ("tpu", "float32", False)],
)
def test_divided_last_on_cpus(platform, dtype, last):
    with target.assumed(platform):
        program = jax.make_jaxpr(lambda *qkv: attention(*qkv))(*_qkv(dtype))
    assert ("stored" in str(program)) is last


@pytest.fixture
def on_gpu(monkeypatch):
    """A machine whose first device is a GPU, as far as the choice of the kernel goes."""
    cudnn_works.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    yield monkeypatch
    cudnn_works.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_equals_the_definition(dtype):
    q, k, v = _qkv(dtype)
    got = jax.jit(attention)(q, k, v)
    assert got.dtype == dtype
    # A few roundings of the products, the weights and the result.
    atol = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(got), _softmax_attention(q, k, v), atol=atol)


@pytest.mark.skipif(CUDA, reason="here the kernel exists")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_without_the_kernel_the_plain_one_is_taken_and_said_once(dtype, on_gpu):
    q, k, v = _qkv(dtype)
    with pytest.warns(UserWarning, match="without cuDNN") as caught:
        first = jax.jit(lambda *qkv: attention(*qkv))(q, k, v)  # asked for while tracing
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = attention(q, k, v)
    on_gpu.undo()
    np.testing.assert_allclose(np.float64(first), np.float64(attention(q, k, v)))
    np.testing.assert_allclose(np.float64(first), np.float64(second), atol=2e-2)


def test_a_kernel_is_compared_with_float32(on_gpu):
    real = attention_lib._relative_error
    plain = jax.nn.dot_product_attention
    on_gpu.setattr(attention_lib, "_relative_error", lambda _, s, d, __: real(plain, s, d, "cpu"))
    assert cudnn_works(SHAPE, "bfloat16")  # the plain one is accurate
    cudnn_works.cache_clear()
    on_gpu.setattr(attention_lib, "_relative_error", lambda *_: 0.1)
    with pytest.warns(UserWarning, match=r"off by 0\.1 relative"):
        assert not cudnn_works(SHAPE, "bfloat16")
    on_gpu.setattr(attention_lib, "_relative_error", lambda *_: float("nan"))
    with pytest.warns(UserWarning, match="off by nan"):
        assert not cudnn_works((8, 1, 8), "bfloat16")
    on_gpu.setattr(attention_lib, "_relative_error", lambda *_: 1 / 0)
    assert not cudnn_works((8, 1, 12), "bfloat16")  # never tried: 12 is no multiple of 8


@pytest.mark.skipif(not CUDA, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cudnn_is_taken_on_a_gpu(dtype):
    shape = (256, 4, 64)
    assert cudnn_works(shape, dtype)
    q = jnp.ones((2, *shape), dtype)
    assert "fmha" in jax.jit(attention).lower(q, q, q).compile().as_text()
