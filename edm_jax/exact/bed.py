"""A sampler measured where the exact answer is known: its error and its network calls.

Deterministic samplers run against the exact probability flow of a one-dimensional
mixture; stochastic ones are judged by the distance between the distribution that they
produce and the exact one.  On Gaussian data a sampler is an affine map of its noise, so
that distribution follows from its impulse responses, without sampling error.

Network calls are counted on the host while the compiled program runs, whatever the
sampler says of itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact, grids, seeds
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

# sampler(denoise, x, sigmas, key, **options) -> sample
SamplerFn = Callable[..., Array]

# Whatever is measured is a batch of images, as samplers may expect; every element is a
# data point of its own.
SAMPLED_SHAPE = (4096, 16, 16, 1)  # where a distribution must be sampled
START_SHAPE = (16, 2, 2, 1)

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
      order: promised order; 0 promises none.  Of an adaptive sampler, the power of its
        tolerance.
      stochastic: whether the result depends on the key; None leaves it to observation.
      bias: distance to the exact distribution that may stay at any number of steps.
      grid: name of its time steps.
      nfe: N -> network calls that it states; None if it states none.
      replay: ``replay(denoise, x, sigmas, key, noise_fn)`` with recorded noise, if it
        can and is affine in its noise for an affine D.
      tolerances: for an adaptive sampler, what to refine instead of N.
      steps: the refinement, coarse to fine, each twice the one before.
      tight: whether a higher order than promised is a failure too, because it shows
        that the documentation is wrong.
      ends: what its last step returns, one of `exact_results`; "either" if unknown.
      jit: whether it can be compiled.
      draws: noises that a step draws.
    """

    name: str
    run: SamplerFn
    order: float
    stochastic: bool | None = False
    bias: float = 0.0
    grid: str = "edm"
    nfe: Callable[[int], int] | None = None
    replay: SamplerFn | None = None
    tolerances: tuple[float, ...] = ()
    steps: tuple[int, ...] = (32, 64, 128)
    tight: bool = False
    ends: str = "either"
    jit: bool = True
    draws: int = 1


class Measurement(NamedTuple):
    """One run.

    Attributes:
      error: distance to the exact answer, in data units.
      calls: network calls of an image, counted.
      law: mean and deviation of the samples on Gaussian data; empty if deterministic.
      stated: the calls that the run itself reports, if it does.
    """

    error: float
    calls: float
    law: tuple[float, ...] = ()
    stated: int | None = None


# -------------------------------------------------------------------------- counting


class CallCounter:
    """Counts on the host how many elements a denoiser really evaluates.

    It counts under jit, in loops and conditionals, and under vmap every lane.
    """

    def __init__(self) -> None:
        self._elements, self._lock = 0, threading.Lock()

    def _add(self, size: int, _: ArrayLike) -> None:
        with self._lock:  # callbacks may run in several threads
            self._elements += size

    def wrap(self, denoise: DenoiseFn) -> DenoiseFn:
        """The denoiser, counted."""

        def counted(x: Array, sigma: ArrayLike) -> Array:
            x = jnp.asarray(x)
            # An element of x is passed so that vmap repeats the callback for every lane.
            jax.debug.callback(functools.partial(self._add, x.size), x.reshape(-1)[0])
            return denoise(x, sigma)

        return counted

    def take(self, size: int) -> float:
        """Calls for each of ``size`` elements since the last time asked."""
        jax.effects_barrier()
        elements, self._elements = self._elements, 0
        return elements / size


def runner(
    subject: Subject, denoise: DenoiseFn, *, count: bool = True, **options: Any
) -> Callable[[ArrayLike, ArrayLike, Key], tuple[np.ndarray, float]]:
    """A subject as a counted program, compiled once for each shape.

    Args:
      subject: the sampler.
      denoise: D(x; sigma).
      count: whether to count calls, which under vmap takes as many host calls as images.
      **options: passed on to ``subject.replay``, which runs instead if there are any.

    Returns:
      ``(x, sigmas, key) -> sample, counted network calls of an image``.
    """
    counter = CallCounter()
    fn = functools.partial(subject.replay, **options) if options else subject.run
    counted = counter.wrap(denoise) if count else denoise
    program = lambda x, sigmas, key: fn(counted, x, sigmas, key)  # noqa: E731
    program = jax.jit(program) if subject.jit else program

    def run(x: ArrayLike, sigmas: ArrayLike, key: Key) -> tuple[np.ndarray, float]:
        x = jnp.asarray(x)
        result = np.asarray(program(x, jnp.asarray(sigmas), key))
        if result.shape != x.shape:
            raise ValueError(f"it returns shape {result.shape} for x of shape {x.shape}")
        return result, counter.take(x.size)

    return run


# ---------------------------------------------------------------------------- errors


class _Frozen:
    """A distribution as a hashable constant."""

    def __init__(self, bed: Any) -> None:
        self.denoise, self.flow = bed.denoise, bed.flow


_MIXTURE = _Frozen(MIXTURE)


@functools.partial(jax.jit, static_argnums=0)
def exact_results(bed: Any, x: Array, sigma: Array, sigma_to: Array) -> dict[str, Array]:
    """What a perfect solver returns: D at the end of the flow, or the flow to 0.

    Most samplers make the step to 0 by one denoising, which returns D at the last
    positive level; linear multistep methods integrate it like any other step.  The two
    differ by 1.3e-5 here.
    """
    denoised = bed.denoise(bed.flow(x, sigma, sigma_to), sigma_to)
    return {"denoised": denoised, "flow": bed.flow(x, sigma, 0.0)}


def mixture_start(sigma: float) -> Array:
    """Latents of START_SHAPE at noise level sigma, always the same."""
    return jnp.asarray(np.random.default_rng(0).normal(size=START_SHAPE)) * sigma


def flow_errors(result: Array, x: Array, sigmas: ArrayLike) -> dict[str, float]:
    """RMS distances of samples to each of `exact_results`.

    They bound the Wasserstein-2 distance between the two distributions.
    """
    expected = exact_results(_MIXTURE, x, sigmas[0], sigmas[-2])
    return {k: float(np.sqrt(np.mean(np.square(result - e)))) for k, e in expected.items()}


def deterministic_runs(subject: Subject, steps: tuple[int, ...]) -> list[Measurement]:
    """RMS distances of the samples to those of the exact flow, in data units.

    If it is unknown which of `exact_results` the sampler approaches, it is the one that
    the last run is nearer to.
    """
    run, errors, counts = runner(subject, MIXTURE.denoise), [], []
    for num_steps in steps:
        sigmas = grids.make_sigmas(subject.grid, num_steps)
        x = mixture_start(sigmas[0])
        result, calls = run(x, sigmas, seeds.image_keys(range(len(x))))
        errors.append(flow_errors(result, x, sigmas))
        counts.append(calls)
    ends = min(errors[-1], key=errors[-1].get) if subject.ends == "either" else subject.ends
    return [Measurement(error[ends], n) for error, n in zip(errors, counts, strict=True)]


def adaptive_runs(subject: Subject) -> list[Measurement]:
    """The same for a refinement of the tolerance, compiled once."""
    sigmas = grids.make_sigmas(subject.grid, subject.steps[0])
    x, counter, measured = mixture_start(sigmas[0]), CallCounter(), []
    denoise = counter.wrap(MIXTURE.denoise)

    @jax.jit
    def solve(tolerance: Array) -> tuple[Array, Array]:
        options = {"stats": True, "rtol": tolerance, "atol": tolerance}
        result, stats = subject.run(denoise, x, sigmas, **options)
        # The batch runs until its slowest image is done.
        return result, jnp.max(stats.nfe)

    for tolerance in subject.tolerances:
        result, stated = jax.block_until_ready(solve(tolerance))
        calls = counter.take(x.size)
        error = flow_errors(result, x, sigmas)["denoised"]
        measured.append(Measurement(error, calls, stated=int(stated)))
    return measured


def distance(mean: float, std: float, sigma_min: float) -> float:
    """Wasserstein-2 distance of N(mean, std^2) to the law of D at sigma_min."""
    exact_std = GAUSSIAN.std**2 / math.hypot(GAUSSIAN.std, sigma_min)
    return math.hypot(mean - GAUSSIAN.mean, std - exact_std)


def impulse_run(subject: Subject, num_steps: int) -> Measurement:
    """Wasserstein-2 distance between the sampler's exact distribution and the data's.

    The batch holds the response to no noise, to a unit latent, and to a unit of each
    noise; on Gaussian data the result is their combination, hence Gaussian.
    """
    sigmas = grids.make_sigmas(subject.grid, num_steps)
    lanes = num_steps * subject.draws + 2
    lane = jnp.arange(lanes)[:, None, None, None]
    x = GAUSSIAN.mean + (lane == 1) * math.hypot(GAUSSIAN.std, sigmas[0])

    def noise_fn(i: Array) -> Array:
        return (lane == i + 2).astype(float)

    keys = seeds.image_keys(range(lanes))
    response, calls = runner(subject, GAUSSIAN.denoise, noise_fn=noise_fn)(x, sigmas, keys)
    response = response.ravel()
    mean = float(response[0])
    std = float(np.sqrt(np.sum(np.square(response[1:] - response[0]))))
    return Measurement(distance(mean, std, sigmas[-2]), calls, (mean, std))


def sampled_floor() -> float:
    """Standard error of the distance of `sampled_run`: mean and deviation together."""
    return GAUSSIAN.std * math.sqrt(1.5 / math.prod(SAMPLED_SHAPE))


def sampled_run(subject: Subject, num_steps: int) -> Measurement:
    """The distance of `impulse_run` from samples, hence with a floor (`sampled_floor`).

    Latents and keys are the same for every N and every sampler.
    """
    sigmas = grids.make_sigmas(subject.grid, num_steps)
    keys = seeds.image_keys(range(SAMPLED_SHAPE[0]))
    latents = jax.jit(lambda k: seeds.latents(k, SAMPLED_SHAPE, jnp.float64))(keys)
    x = GAUSSIAN.mean + math.hypot(GAUSSIAN.std, sigmas[0]) * latents
    result, _ = runner(subject, GAUSSIAN.denoise, count=False)(x, sigmas, keys)
    _, calls = runner(subject, GAUSSIAN.denoise)(x[:2], sigmas, keys[:2])
    mean, std = float(result.mean()), float(result.std())
    return Measurement(distance(mean, std, sigmas[-2]), calls, (mean, std))


def replays_faithfully(subject: Subject, num_steps: int = 8) -> bool:
    """Whether the impulse responses give the distribution that its own noise gives.

    They do not if the sampler is not affine in its noise, draws some of it elsewhere,
    or asks for noise by other indices than its steps.
    """
    by_impulse, by_samples = (
        impulse_run(subject, num_steps).law,
        sampled_run(subject, num_steps).law,
    )
    # Five standard errors, one in two million; the deviation may be up to about sigma_0.
    scale = max(by_samples[1], GAUSSIAN.std)
    limit = 5 * sampled_floor() * scale / GAUSSIAN.std
    return math.dist(by_impulse, by_samples) < limit
