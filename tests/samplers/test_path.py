"""Noise from a path: its law, and that more steps settle on the same image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, samplers, seeds
from edm_jax.domains import Box
from edm_jax.reflected.sources import ReflectedPoints
from edm_jax.samplers import SAMPLERS, Churn, path

BED = exact.GaussianMixture(
    np.array([-1.0, 0.2, 0.7]), np.array([0.15, 0.3, 0.1]), np.array([0.3, 0.5, 0.2])
)
# Below the cap of gamma from N = 10 on.
CHURN = Churn(4.0)


def test_all_have_one_but_those_whose_noise_grows_with_the_steps():
    drawn = {name for name, info in SAMPLERS.items() if info.stochastic or "churn" in info.options}
    without = {name for name in drawn if "noise" not in SAMPLERS[name].options}
    assert without == {"lcm", "ve_predictor_corrector"}
    for name in without:
        with pytest.raises(ValueError, match=f"'{name}' has no option 'noise'.*no common limit"):
            samplers.request(name, {"noise": "tree"})
    with pytest.raises(ValueError, match=r"needs corrector_steps=0.*no common limit"):
        samplers.request("reflected_predictor_corrector", {"noise": "tree"})
    for name in (name for name, info in SAMPLERS.items() if "noise" in info.options):
        with pytest.raises(ValueError, match="unknown noise 'trees'"):
            samplers.request(name, {"noise": "trees"})


@functools.cache
def _values(count=4000, shape=(4, 4)):
    """Draws of consecutive steps for many keys: ``(steps, count, ...)``; and of both together."""
    clock = np.array([-4.4, -2.0, -1.9, 0.5, 6.0])
    keys = seeds.image_keys(range(count))
    x = jnp.zeros((count, *shape))

    def draws(clock):
        draw = path.path_draw(keys, path.Spans(clock[:-1], clock[1:]), x)
        return jax.jit(jax.vmap(draw))(jnp.arange(len(clock) - 1))

    return clock, np.asarray(draws(clock)), np.asarray(draws(clock[[0, 2, 4]]))


def test_draws_are_standard_normal_and_independent():
    _, fine, _ = _values()
    flat = fine.reshape(4, -1)
    # 64000 numbers each: three standard errors of mean, variance and correlation.
    np.testing.assert_allclose(flat.mean(1), 0, atol=3 / 64000**0.5)
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(4), atol=3 / 64000**0.5)
    np.testing.assert_allclose(flat.var(1), 1, atol=3 * (2 / 64000) ** 0.5)
    np.testing.assert_allclose((flat**4).mean(1), 3, atol=3 * (96 / 64000) ** 0.5)
    pixels = fine[0].reshape(4000, 16)
    np.testing.assert_allclose(np.corrcoef(pixels.T), np.eye(16), atol=4.5 / 4000**0.5)


def test_a_long_step_adds_what_its_parts_add():
    clock, fine, coarse = _values()
    gaps = np.diff(clock)
    for k in (0, 1):
        first, second = gaps[2 * k], gaps[2 * k + 1]
        parts = np.exp(-second) * np.sqrt(-np.expm1(-2 * first)) * fine[2 * k]
        parts = parts + np.sqrt(-np.expm1(-2 * second)) * fine[2 * k + 1]
        whole = np.sqrt(-np.expm1(-2 * (first + second))) * coarse[k]
        np.testing.assert_allclose(whole, parts, atol=2e-5)  # float32, leaves of 8e-6


def test_an_image_has_its_own_path():
    spans = path.Spans(np.array([0.0]), np.array([1.0]))
    keys, x = seeds.image_keys([3, 4, 5]), jnp.zeros((3, 2, 2))
    together = path.path_draw(keys, spans, x)(0)
    alone = path.path_draw(keys[1:2], spans, x[1:2])(0)
    np.testing.assert_array_equal(together[1:2], alone)
    one = path.path_draw(jax.random.key(7), spans, x)(0)  # one key for the batch
    assert len(np.unique(np.asarray(one))) == 12


def test_spans_that_do_not_fit():
    keys, x = seeds.image_keys([0]), jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="share a leaf"):
        path.path_draw(keys, path.Spans(np.array([0.0]), np.array([1e-7])), x)
    with pytest.raises(ValueError, match="use less eta"):
        path.path_draw(keys, path.Spans(np.array([0.0]), np.array([17.0])), x)
    nothing = path.path_draw(keys, path.Spans(np.array([1.0]), np.array([1.0])), x)(0)
    np.testing.assert_array_equal(nothing, 0)


def test_traced_spans_are_cut_off_at_the_ends_of_the_clock():
    """Known ones are refused; beyond an end there is no more path: the same noise."""
    keys, x = seeds.image_keys([0, 1]), jnp.zeros((2, 8))

    @jax.jit
    def draw(start, stop):
        return path.path_draw(keys, path.Spans(start[None], stop[None]), x)(0)

    np.testing.assert_array_equal(draw(15.0, 20.0), draw(15.0, 16.0))
    np.testing.assert_array_equal(draw(-20.0, -15.0), draw(-16.0, -15.0))


def _images(name, num_steps, noise, sigmas=None, **options):
    if sigmas is None:
        sigmas = grids.karras_sigmas(num_steps, sigma_min=0.02, sigma_max=20.0)
    keys = seeds.image_keys(range(64))
    x = seeds.latents(keys, (64, 16)) * sigmas[0]
    run = functools.partial(SAMPLERS[name], BED.denoise, noise=noise, **options)
    return np.asarray(jax.jit(lambda x: run(x, sigmas, keys))(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [("ddim", {"eta": 1.0}), ("dpmpp_2m_sde", {}), ("dpmpp_sde", {}), ("seeds_3", {}),
     ("er_sde", {}), ("sa_solver", {}), ("edm", {"churn": CHURN}), ("dpm_2", {"churn": CHURN}),
     ("general", {"churn": CHURN, "solver": "euler"})],
)  # fmt: skip
def test_more_steps_settle_on_the_same_image(name, options):
    """Strong order 1 on unrelated grids; fresh draws never settle."""
    finest = _images(name, 160, "tree", **options)
    error = lambda n, noise="tree": np.sqrt(  # noqa: E731
        np.mean((_images(name, n, noise, **options) - finest) ** 2)
    )
    coarse, fine = error(11), error(44)
    # Four times the steps: order 1 would be a factor of four.
    assert fine < 0.45 * coarse
    assert fine < 0.15
    assert error(44, "step") > 0.5


def spans_asked(monkeypatch, name, options):
    """The times between which a sampler asks a path for noise, at levels 8, 4, 1 and 0."""
    asked = []

    def silent(key, spans, x):
        asked.append(spans)
        return lambda index: jnp.zeros_like(x)

    monkeypatch.setattr(path, "path_draw", silent)
    x, sigmas = jnp.ones((1, 2)), np.array([8.0, 4.0, 1.0, 0.0])
    SAMPLERS[name](BED.denoise, x, sigmas, seeds.image_keys([0]), noise="tree", **options)
    (spans,) = asked
    return spans


@pytest.mark.parametrize(
    ("name", "rate"),
    [("ddim", 0.25), ("dpm_2_ancestral", 0.25), ("dpmpp_2s_ancestral", 0.25),
     ("dpmpp_2m_sde", 0.5), ("dpmpp_3m_sde", 0.5), ("ddpm", 1), ("ve_reverse_diffusion", 1)],
)  # fmt: skip
def test_the_clock_runs_as_the_noise_is_renewed(name, rate, monkeypatch):
    """At the rate eta^2 of ln sigma in the SDE of eta, at eta in DPM-Solver++; eta = 1/2."""
    spans = spans_asked(monkeypatch, name, {} if rate == 1 else {"eta": 0.5})
    np.testing.assert_allclose(spans.start, -rate * np.log([8.0, 4.0, 1.0]), atol=1e-12)
    # The step to 0 draws none.
    np.testing.assert_allclose(spans.stop, -rate * np.log([4.0, 1.0, 1.0]), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "clock", "inner"),
    [
        ("er_sde", {}, lambda v: -np.log(np.exp(v**0.3) + 10), []),
        ("er_sde", {"function": "power", "eta": 0.5}, lambda v: -0.5 * np.log(v), []),
        ("seeds_2", {"eta": 0.5, "r": 0.25}, lambda v: -0.5 * np.log(v), [0.25]),
        ("seeds_3", {"eta": 0.5}, lambda v: -0.5 * np.log(v), [1 / 3, 2 / 3]),
    ],
)
def test_the_clock_of_every_stage(name, options, clock, inner, monkeypatch):
    """ln(v/f(v)) of ER-SDE's noise function f; eta ln sigma of SEEDS, a draw for each stage."""
    spans = spans_asked(monkeypatch, name, options)
    visited = [8.0 * 2.0**-share for share in [0, *inner]] + [4.0 * 4.0**-share for share in inner]
    visited = [*visited[: 1 + len(inner)], 4.0, *visited[1 + len(inner) :], 1.0]
    drawn = len(visited) - 1
    np.testing.assert_allclose(spans.start[:drawn], clock(np.array(visited[:-1])), atol=1e-12)
    np.testing.assert_allclose(spans.stop[:drawn], clock(np.array(visited[1:])), atol=1e-12)
    np.testing.assert_array_equal(spans.stop[drawn:], spans.start[drawn:])  # the step to 0


def test_both_noises_of_dpmpp_sde_must_come_from_one_path(x64):
    """Weak order 2; unrelated draws leave 1 (the negative control), and more error."""
    from edm_jax.exact import bed, subjects

    def errors(noise):
        measured = samplers.Measured("", {"noise": noise})
        subject = subjects.subject_of(SAMPLERS["dpmpp_sde"], measured)
        return [bed.impulse_run(subject, n).error for n in (64, 128)]

    one_path, unrelated = errors("step"), errors("tree")  # recorded noise is unrelated
    assert 1.8 < np.log2(one_path[0] / one_path[1]) < 2.2
    assert 0.8 < np.log2(unrelated[0] / unrelated[1]) < 1.2
    assert unrelated[0] > 5 * one_path[0]


def test_one_path_makes_dpmpp_sde_and_seeds_2_one_method(x64):
    sde = _images("dpmpp_sde", 10, "tree")
    seeds_2 = _images("seeds_2", 10, "tree", variant="phi_1")
    # The clock is snapped to leaves of 8e-6, which their formulas feel differently.
    np.testing.assert_allclose(sde, seeds_2, atol=1e-4)


def test_jumps_of_restart_are_the_same_at_any_number_of_steps():
    finest = _images("restart", 160, "tree")
    np.testing.assert_array_equal(_images("restart", 160, "step"), finest)
    coarse, fine = (
        np.sqrt(np.mean((_images("restart", n, "tree") - finest) ** 2)) for n in (11, 44)
    )
    # Heun's order 2 would be a sixteenth; the segment's end snaps to the nearest level.
    assert fine < 0.2 * coarse and fine < 0.05


def test_churn_at_one_level_draws_its_own_noise():
    """Repeated levels of a rounded grid: every step adds unit noise, independent of the others."""
    spans = path.churn_spans(np.array([2.0, 1.0, 1.0, 0.5, 0.0]), repeats=True)
    keys, x = seeds.image_keys(range(500)), jnp.zeros((500, 16))
    draws = jax.jit(jax.vmap(path.path_draw(keys, spans, x)))(jnp.arange(4)).reshape(4, -1)
    # 8000 numbers each: four standard errors.
    np.testing.assert_allclose(np.cov(draws), np.eye(4), atol=4 * (2 / 8000) ** 0.5)
    with pytest.raises(ValueError, match="share a leaf"):
        _images("edm", 2, "tree", churn=CHURN, sigmas=np.array([1.0, 1.0 - 1e-7, 0.0]))


def test_paths_of_a_box():
    """The reflected SDE driven by one path: the image is a continuous function of it."""
    source = ReflectedPoints(np.array([[-0.9], [-0.2], [0.6]]), np.array([0.3, 0.3, 0.4]))
    keys = seeds.image_keys(range(256))
    start = Box().prior(seeds.latents(keys, (256, 1)))

    def images(num_steps, noise):
        sigmas = grids.make_sigmas("ve", num_steps, sigma_min=0.05, sigma_max=10.0)
        run = functools.partial(SAMPLERS["reflected"], source.denoise, noise=noise)
        return np.asarray(jax.jit(lambda x: run(x, sigmas, keys))(start))

    finest = images(640, "tree")
    same = lambda *setting: np.mean(np.abs(images(*setting) - finest) < 0.1)  # noqa: E731
    # Few images at a parting of the ways; unrelated noise hits one of three points by chance.
    assert same(160, "tree") > 0.8
    assert same(160, "step") < 0.6
