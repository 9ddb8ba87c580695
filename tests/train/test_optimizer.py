"""Weight decay and the falling rate of ADM's classifier, against its formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edm_jax.train.optimizer import learning_rate, make_optimizer

PUBLISHED = {"batch_size": 256, "lr": 3e-4, "lr_rampup_kimg": 0.0}


def test_rate_falls_along_a_straight_line_to_zero():
    """lr (1 - step / iterations), the step counted from 0, of guided-diffusion."""
    steps, iterations, batch = np.array([0, 1, 150_000, 299_999, 300_000, 400_000]), 300_000, 256
    expected = 3e-4 * np.maximum(1 - steps / iterations, 0)
    end = iterations * batch
    found = [learning_rate(float(step * batch), 3e-4, 0.0, end) for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    traced = jax.jit(lambda nimg: learning_rate(nimg, 3e-4, 0.0, end))(
        jnp.asarray(steps * batch, jnp.float32)
    )
    # 1 - nimg/end cancels near the end: a float32 ulp of 1, times the rate.
    np.testing.assert_allclose(traced, expected, atol=3e-4 * 1.2e-7, rtol=1e-6)
    # A ramp goes before it.
    assert learning_rate(500.0, 1.0, 1000.0, 10_000.0) == pytest.approx(0.5 * 0.95)


def adamw(params, grads, *, lr, decay, batch, end, b1=0.9, b2=0.999, eps=1e-8):
    """AdamW of PyTorch step by step in float64: decay first, at the rate of the step."""
    m, v, weights = np.zeros_like(params), np.zeros_like(params), params.astype(np.float64)
    for i, g in enumerate(grads):
        rate = lr * max(1 - i * batch / end, 0)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        hat = m / (1 - b1 ** (i + 1)), v / (1 - b2 ** (i + 1))
        weights = weights * (1 - rate * decay) - rate * hat[0] / (np.sqrt(hat[1]) + eps)
    return weights


def run(optimizer, params, grads, state=None):
    state = optimizer.init(params) if state is None else state
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_decaying_weights_are_adamw_and_go_on_from_a_state():
    rng = np.random.default_rng(0)
    params = rng.normal(size=(5,)).astype(np.float32)
    grads = rng.normal(size=(6, 5)).astype(np.float32)
    given = {"batch_size": 100, "lr": 0.1, "lr_rampup_kimg": 0.0}
    optimizer = make_optimizer(**given, weight_decay=0.2, lr_end_kimg=0.5)  # 5 steps
    expected = adamw(params, np.float64(grads), lr=0.1, decay=0.2, batch=100, end=500)
    whole, _ = run(optimizer, jnp.asarray(params), grads)
    # float32 against float64 over six steps of 0.1.
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)
    half, state = run(optimizer, jnp.asarray(params), grads[:3])
    state = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), state)  # through a file
    again = make_optimizer(**given, weight_decay=0.2, lr_end_kimg=0.5)
    resumed, _ = run(again, half, grads[3:], state)
    np.testing.assert_array_equal(resumed, whole)


def test_without_decay_the_state_is_that_of_adam():
    """Checkpoints from before there was decay are read as they are."""
    params = {"w": jnp.ones(3)}
    plain = optax.adam(1e-3).init(params)
    optimizer = make_optimizer(**PUBLISHED)
    # A rate that is a function has a count, also before.
    own = jax.tree.structure(optax.adam(lambda count: 1e-3).init(params))
    assert jax.tree.structure(optimizer.init(params)) == own != jax.tree.structure(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"lr_end_kimg": -1.0}, "lr_end_kimg must be at least 0"),
        ({"lr_end_kimg": 5.0, "lr_rampup_kimg": 10.0}, "above lr_rampup_kimg=10, got 5"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**PUBLISHED | options)
