"""Does a sampler keep its promises?  Measured where the exact answer is known.

Order of convergence: deterministic samplers against the exact probability flow of a
one-dimensional mixture; stochastic ones by the distance between the distribution
they produce and the exact one.  On Gaussian data a sampler is an affine map of its
noise, so that distribution is computed from its impulse responses, without sampling
error.  Independence: no image may feel which others share its batch, and the noise of
an image comes from its own key alone.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact, grids, samplers, seeds
from edm_jax.samplers import SamplerInfo
from edm_jax.typing import Array, DenoiseFn, Key

# sampler(denoise, x, sigmas, key, **options) -> sample
SamplerFn = Callable[..., Array]

NUM_STEPS = (32, 64, 128)
NFE_BUDGET = 64
ORDER_SLACK = 0.35  # a slope over doublings of N is this far from its limit at most
# Below the cap gamma <= sqrt(2) - 1 at every N above, so that the order shows.
CHURN = samplers.Churn(10.0, 0.05, 50.0, 1.0)

MIXTURE = exact.GaussianMixture(
    np.array([-0.8, 0.1, 0.6]), np.array([0.1, 0.2, 0.15]), np.array([0.3, 0.4, 0.3])
)
GAUSSIAN = exact.Gaussian(0.3, 0.5)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A sampler under validation, and its promises.

    Attributes:
      name: for the table.
      run: ``run(denoise, x, sigmas, key) -> sample``.
      order: promised order.
      stochastic: whether the result depends on the key.
      bias: distance to the exact distribution that may stay at any number of steps.
      grid: name of its time steps.
      nfe: N -> network calls; None if unknown beforehand.
      replay: ``replay(denoise, x, sigmas, noise_fn)`` with recorded noise, if it can.
      tolerances: for an adaptive sampler, what to refine instead of N.
    """

    name: str
    run: SamplerFn
    order: float
    stochastic: bool = False
    bias: float = 0.0
    grid: str = "edm"
    nfe: Callable[[int], int] | None = None
    replay: SamplerFn | None = None
    tolerances: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
      name, order, stochastic: of the subject.
      measured_order: slope of log error over log N (over log NFE if adaptive).
      num_steps, nfe, errors: the refinement, coarse to fine.
      error_at_budget, nfe_at_budget: of the finest run within NFE_BUDGET calls.
      batch_independent, noise_independent: see `independence`.
      failures: what was broken, in words; empty if nothing.
    """

    name: str
    order: float
    stochastic: bool
    measured_order: float
    num_steps: tuple[int, ...]
    nfe: tuple[int, ...]
    errors: tuple[float, ...]
    error_at_budget: float
    nfe_at_budget: int
    batch_independent: bool
    noise_independent: bool
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every promise held."""
        return not self.failures


# ------------------------------------------------------------------------ subjects


def subject_of(info: SamplerInfo, **options: Any) -> Subject:
    """The subject of a sampler of the registry."""

    def run(denoise: DenoiseFn, x: Array, sigmas: Array, key: Key) -> Array:
        return info(denoise, x, sigmas, key, **options)

    def replay(denoise: DenoiseFn, x: Array, sigmas: Array, noise_fn: Callable) -> Array:
        return info(denoise, x, sigmas, noise_fn=noise_fn, **options)

    if info.nfe_fn is None:
        tolerances = (1e-3, 1e-5, 1e-7)
        run = info
    else:
        tolerances = ()
    return Subject(
        name=info.name,
        run=run,
        order=info.order,
        stochastic=info.stochastic,
        bias=info.bias,
        grid=info.grid,
        nfe=None if info.nfe_fn is None else functools.partial(info.nfe, **options),
        replay=replay if info.linear and info.stochastic else None,
        tolerances=tolerances,
    )


def builtin_subjects() -> list[Subject]:
    """Every sampler of the registry; EDM's stochastic one with and without churn."""
    subjects = []
    for info in samplers.SAMPLERS.values():
        if info.name == "adaptive" and importlib.util.find_spec("diffrax") is None:
            continue
        if info.name == "edm":
            churned = subject_of(info, churn=CHURN)
            subjects.append(dataclasses.replace(churned, name="edm (churn 10)"))
            continue
        subjects.append(subject_of(info))
    return subjects


def load_subject(path: str) -> Subject:
    """A user's sampler, given as ``module:function``.

    It is called as ``function(denoise, x, sigmas, key)``, or without key if it takes
    three arguments, with ``(N+1,)`` levels from karras_sigmas and one key per image.
    Its attribute ``order``, if any, is its promise; 1 otherwise.
    """
    module_name, _, attribute = path.partition(":")
    if not attribute:
        raise ValueError(f"a sampler is given as 'module:function', got {path!r}")
    try:
        fn = functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot load the sampler {path!r}: {error}") from error
    if isinstance(fn, SamplerInfo):
        return subject_of(fn)
    if not callable(fn):
        raise ValueError(f"{path!r} is not callable")
    parameters = inspect.signature(fn).parameters
    takes_key = "key" in parameters or len(parameters) > 3

    def run(denoise: DenoiseFn, x: Array, sigmas: Array, key: Key) -> Array:
        return fn(denoise, x, sigmas, key) if takes_key else fn(denoise, x, sigmas)

    subject = Subject(path, run, float(getattr(fn, "order", 1)))
    # Whether it draws noise is observed, not believed.
    sigmas = grids.karras_sigmas(4)
    x = jnp.zeros((2, 2)) + sigmas[0]
    results = [
        run(GAUSSIAN.denoise, x, jnp.asarray(sigmas), seeds.image_keys([s, s + 1])) for s in (0, 7)
    ]
    return dataclasses.replace(subject, stochastic=not np.array_equal(*results))


# ---------------------------------------------------------------------- convergence


@functools.partial(jax.jit, static_argnums=0)
def _exact_result(bed: Any, x: Array, sigma: Array, sigma_to: Array) -> Array:
    """What a perfect solver returns: D at the end of the exact flow."""
    return bed.denoise(bed.flow(x, sigma, sigma_to), sigma_to)


class _Frozen:
    """A distribution as a hashable constant."""

    def __init__(self, bed: Any) -> None:
        self.denoise, self.flow = bed.denoise, bed.flow


_MIXTURE = _Frozen(MIXTURE)


def deterministic_error(subject: Subject, num_steps: int) -> float:
    """RMS distance of the samples to those of the exact flow, in data units.

    It bounds the Wasserstein-2 distance between the two distributions.
    """
    sigmas = grids.make_sigmas(subject.grid, num_steps)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 1))) * sigmas[0]
    run = jax.jit(lambda x, s, k: subject.run(_MIXTURE.denoise, x, s, k))
    result = run(x, sigmas, seeds.image_keys(range(64)))
    expected = _exact_result(_MIXTURE, x, sigmas[0], sigmas[-2])
    return float(np.sqrt(np.mean(np.square(result - expected))))


def _distance(mean: float, std: float, sigma_min: float) -> float:
    """Wasserstein-2 distance of N(mean, std^2) to the law of D at sigma_min."""
    exact_std = GAUSSIAN.std**2 / math.hypot(GAUSSIAN.std, sigma_min)
    return math.hypot(mean - GAUSSIAN.mean, std - exact_std)


def impulse_error(subject: Subject, num_steps: int) -> float:
    """Wasserstein-2 distance between the sampler's exact distribution and the data's.

    The batch holds the response to no noise, to a unit latent, and to a unit of noise
    at each step; on Gaussian data the result is their combination, hence Gaussian.
    """
    sigmas = grids.make_sigmas(subject.grid, num_steps)
    lane = jnp.arange(num_steps + 2)
    x = GAUSSIAN.mean + (lane == 1) * math.hypot(GAUSSIAN.std, sigmas[0])

    def noise_fn(i: Array) -> Array:
        return (lane == i + 2).astype(float)

    run = jax.jit(lambda x, s: subject.replay(GAUSSIAN.denoise, x, s, noise_fn))
    response = np.asarray(run(x, sigmas))
    std = float(np.sqrt(np.sum(np.square(response[1:] - response[0]))))
    return _distance(float(response[0]), std, sigmas[-2])


def sampled_error(subject: Subject, num_steps: int) -> float:
    """The same distance from 1024 samples of 256 elements each (accurate to 0.001)."""
    sigmas = grids.make_sigmas(subject.grid, num_steps)
    keys = seeds.image_keys(range(1024))
    run = jax.jit(
        lambda k, s: subject.run(
            GAUSSIAN.denoise,
            GAUSSIAN.mean + jnp.hypot(GAUSSIAN.std, s[0]) * seeds.latents(k, (1024, 256), s.dtype),
            s,
            k,
        )
    )
    result = np.asarray(run(keys, jnp.asarray(sigmas)))
    return _distance(float(result.mean()), float(result.std()), sigmas[-2])


def _slope(costs: Iterable[float], errors: Iterable[float]) -> float:
    """Order of convergence over the finer half of a refinement."""
    costs, errors = np.log(np.asarray(costs, float)), np.log(np.maximum(list(errors), 1e-300))
    return float(-(errors[-1] - errors[-2]) / (costs[-1] - costs[-2]))


def _adaptive_convergence(subject: Subject) -> tuple[float, tuple, tuple, tuple]:
    """Refinement of the tolerance; the order is that of the error in the NFE."""
    sigmas = grids.make_sigmas(subject.grid, NUM_STEPS[0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 1))) * sigmas[0]
    expected = _exact_result(_MIXTURE, x, sigmas[0], sigmas[-2])

    @jax.jit
    def run(tolerance: Array) -> tuple[Array, Array]:
        result, stats = subject.run(
            _MIXTURE.denoise, x, sigmas, stats=True, rtol=tolerance, atol=tolerance
        )
        return jnp.sqrt(jnp.mean(jnp.square(result - expected))), jnp.max(stats.nfe)

    errors, counts = zip(*(run(t) for t in subject.tolerances), strict=True)
    errors, counts = tuple(map(float, errors)), tuple(map(int, counts))
    return _slope(counts, errors), (), counts, errors


def convergence(subject: Subject) -> tuple[float, tuple, tuple, tuple]:
    """Measured order, steps, NFE and errors of a refinement."""
    if subject.tolerances:
        return _adaptive_convergence(subject)
    if not subject.stochastic:
        measure = deterministic_error
    else:
        measure = impulse_error if subject.replay is not None else sampled_error
    errors = tuple(measure(subject, n) for n in NUM_STEPS)
    counts = tuple(subject.nfe(n) if subject.nfe else n for n in NUM_STEPS)
    return _slope(NUM_STEPS, errors), NUM_STEPS, counts, errors


# --------------------------------------------------------------------- independence


def independence(subject: Subject) -> tuple[bool, bool]:
    """Whether images are independent of their batch, and their noise of other keys.

    Batch: reordering the batch reorders the results, and exchanging one image and its
    key leaves the others as they were.  Noise: of a stochastic sampler, images that
    start alike end differently under different keys, and a new key changes its own
    image and no bit of the others; of a deterministic one, keys change nothing.
    """
    sigmas = jnp.asarray(grids.make_sigmas(subject.grid, NUM_STEPS[0]))
    run = jax.jit(lambda x, k: subject.run(MIXTURE.denoise, x, sigmas, k))
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(6, 2, 2, 1))) * sigmas[0]
    keys = seeds.image_keys(range(6))
    base = np.asarray(run(x, keys))
    order = np.array([4, 2, 0, 5, 1, 3])
    moved = np.asarray(run(x[order], keys[order]))
    other = seeds.image_keys([99, 1, 2, 3, 4, 5])
    exchanged = np.asarray(run(x.at[0].multiply(-3.0), other))
    # Vectorised code may round an image differently in another place of the batch.
    close = functools.partial(np.allclose, rtol=1e-9, atol=1e-9)
    batch = bool(np.all(np.isfinite(base)) and close(moved, base[order]))
    batch = batch and close(exchanged[1:], base[1:])
    rekeyed = np.asarray(run(x, other))
    if not subject.stochastic:
        return batch, bool(np.array_equal(rekeyed, base))
    alike = np.asarray(run(jnp.broadcast_to(x[:1], x.shape), keys)).reshape(6, -1)
    distinct = np.unique(alike.round(12), axis=0).shape[0] == 6
    own = not np.array_equal(rekeyed[0], base[0]) and np.array_equal(rekeyed[1:], base[1:])
    return batch, bool(distinct and own)


# --------------------------------------------------------------------------- report


def validate(subject: Subject) -> Report:
    """Measure a sampler and compare with its promises (in float64)."""
    with jax.enable_x64(True):
        measured, steps, counts, errors = convergence(subject)
        batch, noise = independence(subject)
    failures = []
    if not np.all(np.isfinite(errors)):
        failures.append("its error is not finite")
    elif subject.bias:
        if errors[-1] > subject.bias:
            failures.append(f"its error {errors[-1]:.2g} exceeds the known bias {subject.bias:g}")
    elif measured < subject.order - ORDER_SLACK:
        failures.append(f"it converges with order {measured:.2f}, promised {subject.order:g}")
    if not batch:
        failures.append("images influence each other")
    if not noise:
        failures.append(
            "the noise of an image depends on other keys"
            if subject.stochastic
            else "its result depends on the key"
        )
    within = [i for i, count in enumerate(counts) if count <= NFE_BUDGET] or [0]
    return Report(
        name=subject.name,
        order=subject.order,
        stochastic=subject.stochastic,
        measured_order=measured,
        num_steps=steps,
        nfe=counts,
        errors=errors,
        error_at_budget=errors[within[-1]],
        nfe_at_budget=counts[within[-1]],
        batch_independent=batch,
        noise_independent=noise,
        failures=tuple(failures),
    )


def table(reports: Iterable[Report]) -> str:
    """The reports as text, one line each."""
    head = (
        f"{'sampler':24s} {'kind':5s} {'promised':>8s} {'measured':>8s} {'NFE':>5s} "
        f"{'error':>9s} {'batch':>5s} {'noise':>5s}  result"
    )
    lines = [head, "-" * len(head)]
    for r in reports:
        verdict = "pass" if r.passed else "FAIL: " + "; ".join(r.failures)
        lines.append(
            f"{r.name:24s} {'SDE' if r.stochastic else 'ODE':5s} {r.order:8g} "
            f"{r.measured_order:8.2f} {r.nfe_at_budget:5d} {r.error_at_budget:9.2e} "
            f"{'yes' if r.batch_independent else 'NO':>5s} "
            f"{'yes' if r.noise_independent else 'NO':>5s}  {verdict}"
        )
    return "\n".join(lines)


def to_json(reports: Iterable[Report]) -> list[Mapping[str, Any]]:
    """The reports as plain data."""
    return [{**dataclasses.asdict(r), "passed": r.passed} for r in reports]
