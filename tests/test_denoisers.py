"""Denoisers of one's own under `edm_jax.sample`: functions, NNX and Equinox modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import edm_jax
from edm_jax import guidance, seeds
from edm_jax.store import single_file
from edm_jax.store.errors import WeightsError

S = 0.5  # deviation of Gaussian data, whose D = x s^2 / (s^2 + sigma^2) is exact


def gaussian(x, sigma):
    return x * (S**2 / (S**2 + sigma**2))[:, None]


class OfNNX(nnx.Module):
    """D = x gain / (gain + sigma^2), with what a network carries besides."""

    def __init__(self):
        self.gain = nnx.Param(jnp.float32(S**2))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))  # keys and a count

    def __call__(self, x, sigma):
        return self.dropout(x * (self.gain[...] / (self.gain[...] + sigma**2))[:, None])


def of_nnx():
    module = OfNNX()
    module.eval()
    return module


def of_equinox():
    eqx = pytest.importorskip("equinox")

    class OfEquinox(eqx.Module):
        gain: jax.Array
        square: callable = jnp.square  # a leaf that is no array

        def __call__(self, x, sigma):
            return x * (self.gain / (self.gain + self.square(sigma)))[:, None]

    return OfEquinox(jnp.float32(S**2))


def of_weights(weights, x, sigma):
    return x * (weights["gain"] / (weights["gain"] + sigma**2))[:, None]


WAYS = {
    "function": lambda: gaussian,
    "weights": lambda: jax.tree_util.Partial(of_weights, {"gain": jnp.float32(S**2)}),
    "nnx": of_nnx,
    "equinox": of_equinox,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_draws_what_the_sampler_draws_of_the_function(way):
    model = edm_jax.from_denoiser(WAYS[way](), (3,))
    drawn = edm_jax.sample(model, range(4), num_steps=5)
    sigmas = edm_jax.karras_sigmas(5)
    noise = seeds.latents(seeds.image_keys(range(4)), (4, 3))
    # The exact D of Gaussian data, called with a scalar by the sampler itself.
    expected = edm_jax.sample_heun(
        lambda x, sigma: x * S**2 / (S**2 + sigma**2), noise * sigmas[0], sigmas
    )
    # float32: factors of the steps, of order 100, in another order
    np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-5)
    count = 0 if way == "function" else 1
    assert sum(np.size(a) for a in jax.tree.leaves(model.params)) == count
    assert f"{count} parameters" in repr(model)


@pytest.mark.parametrize("way", ["weights", "nnx", "equinox"])
def test_other_weights_of_a_network_compile_nothing_anew(way):
    traces = []

    @jax.jit
    def run(model, x):
        traces.append(1)
        return model.denoise(x, 1.0)

    denoise = WAYS[way]()
    x = jnp.ones((2, 3))
    first, doubled = run(edm_jax.from_denoiser(denoise, (3,)), x), jax.tree.map(
        lambda a: 3 * a if isinstance(a, jax.Array) and a.dtype == jnp.float32 else a, denoise
    )  # fmt: skip
    second = run(edm_jax.from_denoiser(doubled, (3,)), x)
    assert len(traces) == 1
    np.testing.assert_allclose(first, 0.25 / 1.25, rtol=1e-6)
    np.testing.assert_allclose(second, 0.75 / 1.75, rtol=1e-6)


def test_weights_have_gradients():
    model = edm_jax.from_denoiser(WAYS["nnx"](), (3,))
    x = jnp.ones((1, 3))

    def mean(params):
        return model.denoiser(model.variables | {"params": params})(x, 1.0).mean()

    # d/dg g / (g + 1) = 1 / (g + 1)^2
    (gradient,) = jax.tree.leaves(jax.grad(mean)(model.params))
    np.testing.assert_allclose(gradient, 1 / 1.25**2, rtol=1e-6)


MEANS = jnp.array([[-0.5], [0.5]])


def of_classes(x, sigma, rows):
    """Gaussians about -1/2 and 1/2; without a label, about 0."""
    mean = rows @ MEANS
    return mean + (x - mean) * (S**2 / (S**2 + sigma**2))[:, None]


def test_labels_names_and_guidance():
    model = edm_jax.from_denoiser(of_classes, [1], num_classes=2, label_names=["low", "high"])
    x = jnp.zeros((3, 1))
    share = S**2 / (S**2 + 1.0)
    np.testing.assert_allclose(model.denoise(x, 1.0, "high")[:, 0], 0.5 * (1 - share), rtol=1e-6)
    np.testing.assert_allclose(model.denoise(x, 1.0), 0, atol=1e-7)
    # Guidance by w moves the mean of a class to w times it; the noise is the same.
    kwargs = dict(num_steps=8, labels=1)
    plain, strong = (
        edm_jax.sample(model, range(3), guidance=g, **kwargs)
        for g in (None, guidance.classifier_free(3.0, null_row=np.zeros(2)))
    )
    # On the way from 80 to 0 all but a share S / 80 of the shift is made, and Heun's error of
    # eight steps is a few per cent.
    np.testing.assert_allclose(strong - plain, 1.0, atol=0.1)


def test_the_rest_of_the_library_takes_it():
    model = edm_jax.from_denoiser(
        lambda x, sigma: gaussian(x.reshape(-1, 4), sigma).reshape(x.shape), (2, 2, 1)
    )
    y = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 2, 2, 1)
    # The density of what is seen at the lowest level, N(0, S^2 + sigma_min^2).
    found = edm_jax.log_likelihood(model, y, dequantisation="none", sigma_min=0.05, num_steps=64)
    variance = S**2 + 0.05**2
    expected = (-0.5 * np.log(2 * np.pi * variance) - y**2 / (2 * variance)).sum((1, 2, 3))
    # The prior N(0, 80^2) for N(0, 80^2 + S^2) costs 1e-4; rk4 on 64 steps less.
    np.testing.assert_allclose(found.log_likelihood, expected, atol=5e-3)


def test_the_noise_range_is_kept():
    model = edm_jax.from_denoiser(gaussian, (3,), sigma_min=0.1, sigma_max=5.0)
    path = edm_jax.sample(model, range(1), num_steps=4, trajectory=True)
    grid = edm_jax.Sampling(num_steps=4).grid(model.preconditioning)
    assert grid[0] == 5.0 and grid[-2] == pytest.approx(0.1)
    noise = seeds.latents(seeds.image_keys(range(1)), (1, 3))
    np.testing.assert_allclose(path.x[0], noise * 5.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("denoise", "kwargs", "message"),
    [
        ("net.pt", {}, "must be a function D"),
        (OfNNX, {}, "must be a function D"),
        (lambda x: x, {}, r"denoise\(x, sigma\) cannot be called with shapes \(2, 3\), \(2,\)"),
        (lambda x, sigma: x / sigma, {}, "cannot be called with shapes"),
        (lambda x, sigma: x.sum(), {}, r"must return the shape of x, \(2, 3\), got \(\)"),
        (lambda x, sigma: (x, x), {}, "must return the shape of x"),
        (gaussian, {"num_classes": 2}, r"denoise\(x, sigma, rows\) cannot be called"),
        (gaussian, {"image_shape": ()}, r"image_shape must be \(H, W, C\)"),
        (gaussian, {"image_shape": (0,)}, "image_shape must be an integer >= 1"),
        (gaussian, {"sigma_min": 2.0, "sigma_max": 1.0}, "0 <= sigma_min < sigma_max"),
        (of_classes, {"num_classes": 2, "label_names": ["low"]}, "1 label_names for 2 classes"),
    ],
)
def test_bad_denoisers_are_named(denoise, kwargs, message):
    with pytest.raises(ValueError, match=message) as found:
        edm_jax.from_denoiser(denoise, **{"image_shape": (3,)} | kwargs)
    assert "\n" not in str(found.value)


def test_what_it_cannot_do_is_said(tmp_path):
    model = edm_jax.from_denoiser(gaussian, (3,))
    with pytest.raises(ValueError, match="takes no augment_labels"):
        model.denoise(jnp.zeros((1, 3)), 1.0, augment_labels=jnp.zeros((1, 9)))
    with pytest.raises(ValueError, match="the model is unconditional"):
        edm_jax.sample(model, range(1), labels=1)
    with pytest.raises(WeightsError, match="preconditioning 'own' is unknown"):
        single_file.write_single_file(
            tmp_path / "a.safetensors", dict(model.description), {"raw": model.variables}
        )
    assert not list(tmp_path.iterdir())
