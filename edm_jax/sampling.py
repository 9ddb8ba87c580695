"""The sampling request: which sampler, on which noise levels, with which options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax import grids, samplers
from edm_jax.precond import Preconditioning


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A request: which sampler, on which noise levels, with which options.

    Comparable, written to JSON and read from it.  The sampler, N, names and counts belong to
    the compiled program; every other number is traced, so that a new one never recompiles.

    Attributes:
      sampler: a name of `samplers.SAMPLERS` (or an alias of one, see docs/sampling.md).
      discretization: a name of `grids.GRIDS`, the time steps of EDM Table 1 and others.
      num_steps: N >= 1.
      sigma_min, sigma_max: range of the levels; None: that of the discretization
        (`grids.RANGES`).  Kept within the network's own range.
      rho: warp of the ``edm`` discretization and of ``polyexponential``; None: theirs.
      sigmas: the levels themselves, decreasing, the last one 0; then N, the range and the
        discretization are not asked.
      options: of the sampler, such as ``{"eta": 0.5}`` or ``{"s_churn": 40}``, as JSON
        values; ``samplers.accepted(samplers.get(name))`` lists them.
    """

    sampler: str = "heun"
    discretization: str = "edm"
    num_steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    sigmas: tuple[float, ...] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", tuple(float(s) for s in self.sigmas))
            object.__setattr__(self, "num_steps", len(self.sigmas) - 1)
        object.__setattr__(self, "options", dict(self.options))

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json(), sort_keys=True))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sampling:
        """Inverse of `to_json`; what is left out has its default.

        Raises:
          ValueError: naming an entry that a request does not have.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"a sampling request has no {key!r}; it has {', '.join(known)}")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """JSON values: all that says something."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.sigmas is not None:
            values = {k: values[k] for k in ("sampler", "sigmas", "options")}
            values["sigmas"] = list(self.sigmas)
        return {k: v for k, v in values.items() if v is not None and v != {}}

    def check(self, preconditioning: Preconditioning | None = None) -> None:
        """Raise ValueError for a request that cannot be carried out, before any work.

        Args:
          preconditioning: of the network it is for, if that is known.
        """
        self.request(preconditioning)

    def request(self, preconditioning: Preconditioning | None = None) -> samplers.Request:
        """The sampler with its checked options, as an argument of jitted functions."""
        grid = self.grid(preconditioning)
        return samplers.request(self.sampler, self.options, sigmas=grid)

    def grid(self, preconditioning: Preconditioning | None = None) -> np.ndarray:
        """The noise levels that are visited: ``(N+1,)`` float64, last one 0.

        Args:
          preconditioning: of the network: clamps the range and rounds the levels.

        Raises:
          ValueError: for an unknown discretization, an option it has not, or a bad range.
        """
        repeats = "round_sigma" in samplers.get(self.sampler).options
        if self.sigmas is not None:
            sigmas = grids.as_sigmas(self.sigmas)
            if preconditioning is None:
                return sigmas
            return grids.round_grid(sigmas, preconditioning, merge=not repeats)
        return grids.make_sigmas(
            self.discretization,
            self.num_steps,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            preconditioning=preconditioning,
            merge=not repeats,
            **({} if self.rho is None else {"rho": self.rho}),
        )

    def nfe(self, preconditioning: Preconditioning | None = None) -> int | None:
        """Network calls for an image; None where the data decide (adaptive samplers)."""
        num_steps = self.num_steps
        if preconditioning is not None and preconditioning.rounds:
            num_steps = len(self.grid(preconditioning)) - 1
        return samplers.get(self.sampler).nfe(num_steps, **self.options)
