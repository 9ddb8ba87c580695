"""From seeds to images: what an image depends on, what compiles, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
from edm_jax import grids, models, seeds
from edm_jax.generate import lower_batch
from edm_jax.model import describe, from_description
from edm_jax.models.ops import attention_kernel, target
from edm_jax.samplers import Churn, sample_heun
from edm_jax.sampling import Sampling
from edm_jax.train import sharding
from tests.support.drawn import drawn_variables
from tests.support.exact_model import exact_model

# Two float32 runs of the same network in batches of another shape: measured 2e-6.
PIXELS = dict(rtol=1e-4, atol=1e-4)


@functools.cache
def tiny_model(num_classes=3, **options):
    network = dict(
        name="SongUNet", img_resolution=4, in_channels=2, out_channels=2, label_dim=num_classes,
        model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[],
        **options,
    )  # fmt: skip
    description = describe(
        network=network,
        precond={"name": "edm", "sigma_data": 0.5},
        image_shape=(4, 4, 2),
        num_classes=num_classes,
    )
    net = models.build(network.pop("name"), **network)
    # No layer is near zero, where the last one starts: every input matters.
    return from_description(description, drawn_variables(net, seed=1))


def draw(some_seeds, labels=None, model=None, **options):
    options = {"num_steps": 3, "batch_size": 4} | options
    return edm_jax.sample(model or tiny_model(), some_seeds, labels, **options)


def test_bytes(golden):
    g = golden("03_samplers")
    np.testing.assert_array_equal(edm_jax.to_uint8(g["to_uint8/x"]), g["to_uint8/y"])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(edm_jax.to_uint8(every / 127.5 - 1), every)


@pytest.mark.parametrize("churn", [None, Churn(1.0, 0.05, 50.0, 1.003)])
def test_image_depends_on_its_seed_alone(churn):
    """Not on order, batch size or padding."""
    images = draw(range(6), 1, churn=churn)
    shuffled = draw([4, 0, 5, 2], 1, churn=churn, batch_size=2)
    np.testing.assert_allclose(shuffled, images[[4, 0, 5, 2]], **PIXELS)
    np.testing.assert_allclose(draw([3], 1, churn=churn, batch_size=3), images[[3]], **PIXELS)
    assert not np.allclose(images[0], images[1], atol=0.1)


def test_operations_know_over_how_many_devices_a_batch_is_split():
    """Those that take a batch in parts would else move images between devices, or take none."""
    seen = []

    def denoise(x, sigma):
        seen.append(target.devices())
        return x / (1 + sigma[:, None, None, None] ** 2)

    model = edm_jax.from_denoiser(denoise, (2, 2, 1), sigma_min=0.01, sigma_max=2.0)
    seen.clear()
    draw([0], model=model)
    assert set(seen) == {1}
    seen.clear()
    four = sharding.batch_sharding(sharding.make_mesh(jax.devices()[:4]))
    draw(range(8), model=model, batch_size=8, sharding=four)
    assert set(seen) == {4} and jax.device_count() > 4


def test_noise_is_bit_for_bit_the_same_in_any_batch():
    """Under jit and without, alone and among others, padded or not."""
    keys = seeds.image_keys(range(8))
    shape = (5, 4, 3)
    for function in (
        lambda k, n: seeds.latents(k, (n, *shape)),
        lambda k, n: seeds.churn_noise(k, 7, (n, *shape)),
    ):
        whole = np.asarray(jax.jit(lambda k, f=function: f(k, 8))(keys))
        for i in (0, 3, 7):
            alone = np.asarray(function(seeds.image_keys([i]), 1))
            np.testing.assert_array_equal(whole[i], alone[0])
        some = np.asarray(jax.jit(lambda k, f=function: f(k, 3))(seeds.image_keys([5, 2, 2])))
        np.testing.assert_array_equal(some, whole[[5, 2, 2]])


def test_noise_streams_differ_and_are_normal():
    keys = seeds.image_keys(range(64))
    draws = [seeds.latents(keys, (64, 32))]
    draws += [seeds.churn_noise(keys, i, (64, 32)) for i in range(2)]
    values = np.stack([np.asarray(d).ravel() for d in draws])
    # 2048 draws: five standard errors of mean, variance and correlation are 0.11, 0.16, 0.11
    assert np.abs(values.mean(1)).max() < 0.11
    assert np.abs(values.var(1) - 1).max() < 0.16
    assert np.abs(np.corrcoef(values)[np.triu_indices(3, 1)]).max() < 0.11


def test_seeds_are_taken_modulo_two_to_the_32():
    same = [seeds.latents(seeds.image_keys([s]), (1, 4)) for s in (5, 5 + 2**32)]
    np.testing.assert_array_equal(*same)


def test_random_labels_belong_to_the_seed():
    keys = seeds.image_keys(range(300))
    labels = np.asarray(seeds.random_labels(keys, 3))
    some = np.asarray(seeds.random_labels(seeds.image_keys([17, 5]), 3))
    np.testing.assert_array_equal(some, labels[[17, 5]])
    # 300 draws of 3 classes: expected 100 each, five standard deviations 41
    assert np.abs(np.bincount(labels, minlength=3) - 100).max() < 41
    drawn = draw(range(4))
    np.testing.assert_allclose(drawn, draw(range(4), labels[:4]), **PIXELS)


def test_label_changes_the_image_but_not_its_noise():
    assert not np.allclose(draw([0], 0), draw([0], 2), atol=1e-2)
    mixed = draw([0, 1], [0, 2])
    np.testing.assert_allclose(mixed[0], draw([0], 0)[0], **PIXELS)
    one_hot = draw([0, 1], np.eye(3)[[0, 2]])
    np.testing.assert_allclose(one_hot, mixed, **PIXELS)


def test_labels_stay_with_their_seeds_in_later_batches():
    labels = np.array([0, 1, 2, 2, 1, 0])
    last = draw([4, 5], labels[4:])
    np.testing.assert_allclose(draw(range(6), labels)[4:], last, **PIXELS)
    np.testing.assert_allclose(draw(range(6), np.eye(3)[labels])[4:], last, **PIXELS)


def test_eight_devices_equal_one():
    mesh = sharding.make_mesh()
    spread = draw(range(10), 1, batch_size=5, sharding=sharding.batch_sharding(mesh))
    np.testing.assert_allclose(spread, draw(range(10), 1, batch_size=5), **PIXELS)


def test_no_recompilation_for_new_numbers(traces):
    draw(range(4), 1, num_steps=4, churn=Churn(1.0))
    before = len(traces)
    draw(range(4), 2, num_steps=4, churn=Churn(2.0, 0.1, 7.0, 1.01), rho=5.0, sigma_max=40.0)
    draw(range(9), 0, num_steps=4, churn=Churn(0.5), sigma_min=0.01)
    draw(range(4), 0, num_steps=4, churn=Churn(3, s_tmax=50, s_noise=1))
    draw(range(4), 0, num_steps=4, churn=Churn(jnp.float32(3), s_noise=np.float64(1)))
    assert len(traces) == before
    draw(range(4), 1, num_steps=5, churn=Churn(1.0), model=tiny_model(num_classes=5))
    assert len(traces) > before


def test_equal_models_share_a_program(traces):
    model = tiny_model()
    twin = from_description(dict(model.description), model.variables)
    draw(range(4), 1)
    before = len(traces)
    draw(range(4), 1, model=twin)
    assert len(traces) == before


def test_trajectory_ends_in_the_sample():
    sample = draw(range(5), 1)
    trajectory = draw(range(5), 1, trajectory=True)
    assert trajectory.x.shape == (4, 5, 4, 4, 2)
    assert trajectory.denoised.shape == (3, 5, 4, 4, 2)
    np.testing.assert_allclose(trajectory.x[-1], sample, **PIXELS)
    np.testing.assert_allclose(trajectory.x[-1], trajectory.denoised[-1], atol=1e-6)
    assert 60 < trajectory.x[0].std() < 100  # noise of standard deviation 80


def test_one_step_is_the_denoiser_at_sigma_max():
    model = tiny_model()
    latent = seeds.latents(seeds.image_keys([7]), (1, 4, 4, 2)) * 80.0
    expected = jax.jit(lambda x: model.denoise(x, 80.0, 2))(latent)
    np.testing.assert_allclose(draw([7], 2, num_steps=1), expected, **PIXELS)


def test_sampling_is_pure_under_jit_vmap_and_grad():
    model = tiny_model()
    sigmas = edm_jax.karras_sigmas(2).astype(np.float32)

    @jax.jit
    def energy(scale, x):
        def denoise(x, sigma):
            return scale * model.denoise(x, sigma, 1)

        return jnp.sum(sample_heun(denoise, x, sigmas) ** 2)

    x = seeds.latents(seeds.image_keys([0, 1]), (2, 4, 4, 2)) * 80
    scale = jnp.float32(0.9)
    slope = jax.jit(jax.grad(energy))(scale, x)
    numeric = (energy(scale + 1e-2, x) - energy(scale - 1e-2, x)) / 2e-2
    np.testing.assert_allclose(slope, numeric, rtol=2e-2)  # central difference in float32
    both = jax.jit(jax.vmap(energy, in_axes=(0, None)))(jnp.float32([0.9, 1.1]), x)
    np.testing.assert_allclose(both[0], energy(scale, x), rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(seeds=[]), "non-empty list of integers"),
        (dict(seeds=[0.5]), "non-empty list of integers"),
        (dict(seeds=[-1]), "must not be negative, got -1"),
        (dict(seeds=None), "non-empty list of integers"),
        (dict(labels="3"), "class indices or rows of numbers"),
        (dict(churn=3.0), r"churn must be .*Churn\(s_churn\)"),
        (dict(rho=float("inf")), "rho must be positive and finite"),
        (dict(labels=3), r"label 3 is out of range; the classes are 0\.\.2"),
        (dict(labels=-1), "label -1 is out of range"),
        (dict(labels=[0, 1, 2]), "one class index or 2 of them"),
        (dict(labels=0.5), "must be integers"),
        (dict(labels=np.eye(4)[:2]), r"must have shape \(2, 3\), got \(2, 4\)"),
        (dict(num_steps=0), "num_steps must be an integer >= 1, got 0"),
        (dict(sigma_min=80.0), "got sigma_min=80.0, sigma_max=80.0"),
        (dict(rho=0.0), "rho must be positive"),
        (dict(batch_size=0), "batch_size must be an integer >= 1"),
        (dict(batch_size=None), "batch_size must be an integer >= 1, got None"),
        (dict(batch_size="2"), "batch_size must be an integer >= 1, got '2'"),
        (dict(batch_size=True), "batch_size must be an integer >= 1, got True"),
        (dict(guidance=3), "guidance must be a value with guide, check, got 3; see"),
        (dict(model="runs/digits"), "model must be a Model, got 'runs/digits'; edm_jax.load"),
        (dict(sampling={"num_steps": 2}), r"sampling must be a Sampling, got .*; use edm_jax"),
        (dict(trajectory="x"), "trajectory must be True or False, got 'x'"),
        (dict(sharding=4), "sharding must be a NamedSharding, got 4"),
        (dict(on_batch=1), "on_batch must be a function"),
        (dict(options=3), "options must be a dictionary by name, got 3"),
        (dict(labels=np.full((2, 3), np.nan)), "label rows must be finite"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        edm_jax.sample(**({"model": tiny_model(), "seeds": [0, 1], "num_steps": 2} | call))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(sampling=Sampling(num_steps=3), num_steps=2), "num_steps is given twice, as 3 and 2"),
        (dict(sampling=Sampling("ddim"), sampler="heun"), "sampler is given twice, as 'ddim'"),
        (dict(sampler="ddim", options={"eta": 0.5}, eta=1.0), "eta is given twice, as 0.5 and 1.0"),
        (
            dict(sampling=Sampling("ddim", options={"eta": 0.5}), eta=1.0),
            r"leave one out, or change a request with dataclasses.replace\(sampling, eta=",
        ),
        (dict(churn=Churn(2.0), s_churn=3.0), "s_churn is given twice, as 3.0 and 2.0"),
        (
            dict(sampling=Sampling(sigmas=(80.0, 1.0, 0.0)), num_steps=5),
            "sigmas are the noise levels themselves: leave num_steps out",
        ),
    ],
)
def test_a_setting_that_is_given_twice(call, message):
    with pytest.raises(ValueError, match=message):
        edm_jax.sample(tiny_model(), [0], **call)


def test_settings_complete_a_request():
    request = Sampling(num_steps=3, options={})
    whole = draw([1], 0, sampling=request, rho=5.0, num_steps=3)
    np.testing.assert_array_equal(whole, draw([1], 0, num_steps=3, rho=5.0))


def test_labels_for_an_unconditional_model_are_refused():
    with pytest.raises(ValueError, match="unconditional; leave labels out"):
        draw([0], 0, model=tiny_model(0))
    assert draw([0], model=tiny_model(0)).shape == (1, 4, 4, 2)


def test_one_seed_may_be_a_number():
    np.testing.assert_array_equal(draw(np.array(5), 1), draw([5], 1))


def test_gradient_with_respect_to_churn_is_finite_at_zero():
    def energy(s_churn):
        x = edm_jax.sample_stochastic(
            lambda x, s: 0.5 * x, jnp.ones(3), edm_jax.karras_sigmas(4), jax.random.key(0),
            Churn(s_churn),
        )  # fmt: skip
        return jnp.sum(x)

    assert np.isfinite(jax.jit(jax.grad(energy))(0.0))


@pytest.mark.parametrize("sampler", ["edm", "general"])
def test_churned_levels_are_rounded_for_a_network_with_a_table(sampler):
    """Algorithm 2 with the levels of EDM section C.3, step by step."""
    model = exact_model("iddpm")
    denoise, churn, keys = jax.jit(model.denoise), Churn(1.5), seeds.image_keys([3, 8])
    levels = grids.make_sigmas("edm", 3, preconditioning=model.preconditioning)
    x = seeds.latents(keys, (2, *model.image_shape)) * np.float32(levels[0])
    for i in range(3):
        noise = seeds.churn_noise(keys, i, x.shape)
        raised = model.preconditioning.round_sigma(
            np.float32(levels[i] * (1 + min(0.5, 2**0.5 - 1)))
        )
        x = x + np.sqrt(np.maximum(raised**2 - np.float32(levels[i]) ** 2, 0)) * noise
        d = (x - denoise(x, raised)) / raised
        x_next = x + (levels[i + 1] - raised) * d
        if i < 2:
            again = (x_next - denoise(x_next, levels[i + 1])) / levels[i + 1]
            x_next = x + (levels[i + 1] - raised) * (d + again) / 2
        x = x_next
    numbers = {"s_churn": 1.5} if sampler == "general" else {"churn": churn}
    images = edm_jax.sample(model, [3, 8], sampler=sampler, num_steps=3, **numbers)
    np.testing.assert_allclose(images, x, **PIXELS)


def test_batches_of_one_and_none():
    np.testing.assert_allclose(draw([5, 9], 1, batch_size=1), draw([5, 9], 1), **PIXELS)
    for size in (0, -1, 1.5):
        with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
            draw([5], 1, batch_size=size)


def test_bytes_are_cut_off_not_wrapped():
    found = edm_jax.to_uint8(np.float32([-9.0, -1.0, 0.0, 1.0, 9.0]))
    np.testing.assert_array_equal(found, [0, 0, 128, 255, 255])


def test_progress_is_told_in_images():
    told = []
    draw(range(6), 1, on_batch=told.append)
    assert told == [4, 6]


def test_a_program_made_ahead_of_time_draws_the_same():
    mesh = sharding.make_mesh()  # eight devices in these tests
    batch = sharding.batch_sharding(mesh)
    model, sampling = tiny_model(), edm_jax.Sampling(num_steps=3)
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), model)
    program = lower_batch(abstract, sampling, 8, batch).compile()
    labels = np.arange(8) % 3
    rows = np.eye(3, dtype=np.float32)[labels]
    model_there = jax.device_put(model, sharding.replicated(mesh))
    bits, rows = jax.device_put((seeds.seed_bits(np.arange(8)), rows), batch)
    images = program(
        model_there, bits, rows,
        sigmas=sampling.grid(model.preconditioning).astype(np.float32),
        asked=sampling.request(model.preconditioning), guidance=None,
    )  # fmt: skip
    expected = edm_jax.sample(model, range(8), labels, sampling=sampling)
    np.testing.assert_allclose(images, expected, **PIXELS)


def test_devices_of_another_mesh_of_the_same_shape(monkeypatch):
    """Operations that run on each device belong to theirs, as attention's kernel for TPUs."""
    monkeypatch.setattr(target, "device_kind", lambda: "TPU v5 lite")
    network = dict(
        name="SongUNet", img_resolution=8, in_channels=1, out_channels=1, model_channels=16,
        channel_mult=[1], num_blocks=1, attn_resolutions=[8], dtype="bfloat16",
    )  # fmt: skip
    description = describe(network=network, precond={"name": "edm", "sigma_data": 0.5},
                           image_shape=(8, 8, 1), num_classes=0)  # fmt: skip
    net = models.build(network.pop("name"), **network)
    model = from_description(description, drawn_variables(net, seed=1))
    called = []
    attend = attention_kernel.attend
    monkeypatch.setattr(attention_kernel, "attend", lambda *a: called.append(1) or attend(*a))
    images = []
    with target.assumed("tpu"):
        for devices in (jax.devices()[:2], jax.devices()[2:4]):
            split = sharding.batch_sharding(sharding.make_mesh(devices))
            images.append(draw(range(4), model=model, batch_size=4, sharding=split))
    np.testing.assert_array_equal(*images)
    assert called
