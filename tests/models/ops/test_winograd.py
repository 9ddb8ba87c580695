"""3x3 convolutions by fewer products: the same numbers, where they are worth it."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from edm_jax.models.ops import layers, target, winograd


def plain(x, kernel):
    """The convolution as XLA computes it."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def operands(batch, height, width, inputs, outputs, dtype=np.float32):
    """Unit-variance image and a kernel that keeps the variance."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, inputs, outputs)) / np.sqrt(9 * inputs)
    return rng.standard_normal((batch, height, width, inputs)).astype(dtype), kernel.astype(dtype)


@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 8, 5), (1, 12, 4)])
def test_equals_the_sum_it_stands_for(shape):
    x, kernel = operands(*shape, inputs=3, outputs=2)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        padded[:, r : r + shape[1], c : c + shape[2]] @ kernel[r, c].astype(np.float64)
        for r in range(3)
        for c in range(3)
    )
    # Weights up to 8 multiply the rounding of values of size 1: 6e-8 times 8 times some sums.
    np.testing.assert_allclose(winograd.conv3x3(x, kernel), expected, rtol=0, atol=3e-6)


def test_exact_in_double_precision(x64):
    """Value, gradients and directional derivatives are those of the plain convolution."""
    x, kernel = operands(2, 8, 6, 5, 4, np.float64)
    dx, dkernel = operands(2, 8, 6, 5, 4, np.float64)
    for one, other in zip(
        jax.jvp(winograd.conv3x3, (x, kernel), (dx, dkernel)),
        jax.jvp(plain, (x, kernel), (dx, dkernel)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)
    cotangent = np.random.default_rng(1).standard_normal((2, 8, 6, 4))
    for one, other in zip(
        jax.vjp(winograd.conv3x3, x, kernel)[1](cotangent),
        jax.vjp(plain, x, kernel)[1](cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_rounding_is_that_of_single_precision():
    """Relative root mean square error of the widest sums, value and gradients."""
    x, kernel = operands(1, 8, 8, 768, 192)
    cotangent = np.random.default_rng(1).standard_normal((1, 8, 8, 192)).astype(np.float32)

    def all_three(x, kernel, convolve):
        value, pullback = jax.vjp(convolve, x, kernel)
        return [np.asarray(a) for a in (value, *pullback(cotangent.astype(x.dtype)))]

    got = all_three(x, kernel, winograd.conv3x3)
    with jax.enable_x64(True):
        expected = all_three(x.astype(np.float64), kernel.astype(np.float64), plain)
    for one, other in zip(got, expected, strict=True):
        error = np.sqrt(np.mean(np.square(one - other)) / np.mean(np.square(other)))
        assert error < 20 * np.finfo(np.float32).eps


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"inputs": 128}, False),
        ({"outputs": 128}, False),
        ({"height": 30}, False),
        ({"batch": 1}, True),
        ({"height": 8, "width": 16}, False),
        ({"dtype": jnp.bfloat16}, False),
        ({"padding": 0}, False),
        ({"size": 5, "padding": 2}, False),
    ],
)
def test_where_it_is_worth_it(changes, expected):
    given = {
        "batch": 2, "height": 32, "width": 32, "inputs": 192, "outputs": 192, "size": 3,
        "padding": 1, "dtype": jnp.float32, **changes,
    }  # fmt: skip
    sizes = [given[name] for name in ("batch", "height", "width", "inputs")]
    x = jax.ShapeDtypeStruct(tuple(sizes), given["dtype"])
    kernel_shape = (given["size"], given["size"], given["inputs"], given["outputs"])
    kernel = jax.ShapeDtypeStruct(kernel_shape, given["dtype"])
    assert winograd.worthwhile(x, kernel, given["padding"]) is expected


def test_convolutions_on_cpus_are_computed_by_it_and_others_not():
    x, kernel = operands(1, 32, 32, 192, 192)

    def convolve(x, kernel):
        return layers.conv2d(x, kernel, 1)

    here = jax.jit(convolve).lower(x, kernel).compile().cost_analysis()["flops"]
    other = jax.jit(plain).lower(x, kernel).compile().cost_analysis()["flops"]
    assert here < 0.6 * other
    elsewhere = jax.export.export(jax.jit(convolve), platforms=("tpu",))(x, kernel)
    assert elsewhere.mlir_module().count("stablehlo.convolution") == 1
    np.testing.assert_allclose(convolve(x, kernel), plain(x, kernel), rtol=0, atol=1e-4)


def test_a_spoiled_weight_spoils_its_channels_alone():
    x, kernel = operands(1, 4, 4, 3, 2)
    kernel[0, 0, 0, 0] = np.inf
    value = np.asarray(winograd.conv3x3(x, kernel))
    assert not np.isfinite(value[..., 0]).all()
    np.testing.assert_allclose(value[..., 1], plain(x, kernel)[..., 1], atol=3e-6)


def test_avoided_on_request():
    """Memory that a run will need elsewhere is estimated on machines without accelerator."""
    x, kernel = operands(1, 32, 32, 192, 192)

    def kept():
        _, pullback = jax.vjp(lambda x, kernel: layers.conv2d(x, kernel, 1), x, kernel)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))

    with target.plain_forms():
        assert not winograd.worthwhile(x, kernel, 1)
        assert kept() == x.nbytes + kernel.nbytes
    assert winograd.worthwhile(x, kernel, 1)
    assert kept() > x.nbytes + kernel.nbytes


def test_exported_for_any_batch():
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 32, 32, 192), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 192, 192), jnp.float32)
    program = jax.export.export(jax.jit(lambda x, kernel: layers.conv2d(x, kernel, 1)))(x, kernel)
    assert program.out_avals[0].shape == (batch, 32, 32, 192)


def test_not_where_another_backend_is_the_default(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not winograd.worthwhile(*operands(1, 32, 32, 192, 192), 1)
