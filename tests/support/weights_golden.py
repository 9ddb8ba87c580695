"""Golden model files for the tests of `edm_jax.weights` (origin: tests/golden/09_import)."""

from __future__ import annotations

import json
import lzma

import jax
import numpy as np

from edm_jax import models
from edm_jax.precond import PRECONDITIONINGS, precondition
from tests.support.paths import GOLDEN

# File -> archive of expected values.
SNAPSHOTS = {
    "edm_ddpmpp_cond.pkl": "edm_ddpmpp_cond",
    "edm_ncsnpp_uncond.pkl": "edm_ncsnpp_uncond",
    "vp_ddpmpp_uncond.pkl": "vp_ddpmpp_uncond",
    "ve_skip_cond.pkl": "ve_skip_cond",
    "iddpm_adm_cond.pkl": "iddpm_adm_cond",
    "edm_adm_cond_fp16.pkl": "edm_adm_cond_fp16",
    "half.pkl": "half",
    "strided.pkl": "strided",
    "small_protocol2.pkl": "small",
    "small_protocol5.pkl": "small",
    "small_torch1.pkl": "small",
}
STATE_DICTS = {
    name: "small"
    for name in (
        "small_state_dict.pt",
        "small_state_dict_torch1.pt",
        "small_state_dict.pth",
        "small_state_dict_flat.pt",
    )
}


def content(name: str) -> bytes:
    """The bytes of a golden file; they are kept compressed."""
    folder = GOLDEN if name.startswith("10_") else GOLDEN / "09_import"
    return lzma.decompress((folder / f"{name}.xz").read_bytes())


def expected(name: str) -> dict[str, np.ndarray]:
    """All arrays of an archive."""
    with np.load(GOLDEN / "09_import" / f"{name}.npz") as archive:
        return dict(archive)


def json_of(array: np.ndarray):
    """The JSON in a 0-d text array."""
    return json.loads(str(array))


def denoise(model, variant: str, x: np.ndarray, sigma: np.ndarray, **labels) -> np.ndarray:
    """D(x; sigma) of an imported model; images NCHW on both sides."""
    description = model.description
    net = models.build(**description["network"])
    arguments = dict(description["precond"])
    preconditioning = PRECONDITIONINGS[arguments.pop("name")](**arguments)

    def net_fn(x, c_noise, **kwargs):
        return net.apply(model.variables[variant], x, c_noise, **kwargs)

    d = jax.jit(precondition(net_fn, preconditioning))
    return np.asarray(d(x.transpose(0, 2, 3, 1), sigma, **labels)).transpose(0, 3, 1, 2)
