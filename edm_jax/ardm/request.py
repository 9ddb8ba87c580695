"""How examples are drawn from a model: how many calls, and what each of them draws."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm_jax.ardm.policy import (
    optimal_policies,
    sequential_policy,
    stage_policies,
    uniform_policy,
)
from edm_jax.ardm.process import Process, num_variables
from edm_jax.ardm.registry import build
from edm_jax.pytree import short_repr

POLICIES = ("uniform", "optimal")
NAME = "ardm"  # in the place of a sampler's


@short_repr
@dataclasses.dataclass(frozen=True)
class Decoding:
    """A request for examples of a model of kind "ardm", as `generate.Sampling` is for others.

    Comparable, written to JSON and read from it.

    Attributes:
      num_steps: network calls n of every stage, 1..D; None: one variable at a time.
      policy: ``uniform`` draws equal shares; ``optimal`` is the cheapest way by the losses per
        step that training left; or the policy itself, ``0 = k_0 < .. < k_n = D``.
    """

    num_steps: int | None = None
    policy: str | tuple[int, ...] = "uniform"

    def __post_init__(self) -> None:
        if isinstance(self.policy, str):
            if self.policy not in POLICIES:
                raise ValueError(
                    f"policy must be one of {', '.join(POLICIES)}, or numbers of known variables "
                    f"from 0 to all of them, got {self.policy!r}"
                )
        else:
            values = np.asarray(self.policy)
            if values.ndim != 1 or values.size < 2 or values.dtype.kind not in "iu":
                raise ValueError(f"a policy must be at least two integers, got {self.policy!r}")
            object.__setattr__(self, "policy", tuple(values.tolist()))
            if self.num_steps not in (None, len(values) - 1):
                raise ValueError(
                    f"num_steps is {self.num_steps}, but the policy has {len(values) - 1} calls; "
                    "leave num_steps out"
                )
            object.__setattr__(self, "num_steps", len(values) - 1)
        n = self.num_steps
        if n is not None and (isinstance(n, bool) or n != int(n) or n < 1):
            raise ValueError(f"num_steps must be an integer of at least 1, got {n!r}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decoding:
        """Inverse of `to_json`; what is left out has its default."""
        known = ("sampler", *(field.name for field in dataclasses.fields(cls)))
        for key in values:
            if key not in known:
                raise ValueError(f"a decoding has no {key!r}; it has {', '.join(known[1:])}")
        return cls(**{key: value for key, value in values.items() if key != "sampler"})

    def to_json(self) -> dict[str, Any]:
        """JSON values: all that says something."""
        policy = self.policy if isinstance(self.policy, str) else list(self.policy)
        values = {"sampler": NAME, "policy": policy, "num_steps": self.num_steps}
        return {key: value for key, value in values.items() if value is not None}

    def policies(
        self, process: Process, shape: tuple[int, ...], loss_per_step: Any = None
    ) -> NDArray[np.int32]:
        """The policy of every stage, ``(S, n + 1)``.

        Args:
          process: the kind of model.
          shape: of one example.
          loss_per_step: ``(S D,)`` L_t, which the optimal policy is made of.

        Raises:
          ValueError: for more calls than variables, a policy that does not end in D, an optimal
            one without a profile, or several variables at once of a model of one order.
        """
        variables, stages = num_variables(process, shape), process.num_stages
        n = variables if self.num_steps is None else int(self.num_steps)
        if process.order != "random" and n < variables:
            raise ValueError(
                f"a model of the {process.order} order has learnt to draw the next variable alone, "
                f"in {variables} calls, got num_steps={n}; leave num_steps and policy out"
            )
        if not isinstance(self.policy, str):
            return np.asarray(stage_policies(self.policy, stages, variables))
        if n > variables:
            raise ValueError(
                f"num_steps must be at most {variables}, the variables of an example of shape "
                f"{'x'.join(map(str, shape))}, got {n}"
            )
        if n == variables:
            policy = sequential_policy(variables)
        elif self.policy == "uniform":
            policy = uniform_policy(n, variables)
        else:
            profile = _profile(loss_per_step, stages * variables)
            return _optimal(tuple(profile.tolist()), n, stages)
        return np.broadcast_to(policy, (stages, n + 1))

    def of_model(self, model: Any) -> NDArray[np.int32]:
        """`policies` for a loaded `Model` of kind "ardm"."""
        process = build(**model.description["process"])
        return self.policies(process, model.image_shape, model.description.get("loss_per_step"))


@functools.lru_cache(maxsize=16)
def _optimal(profile: tuple[float, ...], num_calls: int, stages: int) -> NDArray[np.int32]:
    """Asked for by everything that says or does something of a request: computed once."""
    return optimal_policies(profile, num_calls, stages)


def _profile(loss_per_step: Any, total: int) -> NDArray[np.float64]:
    """What a description holds of it, checked."""
    if loss_per_step is None:
        raise ValueError(
            "the optimal policy is made of the losses per step that training leaves in a "
            "checkpoint, and this model has none; use policy='uniform'"
        )
    try:
        profile = np.asarray(loss_per_step, np.float64)
    except (TypeError, ValueError):
        profile = np.zeros(0)
    if profile.shape != (total,):
        raise ValueError(
            f"loss_per_step of the description must be {total} numbers, one for each step"
        )
    return profile
