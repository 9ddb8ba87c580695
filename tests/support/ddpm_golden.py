"""Golden file 20 with images moved to NHWC, and its linear stand-in network."""

import functools
import json

import jax.numpy as jnp
import numpy as np

from edm_jax import ddpm
from tests.support.paths import GOLDEN

SCHEDULES = ("linear1000", "cosine1000", "cosine50", "linear200")
# Published names of variances and predictions.
VARIANCES = {"learned_range": "learned", "fixed_small": "small", "fixed_large": "large"}
PREDICTIONS = {"eps": "eps", "xstart": "x0"}


@functools.cache
def arrays():
    with np.load(GOLDEN / "20_ddpm_training.npz") as archive:
        return dict(archive)


def nhwc(x, dtype=np.float64):
    return jnp.asarray(np.moveaxis(x, -3, -1).astype(dtype))


def process(name):
    c = json.loads(str(arrays()[f"{name}/config"]))
    return ddpm.ddpm_process(
        c["schedule"],
        c["diffusion_steps"],
        c["timestep_respacing"],
        rescale_labels=c["rescale_timesteps"],
    )


def network(params, z, label, channels):
    """out = A z + b cos(label / 200 + o); label a scalar or one per image."""
    A, b = (jnp.asarray(p, z.dtype) for p in params)
    o = jnp.arange(6, dtype=z.dtype)
    phase = jnp.reshape(label, (-1, 1)) / 200 + o[None]
    constant = (b[None] * jnp.cos(phase)).reshape((-1,) + (1,) * (z.ndim - 2) + (6,))
    return (z @ A.T + constant)[..., :channels]


def cases(schedule):
    """(name, kind) of every recorded loss of a schedule."""
    found = []
    for key in arrays():
        if key.startswith(f"{schedule}/loss/") and key.endswith("/loss_f64"):
            name = key.split("/")[2]
            if name != "param":
                prediction, variance, loss = name.split("-")
                found.append((name, kind(prediction, variance, loss)))
    return found


def kind(prediction, variance, loss):
    variance, prediction = VARIANCES[variance], PREDICTIONS[prediction]
    if loss == "mse" and variance != "learned":
        return ddpm.LossKind("simple", variance, prediction)
    ours, factor = {
        "mse": ("hybrid", 1.0),
        "rescaled_mse": ("hybrid", None),
        "kl": ("bound", 1.0),
        "rescaled_kl": ("bound", None),
    }[loss]
    return ddpm.LossKind(ours, variance, prediction, factor)
