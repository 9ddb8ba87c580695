"""Learning rate, averages, sane gradients and a toy, against the published training."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edm_jax import ema
from edm_jax.train.optimizer import learning_rate, sanitize_gradients

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
