"""Learning rate, EMA, gradient sanitising and the step, against the published schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edm_jax import ema
from edm_jax.noise import LogNormal, edm_weight
from edm_jax.precond import edm_preconditioning
from edm_jax.train import metrics, sharding
from edm_jax.train.averaging import Averaging, ema_name
from edm_jax.train.metrics import NUM_SIGMA_BINS, SIGMA_BIN_EDGES
from edm_jax.train.objective import DenoisingObjective
from edm_jax.train.optimizer import learning_rate, make_optimizer, sanitize_gradients
from edm_jax.train.step import all_finite, init_state, make_train_step

DEFAULTS = {"lr_rampup_kimg": 10_000, "ema_halflife_kimg": 500, "ema_rampup_ratio": 0.05}
TOYS = ["defaults_resumed", "defaults_from_zero", "short_rampup", "short_rampup_nonfinite"]


def test_schedule_table(golden, golden_json, x64):
    """Float64 in, float64 out: equal to the published formulas to rounding."""
    g = golden("08_train_schedules")
    alt = golden_json(g, "table/alt_settings")
    nimg, batch = g["table/cur_nimg"].astype(float), g["table/batch"].astype(float)
    for settings, suffix in ((DEFAULTS, ""), (alt, "_alt")):
        lr = learning_rate(nimg, 1.0, settings["lr_rampup_kimg"] * 1000)
        np.testing.assert_allclose(lr, g[f"table/lr_mult{suffix}"], rtol=1e-12)
        half = settings["ema_halflife_kimg"] * 1000
        beta = ema.ema_beta(nimg, batch, half, settings["ema_rampup_ratio"])
        np.testing.assert_allclose(beta, g[f"table/ema_beta{suffix}"], rtol=1e-9)
    beta = ema.ema_beta(nimg, batch, 500_000, None)
    np.testing.assert_allclose(beta, g["table/ema_beta_no_rampup"], rtol=1e-12)


def test_schedule_values_of_the_specification(x64):
    nimg = np.array([0.0, 512, 51_200, 10e6])
    np.testing.assert_allclose(
        learning_rate(nimg, 1e-3, 10e6), [0, 5.12e-8, 5.12e-6, 1e-3], rtol=1e-12
    )
    expected = [0, 9.5367431640625e-7, 0.8705505632961241, 0.9992904691232699]
    np.testing.assert_allclose(ema.ema_beta(nimg, 512, 500e3), expected, rtol=1e-12)


@pytest.mark.parametrize("toy", TOYS)
def test_toy_training(toy, golden, golden_json, x64):
    """Sanitised gradients, Adam, EMA replay the published training loop."""
    g = golden("08_train_schedules")
    config = DEFAULTS | golden_json(g, f"toy/{toy}/config")
    params = average = jnp.asarray(g[f"toy/{toy}/init"])
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    opt_state = adam.init(params)
    for i, grad in enumerate(g[f"toy/{toy}/grads"]):
        nimg = float(g[f"toy/{toy}/cur_nimg"][i])
        lr = learning_rate(nimg, config["lr"], config["lr_rampup_kimg"] * 1000)
        half = config["ema_halflife_kimg"] * 1000
        beta = ema.ema_beta(nimg, config["batch"], half, config["ema_rampup_ratio"])
        clean, _ = sanitize_gradients(jnp.asarray(grad))
        updates, opt_state = adam.update(clean, opt_state)
        params = params - lr * updates
        average = ema.ema_update(average, params, beta)
        np.testing.assert_allclose(lr, g[f"toy/{toy}/lr"][i], rtol=1e-12)
        np.testing.assert_allclose(beta, g[f"toy/{toy}/ema_beta"][i], rtol=1e-9)
        np.testing.assert_allclose(params, g[f"toy/{toy}/params"][i], rtol=1e-9)
        np.testing.assert_allclose(average, g[f"toy/{toy}/ema"][i], rtol=1e-9)


def test_sanitize_gradients():
    grads = {"a": jnp.array([1.0, jnp.nan, jnp.inf]), "b": jnp.array([-jnp.inf, 3e38])}
    clean, bad = sanitize_gradients(grads)
    np.testing.assert_array_equal(clean["a"], np.float32([1, 0, 1e5]))
    np.testing.assert_array_equal(clean["b"], np.float32([-1e5, 3e38]))
    assert int(bad) == 3


# --------------------------------------------------------------------- the whole step


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


def make_batch(batch_size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (batch_size, 4, 4, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, batch_size).astype(np.int32),
    }


def test_first_step_changes_no_weights_but_adam():
    step, state = make()
    after = jax.jit(step)(state, make_batch(), jax.random.key(0))
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
    whole, sigma = objective.per_image(params, {}, batch, key, ids)
    part = {k: v[5:7] for k, v in batch.items()}
    some, sigma_some = objective.per_image(params, {}, part, key, ids[5:7])
    np.testing.assert_array_equal(sigma[5:7], sigma_some)
    np.testing.assert_allclose(whole[5:7], some, rtol=1e-6)


def test_gradient_is_sum_over_pixels_mean_over_batch():
    """Against a float64 NumPy loss and its numeric derivative."""
    step, state = make(lr=0.0)
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
    step, state = make(log_every=2)
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
    step, state = make()
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
    step, state = make(max_bad_steps=3, log_every=10)
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


# ------------------------------------------------------------ what counts as a bad step


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


def test_averages_see_the_weights_after_the_step_and_the_images_before():
    step, state = make(lr=0.1, halflives=(0.064,))
    key = jax.random.key(0)
    for i in range(4):
        before = state
        state = step(state, make_batch(seed=i), key)
        # 64 images half-life, at most a twentieth of the images seen before the step.
        half = min(64.0, 8 * i * 0.05)
        beta = 0.5 ** (8 / half) if half else 0.0
        expected = beta * before.ema["ema_0.064kimg"]["a"] + (1 - beta) * state.params["a"]
        np.testing.assert_allclose(state.ema["ema_0.064kimg"]["a"], expected, rtol=1e-6)


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
