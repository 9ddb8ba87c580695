"""A sampling request, until the library has its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax import samplers
from edm_jax.arguments import check_number, check_range
from edm_jax.grids import as_sigmas, make_sigmas
from edm_jax.samplers import Churn


@dataclasses.dataclass(frozen=True)
class Sampling:
    sampler: str = "heun"
    discretization: str = "edm"
    num_steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    sigmas: tuple[float, ...] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("sigma_min", 0.002), ("sigma_max", 80.0), ("rho", 7.0)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_range(self.num_steps, self.sigma_min, self.sigma_max)
        check_number("rho", self.rho, above=0)

    def grid(self, preconditioning: Any = None) -> np.ndarray:
        if self.sigmas is not None:
            return as_sigmas(self.sigmas)
        arguments = {k: v for k, v in self.arguments().items() if k != "churn"}
        return make_sigmas(self.discretization, **arguments, preconditioning=preconditioning)

    def check(self, preconditioning: Any = None) -> None:
        info = samplers.get(self.sampler)
        info.check(**{k: v for k, v in self.options.items() if not k.startswith("s_")})
        steps = len(self.grid(preconditioning)) - 1
        if steps < info.min_steps:
            raise ValueError(f"{self.sampler!r} needs at least {info.min_steps} steps, got {steps}")

    def arguments(self) -> dict[str, Any]:
        """Of `edm_jax.sample`."""
        names = ("num_steps", "sigma_min", "sigma_max", "rho")
        churn = Churn(**self.options) if self.sampler == "edm" else None
        return {name: getattr(self, name) for name in names} | {"churn": churn}
