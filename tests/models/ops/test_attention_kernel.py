"""Attention in one kernel: its products against float64 NumPy, and when it is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.models import blocks
from edm_jax.models.ops import attention as attention_lib
from edm_jax.models.ops import attention_kernel, target
from edm_jax.models.ops.initializers import Init

EPS = float(jnp.finfo(jnp.bfloat16).eps)
V5E = "TPU v5 lite"


def softmax_attention(x):
    """``(B, heads, 3, c, T)`` -> weights ``(B, heads, keys, queries)`` and output, in float64."""
    q, k, v = np.moveaxis(np.asarray(x, np.float64), 2, 0)
    logits = np.einsum("bhcs,bhct->bhst", k, q) / np.sqrt(q.shape[2])
    weights = np.exp(logits - logits.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    return weights, np.einsum("bhcs,bhst->bhct", v, weights)


def gradient(x, do):
    """By the chain rule through the softmax, in float64."""
    q, k, v = np.moveaxis(np.asarray(x, np.float64), 2, 0)
    p, _ = softmax_attention(x)
    dp = np.einsum("bhcs,bhct->bhst", v, do)
    dl = p * (dp - (p * dp).sum(2, keepdims=True)) / np.sqrt(q.shape[2])
    dq, dk = np.einsum("bhcs,bhst->bhct", k, dl), np.einsum("bhct,bhst->bhcs", q, dl)
    return np.stack([dq, dk, np.einsum("bhct,bhst->bhcs", do, p)], 2)


def close(got, expected, roundings=4):
    """Within so many roundings of what is of usual size; of inputs, weights, result, cotangent."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)) < roundings * EPS / 4
    atol = roundings * EPS * max(1, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def draws(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
@pytest.mark.parametrize(
    ("heads", "channels", "tokens", "logits"),
    [
        (4, 16, 64, 2**20),  # half of the lanes, all heads in a program
        (6, 16, 384, 2**20),  # three lanes of queries, two heads in a program
        (1, 32, 512, 2**16),  # four blocks of queries
        (2, 16, 256, 1),  # two blocks, as few queries as there are lanes
    ],
)
def test_value_and_gradient(heads, channels, tokens, logits, kernel, monkeypatch):
    monkeypatch.setattr(attention_kernel, "LOGITS", logits)
    x, do = draws((2, heads, 3, channels, tokens), (2, heads, channels, tokens))
    if kernel:
        o, z = attention_kernel.forward_kernel(x, interpret=True)
        dx, sums = attention_kernel.backward_kernel(x, o, z, do, interpret=True)
    else:
        o, z = attention_kernel.plain_forward(x)
        dx, sums = attention_kernel.plain_backward(x, o, z, do)
    assert o.dtype == dx.dtype == jnp.bfloat16 and z.dtype == sums.dtype == jnp.float32
    close(o, softmax_attention(x)[1])
    expected = gradient(x, np.asarray(do, np.float64))
    close(dx, expected)
    total = np.asarray(sums, np.float64).sum((0, -1))
    exact = expected.sum((0, -1))
    # Terms are rounded to half precision in the products that make them: errors add as noise.
    atol = 4 * EPS * np.sqrt(np.square(expected).sum((0, -1)).max())
    np.testing.assert_allclose(total, exact, rtol=0, atol=atol)
    # A key's bias moves all logits of a query alike: its gradient is zero.
    np.testing.assert_allclose(exact[:, 1], 0, atol=1e-9)


def test_queries_and_heads_of_a_program():
    assert [attention_kernel.block_of_queries(t) for t in (64, 128, 384, 1024, 4096)] == [
        64, 128, 384, 1024, 256,
    ]  # fmt: skip
    pairs = [(9, 256), (6, 1024), (12, 64), (1, 256), (7, 64)]
    assert [attention_kernel.heads_of_program(*pair) for pair in pairs] == [3, 1, 12, 1, 7]


def test_large_logits():
    # 2^1000 is no number; the largest logit is taken off first.
    x = jnp.stack([jnp.full((16, 128), 30), jnp.full((16, 128), 30), jnp.ones((16, 128))])
    o, _ = attention_kernel.forward_kernel(x[None, None].astype(jnp.bfloat16), interpret=True)
    np.testing.assert_array_equal(np.float32(o), 1)


def projected(x, kernel, bias):
    """`attend` by its definition, in float32."""
    qkv = jnp.einsum("btc,chid->bhidt", x, kernel) + bias[None, ..., None]
    q, k, v = (jnp.moveaxis(qkv[:, :, i], 3, 1) for i in range(3))
    return jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:2], -1)


def projection_draws():
    x, kernel, do = draws((4, 64, 32), (32, 2, 3, 16), (4, 64, 32))
    rng = np.random.default_rng(1)
    return x, jnp.float32(kernel) / 4, jnp.float32(rng.standard_normal((2, 3, 16))), do


def test_gradients_of_the_projection():
    x, kernel, bias, do = projection_draws()
    got = jax.vjp(attention_kernel.attend, x, kernel, bias)
    expected = jax.vjp(projected, jnp.float32(x), kernel, bias)
    # The kernel is rounded too, its product, and the sum with the bias.
    close(got[0], expected[0], 7)
    grads, exact = got[1](do), expected[1](jnp.float32(do))
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for one, other in zip(grads[:2], exact[:2], strict=True):
        close(one, other, 7)
    np.testing.assert_allclose(grads[2], exact[2], atol=4 * EPS * np.abs(exact[2]).max())
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(attention_kernel.attend, (x, kernel, bias), (x, kernel, bias))


def test_each_device_attends_to_its_images():
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, kernel, bias, do = projection_draws()

    def run(x, kernel, bias, do):
        out, pullback = jax.vjp(attention_kernel.attend, x, kernel, bias)
        return [out, *pullback(do)]

    expected = jax.jit(run)(x, kernel, bias, do)
    placed = (jax.device_put(x, split), kernel, bias, jax.device_put(do, split))
    program = jax.jit(target.over(mesh, run)).lower(*placed).compile()
    sent = ("all-gather", "all-to-all", "collective-permute")
    assert not any(kind in program.as_text() for kind in sent)
    for one, other in zip(program(*placed), expected, strict=True):
        close(one, other)  # gradients are added up over devices, in another order
    with target.batch_over(mesh):  # and without a program around it
        close(attention_kernel.attend(*placed[:3]), expected[0])


def test_arrays_need_not_be_placed():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    x, kernel, bias, _ = projection_draws()
    got = jax.jit(target.over(mesh, attention_kernel.attend))(x, kernel, bias)
    assert got.sharding.device_set == set(mesh.devices.flat)
    close(got, attention_kernel.attend(x, kernel, bias))


def test_the_gradient_belongs_to_the_mesh_of_the_value():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    x, kernel, bias, do = projection_draws()
    with target.batch_over(1):
        _, pullback = jax.vjp(attention_kernel.attend, x[:1], kernel, bias)
    with target.batch_over(mesh):
        got = pullback(do[:1])  # an image, which two devices cannot share
    assert got[0].shape == (1, *x.shape[1:])


def one_chip(kind, monkeypatch):
    monkeypatch.setattr(target, "device_kind", lambda: kind)


@pytest.mark.parametrize(
    ("kind", "dtype", "batch", "tokens", "channels", "devices", "taken"),
    [
        (V5E, "bfloat16", 16, 1024, 64, 1, True),
        ("TPU v6 lite", "bfloat16", 16, 64, 64, 1, True),
        ("TPU v5", "bfloat16", 1, 256, 256, 1, True),
        ("TPU v4", "bfloat16", 16, 1024, 64, 1, False),  # too little memory on the chip
        ("TPU7x", "bfloat16", 16, 1024, 64, 1, False),  # not counted by the compiler
        ("", "bfloat16", 16, 1024, 64, 1, False),  # which chip is not known
        (V5E, "float32", 16, 1024, 64, 1, False),
        (V5E, "bfloat16", 16, 16, 64, 1, False),  # few
        (V5E, "bfloat16", 16, 100, 64, 1, False),  # no whole lanes
        (V5E, "bfloat16", 16, 8192, 64, 1, False),
        (V5E, "bfloat16", 16, 1024, 24, 1, False),  # no whole rows
        (V5E, "bfloat16", 16, 1024, 64, 4, False),  # where the four are is not known
    ],
)
def test_when_it_is_taken(kind, dtype, batch, tokens, channels, devices, taken, monkeypatch):
    one_chip(kind, monkeypatch)
    with target.assumed("tpu", devices):
        assert attention_lib.in_one_kernel(dtype, batch, tokens, 6, channels) is taken
        with target.plain_forms():
            assert not attention_lib.in_one_kernel(dtype, batch, tokens, 6, channels)
    assert not attention_lib.in_one_kernel(dtype, batch, tokens, 6, channels)  # a CPU


def test_images_that_devices_cannot_share(monkeypatch):
    one_chip(V5E, monkeypatch)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    with target.assumed("tpu", mesh):
        assert attention_lib.in_one_kernel("bfloat16", 4, 64, 6, 64)
        assert not attention_lib.in_one_kernel("bfloat16", 3, 64, 6, 64)


def test_a_block_takes_it(monkeypatch):
    block = blocks.UNetBlock(32, attention=True, num_heads=2, initial=Init("xavier_uniform"))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 32), jnp.bfloat16)
    emb = jax.random.normal(jax.random.key(1), (1, 8))
    variables = block.init(jax.random.key(2), x, emb)
    some = jax.random.normal(jax.random.key(3), (32, 32)) / 6  # which is zero at the start
    variables = jax.tree.map(lambda a: a, variables)
    variables["params"]["proj"]["kernel"] = some[None, None]
    expected = block.apply(jax.tree.map(jnp.float32, variables), jnp.float32(x), emb)
    one_chip(V5E, monkeypatch)
    with target.assumed("tpu", 1):
        got = jax.jit(block.apply)(variables, x, emb)
        assert "attention_forward" in str(jax.make_jaxpr(block.apply)(variables, x, emb))
        fresh = jax.eval_shape(block.init, jax.random.key(2), x, emb)
    close(got, expected, 12)  # as those of the convolutions and norms
    assert jax.tree.structure(fresh) == jax.tree.structure(block.init(jax.random.key(2), x, emb))


def test_it_is_tried_before_it_is_trusted(monkeypatch):
    one_chip(V5E, monkeypatch)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    attention_lib.tpu_kernel_works.cache_clear()
    with target.assumed("tpu", 1):
        with pytest.warns(UserWarning, match="attention without the kernel for TPUs: "):
            assert not attention_lib.in_one_kernel("bfloat16", 2, 64, 2, 16)  # there is no TPU
        attention_lib.tpu_kernel_works.cache_clear()
        real = attention_lib._relative_error
        monkeypatch.setattr(
            attention_lib, "_relative_error", lambda *given: real(*given[:3], "cpu")
        )
        assert attention_lib.in_one_kernel("bfloat16", 2, 64, 2, 16)
        attention_lib.tpu_kernel_works.cache_clear()
        # As in a step that many devices share, while it is traced.
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
        taken = []
        with target.batch_over(mesh):
            jax.eval_shape(
                lambda: taken.append(attention_lib.in_one_kernel("bfloat16", 2, 64, 2, 16))
            )
        assert taken == [True]
        attention_lib.tpu_kernel_works.cache_clear()
        monkeypatch.setattr(attention_lib, "_relative_error", lambda *_: 0.1)
        with pytest.warns(UserWarning, match=r"kernel for TPUs: for \(64, 2, 16\) .* off by 0\.1"):
            assert not attention_lib.in_one_kernel("bfloat16", 2, 64, 2, 16)
    attention_lib.tpu_kernel_works.cache_clear()
