"""Gradients of kernels in parts of a batch: those of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from edm_jax.models.ops import kernel_gradient, layers, target

plain = functools.partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding=((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)  # fmt: skip


@pytest.fixture
def draws():
    """Images, a kernel, a tangent of each and a cotangent."""
    rng = np.random.default_rng(0)
    shapes = ((8, 5, 4, 3), (3, 3, 3, 2)) * 2 + ((8, 5, 4, 2),)
    return [rng.standard_normal(shape) for shape in shapes]


def test_exact_in_double_precision(x64, draws):
    x, kernel, dx, dkernel, cotangent = draws
    split = functools.partial(kernel_gradient.in_parts, plain, 4)
    directions = ((x, kernel), (dx, dkernel))
    for one, other in (
        (jax.jvp(split, *directions), jax.jvp(plain, *directions)),
        (jax.vjp(split, x, kernel)[1](cotangent), jax.vjp(plain, x, kernel)[1](cotangent)),
        # Of one argument alone, and of none.
        (jax.jvp(lambda x: split(x, kernel), (x,), (dx,)),
         jax.jvp(lambda x: plain(x, kernel), (x,), (dx,))),
        (jax.grad(lambda k: jnp.vdot(cotangent, split(x, k) ** 2))(kernel),
         jax.grad(lambda k: jnp.vdot(cotangent, plain(x, k) ** 2))(kernel)),
    ):  # fmt: skip
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)  # sums of 160 products

    def second(function):
        loss = lambda k: jnp.sum(jnp.sin(function(x, k)))  # noqa: E731
        return jax.jvp(jax.grad(loss), (kernel,), (dkernel,))[1]

    np.testing.assert_allclose(second(split), second(plain), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("platform", "batch", "dtype", "count"),
    [
        ("cpu", 64, "float32", 4), ("cpu", 32, "float32", 4), ("cpu", 16, "float32", 2),
        ("cpu", 8, "float32", 1), ("cpu", 33, "float32", 1), ("cpu", 64, "bfloat16", 1),
        ("gpu", 64, "float32", 1),
    ],
)  # fmt: skip
def test_parts_of_a_batch(platform, batch, dtype, count):
    x = jax.ShapeDtypeStruct((batch, 4, 4, 3), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 2), dtype)
    with target.assumed(platform):
        assert kernel_gradient.parts(x) == count
        loss = lambda k, x: layers.conv2d(x, k, 1).sum()  # noqa: E731
        program = jax.make_jaxpr(jax.grad(loss))(kernel, x)
    # Each part once, and the value where it is not one with the gradient.
    assert str(program).count("conv_general_dilated[") in (count, count + 1)


def test_images_stay_on_their_devices():
    """Of several devices, the parts are shared by all: nothing is gathered."""
    devices = jax.devices("cpu")
    if len(devices) < 2:
        pytest.skip("one device")
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    loss = lambda k, x: jnp.square(layers.conv2d(x, k, 1)).sum()  # noqa: E731
    program = jax.jit(jax.grad(loss), in_shardings=(everywhere, split), out_shardings=everywhere)
    with target.assumed("cpu"):
        text = program.lower(jnp.ones((3, 3, 3, 2)), jnp.ones((32, 4, 4, 3))).compile().as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))
