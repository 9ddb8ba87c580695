"""The sampling request: which sampler, on which noise levels, with which options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Set
from typing import Any

import jax
import numpy as np

from edm_jax import grids, samplers
from edm_jax.names import brief
from edm_jax.precond import Preconditioning
from edm_jax.pytree import short_repr


def _plain(value: Any) -> Any:
    """Arrays, numbers of NumPy and tuples as JSON has them."""
    known = isinstance(value, np.generic | np.ndarray | jax.Array)
    if known and not isinstance(value, jax.core.Tracer):
        return np.asarray(value).tolist()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


@short_repr
@dataclasses.dataclass(frozen=True)
class Sampling:
    """A request: which sampler, on which noise levels, with which options.

    Comparable, written to JSON and read from it.  The sampler, N, names and counts belong to
    the compiled program; every other number is traced, so that a new one never recompiles.

    Attributes:
      sampler: a name of `samplers.SAMPLERS`.  A name from elsewhere (docs/sampling.md) becomes
        the sampler, the options and, where it ends in one, the discretization it stands for.
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
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("num_steps", "sigma_min", "sigma_max", "rho"):
            put(name, _plain(getattr(self, name)))
            if isinstance(getattr(self, name), str | list | dict):
                raise ValueError(f"{name} must be a number, got {brief(getattr(self, name))}")
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options must be a dictionary by name, got {brief(self.options)}")
        put("options", {str(key): _plain(value) for key, value in self.options.items()})
        if self.sigmas is not None:
            try:
                if isinstance(self.sigmas, str | bytes | Set | Mapping):
                    raise TypeError("no list")
                put("sigmas", tuple(float(s) for s in self.sigmas))
            except (TypeError, ValueError):
                raise ValueError(
                    f"sigmas must be a list of noise levels, got {brief(self.sigmas)}"
                ) from None
            # What the levels make idle, so that equal requests are equal.
            put("num_steps", len(self.sigmas) - 1)
            put("discretization", "edm")
            for name in ("sigma_min", "sigma_max", "rho"):
                put(name, None)
        if isinstance(self.sampler, str) and self.sampler not in samplers.SAMPLERS:
            self._resolve(put)

    def _resolve(self, put: Callable[[str, Any], None]) -> None:
        """A name from elsewhere as what it stands for; unknown ones stay for `check`."""
        try:
            samplers.get(self.sampler)
        except ValueError:
            return
        sampler, options, grid = samplers.meaning(self.sampler)
        put("sampler", sampler)
        put("options", options | dict(self.options))
        if grid is not None and self.sigmas is None and self.discretization == "edm":
            put("discretization", grid)

    def __hash__(self) -> int:
        # Equal numbers of other types are equal requests.
        as_floats = jax.tree.map(
            lambda v: float(v) if isinstance(v, int) and not isinstance(v, bool) else v,
            self.to_json(),
        )
        return hash(json.dumps(as_floats, sort_keys=True))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sampling:
        """Inverse of `to_json`; what is left out has its default.

        Raises:
          ValueError: naming an entry that a request does not have.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a sampling request is a dictionary by name, got {brief(values)}")
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
