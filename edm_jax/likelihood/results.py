"""What a likelihood is and what it depends on, so that nobody quotes a bare number."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.likelihood import quantisation, solvers
from edm_jax.likelihood.divergence import EXACT_LIMIT
from edm_jax.likelihood.levels import noise_range
from edm_jax.model import Model

METHODS = ("flow", "bound")
NUM_STEPS = {"flow": 32, "bound": 128}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a likelihood depends on besides model and images.

    Attributes:
      method: ``flow`` (the ODE) or ``bound`` (the variational bound).
      dequantisation: ``gaussian``, ``uniform`` or ``none`` (`quantisation`).
      num_steps: N steps of the solver, or noise levels of the bound; None if adaptive.
      sigma_min, sigma_max: s0 and S.
      solver: of `solvers.SOLVERS`, or ``adaptive``.
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


def solver_for(model: Model, solver: str | None, *, adaptive: bool = True) -> str:
    """The solver for a network: the one asked for, or the default that it can take.

    Raises:
      ValueError: for an unknown name, or a solver that calls the network between the levels of
        its table.
    """
    rounds = model.preconditioning.rounds
    solver = solver or ("adams" if rounds else "rk4")
    at_levels = not (adaptive and solver == "adaptive") and solvers.get(solver).at_levels
    if rounds and not at_levels:
        at = [name for name, info in solvers.SOLVERS.items() if info.at_levels]
        raise ValueError(
            f"the {model.preconditioning.name} network knows a table of noise levels only, "
            f"between which solver {solver!r} would call it; use {', '.join(at)}"
        )
    return solver


def likelihood_settings(
    model: Model,
    *,
    method: str = "flow",
    dequantisation: str = "gaussian",
    num_steps: int | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    solver: str | None = None,
    tolerance: float = 1e-5,
    num_probes: int | None = None,
    passes: int = 1,
) -> Settings:
    """Settings with their defaults for a model; arguments as in `log_likelihood`.

    Raises:
      ValueError: for a value, or a combination, that cannot work.
    """
    names.lookup(dict.fromkeys(METHODS), method, "method of likelihood")
    names.lookup(dict.fromkeys(quantisation.METHODS), dequantisation, "dequantisation")
    check_number("tolerance", tolerance, above=0)
    for name, value, least in (("passes", passes, 1), ("num_probes", num_probes, 0)):
        if value is not None and (value != int(value) or value < least):
            raise ValueError(f"{name} must be an integer >= {least}, got {value}")
    low, high = noise_range(sigma_min, sigma_max, model.preconditioning)
    num_steps = NUM_STEPS[method] if num_steps is None else num_steps
    if num_steps != int(num_steps) or num_steps < 2:
        raise ValueError(
            f"num_steps must be an integer >= 2, got {num_steps}: the difference to half as many "
            "steps belongs to the number"
        )
    if method == "bound":
        if dequantisation == "uniform":
            raise ValueError(
                "the variational bound has its own decoder of 8-bit images; use dequantisation="
                "'gaussian', which names it, or 'none' for floats"
            )
        if num_steps % 2:
            raise ValueError(f"the bound needs an even number of noise levels, got {num_steps}")
        return Settings(method, dequantisation, int(num_steps), low, high, None, None, None, passes)
    solver = solver_for(model, solver)
    if num_probes is None:
        num_probes = 0 if math.prod(model.image_shape) <= EXACT_LIMIT else 1
    adaptive = solver == "adaptive"
    return Settings(
        method, dequantisation, None if adaptive else int(num_steps), low, high, solver,
        tolerance if adaptive else None, num_probes, passes,
    )  # fmt: skip


def describe_model(model: Model) -> dict[str, Any]:
    """Which model a number belongs to, as JSON values."""
    return {
        "network": model.description["network"]["name"],
        "precond": model.preconditioning.name,
        "image_shape": list(model.image_shape),
        "num_classes": model.num_classes,
        "ema": model.variant,
        "progress": model.description.get("progress"),
    }


def settings_json(model: Model, settings: Settings) -> dict[str, Any]:
    """Settings and model as JSON values, for a result or a file."""
    values = {
        **dataclasses.asdict(settings),
        "probe": "rademacher" if settings.num_probes else None,
        "prior": "N(0, sigma_max^2)",
        "data_scaling": "v / 127.5 - 1",
        "model": describe_model(model),
    }
    return json.loads(json.dumps(values))
