"""The losses of an autoregressive diffusion model per step, and what policies make of them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm_jax.ardm.policy import monotone_profile, policy_cost, policy_table, uniform_policy
from edm_jax.figures import files
from edm_jax.figures.curves import GREEN, INK, ORANGE
from edm_jax.figures.ticks import log_axes

MAX_CALLS = 256  # of the budgets that are drawn


def budget_costs(
    loss_per_step: ArrayLike, num_stages: int = 1, max_calls: int = MAX_CALLS
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """What a profile promises for every number of calls per stage.

    Args:
      loss_per_step: ``(S D,)`` L_t, bits per dimension over D.
      num_stages: S.
      max_calls: N, at most D.

    Returns:
      Calls ``(N,)``, and the bits per dimension of the best policies of at most so many calls
      and of uniform ones, ``(N,)`` each.
    """
    stages = monotone_profile(loss_per_step, num_stages).reshape(num_stages, -1)
    variables = stages.shape[1]
    calls = np.arange(1, min(max_calls, variables) + 1)
    best = sum(policy_table(loss, len(calls)).costs_at_most for loss in stages)
    equal = [
        sum(policy_cost(loss, uniform_policy(int(n), variables)) for loss in stages) for n in calls
    ]
    return calls, np.asarray(best), np.asarray(equal)


def loss_per_step(
    path: pathlib.Path, profile: ArrayLike, num_stages: int = 1, *, policies: bool = True
) -> None:
    """Left the profile, right the bits per dimension against the number of calls.

    Args:
      path: file to write, .png, .pdf or .svg.
      profile: ``(S D,)`` L_t, as `LossProfile.loss_per_step` returns it.
      num_stages: S.
      policies: False leaves the right out: the losses of a model of one order are no cost of
        several variables at once.
    """
    profile = np.asarray(profile, np.float64)
    variables, columns = len(profile) // num_stages, 1 + policies
    with files.style():
        fig, axes = files.subplots(1, columns, size=(columns * files.COLUMN, 2.4))
        left = np.ravel(axes)[0]
        for stage, loss in enumerate(profile.reshape(num_stages, variables)):
            name = f"stage {stage}" if num_stages > 1 else None
            left.plot(np.arange(variables), loss * variables, lw=0.8, label=name)
        left.set(xlabel="variables known $t$", ylabel="bits per variable $D\\,L_t$")
        left.set_ylim(0, 1.1 * variables * max(float(profile.max()), 1e-12))
        if num_stages > 1:
            left.legend(frameon=False)
        if policies:
            _draw_costs(axes[1], *budget_costs(profile, num_stages))
        files.save(fig, path)


def _draw_costs(
    axis: Any, calls: NDArray[np.int64], best: NDArray[np.float64], equal: NDArray[np.float64]
) -> None:
    axis.plot(calls, equal, color=ORANGE, label="equal shares")
    axis.plot(calls, best, color=GREEN, label="optimal")
    axis.axhline(best[-1], color=INK, lw=0.6, ls=":")
    axis.set(xlabel="network calls per stage", ylabel="bits per dimension")
    log_axes(axis, "x")
    axis.legend(frameon=False)
