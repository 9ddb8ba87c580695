"""The objective in the training step, and its model in a description."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import edm_jax
from edm_jax import models
from edm_jax.ardm import registry, sample_ardm, uniform_policy
from edm_jax.model import describe, from_description
from edm_jax.store.errors import WeightsError
from edm_jax.train.averaging import Averaging
from edm_jax.train.objectives import OBJECTIVES, Parts
from edm_jax.train.step import init_state, make_train_step

PROCESS = {"name": "absorbing", "num_values": 4}
SHAPE, BATCH = (4, 4, 1), 8


class Counting(nn.Module):
    """Logits from how often each value is known: the smallest network of any order."""

    @nn.compact
    def __call__(self, x, time, known, stage=None, *, train=False, image_ids=None):
        values = jax.nn.one_hot(x[..., 0], 4) * known
        counts = jnp.concatenate([values.mean((1, 2)), time[:, None]], axis=-1)
        logits = nn.Dense(4, kernel_init=nn.initializers.zeros)(jnp.tanh(nn.Dense(16)(counts)))
        return jnp.broadcast_to(logits[:, None, None, :], (*x.shape[:3], 4))

    def example_inputs(self):
        x = jnp.zeros((1, *SHAPE), jnp.int32)
        return x, jnp.zeros(1), x > 0, jnp.zeros(1, jnp.int32)


def _setup(**options):
    net = Counting()
    given = Parts(net.apply, SHAPE, 0, None, None, None, batch_size=BATCH)
    objective = OBJECTIVES["order_agnostic"](given, PROCESS, steps="grid")
    optimizer, averaging = optax.adam(3e-2), Averaging((0.02,), None)
    sizes = {"batch_size": BATCH, "log_every": 99, **options}
    step = jax.jit(make_train_step(objective, optimizer, averaging, **sizes))
    variables = models.init_variables(net, jax.random.key(0))
    return init_state(variables, optimizer, averaging, objective), step


@pytest.fixture(scope="module")
def batch():
    """Every pixel of an image alike: one known pixel says it all."""
    levels = np.array([0, 85, 170, 255, 0, 85, 170, 255], np.uint8)
    return {"image": jnp.asarray(np.broadcast_to(levels[:, None, None, None], (BATCH, *SHAPE)))}


@pytest.fixture(scope="module")
def trained(batch):
    """The states before and after 40 steps."""
    state, step = _setup()
    states = [state]
    for _ in range(40):
        states.append(step(states[-1], batch, jax.random.key(1)))
    return states


def test_the_profile_is_part_of_the_state(trained):
    """After every step as many values as images, the first ones of the uniform model: 2 bits."""
    counts = [int(np.sum(state.objective.count)) for state in trained[:4]]
    assert counts == [0, BATCH, 2 * BATCH, 3 * BATCH]
    seen = np.asarray(trained[1].objective.count) > 0
    # The network starts at zero logits; float32.
    np.testing.assert_allclose(np.asarray(trained[1].objective.value)[seen] * 16, 2, rtol=1e-5)


def test_the_loss_falls(trained):
    """From 2 bits for each unknown pixel (and 0.1 % for the cross entropy at most) to those of
    the first pixel alone, nearly: 2 bits in 16 pixels."""
    sums = [float(state.metrics["loss"]["sum"]) for state in trained]
    losses = np.diff(sums)  # a mean over the dimensions, reported as it is
    assert losses[0] == pytest.approx(2, rel=1.1e-3)
    assert np.mean(losses[-5:]) < 1


def test_rounds_of_accumulation_see_the_same_steps(trained, batch):
    """Two rounds of half a batch draw the steps and orders of the whole."""
    state, step = _setup(micro_batch=4)
    state = step(state, batch, jax.random.key(1))
    np.testing.assert_array_equal(state.objective.count, trained[1].objective.count)
    np.testing.assert_allclose(state.objective.value, trained[1].objective.value, rtol=1e-5)


@pytest.fixture(scope="module")
def model():
    """What a checkpoint would hold."""
    sizes = registry.network_sizes(registry.build(**PROCESS), SHAPE)
    network = {"name": "ArdmUNet", "model_channels": 8, "num_blocks": 1, **sizes}
    description = describe(
        kind="ardm", network=network, process=PROCESS, image_shape=SHAPE, num_classes=0
    )
    variables = models.init_variables(models.build(**network), jax.random.key(0))
    return from_description(description, variables, "raw")


def test_a_model_says_what_it_is(model):
    assert model.kind == "ardm" and model.preconditioning is None
    assert "ArdmUNet" in repr(model)
    with pytest.raises(ValueError, match="kind 'ardm' has no denoiser"):
        model.denoise(jnp.zeros((1, *SHAPE)), 1.0)

    @functools.partial(jax.jit, static_argnums=1)
    def draw(model, count):
        predict, process = registry.model_predictor(model)
        keys = edm_jax.seeds.image_keys(range(count))
        return sample_ardm(predict, process, keys, model.image_shape, uniform_policy(2, 16))

    drawn = draw(model, 3)
    assert drawn.shape == (3, *SHAPE) and int(drawn.max()) < 4


def test_sequences_have_descriptions_too():
    process = {"name": "absorbing", "num_values": 5, "absorbing": 5}
    sizes = registry.network_sizes(registry.build(**process), (6,))
    network = {"name": "ArdmTransformer", "model_channels": 8, "num_blocks": 1, "num_heads": 2}
    network |= {"mlp_channels": 8, **sizes}
    description = describe(
        kind="ardm", network=network, process=process, image_shape=(6,), num_classes=0
    )
    net = models.build(**network)
    variables = models.init_variables(net, jax.random.key(0))
    assert from_description(description, variables).image_shape == (6,)
    for change, message in (
        ({"image_shape": [7]}, "not those of the network"),
        ({"process": {**process, "num_values": "many"}}, "num_values must be an integer"),
        ({"process": {**process, "num_values": 10**9}}, "no name or small integer"),
        ({"process": {"name": "absrobing", "num_values": 5}}, "did you mean 'absorbing'"),
        ({"process": None}, "no process with a name"),
    ):
        with pytest.raises(WeightsError, match=message):
            from_description({**description, **change}, variables)
