"""Adaptive sampling: accuracy, cost, independence of images, gradients, labels."""

import builtins
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, samplers

pytest.importorskip("diffrax")

MIXTURE = exact.GaussianMixture(
    np.array([-1.0, 0.2, 0.7]), np.array([0.15, 0.3, 0.1]), np.array([0.3, 0.5, 0.2])
)
SIGMAS = grids.karras_sigmas(6)


def _start(batch=4):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 3))) * SIGMAS[0]


def test_accuracy_cost_and_trajectory(x64):
    calls, x = [], _start()

    @jax.jit
    def run(x, tolerance):
        def denoise(x, sigma):
            jax.debug.callback(lambda: calls.append(0))
            return MIXTURE.denoise(x, sigma)

        return samplers.sample_adaptive(
            denoise, x, SIGMAS, rtol=tolerance, atol=tolerance, stats=True, trajectory=True
        )

    flow = jax.jit(MIXTURE.flow)
    exact_states = jnp.stack([flow(x, SIGMAS[0], s) for s in SIGMAS[:-1]])
    worst = []
    for tolerance in (1e-3, 1e-6):
        visited, stats = run(x, tolerance)
        assert np.all(stats.finished) and stats.nfe.shape == (4,)
        worst.append(float(jnp.max(jnp.abs(visited.x[-2] - exact_states[-1]))))
        # Dense output is accurate to the tolerance times the size of the state.
        np.testing.assert_allclose(visited.x[:-1], exact_states, atol=3e3 * tolerance)
        np.testing.assert_array_equal(visited.x[-1], visited.denoised[-1])
    assert worst[1] < 3e-4 and worst[1] < worst[0] / 20

    # The stated cost is the real one: one image, no intermediate states.
    alone = jax.jit(
        lambda x: samplers.sample_adaptive(
            lambda x, s: (jax.debug.callback(lambda: calls.append(0)), MIXTURE.denoise(x, s))[1],
            x,
            SIGMAS,
            rtol=1e-3,
            atol=1e-3,
            stats=True,
        )
    )
    calls.clear()
    _, stats = jax.block_until_ready(alone(x[2:3]))
    jax.effects_barrier()
    assert stats.rejected[0] > 0  # which cost as much as those that are kept
    assert len(calls) == int(stats.nfe[0]) == 6 * int(stats.accepted[0] + stats.rejected[0]) + 2


def test_images_choose_their_own_steps_and_labels_work(x64):
    """A batch gives what its images give alone, also with arrays of the batch inside."""
    x, centre = _start(), jnp.array([0.0, 5.0, -20.0, 60.0])

    def denoise_with(centre):
        return lambda x, s: (
            centre[:, None] + 0.01 / (0.01 + s[:, None] ** 2) * (x - centre[:, None])
        )

    run = jax.jit(
        lambda x, centre: samplers.sample_adaptive(denoise_with(centre), x, SIGMAS, stats=True)
    )
    together, stats = run(x, centre)
    for i in range(2):
        alone, alone_stats = run(x[i : i + 1], centre[i : i + 1])
        assert alone_stats.nfe[0] == stats.nfe[i]
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-9, atol=1e-9)


def test_gradient_is_that_of_the_flow(x64):
    x = _start(2)
    sample = lambda x: jnp.sum(  # noqa: E731
        samplers.sample_adaptive(MIXTURE.denoise, x, SIGMAS, rtol=1e-7, atol=1e-7)
    )
    expected = jax.jit(
        jax.grad(
            lambda x: jnp.sum(MIXTURE.denoise(MIXTURE.flow(x, SIGMAS[0], SIGMAS[-2]), SIGMAS[-2]))
        )
    )
    np.testing.assert_allclose(jax.jit(jax.grad(sample))(x), expected(x), rtol=1e-4)


def test_running_out_of_steps_is_visible():
    sample, stats = samplers.sample_adaptive(
        MIXTURE.denoise, _start(2).astype(jnp.float32), SIGMAS, max_steps=3, stats=True
    )
    assert not np.any(stats.finished) and np.all(np.isnan(sample))


def test_one_level_is_one_denoising():
    x = _start(2).astype(jnp.float32)
    sample, stats = samplers.sample_adaptive(MIXTURE.denoise, x, grids.karras_sigmas(1), stats=True)
    np.testing.assert_allclose(sample, MIXTURE.denoise(x, 80.0), rtol=1e-6)
    assert list(stats.nfe) == [1, 1]


def test_progress_is_told_in_percent_of_the_slowest_image():
    seen, x = [], _start(3).astype(jnp.float32)

    def run(progress):
        return jax.jit(
            lambda x: samplers.sample_adaptive(MIXTURE.denoise, x, SIGMAS, progress=progress)
        )

    shown = run(lambda done, total: seen.append((done, total)))
    result = shown(x)
    jax.effects_barrier()
    done = [done for done, _ in seen]
    assert {total for _, total in seen} == {100}
    assert done[0] == 0 and done[-1] == 100 and done == sorted(done) and len(set(done)) > 5
    np.testing.assert_array_equal(result, run(False)(x))


def test_progress_bar_is_silent_without_a_terminal(capfd):
    x = _start(1).astype(jnp.float32)
    jax.block_until_ready(samplers.sample_adaptive(MIXTURE.denoise, x, SIGMAS, progress=True))
    jax.effects_barrier()
    assert capfd.readouterr().err == ""


def test_remat_gives_the_same_gradient_with_less_memory(x64):
    x, weight = _start(1), jnp.full((40,), 1e-3)

    def loss(weight, remat):
        def denoise(x, sigma):
            hidden = jnp.tanh(x[..., None] * weight[None, None])  # activations worth recomputing
            for _ in range(4):
                hidden = jnp.tanh(hidden + weight[None, None])
            return MIXTURE.denoise(x, sigma) + jnp.sum(hidden * 0.1, axis=-1)

        options = {"rtol": 1e-3, "atol": 1e-3, "remat": remat}
        return jnp.sum(samplers.sample_adaptive(denoise, x, SIGMAS, **options))

    plain, bounded = (
        jax.jit(jax.grad(functools.partial(loss, remat=remat))).lower(weight).compile()
        for remat in (False, True)
    )
    np.testing.assert_allclose(plain(weight), bounded(weight), rtol=1e-9)
    used = [program.memory_analysis().temp_size_in_bytes for program in (bounded, plain)]
    assert used[0] < used[1]


def test_bad_arguments_and_missing_library_are_named(monkeypatch):
    x = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="did you mean 'tsit5'"):
        samplers.sample_adaptive(MIXTURE.denoise, x, SIGMAS, solver="tsit")
    with pytest.raises(ValueError, match="rtol must be positive"):
        samplers.sample_adaptive(MIXTURE.denoise, x, SIGMAS, rtol=0.0)
    real = builtins.__import__

    def without_diffrax(name, *args, **kwargs):
        if name == "diffrax":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_diffrax)
    with pytest.raises(ImportError, match=r"pip install 'edm_jax\[diffrax\]'"):
        samplers.sample_adaptive(MIXTURE.denoise, x, SIGMAS)
