"""The training step: devices, batches, running metrics, bad steps, accumulation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.noise import LogNormal, edm_weight
from edm_jax.precond import edm_preconditioning
from edm_jax.train import metrics, sharding
from edm_jax.train.averaging import Averaging, ema_name
from edm_jax.train.metrics import NUM_SIGMA_BINS, SIGMA_BIN_EDGES
from edm_jax.train.objective import DenoisingObjective
from edm_jax.train.optimizer import make_optimizer, sanitize_gradients
from edm_jax.train.step import all_finite, init_state, make_train_step


def linear_apply(variables, x, c_noise, labels=None, augment_labels=None, **unused):
    """A network of two numbers and a label table; enough to have gradients."""
    p = variables["params"]
    out = p["a"] * x + p["b"] * c_noise.reshape(-1, 1, 1, 1)
    if labels is not None:
        out = out + (labels @ p["table"]).reshape(-1, 1, 1, 1)
    return out


def make(batch_size=8, num_classes=3, log_every=4, lr=0.1, halflives=(0.5, 0.1), **options):
    objective = DenoisingObjective(
        linear_apply, edm_preconditioning(), LogNormal(), edm_weight, num_classes
    )
    optimizer = make_optimizer(batch_size=batch_size, lr=lr, lr_rampup_kimg=0.016)
    averaging = Averaging(halflives)
    step = make_train_step(
        objective, optimizer, averaging, batch_size=batch_size, log_every=log_every, **options
    )
    params = {"a": jnp.float32(0.3), "b": jnp.float32(0.1), "table": jnp.zeros((num_classes, 1))}
    return step, init_state({"params": params}, optimizer, averaging)


@functools.cache
def compiled(**options):
    """The step as one program, shared by the tests, and its first state."""
    step, state = make(**options)
    return jax.jit(step), state


def make_batch(batch_size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (batch_size, 4, 4, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, batch_size).astype(np.int32),
    }


def test_first_step_changes_no_weights_but_adam():
    step, state = compiled()
    after = step(state, make_batch(), jax.random.key(0))
    for before, now in zip(
        jax.tree.leaves((state.params, state.ema)),
        jax.tree.leaves((after.params, after.ema)),
        strict=True,
    ):
        np.testing.assert_array_equal(before, now)
    assert float(after.opt_state[0].mu["a"]) != 0
    assert int(after.step) == 1


def test_one_trace_for_many_steps():
    count = 0
    step, state = make()

    def counted(*args):
        nonlocal count
        count += 1
        return step(*args)

    jitted = jax.jit(counted, donate_argnums=0)
    for i in range(5):
        state = jitted(state, make_batch(seed=i), jax.random.key(7))
    assert count == 1


def test_eight_devices_equal_one():
    """The same numbers on any mesh; rounding differs only in the order of sums."""
    results = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        step, state = make()
        jitted = jax.jit(step, out_shardings=sharding.replicated(mesh))
        state = sharding.replicate(state, mesh)
        for i in range(4):
            batch = jax.device_put(make_batch(seed=i), sharding.batch_sharding(mesh))
            state = jitted(state, batch, jax.random.key(1))
        results.append(state)
    one, eight = (jax.tree.map(np.asarray, r) for r in results)
    # Four Adam steps of size 0.1 on float32 sums over 384 elements: 1e-5 is ample.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, eight)


def test_noise_of_an_image_does_not_depend_on_the_batch():
    """The loss of image i given its position is the same in a smaller batch."""
    objective = DenoisingObjective(linear_apply, edm_preconditioning(), LogNormal(), edm_weight, 3)
    params = {"a": jnp.float32(0.3), "b": jnp.float32(0.1), "table": jnp.ones((3, 1))}
    batch, ids, key = make_batch(), jnp.arange(8), jax.random.key(3)
    per_image = jax.jit(objective.per_image)
    whole, sigma = per_image(params, {}, batch, key, ids)
    part = {k: v[5:7] for k, v in batch.items()}
    some, sigma_some = per_image(params, {}, part, key, ids[5:7])
    np.testing.assert_array_equal(sigma[5:7], sigma_some)
    np.testing.assert_allclose(whole[5:7], some, rtol=1e-6)


def test_gradient_is_sum_over_pixels_mean_over_batch():
    """Against a float64 NumPy loss and its numeric derivative."""
    step, state = compiled(lr=0.0)
    batch, key = make_batch(), jax.random.key(5)
    after = step(state, batch, key)
    # Adam's first moment after one step is (1 - b1) times the gradient.
    gradient = float(after.opt_state[0].mu["a"]) / 0.1
    step_key = jax.random.fold_in(key, 0)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(step_key, i), 3))(jnp.arange(8))
    normal = jax.vmap(lambda k: jax.random.normal(k, ()))(keys[:, 0])
    noise = np.float64(jax.vmap(lambda k: jax.random.normal(k, (4, 4, 3)))(keys[:, 2]))
    sigma = np.exp(-1.2 + 1.2 * np.float64(normal)).reshape(-1, 1, 1, 1)
    y = batch["image"] / 127.5 - 1

    def loss(a):
        total = sigma**2 + 0.25
        x = y + sigma * noise
        f = a * x / np.sqrt(total) + 0.1 * np.log(sigma) / 4
        denoised = 0.25 / total * x + sigma * 0.5 / np.sqrt(total) * f
        return (total / (sigma * 0.5) ** 2 * (denoised - y) ** 2).sum() / 8

    numeric = (loss(0.3 + 1e-5) - loss(0.3 - 1e-5)) / 2e-5
    # float32 sums of a few hundred terms against a central difference
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4)
    np.testing.assert_allclose(after.metrics["loss"]["sum"], loss(0.3) / 48, rtol=1e-5)


def test_metrics_window_and_bins():
    step, state = compiled(log_every=2)
    for i in range(3):
        state = step(state, make_batch(seed=i), jax.random.key(0))
    assert int(state.metrics["loss"]["count"]) == 1  # the third step began a new window
    assert state.metrics["loss_per_level"]["count"].shape == (NUM_SIGMA_BINS,)
    assert float(state.metrics["loss_per_level"]["count"].sum()) == 8
    np.testing.assert_allclose(
        float(state.metrics["loss_per_level"]["sum"].sum()) / 8,
        float(state.metrics["loss"]["sum"]),
        rtol=1e-5,
    )
    assert len(SIGMA_BIN_EDGES) == NUM_SIGMA_BINS - 1


def with_params(state, value):
    """The state with its one parameter set."""
    return dataclasses.replace(state, params=state.params | {"a": jnp.float32(value)})


def test_first_bad_step_is_remembered():
    step, state = compiled()
    key = jax.random.key(0)
    state = step(state, make_batch(), key)
    assert int(state.failed_step) == -1 and int(state.bad_streak) == 0
    state = step(step(with_params(state, jnp.nan), make_batch(), key), make_batch(), key)
    assert int(state.failed_step) == 1 and int(state.bad_streak) == 2
    assert int(state.metrics["bad_grads"]["sum"]) > 0


def test_bad_elements_of_large_networks_are_counted():
    # More than 2^31 over a window; the shapes are those of no array that exists.
    grads = {str(i): jax.ShapeDtypeStruct((1 << 28,), jnp.float32) for i in range(12)}
    _, bad = jax.eval_shape(sanitize_gradients, grads)
    assert bad.dtype == jnp.float32
    clean, bad = sanitize_gradients({"a": jnp.array([jnp.nan, 1.0, jnp.inf, -jnp.inf])})
    np.testing.assert_array_equal(clean["a"], [0.0, 1.0, 1e5, -1e5])
    assert bad == 3


def test_a_bad_loss_stays_out_of_the_bins_of_others():
    loss, sigma = jnp.array([1.0, jnp.nan, 3.0]), jnp.array([0.01, 0.5, 50.0])
    zero = jnp.zeros(())
    found = metrics.of_step(loss, sigma, zero, zero, zero > 1)["loss_per_level"]
    assert float(found["sum"].sum()) == 4 and float(found["count"].sum()) == 2


def test_only_a_whole_streak_of_bad_steps_is_a_failure():
    step, state = compiled(max_bad_steps=3, log_every=10)
    key, failed, streaks = jax.random.key(0), [], []
    for bad in (0, 1, 1, 0, 1, 1, 1, 0):
        state = step(with_params(state, jnp.nan if bad else 0.5), make_batch(), key)
        failed.append(int(state.failed_step))
        streaks.append(int(state.bad_streak))
    assert streaks == [0, 1, 2, 0, 1, 2, 3, 0]
    assert failed == [-1, -1, -1, -1, -1, -1, 4, 4]  # counted from step 0; kept once set
    assert int(state.metrics["bad_steps"]["sum"]) == 5


def test_bad_numbers_are_found_anywhere():
    assert bool(all_finite({"a": jnp.ones(3), "n": jnp.int32(3)}))
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        assert not bool(all_finite({"a": jnp.ones(3), "b": [jnp.zeros(2).at[1].set(value)]}))


def test_names_of_averages():
    assert ema_name(500.0) == "ema_500kimg"
    assert ema_name(0.1) == "ema_0.1kimg"
    assert Averaging((500.0, 50.0)).names() == ["ema_500kimg", "ema_50kimg"]


def test_batch_size_must_divide():
    with pytest.raises(ValueError, match=r"batch size 12 .* multiple of .* \(8\)"):
        sharding.check_batch_size(12, sharding.make_mesh())


@pytest.mark.parametrize("micro_batch", [2, 4])
def test_accumulation_gives_the_same_update(micro_batch):
    """Equal noise and weights; only the order of float32 sums differs."""
    objective = DenoisingObjective(linear_apply, edm_preconditioning(), LogNormal(), edm_weight, 3)
    optimizer, averaging = make_optimizer(batch_size=8, lr=0.1, lr_rampup_kimg=0), Averaging((1.0,))
    params = {"a": jnp.float32(0.3), "b": jnp.float32(0.1), "table": jnp.zeros((3, 1))}
    results = []
    for size in (0, micro_batch):
        step = make_train_step(
            objective, optimizer, averaging, batch_size=8, log_every=4, micro_batch=size
        )
        state = init_state({"params": params}, optimizer, averaging)
        for i in range(2):
            state = jax.jit(step)(state, make_batch(seed=i), jax.random.key(1))
        results.append(jax.tree.map(np.asarray, state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_gradient_clipping_bounds_the_norm():
    optimizer = make_optimizer(batch_size=1, lr=1.0, lr_rampup_kimg=0, grad_clip_norm=1.0)
    grads = {"a": jnp.array([3.0, 4.0])}
    state = optimizer.init(grads)
    _, state = optimizer.update(grads, state, grads)
    np.testing.assert_allclose(state[1][0].mu["a"], 0.1 * np.array([0.6, 0.8]), rtol=1e-6)


def test_fsdp_splits_what_it_should():
    from jax.sharding import PartitionSpec

    spec = sharding.fsdp_spec
    assert spec((3, 3, 64, 128), ("height", "width", "channels_in", "channels_out"), 8) == (
        PartitionSpec(None, None, None, "data")
    )
    uneven = spec((3, 3, 64, 6), ("height", "width", "channels_in", "channels_out"), 8)
    assert uneven == PartitionSpec()  # too small to be worth it
    other = spec((3, 3, 256, 6), ("height", "width", "channels_in", "channels_out"), 8)
    assert other == PartitionSpec(None, None, "data")
    assert spec((64,), ("channels",), 8) == PartitionSpec()


def test_fsdp_equals_data_parallel_and_saves_memory():
    """Eight fake devices: the same numbers, an eighth of the bytes of what is split."""

    def apply(variables, x, c_noise, *unused, **options):
        kernel = variables["params"]["layer"]["kernel"]
        hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ kernel)
        return (hidden @ kernel.T).reshape(x.shape)

    axes = {"layer": {"kernel": ("embed_in", "embed_out")}}
    objective = DenoisingObjective(apply, edm_preconditioning(), LogNormal(), edm_weight)
    optimizer, averaging = make_optimizer(batch_size=8, lr=1e-2, lr_rampup_kimg=0), Averaging((1,))
    step = make_train_step(objective, optimizer, averaging, batch_size=8, log_every=4)
    params = {"layer": {"kernel": 0.1 * jax.random.normal(jax.random.key(0), (48, 128))}}
    mesh = sharding.make_mesh()
    batches = [{"image": make_batch(seed=i)["image"]} for i in range(3)]
    results, sizes = [], []
    for layout in sharding.LAYOUTS:
        state = init_state({"params": params}, optimizer, averaging)
        shardings = sharding.state_shardings(state, axes, mesh, layout)
        state = jax.device_put(state, shardings)
        jitted = jax.jit(step, out_shardings=shardings)
        for batch in batches:
            batch = jax.device_put(batch, sharding.batch_sharding(mesh))
            state = jitted(state, batch, jax.random.key(1))
        results.append(jax.tree.map(np.asarray, state))
        sizes.append(sharding.bytes_per_device(state, shardings))
        held = state.params["layer"]["kernel"].addressable_shards[0].data.nbytes
        assert held == 48 * 128 * 4 // (8 if layout == "fsdp" else 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)
    kernel_bytes = 4 * 48 * 128 * 4  # weights, two moments, one average
    assert sizes[0] - sizes[1] == kernel_bytes * 7 // 8
    with pytest.raises(ValueError, match="layout must be one of data, fsdp, got 'fspd'"):
        sharding.state_shardings(state, axes, mesh, "fspd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"b1": 1.0}, "b1 must be at least 0 and below 1"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"grad_clip_norm": -1.0}, "grad_clip_norm must be at least 0"),
    ],
)
def test_what_is_no_optimizer(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**{"batch_size": 8, "lr": 0.1, "lr_rampup_kimg": 0} | options)


@pytest.mark.parametrize("halflives", [(), (1.0, 1.0), (-1.0,), (float("nan"),)])
def test_what_are_no_averages(halflives):
    with pytest.raises(ValueError, match="halflives_kimg must be"):
        Averaging(halflives)


def test_averages_see_the_weights_after_the_step_and_the_images_before():
    step, state = compiled(lr=0.1, halflives=(0.064,))
    key = jax.random.key(0)
    for i in range(4):
        before = state
        state = step(state, make_batch(seed=i), key)
        # 64 images half-life, at most a twentieth of the images seen before the step.
        half = min(64.0, 8 * i * 0.05)
        beta = 0.5 ** (8 / half) if half else 0.0
        expected = beta * before.ema["ema_0.064kimg"]["a"] + (1 - beta) * state.params["a"]
        np.testing.assert_allclose(state.ema["ema_0.064kimg"]["a"], expected, rtol=1e-6)
