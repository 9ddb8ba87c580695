"""The classifier's loss, its random numbers, and published training steps (golden 11, 12)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edm_jax import models, respacing
from edm_jax.foreign import guided_classifier as reader
from edm_jax.noise import DiscreteLevels, LogUniform
from edm_jax.precond import edm_preconditioning, iddpm_preconditioning
from edm_jax.train.classifier import ClassifierObjective, cross_entropy, is_among_top
from edm_jax.train.optimizer import make_optimizer
from tests.support import guided_classifier as gc
from tests.support import guided_mixture as gm

IDS = jnp.array([0, 3, 70])


@pytest.fixture(scope="module")
def arrays():
    return gc.arrays()


@pytest.fixture(scope="module")
def golden():
    return gm.arrays()


@pytest.fixture(scope="module")
def net(arrays):
    return models.build(**gc.network(arrays))


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)), jnp.float32)


def test_noise_level_augmentation_and_noise_have_keys_of_their_own():
    seen, key = {}, jax.random.key(4)

    def apply(variables, x, c_noise):
        seen.update(x=x, c_noise=c_noise)
        return jnp.zeros((x.shape[0], 5))

    def augment(keys, images):
        seen.update(keys=keys)
        return images + 1

    objective = ClassifierObjective(apply, edm_preconditioning(), LogUniform(), 5, augment=augment)
    batch = {"image": np.full((3, 2, 2, 1), 51, np.uint8), "label": np.array([2, 0, 4])}
    loss, sigma = objective.per_image({}, {}, batch, key, IDS)
    keys = [jax.random.split(jax.random.fold_in(key, int(i)), 3) for i in IDS]
    uniform = np.array([jax.random.uniform(k[0], ()) for k in keys], np.float64)
    np.testing.assert_allclose(sigma, 0.02 * 5000**uniform, rtol=1e-5)
    np.testing.assert_allclose(seen["c_noise"], np.log(sigma) / 4, rtol=1e-5)
    expected = np.stack([jax.random.key_data(k[1]) for k in keys])
    np.testing.assert_array_equal(jax.random.key_data(seen["keys"]), expected)
    noise = np.stack([jax.random.normal(k[2], (2, 2, 1)) for k in keys])
    column = np.asarray(sigma).reshape(3, 1, 1, 1)
    # 51 is -0.6 in [-1, 1]; the augmentation added 1.
    x = (0.4 + column * noise) / np.hypot(column, 0.5)
    np.testing.assert_allclose(seen["x"], x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)  # equal logits


def test_among_the_top():
    logits = jnp.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    labels = jnp.array([0, 1, 2])
    for k, expected in ((1, [True, False, False]), (2, [True, False, True]), (3, [True] * 3)):
        np.testing.assert_array_equal(is_among_top(logits, labels, k), expected)


def back(tree, tensors, network):
    """The inverse of the reader's map, written from its table of operations."""
    result = {}
    for theirs, ours, operation in reader.name_map(tensors, network):
        value = tree
        for key in ours.split("."):
            value = value[key]
        a, shape = np.asarray(value, np.float64), tensors[theirs].shape
        if operation in ("legacy", "new"):
            # Rows here: head, channel, part.
            heads, c = a.shape[-1] // (3 * 32), 32
            rows = a.reshape(-1, a.shape[-1]).T.reshape(heads, c, 3, -1)
            axes = (0, 2, 1, 3) if operation == "legacy" else (2, 0, 1, 3)
            a = rows.transpose(axes)
        elif operation == "kernel":
            a = a.transpose(3, 2, 0, 1)
        elif operation in ("matrix", "transpose"):
            a = a.T
        result[theirs] = a.reshape(shape)
    return result


def checksum(a):
    return np.sum(a.ravel() * np.cos(np.arange(a.size)))


# No gradient in exact arithmetic: the key part of qkv cancels in the softmax, and the norm
# after these convolutions has one channel per group.
GRADIENTLESS = (
    "qkv.bias", "qkv_proj.bias", "input_blocks.1.0.in_layers.2.bias",
    "input_blocks.2.0.in_layers.2.bias",
)  # fmt: skip


def test_three_training_steps(arrays, golden, net):
    """Cross entropy and AdamW with an annealed rate, against the program's own steps."""
    s = gm.settings(golden, "train/settings")
    tensors, network = gc.tensors(arrays), gc.network(arrays)
    params = gc.variables(arrays)["params"]
    batch = golden["train/x_t"].shape[1]
    optimizer = make_optimizer(
        batch_size=batch,
        lr=s["lr"],
        lr_rampup_kimg=0.0,
        b1=s["betas"][0],
        b2=s["betas"][1],
        eps=s["eps"],
        weight_decay=s["weight_decay"],
        lr_end_kimg=s["iterations"] * batch / 1000,
    )
    state = optimizer.init(params)

    def loss_fn(params, x, t, y):
        logits = net.apply({"params": params}, x, t)
        loss = cross_entropy(logits, jax.nn.one_hot(y, 7))
        return jnp.mean(loss), (loss, logits)

    @jax.jit
    def step(params, state, x, t, y):
        grads, aux = jax.grad(loss_fn, has_aux=True)(params, x, t, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads, aux

    names, sizes = [str(n) for n in golden["train/names"]], golden["train/size"]
    kept = np.array([not n.endswith(GRADIENTLESS) for n in names])
    for i in range(3):
        x, y = nhwc(golden["train/x_t"][i]), golden["train/y"][i]
        params, state, grads, (loss, logits) = step(
            params, state, x, golden["train/timestep"][i], y
        )
        np.testing.assert_allclose(loss, golden["train/loss"][i], rtol=1e-4)  # suggested
        for k in (1, 5):
            got = is_among_top(logits, jnp.asarray(y), k)
            np.testing.assert_array_equal(got, golden[f"train/top{k}"][i])
        there = back(grads, tensors, network)
        found = np.array([checksum(there[name]) for name in names])
        norms = golden["train/grad_norm_f64"][i]
        error = np.abs(found - golden["train/grad_checksum_f64"][i])
        assert np.all((error <= 1e-4 * norms * np.sqrt(sizes) + 1e-7)[kept])  # suggested
        there = back(params, tensors, network)
        found = np.array([checksum(there[name]) for name in names])
        atol = 2e-3 * np.sqrt(sizes) * golden["train/lr"][: i + 1].sum()  # suggested
        error = np.abs(found - golden["train/param_checksum_f64"][i])
        assert np.all((error <= atol + 1e-6)[kept])


def test_noised_images_are_the_programs(golden):
    """x_t = c_in (y + sigma n) with the levels of the table."""
    levels = golden["schedule/cosine_sigma"]
    np.testing.assert_allclose(respacing.ddpm_levels("cosine")[-2::-1], levels, rtol=1e-9)
    np.testing.assert_allclose(
        respacing.ddpm_levels("linear")[-2::-1], golden["schedule/linear_sigma"], rtol=1e-9
    )
    t = golden["train/timestep"][0]
    sigma = levels[t].reshape(-1, 1, 1, 1)
    x = golden["train/images"][0] + sigma * golden["train/noise"][0]
    got = x / np.sqrt(1 + sigma**2)
    np.testing.assert_allclose(got, golden["train/x_t"][0], atol=1e-5)  # its float32


def objective(net, distribution, preconditioning):
    return ClassifierObjective(net.apply, preconditioning, distribution, 7)


@pytest.mark.parametrize("kind", ["edm", "iddpm"])
def test_objective(arrays, net, kind):
    """An image's loss follows from the key and its position, not from its batch."""
    chosen = {
        "edm": (LogUniform(0.01, 80.0), edm_preconditioning()),
        "iddpm": (DiscreteLevels(), iddpm_preconditioning()),
    }[kind]
    made = objective(net, *chosen)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (6, 8, 8, 3)), jnp.uint8),
        "label": jnp.asarray([0, 1, 2, 3, 4, 6]),
    }
    params = gc.variables(arrays)["params"]
    per_image = jax.jit(made.per_image)
    key, ids = jax.random.key(3), jnp.arange(6)
    loss, sigma = per_image(params, {}, batch, key, ids)
    assert loss.shape == sigma.shape == (6,)
    order = np.array([3, 0, 5])
    part = {k: v[order] for k, v in batch.items()}
    again = per_image(params, {}, part, key, ids[order])
    np.testing.assert_allclose(again[0], loss[order], rtol=1e-5)  # batches of another size
    np.testing.assert_array_equal(again[1], sigma[order])


def test_loss_at_large_sigma_is_that_of_the_prior(arrays, net):
    """With a head of zeros every class has log probability -ln K."""
    made = objective(net, LogUniform(1e3, 1e4), edm_preconditioning())
    params = gc.variables(arrays)["params"]
    pool = params["pool"] | {"proj": jax.tree.map(np.zeros_like, params["pool"]["proj"])}
    params = params | {"pool": pool}
    batch = {"image": jnp.zeros((4, 8, 8, 3), jnp.uint8), "label": jnp.arange(4)}
    run = jax.jit(made.per_image)
    loss, _ = run(params, {}, batch, jax.random.key(0), jnp.arange(4))
    np.testing.assert_allclose(loss, np.log(7), rtol=1e-6)


def test_objective_needs_classes(net):
    with pytest.raises(ValueError, match="at least 2 classes, got 0"):
        ClassifierObjective(net.apply, edm_preconditioning(), LogUniform(), 0)
