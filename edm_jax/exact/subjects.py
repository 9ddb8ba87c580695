"""What is measured: samplers of the registry in their settings, or a user's own."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from typing import Any

from edm_jax import samplers
from edm_jax.exact.bed import Subject
from edm_jax.samplers import Measured, SamplerInfo
from edm_jax.typing import Array, DenoiseFn, Key

# Fine enough that every method of the library shows its limit; the runs are cheap, only
# the compilation of each N takes time.
FINE_STEPS = (256, 512)
# Where the error ends on a floor, the order is that of changes, of which it takes two.
BIASED_STEPS = (128, 256, 512)
TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8)


def subject_of(info: SamplerInfo, measured: Measured = Measured(), **options: Any) -> Subject:
    """The subject of a sampler of the registry, with what it promises in a setting."""
    options = {**measured.options, **options}

    def run(denoise: DenoiseFn, x: Array, sigmas: Array, key: Key | None = None, **more) -> Array:
        return info(denoise, x, sigmas, key, **options, **more)

    adaptive = info.nfe_fn is None
    stochastic = info.stochastic if measured.stochastic is None else measured.stochastic
    sampled = stochastic and not info.linear
    fine = BIASED_STEPS if info.bias else FINE_STEPS
    order = info.order if measured.order is None else measured.order
    return Subject(
        name=f"{info.name} ({measured.label})" if measured.label else info.name,
        run=run,
        # Of an adaptive sampler the error follows the tolerance in proportion.
        order=1 if adaptive else order,
        stochastic=stochastic,
        bias=info.bias,
        grid=info.grid,
        nfe=None if adaptive else functools.partial(info.nfe, **options),
        replay=run if info.linear and stochastic else None,
        tolerances=TOLERANCES if adaptive else (),
        steps=Subject.steps if sampled else fine,
        tight=measured.tight,
        ends=info.ends,
        draws=info.draws,
    )


def builtin_subjects() -> list[Subject]:
    """Every sampler of the registry in the settings in which it makes its promises."""
    subjects = []
    for info in samplers.SAMPLERS.values():
        if info.name == "adaptive" and importlib.util.find_spec("diffrax") is None:
            continue
        subjects += [subject_of(info, setting) for setting in info.measured]
    return subjects


def load_subject(path: str) -> Subject:
    """A user's sampler, given as ``module:function``.

    It is called as ``function(denoise, x, sigmas, key)``, or without key if it takes
    three arguments, with ``(N+1,)`` levels from karras_sigmas and one key per image.
    If it has an argument ``noise_fn`` (step index -> noise), its distribution is
    measured without sampling error.  Its attribute ``order``, if any, is its promise;
    1 otherwise.

    Raises:
      ValueError: if there is no such function.
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
    positional = [p for p in parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    fourth = len(positional) > 3 and positional[3].name != "noise_fn"
    takes_key = "key" in parameters or (fourth and positional[3].default is inspect.Parameter.empty)

    def run(denoise: DenoiseFn, x: Array, sigmas: Array, key: Key, **options: Any) -> Array:
        if "key" in parameters:
            return fn(denoise, x, sigmas, key=key, **options)
        return fn(denoise, x, sigmas, *((key,) if takes_key else ()), **options)

    replay = run if "noise_fn" in parameters else None
    order = getattr(fn, "order", 1)
    if isinstance(order, bool) or not isinstance(order, int | float) or not order >= 0:
        raise ValueError(f"{path}: its attribute order must be a number >= 0, got {order!r}")
    # Whether it draws noise is observed, not believed.
    return Subject(path, run, order, stochastic=None, replay=replay)
