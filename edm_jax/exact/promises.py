"""Does a sampler keep its promises?  Measured where the exact answer is known.

Order of convergence and network calls: see `bed`.  Independence: see `contract`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from edm_jax.exact import bed
from edm_jax.exact.bed import Measurement, Subject
from edm_jax.exact.contract import contract, independence, raised
from edm_jax.pytree import short_repr

NFE_BUDGET = 64
# Orders are whole numbers: a measured one must be nearer to the promise than to others.
ORDER_SLACK = 0.5


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
      name, order, stochastic: of the subject.
      adaptive: whether orders are powers of the tolerance.
      measured_order: slope of log error over log N (over log tolerance if adaptive); NaN
        where sampling error hides it.
      num_steps, nfe, errors: the runs, coarse to fine; network calls are counted.
      error_at_budget, nfe_at_budget: of the finest run within NFE_BUDGET calls, or of
        the cheapest.
      batch_independent, noise_independent: see `independence`.
      failures: what was broken, in words; empty if nothing.
      notes: what else the reader should know.
    """

    name: str
    order: float
    stochastic: bool
    adaptive: bool = False
    measured_order: float = math.nan
    num_steps: tuple[int, ...] = ()
    nfe: tuple[int, ...] = ()
    errors: tuple[float, ...] = ()
    error_at_budget: float = math.nan
    nfe_at_budget: int = 0
    batch_independent: bool = False
    noise_independent: bool = False
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every promise held."""
        return not self.failures


# --------------------------------------------------------------------- independence


# ---------------------------------------------------------------------- convergence


def _slope(costs: Iterable[float], errors: Iterable[float]) -> float:
    """Order of convergence over the finer half of a refinement."""
    costs, errors = np.log(np.asarray(costs, float)), np.log(np.maximum(list(errors), 1e-300))
    return float(-(errors[-1] - errors[-2]) / (costs[-1] - costs[-2]))


def _resolved_slope(steps: tuple[int, ...], errors: list[float]) -> tuple[float, float]:
    """Order and its uncertainty (3 standard errors) from sampled errors.

    Of the finest pair of runs that sampling error does not hide; NaN if there is none.
    """
    floor = bed.sampled_floor()
    for i in reversed(range(1, len(steps))):
        if errors[i] > 4 * floor:
            noise = math.hypot(floor / errors[i], floor / errors[i - 1])
            slope = _slope(steps[i - 1 : i + 1], errors[i - 1 : i + 1])
            return slope, 3 * noise / math.log(steps[i] / steps[i - 1])
    return math.nan, 0.0


@short_repr
@dataclasses.dataclass(frozen=True)
class Convergence:
    """Order, its uncertainty, and the runs ``{N: Measurement}`` (or tolerance as key)."""

    order: float
    uncertainty: float
    runs: Mapping[float, Measurement]
    notes: tuple[str, ...] = ()


def _budget_steps(runs: Mapping[int, Measurement]) -> int | None:
    """N whose calls, linear in N as those of two runs, are at most NFE_BUDGET."""
    (n0, first), (n1, second), *_ = sorted(runs.items())
    per_step = (second.calls - first.calls) / (n1 - n0)
    if per_step <= 0:
        return None
    # The calls of a run may not be whole numbers in floating point.
    return math.floor((NFE_BUDGET - first.calls) / per_step + n0 + 1e-9)


def convergence(subject: Subject) -> Convergence:
    """Measured order and the runs of a refinement, one of them within NFE_BUDGET."""
    if subject.tolerances:
        runs = dict(zip(subject.tolerances, bed.adaptive_runs(subject), strict=True))
        inverse = [1 / tolerance for tolerance in runs]
        return Convergence(_slope(inverse, [m.error for m in runs.values()]), 0.0, runs)
    notes, steps = (), subject.steps
    if not subject.stochastic:
        measure = functools.partial(bed.deterministic_runs, subject)
    else:
        exactly = subject.replay is not None
        if exactly and not subject.tight and not bed.replays_faithfully(subject):
            exactly, notes = False, ("its noise_fn does not give all of its noise: sampled",)
        one = bed.impulse_run if exactly else bed.sampled_run
        measure = lambda steps: [one(subject, n) for n in steps]  # noqa: E731
    runs = dict(zip(steps, measure(steps), strict=True))
    errors, uncertainty = [m.error for m in runs.values()], 0.0
    if subject.stochastic and not exactly:
        order, uncertainty = _resolved_slope(steps, errors)
        notes += (f"errors by sampling, to {bed.sampled_floor():.1g}",)
    elif subject.bias:
        # The error ends on a floor: how fast does the distribution settle there?
        laws = [np.array(m.law) for m in runs.values()]
        changes = [math.dist(a, b) for a, b in itertools.pairwise(laws)]
        order = _slope(steps[1:], changes)
    else:
        order = _slope(steps, errors)
    budget = _budget_steps(runs)
    if budget is not None and budget >= 1 and budget not in runs:
        # The finest run goes along: it decides which exact answer the errors refer to.
        pair = (budget, steps[-1]) if not subject.stochastic else (budget,)
        runs[budget] = measure(pair)[0]
    return Convergence(order, uncertainty, dict(sorted(runs.items())), notes)


# --------------------------------------------------------------------------- report


def _order_failure(subject: Subject, measured: Convergence) -> str | None:
    """What is wrong with the order or the remaining error, in words."""
    order, slack = measured.order, ORDER_SLACK + measured.uncertainty
    last = list(measured.runs.values())[-1].error
    if subject.bias and last > subject.bias:
        return f"its error {last:.2g} exceeds the known bias {subject.bias:g}"
    if not subject.order or math.isnan(order):
        return None
    if order < subject.order - slack:
        return f"it converges with order {order:.2f}, promised {subject.order:g}"
    if subject.tight and order > subject.order + slack:
        return f"it converges with order {order:.2f}, stated as {subject.order:g} only"
    return None


def _call_failure(subject: Subject, runs: Mapping[float, Measurement]) -> str | None:
    """Where the counted network calls are not those stated, in words."""
    for steps, measured in runs.items():
        stated = measured.stated
        if subject.nfe is not None:
            stated = subject.nfe(steps)
        if stated is not None and measured.calls != stated:
            setting = f"tolerance {steps:g}" if subject.tolerances else f"{steps} steps"
            return f"it calls the network {measured.calls:g} times for {setting}, stated {stated}"
    return None


def validate(subject: Subject) -> Report:
    """Measure a sampler and compare with its promises (in float64)."""
    adaptive = bool(subject.tolerances)
    with jax.enable_x64(True):
        subject, run, wrong = contract(subject)
        base = Report(subject.name, subject.order, bool(subject.stochastic), adaptive)
        if wrong is not None:
            return dataclasses.replace(base, failures=(wrong,))
        try:
            batch, noise = independence(subject, run)
            measured = convergence(subject)
        except Exception as error:  # for other batches or numbers of steps than the first
            return dataclasses.replace(base, failures=(raised(error),))
    runs = measured.runs
    failures, errors = [], tuple(m.error for m in runs.values())
    counts = tuple(math.ceil(m.calls - 1e-9) for m in runs.values())
    if not np.all(np.isfinite(errors)):
        failures.append("its error is not finite")
    else:
        failures += [_order_failure(subject, measured), _call_failure(subject, runs)]
    if not batch:
        failures.append("images influence each other")
    if not noise:
        failures.append(
            "the noise of an image depends on other keys"
            if subject.stochastic
            else "its result depends on the key"
        )
    within = [i for i, count in enumerate(counts) if count <= NFE_BUDGET] or [np.argmin(counts)]
    return dataclasses.replace(
        base,
        measured_order=measured.order,
        num_steps=() if adaptive else tuple(runs),
        nfe=counts,
        errors=errors,
        error_at_budget=errors[within[-1]],
        nfe_at_budget=counts[within[-1]],
        batch_independent=batch,
        noise_independent=noise,
        failures=tuple(failure for failure in failures if failure is not None),
        notes=measured.notes,
    )


def table(reports: Iterable[Report]) -> str:
    """The reports as text, one line each."""
    head = (
        f"{'sampler':24s} {'kind':5s} {'promised':>8s} {'measured':>8s} {'NFE':>5s} "
        f"{'error':>9s} {'batch':>5s} {'noise':>5s}  result"
    )
    lines = [head, "-" * len(head)]
    for r in reports:
        if r.passed:
            verdict = "; ".join(("pass", *r.notes))
        else:
            verdict = "FAIL: " + "; ".join(r.failures + r.notes)
        seen = {True: "yes", False: "NO" if r.errors else "-"}  # "-": not measured
        promised = f"tol^{r.order:g}" if r.adaptive else f"{r.order:g}" if r.order else "bias"
        measured = "-" if math.isnan(r.measured_order) or not r.order else f"{r.measured_order:.2f}"
        lines.append(
            f"{r.name:24s} {'SDE' if r.stochastic else 'ODE':5s} {promised:>8s} "
            f"{measured:>8s} {r.nfe_at_budget:5d} {r.error_at_budget:9.2e} "
            f"{seen[r.batch_independent]:>5s} {seen[r.noise_independent]:>5s}  {verdict}"
        )
    return "\n".join(lines)


def to_json(reports: Iterable[Report]) -> list[Mapping[str, Any]]:
    """The reports as plain data; None where nothing was measured."""
    plain = lambda value: None if value != value else value  # noqa: E731 (NaN)
    return [
        {**{k: plain(v) for k, v in dataclasses.asdict(r).items()}, "passed": r.passed}
        for r in reports
    ]
