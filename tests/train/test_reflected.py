"""The training loss against the published program's, and what it is minimised by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edm_jax import grids, precond, samplers
from edm_jax import noise as noise_lib
from edm_jax.data.sources.digits import digits
from edm_jax.domains.box import Box
from edm_jax.noise import LogUniform
from edm_jax.reflected import sampling
from edm_jax.reflected.sources import ReflectedPoints
from edm_jax.train import reflected
from tests.support import compiler

UNIT = Box(0.0, 1.0)


def _stand_in(x, sigma):
    """The network of the golden arrays, F = 0.3 (2x - 1) + 0.1 sin(ln sigma); score F/sigma."""
    return 0.3 * (2 * x - 1) + 0.1 * jnp.sin(jnp.log(sigma)).reshape(-1, 1, 1, 1)


def _loss(arrays, weight, dtype):
    images, noise = (arrays[f"loss/{k}"].astype(dtype) for k in ("images", "noise"))
    levels = noise_lib.LogUniform(0.01 * 500**1e-5, 5.0)  # t from 1e-5 to 1
    sigma = levels.sigma(arrays["loss/u"].astype(dtype))
    loss = jax.jit(lambda *a: reflected.score_matching_loss(_stand_in, UNIT, *a, weight))
    return sigma, loss(images, sigma, noise)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_published_loss(dtype, golden, x64):
    arrays = golden("13_reflected")
    sigma, loss = _loss(arrays, reflected.image_weight, dtype)
    np.testing.assert_allclose(sigma, arrays["loss/sigma_f64"], rtol=2e-6)
    per_image = np.sum(loss, axis=(1, 2, 3))
    exact = dtype == np.float64
    np.testing.assert_allclose(
        per_image, arrays["loss/per_sample_f64"], rtol=1e-6 if exact else 1e-4
    )
    # The program's kernel is accurate to 2e-3 near its switch, 1e-4 in the mean.
    np.testing.assert_allclose(per_image.mean(), arrays["loss/image_sum"], rtol=1e-4)
    size = loss[0].size
    np.testing.assert_allclose(2 * per_image.mean() / size, arrays["loss/image_mean"], rtol=1e-4)
    weight = reflected.LikelihoodWeight(0.01, 5.0)
    per_image = np.sum(_loss(arrays, weight, dtype)[1], axis=(1, 2, 3))
    np.testing.assert_allclose(per_image.mean(), arrays["loss/likelihood_sum"], rtol=1e-4)
    np.testing.assert_allclose(
        2 * per_image.mean() / size, arrays["loss/likelihood_mean"], rtol=1e-4
    )


def test_score_form_equals_denoiser_form(golden, x64):
    arrays = golden("13_reflected")
    images, noise = (np.float64(arrays[f"loss/{k}"]) for k in ("images", "noise"))
    sigma = arrays["loss/sigma_f64"]
    x = UNIT.corrupt(images, sigma, noise)
    np.testing.assert_allclose(x, arrays["loss/x_f64"], atol=1e-9)
    target = UNIT.target(x, images, sigma)
    np.testing.assert_allclose(target, arrays["loss/target_f64"], atol=1e-8)
    # A preconditioned network: precondition() and scaled_score_fn() are the same model.
    net_fn = lambda x, c_noise: jnp.tanh(x + c_noise.reshape(-1, 1, 1, 1))  # noqa: E731
    for coefs in (precond.reflected_coefs, precond.edm_coefs):
        scaled_score = reflected.scaled_score_fn(net_fn, coefs)
        denoised = jax.jit(precond.precondition(net_fn, coefs))(x, sigma)
        scaled = jax.jit(scaled_score)(x, sigma)
        column = sigma.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(x + column * scaled, denoised, atol=1e-12)
        loss = jax.jit(
            lambda *given, f=scaled_score: reflected.score_matching_loss(
                f, UNIT, *given, reflected.image_weight
            )
        )(images, sigma, noise)
        by_denoiser = 0.5 * ((denoised - target) / column) ** 2
        np.testing.assert_allclose(loss, by_denoiser, rtol=1e-7, atol=1e-9)


def test_c_out_makes_the_network_the_score():
    """With the reflected coefficients sigma s is F itself, bit for bit, at any sigma."""
    net_fn = lambda x, c_noise: 0.1 * x + c_noise.reshape(-1, 1)  # noqa: E731
    sigma = jnp.float32([1e-4, 0.02, 10.0])
    x = jnp.float32([[0.3], [-1.0], [0.9]])
    scaled = reflected.scaled_score_fn(net_fn, precond.reflected_coefs)(x, sigma)
    np.testing.assert_array_equal(scaled, net_fn(x, jnp.log(sigma) / 4))


def test_likelihood_weight_is_the_published_one():
    """2 ln(sigma_max/sigma_min) = 12.43 for 0.01 to 5, in any units (reflected.md, 5)."""
    for levels in [(0.01, 5.0), (0.02, 10.0)]:
        assert reflected.LikelihoodWeight(*levels)(jnp.ones(1))[0] == pytest.approx(12.43, abs=5e-3)


def test_the_exact_score_has_the_least_loss(x64):
    """Its loss is the conditional variance; another score's exceeds it by its distance."""
    source = ReflectedPoints(np.array([-1.0, 0.2, 1.0]), np.array([0.3, 0.3, 0.4]))
    y = source.sample(jax.random.key(0), (20_000,))
    sigma = LogUniform(0.02, 10.0).sigma(jax.random.uniform(jax.random.key(1), y.shape))
    noise = jax.random.normal(jax.random.key(2), y.shape)

    def loss(scaled_score):
        return reflected.score_matching_loss(
            scaled_score, source.box, y, sigma, noise, reflected.image_weight
        )

    def shifted(x, sigma):
        return source.scaled_score(x, sigma) + 0.3 * jnp.cos(3 * x)

    x = source.box.corrupt(y, sigma, noise)
    excess = np.asarray(jax.jit(lambda: loss(shifted) - loss(source.scaled_score))())
    expected = np.mean(0.5 * np.square(0.3 * np.cos(3 * x)))
    error = 4 * excess.std() / np.sqrt(excess.size)
    assert abs(excess.mean() - expected) < error < 0.3 * expected


def _objective(**options):
    def apply(variables, x, c_noise, labels, augment_labels, **_):
        f_x = variables["params"]["w"] * x + c_noise.reshape(-1, 1, 1, 1)
        return f_x if labels is None else f_x + jnp.sum(labels, axis=1).reshape(-1, 1, 1, 1)

    return reflected.ReflectedObjective(
        apply, precond.reflected_preconditioning(), noise_lib.LogUniform(0.02, 10.0), **options
    )


def test_objective_contract():
    """Loss and level per image; an image's numbers follow from its position alone."""
    batch = {"image": np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8)}
    key, ids = jax.random.key(0), jnp.arange(4)
    params = {"w": jnp.float32(0.3)}
    per_image = jax.jit(_objective().per_image)
    loss, sigma = per_image(params, {}, batch, key, ids)
    assert loss.shape == sigma.shape == (4,)
    assert np.all((sigma >= 0.02) & (sigma <= 10.0)) and np.all(loss > 0)
    half = {"image": batch["image"][2:]}
    loss_2, sigma_2 = per_image(params, {}, half, key, ids[2:])
    np.testing.assert_allclose(loss_2, loss[2:], rtol=1e-6)
    np.testing.assert_array_equal(sigma_2, sigma[2:])
    gradient = jax.grad(lambda p: jnp.sum(per_image(p, {}, batch, key, ids)[0]))(params)
    assert np.isfinite(gradient["w"]) and gradient["w"] != 0


def test_augmented_images_stay_in_the_box():
    """Interpolation overshoots at edges; the kernel's sources must not."""
    batch = {"image": np.full((2, 2, 2, 1), 255, np.uint8)}

    def overshoot(keys, images):
        return images * 1.2, None

    args = ({"w": jnp.float32(0.0)}, {}, batch, jax.random.key(0), jnp.arange(2))
    plain, augmented = (
        jax.jit(_objective(**options).per_image, compiler_options=compiler.as_users_compile())(
            *args
        )[0]
        for options in ({}, {"augment": overshoot})
    )
    np.testing.assert_array_equal(augmented, plain)


def _perceptron(variables, x, c_noise, labels=None, augment_labels=None, **_):
    """F of two layers, of whole images."""
    params = variables["params"]
    level = jnp.broadcast_to(c_noise.reshape(-1, 1), (x.shape[0], 1))
    rows = jnp.concatenate([x.reshape(x.shape[0], -1), level], axis=1)
    hidden = jax.nn.silu(rows @ params["in"] + params["bias"][None])
    return (hidden @ params["out"]).reshape(x.shape)


def test_training_on_digits():
    """The loss falls from that of no score towards that of the exact one; samples are digits."""
    source = digits()
    images = np.stack([source[i]["image"] for i in range(512)])
    y = images / np.float32(127.5) - 1
    objective = reflected.ReflectedObjective(
        _perceptron, precond.reflected_preconditioning(0.02, 4.0), LogUniform(0.02, 4.0)
    )
    rng, width = np.random.default_rng(0), 256
    params = {
        "in": rng.normal(0, 65**-0.5, (65, width)).astype(np.float32),
        "bias": np.zeros(width, np.float32),
        "out": np.zeros((width, 64), np.float32),
    }
    optimizer = optax.adam(3e-3)

    def step(state, index):
        params, moments = state
        key = jax.random.fold_in(jax.random.key(0), index)
        some = jax.random.randint(jax.random.fold_in(key, 1), (64,), 0, len(images))
        batch = {"image": jnp.asarray(images)[some]}

        def loss(params):
            return jnp.mean(objective.per_image(params, {}, batch, key, jnp.arange(64))[0])

        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(500))[0][0]

    trained = train(params)
    net_fn = lambda x, c_noise: _perceptron({"params": trained}, x, c_noise)  # noqa: E731
    learnt = reflected.scaled_score_fn(net_fn, precond.reflected_coefs)
    exact = ReflectedPoints(y).scaled_score
    noise = jax.random.normal(jax.random.key(2), y[:64].shape)

    @jax.jit
    def losses(sigma):
        given = (Box(), jnp.asarray(y[:64]), sigma, noise, reflected.image_weight)
        return [
            jnp.mean(reflected.score_matching_loss(f, *given))
            for f in (lambda x, sigma: jnp.zeros_like(x), learnt, exact)
        ]

    # At 0.1 the digits are told apart by the exact score and hardly by so small a network.
    for sigma, most in [(0.3, 0.8), (0.7, 0.6), (1.2, 0.85)]:
        none, of_net, least = losses(np.full(64, sigma, np.float32))
        assert least < of_net < most * none

    denoise = precond.precondition(net_fn, precond.reflected_coefs)
    sigmas = grids.make_sigmas("edm", 12, sigma_min=0.02, sigma_max=4.0)
    noise = jax.random.normal(jax.random.key(3), (64, 8, 8, 1))
    run = jax.jit(lambda noise: sampling.run(samplers.get("heun"), denoise, noise, sigmas))
    drawn = np.asarray(run(noise))
    assert np.all((drawn >= -1) & (drawn <= 1))
    # So small a network blurs.  Still the pixels' means follow those of the data; without a
    # relation 64 of them would have a correlation of 0 +- 0.125.
    assert np.corrcoef(drawn.mean(0).ravel(), y.mean(0).ravel())[0, 1] > 5 * 0.125
    assert drawn.std(0).mean() > 0.5 * y.std(0).mean()


def test_bad_input():
    with pytest.raises(ValueError, match=r"images must lie in the box \[0, 1\]"):
        _objective(box=UNIT)
    with pytest.raises(ValueError, match=r"need sigma of shape \(B,\)"):
        reflected.score_matching_loss(
            _stand_in, UNIT, jnp.zeros((2, 1, 1, 1)), jnp.ones(3), jnp.zeros((2, 1, 1, 1)),
            reflected.image_weight,
        )  # fmt: skip
