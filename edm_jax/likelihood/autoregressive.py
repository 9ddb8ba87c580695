"""How likely data are under autoregressive diffusion: the bound of its settings, one pass."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import seeds
from edm_jax.ardm.model_bits import batch_bits, model_values
from edm_jax.ardm.process import num_variables
from edm_jax.ardm.registry import build
from edm_jax.ardm.request import Decoding
from edm_jax.likelihood.results import PassFn, Settings
from edm_jax.model import Model
from edm_jax.typing import Array, ArrayLike

DISCRETE = "discrete"  # in the place of a dequantisation: the data have probabilities
_OF_FLOWS = ("sigma_min", "sigma_max", "num_probes")


def settings(
    model: Model,
    *,
    method: str = "bound",
    dequantisation: str = DISCRETE,
    num_steps: int | None = None,
    solver: str | None = None,
    tolerance: float = 1e-5,
    passes: int = 1,
    **asked: Any,
) -> Settings:
    """Settings with their defaults; of the arguments of `log_likelihood` these mean something:

    Args:
      model: of kind "ardm".
      method: ``bound``.
      dequantisation: ``discrete``.
      num_steps: network calls of the policy whose bound it is, of every stage; None: the model
        that draws one variable at a time.
      solver: the policy, ``optimal`` or ``uniform``; by default the former, of a model that
        knows no profile the latter.
      tolerance: without effect.
      passes: random steps of an image that are averaged; 4 are published for images.
      **asked: of flows: None, or the 0 that settings have in their place.

    Raises:
      ValueError: for whatever else is asked.
    """
    del tolerance
    for name in _OF_FLOWS:
        if asked.get(name):
            raise ValueError(
                f"{name} belongs to the flow of a denoiser; a model of kind 'ardm' has a bound of "
                "num_steps and passes, leave it out"
            )
    if method != "bound":
        raise ValueError(f"a model of kind 'ardm' has method='bound', got {method!r}")
    if dequantisation != DISCRETE:
        raise ValueError(
            "the data of a model of kind 'ardm' are discrete, so that "
            f"dequantisation={dequantisation!r} means nothing; leave it out"
        )
    if passes != int(passes) or passes < 1:
        raise ValueError(f"passes must be an integer >= 1, got {passes}")
    if solver is None:
        solver = "optimal" if "loss_per_step" in model.description else "uniform"
    count = _policies(model, num_steps, solver).shape[1] - 1
    return Settings(method, dequantisation, count, 0.0, 0.0, solver, None, None, passes)


def _policies(model: Model, num_steps: int | None, policy: str) -> np.ndarray:
    return Decoding(num_steps, policy).of_model(model)


def arrays(images: ArrayLike, model: Model, settings: Settings) -> dict[str, np.ndarray]:
    """What a pass takes of ``(B, H, W, C)`` uint8 images or ``(B, L)`` tokens: their values."""
    del settings
    return {"x": np.asarray(model_values(model, images))}


@jax.jit
def _batch_pass(
    model: Model, batch: dict[str, Array], number: Array, policies: Array
) -> tuple[Array, Array, Array, Array]:
    """One random call of a policy for every image: nats, and what of a flow there is not."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(seeds.image_keys(batch["ids"]), number)
    bits = batch_bits(model, batch["x"], batch.get("rows"), keys, policies)
    variables = num_variables(build(**model.description["process"]), model.image_shape)
    nothing = jnp.full(bits.shape, jnp.nan)
    calls = jnp.ones(bits.shape, jnp.int32)
    return -bits * (variables * math.log(2)), nothing, nothing, calls


def prepare(model: Model, settings: Settings) -> PassFn:
    """The pass over a batch with these settings."""
    policies = _policies(model, settings.num_steps, settings.solver)
    return functools.partial(_batch_pass, policies=jnp.asarray(policies))
