"""Order-agnostic models by name, as configurations and checkpoints hold them."""

from __future__ import annotations

import functools
from typing import Any

from edm_jax.ardm.outputs import OUTPUTS
from edm_jax.ardm.process import Absorbing, PredictFn, Process, network_predictor
from edm_jax.ardm.upscale import Upscale
from edm_jax.names import lookup
from edm_jax.typing import Array


def absorbing(
    num_values: int,
    output: str = "softmax",
    num_mixtures: int = 30,
    absorbing: int | None = None,
    order: str = "random",
) -> Absorbing:
    """The plain model.

    Args:
      num_values: K.
      output: a key of `outputs.OUTPUTS`.
      num_mixtures: of the logistic ones.
      absorbing: the value of unknown variables, see `Absorbing`; K for text.
      order: see `Absorbing`.
    """
    if not isinstance(num_values, int) or num_values < 2:
        raise ValueError(f"num_values must be an integer of at least 2, got {num_values!r}")
    constructor = lookup(OUTPUTS, output, "output distribution")
    sizes = (num_values,) if output == "softmax" else (num_values, num_mixtures)
    return Absorbing(constructor(*sizes), absorbing, order)


PROCESSES = {"absorbing": absorbing, "upscale": Upscale}


def build(name: str, **arguments: Any) -> Process:
    """A kind of model from its name and JSON arguments.

    Args:
      name: a key of PROCESSES.
      **arguments: of that constructor.

    Raises:
      ValueError: for an unknown name or argument, or a value that makes no sense.
    """
    constructor = lookup(PROCESSES, name, "process")
    try:
        return constructor(**arguments)
    except TypeError as error:
        raise ValueError(f"process {name!r}: {error}") from None


def network_sizes(process: Process, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the data and the process decide of a network's arguments.

    Args:
      process: the kind of model.
      shape: of one example: ``(R, R, C)`` for `ArdmUNet`, ``(L,)`` for `ArdmTransformer`.
    """
    sizes = {"num_inputs": process.num_inputs, "num_stages": process.num_stages}
    if len(shape) == 1:
        return {**sizes, "length": shape[0], "out_channels": process.num_outputs(1)}
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(f"images must be square, (R, R, C), got {tuple(shape)}")
    return {
        **sizes,
        "img_resolution": shape[0],
        "in_channels": shape[2],
        "mask_channels": process.mask_shape(tuple(shape))[-1],
        "out_channels": process.num_outputs(shape[2]),
    }


def model_predictor(model: Any, rows: Array | None = None) -> tuple[PredictFn, Process]:
    """What the functions of this room take, of a loaded `Model` of kind "ardm".

        predict, process = model_predictor(edm_jax.load("runs/digits_ardm"))
        sample_ardm(predict, process, keys, model.image_shape, uniform_policy(16, 64))

    Pass the model as an argument of the outermost jit.

    Args:
      model: as `edm_jax.load` returns it.
      rows: ``(B, num_classes)`` labels of the examples (`Model.label_rows`); None: no class.

    Raises:
      ValueError: for a model of another kind.
    """
    if model.kind != "ardm":
        raise ValueError(f"need a model of kind 'ardm', got {model.kind!r}")
    process = build(**model.description["process"])
    apply = functools.partial(model.net.apply, model.variables)
    return network_predictor(apply, process, model.image_shape, rows), process
