"""Golden combinations and thresholds on recorded arrays (12: arrays, cfg, interval, ...)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import guidance as g
from tests.support import guided_mixture as gm

ATOL = 1e-12  # suggested with the golden arrays, of size 1


@pytest.fixture(scope="module")
def golden():
    return gm.arrays()


def recorded(golden, names=("D_main", "D_uncond")):
    """A denoiser that returns the recorded D of each label row."""
    main, uncond = (golden[f"arrays/{name}"] for name in names)

    def denoise(x, sigma, rows):
        count = x.shape[0] // main.shape[0]  # 2 if both halves come together
        pair = (jnp.repeat(jnp.asarray(v), count, axis=0) for v in (main, uncond))
        labelled = (rows[:, 0] == 1).reshape(-1, 1, 1, 1)
        return jnp.where(labelled, *pair)

    x = np.zeros_like(main)
    return denoise, x, jnp.ones((len(x), 1), jnp.float64)


@pytest.mark.parametrize("together", [False, True])
def test_classifier_free(golden, x64, together):
    denoise, x, rows = recorded(golden)
    for w, theirs, want in zip(
        golden["cfg/w"], golden["cfg/w_theirs"], golden["cfg/D"], strict=True
    ):
        got = g.classifier_free(w, together=together).guide(denoise)(x, 1.0, rows)
        np.testing.assert_allclose(got, want, atol=ATOL)
        # The convention of Ho & Salimans, 0 for none.
        got = g.classifier_free(1 + theirs, together=together).guide(denoise)(x, 1.0, rows)
        np.testing.assert_allclose(got, want, atol=ATOL)


@pytest.mark.parametrize("together", [False, True])
def test_one_weight_per_image(golden, x64, together):
    denoise, x, rows = recorded(golden)
    guided = g.classifier_free(golden["cfg/w_per_sample"], together=together).guide(denoise)
    np.testing.assert_allclose(guided(x, 1.0, rows), golden["cfg/D_per_sample"], atol=ATOL)


@pytest.mark.parametrize("together", [False, True])
def test_interval_ends(golden, x64, together):
    s = gm.settings(golden, "interval/settings")
    interval = g.Interval(s["sigma_lo"], s["sigma_hi"])
    sigma = golden["interval/sigma"]
    inside = np.asarray(interval.contains(sigma))
    np.testing.assert_array_equal(np.where(inside, s["w"], 1), golden["interval/weight"])
    denoise, x, rows = recorded(golden)
    cfg = g.classifier_free(s["w"], (s["sigma_lo"], s["sigma_hi"]), together=together)
    levels = sigma[golden["interval/batch_index"]]
    got = cfg.guide(denoise)(x, levels, rows)
    np.testing.assert_allclose(got, golden["interval/D"], atol=ATOL)
    unguided = denoise(x, levels, rows)
    off = ~np.asarray(interval.contains(levels))
    np.testing.assert_array_equal(np.asarray(got)[off], np.asarray(unguided)[off])


def test_autoguidance(golden, x64):
    s = gm.settings(golden, "auto/settings")
    denoise, x, rows = recorded(golden)
    auto = g.autoguidance(lambda *_: jnp.asarray(golden["arrays/D_bad"]), s["w_auto"])
    np.testing.assert_allclose(auto.guide(denoise)(x, 1.0, rows), golden["auto/D"], atol=ATOL)
    both = g.added(auto, g.classifier_free(s["w_cfg"])).guide(denoise)
    np.testing.assert_allclose(both(x, 1.0, rows), golden["auto/D_combined"], atol=ATOL)


def test_dynamic_threshold(golden, x64):
    d = jnp.asarray(golden["threshold/D"])
    limits = float(golden["threshold/m"]), float(golden["threshold/cap"])
    for i, p in enumerate(golden["threshold/p"]):
        np.testing.assert_allclose(
            g.image_quantile(jnp.abs(d), p), golden["threshold/quantile"][i], atol=ATOL
        )
        for name, options in (
            ("dynamic", {}),
            ("dynamic_m", {"limit": limits[0]}),
            ("dynamic_capped", {"cap": limits[1]}),
        ):
            got = g.dynamic_threshold(p, **options).guide(lambda *_: d)(d, 1.0)
            np.testing.assert_allclose(got, golden[f"threshold/{name}"][i], atol=ATOL)


def test_static_threshold(golden, x64):
    d = jnp.asarray(golden["threshold/D"])
    static = g.static_threshold(*golden["threshold/static_range"])
    np.testing.assert_array_equal(static.guide(lambda *_: d)(d, 1.0), golden["threshold/static"])


def test_percentile_is_a_fraction_and_per_image():
    """0.995 of 1..1000 is 995.005; images of a batch do not mix."""
    ramp = np.arange(1.0, 1001.0, dtype=np.float32).reshape(1, 10, 10, 10)
    images = np.concatenate([ramp, 2 * ramp])
    np.testing.assert_allclose(g.image_quantile(images, 0.995), [995.005, 1990.01], rtol=1e-6)
    np.testing.assert_allclose(
        g.image_quantile(images, np.array([0.0, 1.0])), [1.0, 2000.0], rtol=1e-6
    )


def test_dynamic_threshold_leaves_clips_or_scales():
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32)
    spike, large = image.copy(), 3 * image
    spike[0, 0, 0] = 5.0  # one of 192 values: the 0.9 quantile stays below 1
    batch = np.stack([image, spike, large])
    once = np.asarray(g.dynamic_clip(batch, 0.9))
    np.testing.assert_array_equal(once[0], image)
    np.testing.assert_array_equal(once[1], np.clip(spike, -1, 1))
    q = np.quantile(np.abs(large), 0.9)
    np.testing.assert_allclose(once[2], np.clip(large, -q, q) / q, rtol=1e-5)
    # Idempotent up to the rounding of the division.
    np.testing.assert_allclose(g.dynamic_clip(once, 0.9), once, rtol=1e-6)
    half = g.dynamic_clip(jnp.asarray(batch, jnp.bfloat16), 0.9)
    assert half.dtype == jnp.float32


def test_label_dropout_null_row_is_zero(golden):
    """The null label that models are trained with is the one that guidance asks for."""
    p = gm.settings(golden, "dropout/settings")["p"]
    kept = golden["dropout/u"] >= p
    rows = np.eye(5)[golden["dropout/label"]] * kept[:, None]
    np.testing.assert_array_equal(rows, golden["dropout/onehot"])
    seen = []

    def denoise(x, sigma, rows):
        jax.debug.callback(lambda r: seen.append(np.array(r)), rows, ordered=True)
        return x

    g.classifier_free(2.0).guide(denoise)(np.ones((2, 3), np.float32), 1.0, jnp.eye(2))
    jax.effects_barrier()
    np.testing.assert_array_equal(np.stack(seen), [np.eye(2), np.zeros((2, 2))])
