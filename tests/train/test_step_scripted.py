"""The step on objectives that say what they were given: bad steps, keys, rounds, histories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.train.averaging import Averaging
from edm_jax.train.optimizer import make_optimizer
from edm_jax.train.step import init_state, make_train_step


class _Scripted:
    """A loss of chosen values and gradients: ``loss[step] + slope[step] * a`` of every image."""

    def __init__(self, loss, slope):
        self._loss, self._slope = jnp.asarray(loss), jnp.asarray(slope)

    def per_image(self, params, buffers, batch, key, image_ids):
        step = batch["step"][0]
        values = jnp.zeros(len(image_ids)).at[-1].set(self._loss[step])  # of one image
        return values + self._slope[step] * params["a"], jax.vmap(
            lambda i: jax.random.uniform(jax.random.fold_in(key, i))
        )(image_ids)


def _run_scripted(loss, slope, **options):
    """The states after each step."""
    optimizer = make_optimizer(batch_size=4, lr=0.0, lr_rampup_kimg=0)
    averaging = Averaging((1.0,))
    step = jax.jit(
        make_train_step(
            _Scripted(loss, slope), optimizer, averaging, batch_size=4,
            **{"log_every": 100, **options},
        )
    )  # fmt: skip
    states = [init_state({"params": {"a": jnp.float32(1.0)}}, optimizer, averaging)]
    for i in range(len(loss)):
        batch = {"image": np.zeros((4, 2, 2, 1), np.uint8), "step": np.full(4, i)}
        states.append(step(states[-1], batch, jax.random.key(6)))
    return states[1:]


@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf, jnp.nan])
def test_a_loss_that_overflows_is_bad_though_its_gradient_is_finite(value):
    states = _run_scripted([0.0, value, 0.0], [1.0, 1.0, 1.0])
    assert [int(s.bad_streak) for s in states] == [0, 1, 0]
    assert int(states[-1].failed_step) == 1
    assert int(states[-1].metrics["bad_steps"]["sum"]) == 1
    assert int(states[-1].metrics["bad_grads"]["sum"]) == 0


def test_a_gradient_that_overflows_is_bad_though_the_loss_is_finite():
    # Four images of slope 2e38 each, times 4, overflow in their sum; a loss of 0 does not.
    states = _run_scripted([0.0, 0.0], [0.0, 2e38], loss_scaling=16.0)
    assert [int(s.bad_streak) for s in states] == [0, 1]


def test_the_first_failure_is_remembered_through_later_ones():
    loss = [0, jnp.nan, jnp.nan, 0, jnp.nan, jnp.nan, jnp.nan, 0]
    states = _run_scripted(loss, [1.0] * 8, max_bad_steps=2)
    assert [int(s.failed_step) for s in states] == [-1, -1, 1, 1, 1, 1, 1, 1]
    states = _run_scripted([jnp.nan, 0, jnp.nan], [1.0] * 3)
    assert [int(s.failed_step) for s in states] == [0, 0, 0]  # step 0 is a step


def test_steps_and_positions_have_keys_of_their_own():
    """fold_in(key of the run, step), then by position in the global batch."""
    sizes = set()

    class Spy(_Scripted):
        def per_image(self, params, buffers, batch, key, image_ids):
            sizes.add(len(image_ids))
            loss, level = super().per_image(params, buffers, batch, key, image_ids)
            return loss + jax.lax.stop_gradient(level), level

    optimizer, averaging = make_optimizer(batch_size=4, lr=0.0, lr_rampup_kimg=0), Averaging((1.0,))
    for micro_batch in (0, 2, 1):
        sizes.clear()
        step = make_train_step(
            Spy([0.0] * 3, [1.0] * 3), optimizer, averaging, batch_size=4, log_every=1,
            micro_batch=micro_batch,
        )  # fmt: skip
        state = init_state({"params": {"a": jnp.float32(0.0)}}, optimizer, averaging)
        for i in range(3):
            batch = {"image": np.zeros((4, 2, 2, 1), np.uint8), "step": np.full(4, i)}
            state = step(state, batch, jax.random.key(6))
            own = jax.random.fold_in(jax.random.key(6), i)
            drawn = [float(jax.random.uniform(jax.random.fold_in(own, j))) for j in range(4)]
            # Four pixels an image.
            np.testing.assert_allclose(state.metrics["loss"]["sum"], np.mean(drawn) / 4, rtol=1e-5)
        assert sizes == {micro_batch or 4}


def test_accumulation_takes_rounds_of_the_global_batch():
    """Each image once, with its own position; joined in their order."""
    from edm_jax.train.step import _accumulate

    def gradient(batch, ids):
        return {"sum": jnp.sum(batch["x"] * ids)}, (batch["x"], ids)

    batch, ids = {"x": jnp.array([3.0, 5.0, 7.0, 11.0, 13.0, 17.0])}, jnp.arange(6)
    grads, (values, positions) = _accumulate(gradient, batch, ids, 3)
    assert float(grads["sum"]) == 5 + 14 + 33 + 52 + 85
    np.testing.assert_array_equal(values, batch["x"])
    np.testing.assert_array_equal(positions, ids)


class _Counting(_Scripted):
    """A loss with a history: how many images and steps it has seen."""

    def initial_state(self):
        return {"images": jnp.zeros((), jnp.int32), "levels": jnp.zeros(())}

    def with_state(self, state):
        other = _Counting(self._loss, self._slope)
        other._loss = self._loss + state["images"]
        return other

    def update(self, state, loss, level):
        return {
            "images": state["images"] + jnp.int32(loss.shape[0]),
            "levels": state["levels"] + jnp.sum(level),
        }


def test_objectives_with_a_history():
    """The step sees the history before it, the state that after it."""
    optimizer, averaging = make_optimizer(batch_size=4, lr=0.0, lr_rampup_kimg=0), Averaging((1.0,))
    objective = _Counting([0.0, 0.0, 0.0], [1.0] * 3)
    step = make_train_step(objective, optimizer, averaging, batch_size=4, log_every=1)
    state = init_state({"params": {"a": jnp.float32(0.0)}}, optimizer, averaging, objective)
    assert int(state.objective["images"]) == 0
    for i in range(3):
        batch = {"image": np.zeros((4, 2, 2, 1), np.uint8), "step": np.full(4, i)}
        state = step(state, batch, jax.random.key(6))
        assert int(state.objective["images"]) == 4 * (i + 1)
        # One image of four has the scripted loss, here the 4 i images seen before; 4 pixels.
        np.testing.assert_allclose(state.metrics["loss"]["sum"], 4 * i / 16, atol=1e-6)
    assert 0 < float(state.objective["levels"]) < 12
    assert init_state({"params": {}}, optimizer, averaging, _Scripted([0], [0])).objective == {}
