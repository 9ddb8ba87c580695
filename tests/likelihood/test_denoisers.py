"""Both numbers of imported VP, VE and iDDPM networks, against plain loops over D itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
from edm_jax.likelihood import probe_vectors
from edm_jax.seeds import image_keys
from tests.support import weights_golden as wg

LABELS = {"vp_ddpmpp_uncond": None, "ve_skip_cond": [1, 3], "iddpm_adm_cond": [1, 3]}
# The part of EDM's 0.002 .. 80 that the network was trained on.
RANGES = {"vp_ddpmpp_uncond": (0.002, 80), "ve_skip_cond": (0.02, 80)}


# What is special of VP and VE, test_model_likelihood.py shows with an exact network too.
_OTHERS = (pytest.param(name, marks=pytest.mark.soak) for name in RANGES)


@pytest.fixture(scope="module", params=["iddpm_adm_cond", *_OTHERS])
def imported(request, tmp_path_factory):
    """Name, model through `load`, bytes, label rows, and the levels the file itself has."""
    name = request.param
    path = tmp_path_factory.mktemp("imported") / f"{name}.pkl"
    path.write_bytes(wg.content(path.name))
    model = edm_jax.load(path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *model.image_shape)).astype(np.uint8)
    rows = None
    if LABELS[name] is not None:
        rows = np.eye(model.num_classes, dtype=np.float32)[LABELS[name]]
    return name, model, pixels, rows, wg.expected(name).get("params/u")


def ends_of(name, table):
    """s0 and S to expect."""
    if table is None:
        return RANGES[name]
    positive = table[table > 0]  # descending
    return positive[-1], positive[np.abs(positive - 80).argmin()]


def test_flow_is_a_loop_of_heun_over_levels_it_knows(imported):
    """Heun in ln sigma with the same probe, in float64 but for the network."""
    name, model, pixels, rows, table = imported
    x, steps = (pixels / 127.5 - 1).astype(np.float32), 4
    result = edm_jax.log_likelihood(model, x, rows, solver="heun", num_steps=steps, num_probes=1)
    low, high = ends_of(name, table)
    assert result.settings["sigma_min"] == pytest.approx(low, rel=1e-6)
    assert result.settings["sigma_max"] == pytest.approx(high, rel=1e-6)
    levels = low * (high / low) ** (np.arange(steps + 1) / steps)
    if table is not None:
        nearest = np.abs(table[None] - levels[:, None]).argmin(axis=1)
        levels = table[nearest].astype(np.float64)
    keys = jax.vmap(jax.random.fold_in, (0, None))(image_keys([0, 1]), 0)  # of the first pass
    (probe,) = probe_vectors(keys, 1, x.shape)
    denoise = model.denoiser(model.variables)
    more = () if rows is None else (jnp.asarray(rows),)

    @jax.jit
    def both(x, sigma):
        d, product = jax.jvp(lambda x: denoise(x, sigma, *more), (x,), (probe,))
        return d, jnp.sum(probe * product, axis=(1, 2, 3))

    def slope(x, sigma):
        d, trace = both(jnp.asarray(x, jnp.float32), jnp.float32(sigma))
        return x - np.asarray(d, np.float64), np.asarray(trace, np.float64)

    state, traces = x.astype(np.float64), 0
    for a, b in itertools.pairwise(levels):
        h = np.log(b / a)
        k1, t1 = slope(state, a)
        k2, t2 = slope(state + h * k1, b)
        state, traces = state + h * (k1 + k2) / 2, traces + h * (t1 + t2) / 2
    size = x[0].size
    expected = -np.sum(state**2, axis=(1, 2, 3)) / (2 * high**2) - traces
    expected -= size * (np.log(2 * np.pi) / 2 + np.log(low))
    # float32 against float64 steps, whose states leave the network's trained range.
    np.testing.assert_allclose(result.log_likelihood, expected, rtol=1e-4)


def test_bound_is_the_mean_of_denoising_errors(imported):
    """Plain Monte Carlo with NumPy's noise; levels of iDDPM rounded by hand."""
    name, model, pixels, rows, table = imported
    x = (pixels / 127.5 - 1).astype(np.float32)
    result = edm_jax.log_likelihood(model, x, rows, method="bound", num_steps=64)
    low, high = ends_of(name, table)
    assert result.settings["sigma_min"] == pytest.approx(low, rel=1e-6)
    assert result.settings["sigma_max"] == pytest.approx(high, rel=1e-6)
    rng, count = np.random.default_rng(1), 64
    sigma = low * (high / low) ** rng.uniform(size=2 * count)
    if table is not None:
        sigma = table[np.abs(table[None] - sigma[:, None]).argmin(axis=1)]
    many, column = np.repeat(x, count, axis=0), sigma.reshape(-1, 1, 1, 1)
    noisy = (many + column * rng.normal(size=many.shape)).astype(np.float32)
    more = () if rows is None else (np.repeat(rows, count, axis=0),)
    d = jax.jit(model.denoiser(model.variables))(noisy, sigma.astype(np.float32), *more)
    errors = np.sum(((many - np.asarray(d)) / column) ** 2, axis=(1, 2, 3)).reshape(2, count)
    terms = np.log(high / low) * errors
    expected = terms.mean(axis=1) + np.sum(x**2, axis=(1, 2, 3)) / (2 * high**2)
    expected += x[0].size * (np.log(2 * np.pi * np.e) / 2 + np.log(low))
    spread = np.hypot(terms.std(axis=1) / count**0.5, result.standard_error)
    assert np.all(np.abs(-result.log_likelihood - expected) < 5 * spread)
    assert np.all(spread < 0.1 * terms.mean(axis=1))  # else the comparison would mean nothing
