"""Diffusion models as Karras et al. (2022), "EDM", describe them, in JAX and Flax.

    model = edm_jax.load("runs/digits")
    images = edm_jax.sample(model, seeds=range(64), labels=3, num_steps=18)

The functions beneath accept any callable ``denoise(x, sigma)`` and arrays of any shape:
`karras_sigmas` makes the noise levels, `precondition` a denoiser of a raw network,
`sample_heun` and `sample_stochastic` draw samples.
"""

import importlib
import pkgutil
from types import ModuleType

from edm_jax.denoisers import from_denoiser
from edm_jax.figures.sheets import image_grid
from edm_jax.generate import Sampling, sample, to_uint8
from edm_jax.likelihood import decode, encode, interpolate, log_likelihood
from edm_jax.loading import load
from edm_jax.losses import denoising_loss
from edm_jax.model import Model
from edm_jax.models import DhariwalUNet, SongUNet
from edm_jax.noise import LogNormal, edm_weight
from edm_jax.precond import Preconditioning, edm_coefs, edm_preconditioning, precondition
from edm_jax.samplers import Churn, Trajectory, sample_heun, sample_stochastic
from edm_jax.schedules import karras_sigmas
from edm_jax.seeds import image_keys, latents

__version__ = "0.1.0"

__all__ = [
    "Churn",
    "DhariwalUNet",
    "LogNormal",
    "Model",
    "Preconditioning",
    "Sampling",
    "SongUNet",
    "Trajectory",
    "decode",
    "denoising_loss",
    "edm_coefs",
    "edm_preconditioning",
    "edm_weight",
    "encode",
    "from_denoiser",
    "image_grid",
    "image_keys",
    "interpolate",
    "karras_sigmas",
    "latents",
    "load",
    "log_likelihood",
    "precondition",
    "sample",
    "sample_heun",
    "sample_stochastic",
    "to_uint8",
]

_MODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> ModuleType:
    """Modules and rooms of the package, imported when they are first used."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
