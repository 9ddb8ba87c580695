"""Bits per dimension of whole chains against guided-diffusion (golden 20)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import ddpm
from tests.support import ddpm_golden as dg


def recorded():
    names = {key.split("/bpd/")[0] + "/" + key.split("/")[2] for key in dg.arrays() if "-" in key}
    return sorted(n for n in names if n.endswith(("-clip", "-noclip")))


def run(name, dtype):
    z, (schedule, case) = dg.arrays(), name.split("/")
    variance, clip = case.split("-")
    variance = dg.VARIANCES[variance]
    noise = dg.nhwc(z[f"{schedule}/bpd/noise"], dtype)
    params = z["net/A"], z["net/b"]
    network = functools.partial(dg.network, params, channels=6 if variance == "learned" else 3)
    y = dg.nhwc(z[f"{schedule}/bpd/x0"], dtype)
    return jax.jit(
        lambda y: ddpm.chain_bound(
            network,
            y,
            dg.process(schedule),
            lambda column: noise[column],
            variance=variance,
            clip_denoised=clip == "clip",
        )
    )(y)


@pytest.mark.parametrize("name", recorded())
def test_chains(name, x64):
    """Every term, columns from the last time step; suggested 1e-8, prior 1e-7."""
    z, (schedule, case) = dg.arrays(), name.split("/")
    got = run(name, jnp.float64)
    prefix = f"{schedule}/bpd/{case}"
    for ours, theirs in (("terms", "vb"), ("x0_mse", "xstart_mse"), ("eps_mse", "mse")):
        np.testing.assert_allclose(getattr(got, ours), z[f"{prefix}/{theirs}_f64"], rtol=1e-8)
    np.testing.assert_allclose(got.total, z[f"{prefix}/total_bpd_f64"], rtol=1e-8)
    np.testing.assert_allclose(got.prior, z[f"{prefix}/prior_bpd_f64"], rtol=1e-7)


def test_float32():
    z, name = dg.arrays(), "linear1000/learned_range-clip"
    got = run(name, jnp.float32)
    want = z["linear1000/bpd/learned_range-clip/total_bpd_f64"]
    np.testing.assert_allclose(got.total, want, rtol=1e-5)  # suggested


def test_all_recorded_cases_are_there():
    assert len(recorded()) == 10
