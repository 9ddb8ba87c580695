"""Every sampler by name, collected from the files that hold them."""

from __future__ import annotations

from edm_jax import names
from edm_jax.samplers import (
    adaptive,
    baselines,
    ddpm,
    dpmpp,
    general,
    heun,
    lms,
    predictor_corrector,
    stochastic,
    unipc,
)
from edm_jax.samplers.info import SAMPLERS, SamplerInfo

_MODULES = (
    heun,
    stochastic,
    general,
    baselines,
    ddpm,
    dpmpp,
    unipc,
    lms,
    adaptive,
    predictor_corrector,
)

SAMPLERS.update({info.name: info for module in _MODULES for info in module.PROMISES})


def get(name: str) -> SamplerInfo:
    """The sampler of a name; ValueError with the nearest known name otherwise."""
    return names.lookup(SAMPLERS, name, "sampler")
