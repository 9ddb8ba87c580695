"""SA-Solver (Xue et al. 2023): stochastic Adams predictor and corrector in ln sigma."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_number
from edm_jax.samplers import loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import Measured, SamplerInfo, one_call, two_calls
from edm_jax.samplers.rows import CorrectedRows, Rows, earlier, phi
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key


def _weights(
    xp: ModuleType, h: ArrayLike, k: ArrayLike, nodes: list[ArrayLike], simple: bool, ahead: bool
) -> list[ArrayLike]:
    """W_j = k sum_p l_jp p! h^{p+1} phi_{p+1}(-k h) over nodes u = lambda - lambda_i.

    "simple" replaces those of order 2: nodes lambda_i and either lambda_{i+1} (ahead) or
    lambda_{i-1}.
    """
    if simple and len(nodes) == 2:
        q = -xp.expm1(-k * h)
        other = k * h / 2 if ahead else k * xp.square(h) / (2 * nodes[1])
        return [other, q - other] if ahead else [q - other, other]
    moments = [math.factorial(p) * h ** (p + 1) * phi(xp, p + 1, -k * h) for p in range(len(nodes))]
    table = rows_lib.lagrange(xp, nodes)
    return [k * sum(c * m for c, m in zip(row, moments, strict=True)) for row in table]


def _select(
    xp: ModuleType,
    h: ArrayLike,
    k: ArrayLike,
    order: int,
    used: np.ndarray,
    *,
    simple: bool,
    ahead: bool,
) -> list[ArrayLike]:
    """Columns of weights for every step, of the order each of them uses (0: none)."""
    # lambda_{i-m} - lambda_i; where there is none, distinct values that no row uses.
    past = [xp.zeros_like(h)]
    for lag in range(1, order):
        past.append(past[-1] - earlier(xp, h, lag))
    nodes = [h, *past][:order] if ahead else past[:order]
    columns = [xp.zeros_like(h) for _ in range(order)]
    for count in range(1, order + 1):
        weights = _weights(xp, h, k, nodes[:count], simple, ahead)
        columns = [
            xp.where(used == count, weights[j], column) if j < count else column
            for j, column in enumerate(columns)
        ]
    return columns


def sa_rows(
    sigmas: ArrayLike,
    *,
    predictor: int = 2,
    corrector: int = 2,
    tau: ArrayLike = 1.0,
    tau_min: ArrayLike = 0.0,
    tau_max: ArrayLike = math.inf,
    s_noise: ArrayLike = 1.0,
    simple: bool = False,
    pece: bool = False,
) -> CorrectedRows | Rows:
    """Coefficients of SA-Solver; k = 1 + tau^2, tau taken at the end of a step.

        n = sigma' sqrt(1 - e^{-2 tau^2 h}) xi
        x_p = e^{-k h} x_i + sum_{j<p} W_j D_{i-j} + n,               D_{i+1} = D(x_p; sigma')
        x_{i+1} = e^{-k h} x_i + sum_{j<c} W^c_j D_{i+1-j} + n        (the same n)

    W integrate the Lagrange basis over the last levels, W^c that over the new one too.

    Args:
      sigmas: ``(N+1,)`` grid.
      predictor, corrector: orders p and c, see sample_sa_solver.
      tau, tau_min, tau_max, s_noise, simple, pece: see sample_sa_solver.

    Returns:
      CorrectedRows, or 2N - 1 Rows with pece.
    """
    num_steps = np.shape(sigmas)[0] - 1
    values = (sigmas, tau, tau_min, tau_max, s_noise)
    xp, (sigmas, tau, tau_min, tau_max, s_noise) = rows_lib.concrete(*values)
    h, after = rows_lib.log_steps(xp, sigmas), sigmas[1:-1]
    tau = xp.where((tau_min <= after) & (after <= tau_max), tau, 0.0)
    k, keep = 1 + xp.square(tau), xp.exp(-(1 + xp.square(tau)) * h)
    c = s_noise * after * xp.sqrt(-xp.expm1(-2 * xp.square(tau) * h))
    index = np.arange(num_steps - 1)
    left = num_steps - 1 - index
    p_used = np.minimum(np.minimum(predictor, index + 1), left)
    c_used = np.minimum(np.minimum(corrector, index + 2), left)
    if not pece:
        c_used = np.where(left == 1, 0, c_used)  # at the last level D(x_p) is the result
    ahead = _select(xp, h, k, predictor, p_used, simple=simple, ahead=False)
    back = _select(xp, h, k, corrector, c_used, simple=simple, ahead=True)
    if pece:
        return _pece_rows(xp, sigmas, keep, ahead, back, c)
    predict = rows_lib.to_zero(xp, keep, ahead, c)
    width = max(predictor, corrector - 1)
    zero, zeros = xp.zeros(1, h.dtype), xp.zeros(num_steps - 1, h.dtype)
    corrected = c_used > 0
    # Without a corrector x_{i+1} is x_p itself: the predictor's own coefficients.
    columns = []
    for j in range(width):
        mine = back[j + 1] if j + 1 < corrector else zeros
        theirs = ahead[j] if j < predictor else zeros
        columns.append(xp.concatenate([zero, xp.where(corrected, mine, theirs)]))
    new = xp.where(corrected, back[0], 0.0) if corrector else zeros
    correct = Rows(xp.concatenate([zero + 1, keep]), xp.stack(columns, axis=1))
    pad = xp.zeros((num_steps, width - predictor), h.dtype)
    predict = predict._replace(b=xp.concatenate([predict.b, pad], axis=1))
    return CorrectedRows(predict, correct, xp.concatenate([zero, new]))


def _pece_rows(
    xp: ModuleType,
    sigmas: ArrayLike,
    keep: ArrayLike,
    ahead: list[ArrayLike],
    back: list[ArrayLike],
    c: ArrayLike,
) -> Rows:
    """2N - 1 Rows: after a corrected state predict, after a predicted one correct.

    Every second evaluation is of a prediction, which only the corrector of its own step uses.
    """
    steps = keep.shape[0]
    width = 2 * max(len(ahead), len(back))
    zeros = xp.zeros_like(keep)
    predict, correct = [zeros] * width, [zeros] * width
    for j, column in enumerate(ahead):
        predict[2 * j] = column
    for j, column in enumerate(back):
        correct[2 * j - 1 if j else 0] = column
    weave = lambda one, two: xp.stack([one, two], axis=1).reshape(-1)  # noqa: E731
    b = [weave(one, two) for one, two in zip(predict, correct, strict=True)]
    last = [xp.ones_like(sigmas[:1]) if j == 0 else xp.zeros_like(sigmas[:1]) for j in range(width)]
    b = [xp.concatenate([column, end]) for column, end in zip(b, last, strict=True)]
    zero = xp.zeros_like(sigmas[:1])
    return Rows(
        a=xp.concatenate([weave(keep, keep), zero]),
        b=xp.stack(b, axis=1),
        c=xp.stack(
            [xp.concatenate([weave(c, zeros), zero]), xp.concatenate([weave(zeros, c), zero])],
            axis=1,
        ),
        levels=xp.concatenate([weave(sigmas[:-2], sigmas[1:-1]), sigmas[-2:-1]]),
        ends=np.append(np.tile([False, True], steps), True),
        draws=np.append(np.tile([True, False], steps), False),
    )


def sample_sa_solver(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    predictor: int = 2,
    corrector: int = 2,
    tau: ArrayLike = 1.0,
    tau_min: ArrayLike = 0.0,
    tau_max: ArrayLike = math.inf,
    s_noise: ArrayLike = 1.0,
    simple: bool = False,
    pece: bool = False,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """SA-Solver; weak order 2, N network calls (2N - 1 with pece); see `sa_rows`.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      predictor: order p, 1 to 4; the first and last steps have less.
      corrector: order c, 0 (none) to 4; 1 only with a predictor of 2 or more, as it is an
        implicit Euler step.
      tau: amount of noise; 0 is the ODE, 1 the usual SDE.
      tau_min, tau_max: noise levels between which tau holds; outside there is none.  The
        paper has [.05, 1] for CIFAR-10 and [.05, 50] for ImageNet-64.
      s_noise: scale of the added noise.
      simple: other weights where the order is 2, meant for very few steps; they overshoot.
      pece: evaluate again after the correction.
      noise: "step" draws anew at every step; "tree" takes all noise from one path, the same
        at any number of steps (`path`).
      noise_fn: step index -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory.
    """
    for name, value, low in (("predictor", predictor, 1), ("corrector", corrector, 0)):
        if not isinstance(value, int | np.integer) or not low <= value <= 4:
            raise ValueError(f"{name} must be a whole number from {low} to 4, got {value}")
    if predictor == 1 and corrector == 1:
        raise ValueError("corrector=1 gains nothing over predictor=1; use corrector=0 or 2")
    if pece and not corrector:
        raise ValueError("pece evaluates after the correction; it needs a corrector of 1 to 4")
    for name, value in (("tau", tau), ("tau_min", tau_min), ("s_noise", s_noise)):
        check_number(name, value, least=0)
    check_number("tau_max", tau_max, least=0, finite=False)
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))

    def spans() -> path.Spans:
        xp, (levels, top, low, high) = rows_lib.concrete(sigmas, tau, tau_min, tau_max)
        after = levels[1:-1]
        # As `sa_rows` has it, the end of a step decides; other steps, as the last, draw none.
        noisy = (low <= after) & (after <= high)
        ends = (xp.where(noisy, level, 1.0) for level in (levels[:-2], after))
        start, stop = (-xp.square(top) * xp.log(xp.append(end, 1.0)) for end in ends)
        return path.Spans(start, stop)

    draw = path.noise_source(key, noise_fn, x, noise, spans)
    table = sa_rows(
        sigmas,
        predictor=predictor,
        corrector=corrector,
        tau=tau,
        tau_min=tau_min,
        tau_max=tau_max,
        s_noise=s_noise,
        simple=simple,
        pece=pece,
    )
    run = rows_lib.sample_rows if pece else rows_lib.sample_corrected
    return run(denoise, x, sigmas, table, draw=draw, **options)


def _calls(num_steps: int, options: Mapping[str, Any]) -> int:
    return (two_calls if options.get("pece") else one_call)(num_steps, options)


PROMISES = (
    SamplerInfo(
        "sa_solver",
        sample_sa_solver,
        order=2,
        stochastic=True,
        nfe_fn=_calls,
        measured=(
            Measured(tight=False),
            Measured("3, 4", {"predictor": 3, "corrector": 4}),
            Measured("pece", {"pece": True}, tight=False),
        ),
    ),
)
