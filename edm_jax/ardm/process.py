"""What generation in any order means for one kind of model: what is shown, what is drawn.

The objective, the sampler and the likelihood are written against `Process`; `Absorbing`
is the plain model, `edm_jax.ardm.upscale.Upscale` the one from coarse to fine.  A model is a
function of what is known so far:

    predict(x_in, known, t, stage) -> outputs of a network for every position

``x_in`` int32 of the shape of x; ``known`` the bool mask (`Process.mask_shape`); ``t`` and
``stage`` ``(B,)`` int32: variables known in this stage, and the stage.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from edm_jax.ardm.orders import check_order
from edm_jax.ardm.outputs import Output
from edm_jax.arguments import is_known
from edm_jax.typing import Array, ArrayLike

PredictFn = Callable[[Array, Array, Array, Array], Array]


class Process(Protocol):
    """A kind of order-agnostic model.

    Attributes:
      num_values: K; data are integers 0..K-1.
      num_inputs: classes that the network can be shown.
      num_stages: S; each one goes through all D variables.
      order: of `orders.ORDERS`, in which variables are generated.
    """

    num_values: int
    num_inputs: int
    num_stages: int
    order: str

    def num_outputs(self, channels: int) -> int:
        """Outputs of the network per position."""
        ...

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the mask of one example of shape ``shape``; D entries."""
        ...

    def start(self, shape: tuple[int, ...]) -> Array:
        """The state before anything is drawn."""
        ...

    def shown(self, x: Array, known: Array, stage: Array) -> Array:
        """What the network sees of x (a state or data) when ``known`` of it is known."""
        ...

    def log_prob(self, outputs: Array, x: Array, stage: Array) -> Array:
        """ln p of what this stage draws, given what it shows; of the shape of the mask."""
        ...

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Uniforms that one draw of all positions takes."""
        ...

    def draw(self, outputs: Array, x: Array, uniform: Array, stage: Array) -> Array:
        """New values of all positions of state x, int32 of its shape."""
        ...


def num_variables(process: Process, shape: tuple[int, ...]) -> int:
    """D: how many variables an example of shape ``shape`` has."""
    return math.prod(process.mask_shape(tuple(shape)))


def num_steps(process: Process, shape: tuple[int, ...]) -> int:
    """S D: network calls of one variable at a time."""
    return process.num_stages * num_variables(process, shape)


def check_values(x: ArrayLike, num_values: int, name: str = "x") -> None:
    """Raise ValueError unless x holds integers, the known ones within 0..num_values-1."""
    if not jnp.issubdtype(jnp.asarray(x).dtype, jnp.integer):
        raise ValueError(
            f"{name} must hold integers 0..{num_values - 1}, got {jnp.asarray(x).dtype}"
        )
    if is_known(x) and np.size(x):
        values = np.asarray(x)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_values:
            raise ValueError(
                f"{name} must hold integers 0..{num_values - 1}, got {low} to {high}; give the "
                "model more values or the data fewer levels"
            )


@dataclasses.dataclass(frozen=True)
class Absorbing:
    """The plain model: an unknown variable shows one absorbing value.

    Attributes:
      output: distribution of a variable.
      absorbing: the value shown; K // 2 by default, which the float input of a network maps
        to about 0 (images, audio: the mask tells it from a real one).  K is one more input
        class (text).
      order: ``random``, or ``raster`` for the ordinary autoregressive model, which is trained
        to predict the next variable alone.
    """

    output: Output
    absorbing: int | None = None
    order: str = "random"

    def __post_init__(self) -> None:
        check_order(self.order)
        if self.absorbing is None:
            object.__setattr__(self, "absorbing", self.num_values // 2)
        if not 0 <= self.absorbing <= self.num_values:
            raise ValueError(
                f"absorbing must be a value 0..{self.num_values - 1}, or {self.num_values} for a "
                f"class of its own, got {self.absorbing}"
            )

    @property
    def num_values(self) -> int:
        """K."""
        return self.output.num_values

    @property
    def num_inputs(self) -> int:
        """K, or K + 1 with an absorbing class of its own."""
        return max(self.num_values, self.absorbing + 1)

    @property
    def num_stages(self) -> int:
        """One."""
        return 1

    def num_outputs(self, channels: int) -> int:
        """Those of the distribution."""
        return self.output.num_outputs(channels)

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the distribution."""
        return self.output.mask_shape(shape)

    def start(self, shape: tuple[int, ...]) -> Array:
        """The absorbing value everywhere."""
        return jnp.full(shape, self.absorbing, jnp.int32)

    def shown(self, x: Array, known: Array, stage: Array) -> Array:
        """``known * x + (1 - known) * absorbing``."""
        return jnp.where(known, x, self.absorbing).astype(jnp.int32)

    def log_prob(self, outputs: Array, x: Array, stage: Array) -> Array:
        """ln p(x) for every variable."""
        return self.output.log_prob(outputs, x)

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the distribution."""
        return self.output.noise_shape(shape)

    def draw(self, outputs: Array, x: Array, uniform: Array, stage: Array) -> Array:
        """A value for every position, whatever x holds."""
        return self.output.draw(outputs, uniform)


def network_predictor(
    apply: Callable[..., Array],
    process: Process,
    shape: tuple[int, ...],
    rows: Array | None = None,
    **options: Any,
) -> PredictFn:
    """The model that a network is.

    Args:
      apply: ``apply(x_in, time, known, stage, **options)``, with the rows as a fifth argument
        where there are some: a network with its variables, such as
        ``functools.partial(net.apply, variables)``; ``time`` is ``(B,)`` float32, the share of
        all S D steps that is done.
      process: the kind of model.
      shape: of one example.
      rows: ``(B, num_classes)`` class labels of the examples; None: no class.
      **options: passed on.
    """
    variables = num_variables(process, shape)
    total = process.num_stages * variables

    def predict(x_in: Array, known: Array, t: Array, stage: Array) -> Array:
        time = (stage * variables + t).astype(jnp.float32) / total
        labels = () if rows is None else (rows,)
        return apply(x_in, time, known, stage, *labels, **options)

    return predict
