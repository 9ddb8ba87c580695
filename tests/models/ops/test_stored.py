"""Values and gradients that CPUs compute once: nothing but the identity, in every mode."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.models.ops.stored import stored, stored_gradient

X = np.array([[-2.5, 0.0, 1e-30], [3.0, 1e38, -1e-30]], np.float32)


@pytest.mark.parametrize("function", [stored, stored_gradient])
def test_is_the_identity(function):
    special = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    for x in (X, special):
        got = np.asarray(jax.jit(function)(x))
        np.testing.assert_array_equal(got, x)
    assert np.signbit(jax.jit(function)(special))[-1]
    integers = jnp.arange(3)
    np.testing.assert_array_equal(jax.jit(function)(integers), integers)
    assert jax.jit(function)(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("function", [stored, stored_gradient])
def test_derivatives_of_every_mode(function):
    def through(x):
        return jnp.sin(function(x * x)).sum()

    x = jnp.asarray([0.1, 1.1, 2.1])
    first = 2 * x * jnp.cos(x * x)
    second = 2 * jnp.cos(x * x) - 4 * x * x * jnp.sin(x * x)
    close = {"rtol": 1e-5, "atol": 1e-6}  # a few roundings of float32 sines
    np.testing.assert_allclose(jax.grad(through)(x), first, **close)
    np.testing.assert_allclose(jax.jvp(through, (x,), (x,))[1], (first * x).sum(), **close)
    np.testing.assert_allclose(jax.hessian(through)(x), np.diag(second), **close)
    np.testing.assert_allclose(jax.vmap(jax.grad(through))(x[:, None])[:, 0], first, **close)
    np.testing.assert_allclose(jax.jacrev(lambda x: function(x * x))(x), np.diag(2 * x), **close)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(through))(x), first, **close)


@pytest.mark.parametrize(
    ("platform", "function", "forwards", "backwards"),
    [
        ("cpu", stored, 1, 0), ("cpu", stored_gradient, 0, 1),
        ("tpu", stored, 0, 0), ("cuda", stored_gradient, 0, 0),
    ],
)  # fmt: skip
def test_divisions_of_a_program(platform, function, forwards, backwards):
    """Which hold the value (or its cotangent) apart on CPUs; nothing elsewhere."""

    def divisions(program):
        exported = jax.export.export(jax.jit(program), platforms=(platform,))(X)
        return exported.mlir_module().count("stablehlo.divide")

    assert divisions(function) == forwards
    assert divisions(lambda x: jax.vjp(function, x)[1](x)[0]) == backwards
