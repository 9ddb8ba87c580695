"""What a likelihood is and what it depends on, so that nobody quotes a bare number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edm_jax.likelihood import quantisation
from edm_jax.model import Model
from edm_jax.pytree import short_repr
from edm_jax.typing import Array

# One pass over one batch: (model, arrays, number of the pass) -> ``(B,)`` each of nats, their
# error by probes or levels, what N steps give more than N/2, and network calls.
PassFn = Callable[[Model, dict[str, Array], np.ndarray], tuple[Array, Array, Array, Array]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a likelihood depends on besides model and images.

    Attributes:
      method: ``flow`` (the ODE) or ``bound`` (the variational bound).
      dequantisation: ``gaussian``, ``uniform`` or ``none`` (`quantisation`); ``discrete`` for
        models of discrete data.
      num_steps: N steps of the solver, noise levels of the bound, or calls of a policy; None if
        adaptive.
      sigma_min, sigma_max: s0 and S; 0 where there are none.
      solver: of `solvers.SOLVERS`, or ``adaptive``; of discrete data the policy.
      tolerance: of the adaptive solver.
      num_probes: random signs per image and pass; 0 is the exact trace.
      passes: draws of the dequantisation noise (and of the bound's) that are averaged.
    """

    method: str
    dequantisation: str
    num_steps: int | None
    sigma_min: float
    sigma_max: float
    solver: str | None
    tolerance: float | None
    num_probes: int | None
    passes: int


@short_repr
@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Log likelihoods of images.  As an array (``np.asarray``) it is ``log_likelihood``.

    Attributes:
      log_likelihood: ``(B,)`` nats per image: a lower bound of ln P of the 8-bit image, averaged
        over passes; the log density in [-1, 1] units with dequantisation ``none``.
      standard_error: ``(B,)`` of that average, from its passes or probes; NaN where there is
        only one draw.
      step_difference: ``(B,)`` nats that N steps give more than N/2 (levels, of the bound);
        of the adaptive solver, the tolerance more than ten times it.
      calls: ``(B,)`` network calls behind log_likelihood (with divergence, for the flow).
      size: d, elements of an image.
      settings: JSON: model, method, dequantisation, s0, S, solver, N, probes, passes.
    """

    log_likelihood: np.ndarray
    standard_error: np.ndarray
    step_difference: np.ndarray
    calls: np.ndarray
    size: int
    settings: Mapping[str, Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.log_likelihood, dtype)

    def __len__(self) -> int:
        return len(self.log_likelihood)

    @property
    def bits_per_dim(self) -> np.ndarray:
        """``(B,)`` -log2 P / d; ValueError for densities, which have no bits."""
        if self.settings["dequantisation"] == "none":
            raise ValueError(
                "a density has bits per dimension for a stated bin width only; use "
                "likelihood.quantisation.bits_per_dim(log_density, size, bin_width)"
            )
        return quantisation.bits_per_dim(self.log_likelihood, self.size)

    def summary(self) -> dict[str, Any]:
        """Means over the images with standard errors, and the settings; JSON values."""
        return summarise(self.log_likelihood, self.step_difference, self.size, self.settings)


def summarise(
    nats: np.ndarray, step_difference: np.ndarray, size: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Means over images with their standard errors (of images, probes and passes together)."""
    nats, difference = np.asarray(nats, np.float64), np.asarray(step_difference, np.float64)
    count = len(nats)

    def error(values: np.ndarray) -> float | None:
        return float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else None

    result = {"images": count, "nats": float(nats.mean()), "nats_standard_error": error(nats)}
    per_dim = 1 / (size * math.log(2))
    if settings["dequantisation"] != "none":
        bits = quantisation.bits_per_dim(nats, size)
        result |= {"bits_per_dim": float(bits.mean()), "bits_per_dim_standard_error": error(bits)}
    result["step_difference_bits_per_dim"] = {
        "mean": float(-difference.mean() * per_dim),
        "largest": float(np.abs(difference).max() * per_dim),
    }
    return {**result, **settings}
