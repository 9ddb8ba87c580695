"""The sampling request: what it says, what it refuses, and the one loop that carries it out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
from edm_jax import generate, grids, samplers
from edm_jax.generate import Sampling, batches
from edm_jax.model import from_description
from edm_jax.precond import PRECONDITIONINGS
from edm_jax.store.errors import WeightsError
from edm_jax.train import sharding
from tests.test_generate import PIXELS, draw, tiny_model


def test_json_and_back():
    for sampling in (
        Sampling(),
        Sampling("dpmpp_2m", "vp", 20, sigma_min=0.01),
        Sampling("edm", num_steps=4, options={"s_churn": 40, "s_noise": 1.003}),
        Sampling(sigmas=(80, 5, 0.2, 0)),
    ):
        text = json.dumps(sampling.to_json())
        assert Sampling.from_json(json.loads(text)) == sampling
        assert hash(Sampling.from_json(json.loads(text))) == hash(sampling)
    assert Sampling(num_steps=4) != Sampling(num_steps=5)
    with pytest.raises(ValueError, match="a sampling request has no 'steps'"):
        Sampling.from_json({"steps": 3})


def test_numbers_of_any_array_library_are_json():
    for number in (np.float32, np.array, jnp.float32):
        sampling = Sampling(
            "ddim", num_steps=np.array(4), sigma_max=number(40.0), options={"eta": number(0.5)}
        )
        plain = Sampling("ddim", num_steps=4, sigma_max=40.0, options={"eta": 0.5})
        assert sampling == plain and hash(sampling) == hash(plain)
        assert json.loads(json.dumps(sampling.to_json())) == plain.to_json()
    levels = Sampling(sigmas=jnp.array([80.0, 1.0, 0.0]))
    assert levels == Sampling(sigmas=(80.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(sigma_min=np.ones((9, 9))), r"^sigma_min must be a number, got \[\["),
        (lambda: Sampling(rho="7"), "^rho must be a number, got '7'"),
        (lambda: Sampling(sigmas="210"), "^sigmas must be a list of noise levels, got '210'"),
        (lambda: Sampling(sigmas={3: 1, 0: 2}), "^sigmas must be a list of noise levels"),
        (lambda: Sampling(sigmas=4.0), "^sigmas must be a list of noise levels, got 4.0"),
        (lambda: Sampling(options="eta=1"), "^options must be a dictionary by name"),
        (lambda: Sampling.from_json(None), "^a sampling request is a dictionary by name, got None"),
    ],
)
def test_what_is_no_request(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_its_grid():
    np.testing.assert_array_equal(Sampling(num_steps=7).grid(), grids.make_sigmas("edm", 7))
    vp = Sampling(discretization="vp", num_steps=7, sigma_max=40.0)
    np.testing.assert_array_equal(vp.grid(), grids.make_sigmas("vp", 7, sigma_max=40.0))
    own = Sampling(sigmas=[80, 20, 5, 1, 0.2, 0])
    assert own.num_steps == 5 and own.nfe() == 9
    np.testing.assert_array_equal(own.grid(), [80, 20, 5, 1, 0.2, 0])
    iddpm = PRECONDITIONINGS["iddpm"]()
    rounded = Sampling(num_steps=5).grid(iddpm)
    np.testing.assert_allclose(rounded[:-1], np.asarray(iddpm.round_sigma(rounded[:-1])), rtol=1e-6)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling("hein"), "unknown sampler 'hein'; did you mean 'heun'"),
        (Sampling(discretization="emd"), "unknown grid of time steps 'emd'; did you mean 'edm'"),
        (Sampling("heun", options={"eta": 0.5}), "'heun' has no option 'eta'"),
        (Sampling("ddim", options={"eta": "half"}), "'eta' of 'ddim' must be a number"),
        (Sampling("dpmpp_3m", num_steps=2), "needs at least 3 steps"),
        (Sampling(discretization="vp", rho=5.0), "the vp grid has no option 'rho'"),
        (Sampling(sigmas=(5, 80, 0)), "strictly decreasing"),
        (Sampling(sigmas=(80, 5)), "must end in 0"),
        (Sampling("general", options={"schedule": "cosine"}), "unknown schedule 'cosine'"),
        (Sampling(num_steps=0), "num_steps must be an integer >= 1"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(sampling, message):
    for refuse in (sampling.check, lambda: batches(tiny_model(), [0], sampling=sampling)):
        with pytest.raises(ValueError, match=message) as error:
            refuse()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "edm", "ddim", "unipc_2"])
def test_samplers_are_those_of_the_registry(name):
    """The request runs the registry's function on the grid and noise of the seeds."""
    from edm_jax import seeds as seeds_lib

    model, grid = tiny_model(), grids.make_sigmas("edm", 4).astype(np.float32)
    keys = seeds_lib.image_keys([0, 1])
    x = seeds_lib.latents(keys, (2, *model.image_shape)) * grid[0]
    denoise = lambda x, s: model.denoise(x, s, 1)  # noqa: E731
    expected = jax.jit(lambda x, keys: samplers.get(name)(denoise, x, grid, keys))(x, keys)
    images = edm_jax.sample(model, [0, 1], 1, sampler=name, num_steps=4)
    np.testing.assert_allclose(images, expected, **PIXELS)


def test_new_numbers_never_recompile(traces):
    draw(range(2), 0, sampler="ddim", eta=0.5, num_steps=4)
    before = len(traces)
    draw(range(2), 1, sampler="ddim", eta=0.7, num_steps=4, sigma_max=20.0)
    assert len(traces) == before


def test_batches_are_what_is_left_of_the_seeds():
    """A stopped call goes on with the other seeds: the same images."""
    model, sampling = tiny_model(), Sampling(num_steps=3)
    whole = draw(range(7))
    drawn = {}
    for seeds, images in batches(model, range(7), sampling=sampling, batch_size=3):
        drawn |= dict(zip(seeds.tolist(), images, strict=True))
        if len(drawn) >= 3:
            break
    rest = [seed for seed in range(7) if seed not in drawn]
    for seeds, images in batches(model, rest, sampling=sampling, batch_size=2):
        drawn |= dict(zip(seeds.tolist(), images, strict=True))
    np.testing.assert_allclose([drawn[s] for s in range(7)], whole, **PIXELS)


def test_batches_over_a_mesh_and_as_trajectories():
    model, sampling = tiny_model(), Sampling(num_steps=3)
    where = sharding.batch_sharding(sharding.make_mesh())
    parts = list(batches(model, range(10), 1, sampling, batch_size=5, sharding=where))
    assert [len(seeds) for seeds, _ in parts] == [8, 2]  # a multiple of the devices
    images = np.concatenate([images for _, images in parts])
    np.testing.assert_allclose(images, draw(range(10), 1), **PIXELS)
    (_, trajectory), *_ = batches(model, range(3), 1, sampling, sharding=where, trajectory=True)
    assert trajectory.x.shape == (4, 3, 4, 4, 2)
    np.testing.assert_allclose(trajectory.x[-1], images[:3], **PIXELS)


def test_seeds_of_any_integer_type():
    expected = draw([3, 4], 1)
    for seeds in (jax.numpy.arange(3, 5), np.array([3, 4], np.uint8), [3 + 2**70, 4 + 2**32]):
        np.testing.assert_array_equal(draw(seeds, 1), expected)


def test_drawn_labels_are_those_of_the_images():
    labels = generate.drawn_labels(tiny_model(), range(4))
    np.testing.assert_allclose(draw(range(4)), draw(range(4), labels), **PIXELS)
    assert generate.drawn_labels(tiny_model(0), range(4)) is None


def test_label_vectors_are_drawn_from_those_trained_on():
    model, kept = tiny_model(), [[0.5, -1.0, 2.0], [1.0, 2.0, 3.0]]
    vectors = from_description(
        {**model.description, "data": {"label_vectors": kept}}, model.variables
    )
    # Programs that draw labels are not shared with models of other vectors.
    assert jax.tree.structure(vectors) != jax.tree.structure(model)
    drawn = generate.drawn_labels(vectors, range(200))
    assert drawn.shape == (200, 3) and {tuple(row) for row in drawn} == set(map(tuple, kept))
    np.testing.assert_array_equal(drawn[50:60], generate.drawn_labels(vectors, range(50, 60)))
    np.testing.assert_allclose(
        draw(range(4), model=vectors), draw(range(4), drawn[:4], model=vectors), **PIXELS
    )
    for bad in ([], "abc", [[1.0, 2.0]], [[1.0, 2.0, float("nan")]], [["a", "b", "c"]], [1.0]):
        with pytest.raises(WeightsError, match=r"label_vectors must be lists of 3 numbers"):
            from_description({**model.description, "data": {"label_vectors": bad}}, model.variables)


def test_only_classes_that_had_images_are_drawn():
    model = tiny_model()
    whole = generate.drawn_labels(model, range(200))
    assert model.classes == (0, 1, 2) and set(whole) == {0, 1, 2}
    some = from_description({**model.description, "data": {"classes": [0, 2]}}, model.variables)
    drawn = generate.drawn_labels(some, range(200))
    assert some.classes == (0, 2) and set(drawn) == {0, 2}
    # 200 draws of probability 1/2: within four standard deviations.
    assert abs(np.mean(drawn == 0) - 0.5) < 4 * 0.5 / 200**0.5
    every = from_description({**model.description, "data": {"classes": [0, 1, 2]}}, model.variables)
    np.testing.assert_array_equal(generate.drawn_labels(every, range(200)), whole)
    for bad in ([], [2, 0], [0, 3], [0, 0], "02", [0.0]):
        with pytest.raises(WeightsError, match=r"classes must ascend within 0\.\.2"):
            from_description({**model.description, "data": {"classes": bad}}, model.variables)
