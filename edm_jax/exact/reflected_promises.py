"""Do the samplers keep their promises on a box?  Measured where the exact law is known.

Data are levels of one dimension, two of them on the faces, and points of two dimensions.

A stochastic sampler takes its steps one by one with a whole law: sorted particles whose
noise is a low-discrepancy sequence (array-RQMC, L'Ecuyer, Lecot and Tuffin 2008).  That is
as good as a few million independent samples.  What is measured is the largest error of a
level's frequency.  Samplers of the ODE are compared with the exact flow, which in one
dimension keeps the cumulative probability.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import grids, samplers, seeds
from edm_jax.domains.box import Box
from edm_jax.exact import contract, promises, subjects
from edm_jax.exact.promises import Report
from edm_jax.reflected.sampling import run as run_on_box
from edm_jax.reflected.sources import ReflectedPoints, cell_density
from edm_jax.samplers import SamplerInfo
from edm_jax.typing import Array, Key

SIGMA_MIN, SIGMA_MAX = 0.02, 10.0
BOX = Box()
LEVELS = ReflectedPoints(np.array([-1.0, -1 / 3, 1 / 3, 1.0]), np.array([0.1, 0.4, 0.3, 0.2]))
POINTS = ReflectedPoints(
    np.array([[-1.0, 0.2], [-0.6, 1.0], [-0.9, -0.7], [0.8, -1.0], [1.0, 1.0]]),
    np.array([0.25, 0.15, 0.2, 0.2, 0.2]),
)
PARTICLES = 2**14
# Of a frequency, after a hundred steps of that many particles; measured against 2^17.
FLOOR = 1e-3
SDE_STEPS, ODE_STEPS, PLANE_STEPS = (25, 50, 100), (64, 128), 64
PLANE_SAMPLES = 2**15
# The ODE samplers of the project that are shown on the lift.
ODE_SAMPLERS = ("heun", "dpmpp_2m")


def _sigmas(num_steps: int) -> np.ndarray:
    return grids.make_sigmas("ve", num_steps, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)


def van_der_corput(num: int) -> np.ndarray:
    """``(num,)`` bit-reversed fractions of a power of 2: every run of them is spread evenly."""
    bits = num.bit_length() - 1
    index, value = np.arange(num), np.zeros(num)
    for bit in range(bits):
        value += ((index >> bit) & 1) * 0.5 ** (bit + 1)
    return value + 0.5 / num


@functools.partial(jax.jit, static_argnums=0)
def _law_step(info: _Frozen, x: Array, sigmas: Array, shift: Array) -> Array:
    """The particles after the first step of a sampler on ``sigmas`` (3,)."""
    x = jnp.sort(x.ravel()).reshape(x.shape)
    fractions = (jnp.asarray(van_der_corput(PARTICLES)) + shift) % 1
    noise = jax.scipy.special.ndtri(jnp.clip(fractions, 1e-12, 1 - 1e-12)).reshape(x.shape)
    denoise = BOX.lift(LEVELS.denoise)
    return info.value(denoise, x, sigmas, noise_fn=lambda _: noise, trajectory=True).x[1]


class _Frozen:
    """A sampler as a hashable constant; its options may be a dict."""

    def __init__(self, value: SamplerInfo) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def law_error(info: SamplerInfo, num_steps: int) -> float:
    """Largest error of a level's frequency after the steps down to SIGMA_MIN."""
    x = BOX.low + BOX.length * (np.arange(PARTICLES) + 0.5) / PARTICLES
    x, rng, frozen = jnp.asarray(x.reshape(64, -1)), np.random.default_rng(0), _Frozen(info)
    start = x
    for now, after in itertools.pairwise(_sigmas(num_steps)[:-1]):
        # A sampler takes starts in the box only; those of thresholding are taken on as they are.
        start = _law_step(frozen, start, np.array([now, after, 0.0]), rng.uniform())
    return _frequency_error(BOX.clip(start), LEVELS)


def _frequency_error(x: Array, source: ReflectedPoints) -> float:
    points = np.asarray(source.points).reshape(len(source.points), -1)
    gaps = np.asarray(x).reshape(-1, 1, points.shape[1]) - points
    counts = np.bincount(np.linalg.norm(gaps, axis=-1).argmin(1), minlength=len(points))
    return float(np.abs(counts / counts.sum() - source.weights).max())


def flow_error(info: SamplerInfo, num_steps: int) -> float:
    """RMS over starts of the difference in cumulative probability to the exact flow."""
    u = (np.arange(256) + 0.5) / 256
    x = jnp.asarray(BOX.low + BOX.length * u).reshape(16, 4, 4, 1)
    sigmas = _sigmas(num_steps)
    v = jax.jit(lambda x: info(BOX.lift(LEVELS.denoise), x, sigmas, trajectory=True).x[-2])(x)
    return float(np.sqrt(np.mean(np.square(_cdf(BOX.fold(v).ravel(), sigmas[-2]) - u))))


def _cdf(x: Array, sigma: float) -> np.ndarray:
    """P(X <= x) of the levels blurred with sigma: the kernel is symmetric in x and y."""
    widths = jnp.maximum(x - BOX.low, 1e-9) / BOX.length
    y = (jnp.asarray(LEVELS.points) - BOX.low)[:, None] / BOX.length
    y, width = jnp.broadcast_arrays(y, widths[None])
    density, _ = cell_density(y, jnp.zeros_like(y), width, jnp.full_like(y, sigma / BOX.length))
    return np.asarray(LEVELS.weights @ (width * density))


def plane_error(info: SamplerInfo, num_steps: int) -> float:
    """Largest error of a point's frequency in two dimensions, from samples."""
    noise = np.random.default_rng(1).normal(size=(PLANE_SAMPLES, 2)).astype(np.float32)
    keys, sigmas = seeds.image_keys(range(PLANE_SAMPLES)), _sigmas(num_steps)

    @jax.jit
    def run(noise: Array, keys: Key) -> Array:
        return run_on_box(info, POINTS.denoise, noise, sigmas, keys, domain=BOX)

    return _frequency_error(run(noise, keys), POINTS)


def _report(
    info: SamplerInfo,
    name: str,
    steps: tuple[int, ...],
    errors: list[float],
    *,
    promised: float,
    most: float = math.inf,
    floor: float = 0.0,
) -> Report:
    """The report of a refinement; ``most`` bounds the last error, 0 promises no order."""
    subject = subjects.subject_of(info)

    @jax.jit
    def program(x: Array, keys: Key) -> Array:
        return info(BOX.lift(LEVELS.denoise), BOX.fold(x), _sigmas(16), keys)

    batch, noise = contract.independence(subject, lambda x, keys: np.asarray(program(x, keys)))
    order, failures, notes = math.nan, [], ()
    if promised:
        order = math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])
        if errors[-1] < 2 * floor:
            notes = (f"the last error is near that of the measurement, {floor:g}",)
        elif abs(order - promised) > promises.ORDER_SLACK / 2:
            failures.append(f"it converges with order {order:.2f}, promised {promised:g}")
    if errors[-1] > most:
        failures.append(f"its error {errors[-1]:.2g} exceeds {most:g}")
    if not batch:
        failures.append("images influence each other")
    if not noise:
        failures.append("the noise of an image depends on other keys")
    nfe = tuple(info.nfe(n) for n in steps)
    return Report(
        name, promised, info.stochastic, measured_order=order, num_steps=steps, nfe=nfe,
        errors=tuple(errors), error_at_budget=errors[-1], nfe_at_budget=nfe[-1],
        batch_independent=batch, noise_independent=noise, failures=tuple(failures), notes=notes,
    )  # fmt: skip


def _with_kappa(info: SamplerInfo, kappa: float) -> SamplerInfo:
    presets = {**info.presets, "kappa": kappa}
    return dataclasses.replace(info, presets=presets, stochastic=kappa > 0)


def reports(name: str | None = None) -> Iterator[Report]:
    """Reports of the reflected samplers, and of samplers of the ODE on the lift.

    Args:
      name: of one of the reflected samplers; None for everything.

    Raises:
      ValueError: for one without a law that could be measured (with correctors: their steps
        depend on norms of whole images).
    """
    rows = [row for row in _rows() if name in (None, row[0].name)]
    if not rows:
        raise ValueError(f"the law of {name!r} is not measured; without --sampler all others are")
    for info, label, steps, measure, promise in rows:
        with jax.enable_x64(measure is not plane_error):
            errors = [measure(info, n) for n in steps]
            yield _report(info, label, steps, errors, **promise)


def _rows() -> Iterator[tuple[SamplerInfo, str, tuple[int, ...], Callable, dict]]:
    """Sampler, name in the table, steps, what is measured, and what is promised."""
    for name in ("reflected", "reflected_project", "reflected_threshold"):
        info = samplers.get(name)
        yield info, name, SDE_STEPS, law_error, {"promised": info.order, "floor": FLOOR}
    for kappa in (0.0, 0.5):
        partial = _with_kappa(samplers.get("reflected"), kappa)
        yield partial, f"reflected (kappa {kappa:g})", SDE_STEPS, law_error, {"promised": 1}
    for name in ODE_SAMPLERS:
        info = samplers.get(name)
        yield info, f"{name} (box)", ODE_STEPS, flow_error, {"promised": info.order}
    for name in ("reflected", *ODE_SAMPLERS):
        # Four standard errors of a frequency are 0.01, the step error of the SDE 0.006.
        promise = {"promised": 0, "most": 0.016}
        yield samplers.get(name), f"{name} (plane)", (PLANE_STEPS,), plane_error, promise
