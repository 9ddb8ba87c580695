"""A noisy classifier with everything needed to use it: logits as a function of (x, sigma)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from edm_jax.model import Model, from_description
from edm_jax.precond import Preconditioning
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike, PyTree


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@pytree_dataclass
class Classifier:
    """Class logits of noisy images, at any noise level of any model.

    The network sees c_in x and c_noise, as a denoiser does; a classifier trained with one
    preconditioning so guides a model of another one.  A pytree: its variables are leaves.

    Attributes:
      variables: of the network.
      net: the raw network, ``net.apply(variables, x, c_noise) -> (B, classes)``.
      preconditioning: c_in, c_noise and the range of noise levels.
    """

    variables: PyTree
    net: nn.Module = _static()
    preconditioning: Preconditioning = _static()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return (self.net.img_resolution, self.net.img_resolution, self.net.in_channels)

    @property
    def num_classes(self) -> int:
        """Classes that it tells apart."""
        return self.net.num_classes

    def logits(self, x: Array, sigma: ArrayLike) -> Array:
        """Unnormalised log p(class | x; sigma).

        Args:
          x: ``(B, H, W, C)`` noisy images y + sigma n.
          sigma: scalar or ``(B,)``.

        Returns:
          ``(B, classes)`` float32.
        """
        sigma = jnp.asarray(sigma)
        sigma = sigma.astype(jnp.promote_types(sigma.dtype, jnp.float32))
        coefs = self.preconditioning(sigma)
        c_in = coefs.c_in.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))
        return self.net.apply(self.variables, c_in * x, coefs.c_noise)


def of_model(model: Model) -> Classifier:
    """The Classifier of a loaded Model of kind "classifier".

    Raises:
      ValueError: the model is of another kind.
    """
    if model.kind != "classifier":
        raise ValueError(f"classifier must be a model of kind 'classifier', got a {model.kind}")
    return Classifier(model.variables, model.net, model.preconditioning)


def load_classifier(
    path: str | os.PathLike[str], config: Mapping[str, Any] | None = None
) -> Classifier:
    """Load a classifier of guided-diffusion, such as ``64x64_classifier.pt``, or one of ours.

    Args:
      path: a run directory or single file of ours; or a state dictionary of
        guided-diffusion, a PyTorch file or safetensors.  Nothing is executed.
      config: what a foreign file does not say, see `foreign.guided_classifier`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, no classifier, or does not say enough.
    """
    from edm_jax.foreign.guided_classifier import is_classifier_file, read_classifier_file
    from edm_jax.loading import load

    if not is_classifier_file(path):
        return of_model(load(path))
    found = read_classifier_file(path, config)
    return of_model(from_description(found.description, found.variables["raw"], "raw"))
