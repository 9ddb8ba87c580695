"""The networks of the EDM paper as pure Flax Linen modules, and the registry of all networks.

A network is F in ``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)``: it sees c_noise,
never sigma (`edm_jax.precond.precondition`).  Any Linen module is one that is called as

    net.apply(variables, x, c_noise, class_labels, augment_labels, train=..., image_ids=...)

with x ``(B, H, W, C)``, c_noise ``()`` or ``(B,)``, labels ``(B, size)`` or None, and returns
``(B, H, W, C')``.  Its fields say its sizes, those it has of: ``img_resolution`` and
``in_channels`` (or ``image_shape``), ``out_channels``, ``label_dim``, ``augment_dim``.  One line
``NETWORKS["MyNet"] = MyNet`` makes it available to configurations, checkpoints and exports.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

from edm_jax.models.ardm_transformer import ArdmTransformer
from edm_jax.models.ardm_unet import ArdmUNet
from edm_jax.models.classifier import NoisyClassifier
from edm_jax.models.dhariwal import DhariwalUNet
from edm_jax.models.names import (
    from_state_dict,
    state_dict_shapes,
    to_state_dict,
)
from edm_jax.models.song import SongUNet
from edm_jax.models.unet import UNet
from edm_jax.models.variables import (
    abstract_variables,
    init_variables,
    logical_axes,
    param_count,
    parameter_table,
)
from edm_jax.names import unknown

__all__ = [
    "NETWORKS",
    "PRESETS",
    "PRESET_NETWORKS",
    "ArdmTransformer",
    "ArdmUNet",
    "DhariwalUNet",
    "NoisyClassifier",
    "SongUNet",
    "UNet",
    "abstract_variables",
    "build",
    "from_state_dict",
    "init_variables",
    "logical_axes",
    "param_count",
    "parameter_table",
    "state_dict_shapes",
    "to_state_dict",
]

NETWORKS: dict[str, type[nn.Module]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
    "NoisyClassifier": NoisyClassifier,
    # Of autoregressive diffusion; called otherwise, see their ``example_inputs``.
    "ArdmUNet": ArdmUNet,
    "ArdmTransformer": ArdmTransformer,
}

# The architectures the EDM paper trained, as arguments of their network; resolution,
# channels, labels and dropout come from the data and the run.  The first two are those
# of 32x32 images; at 64x64 the paper gives them channel_mult=(1, 2, 2, 2).
PRESETS: dict[str, dict[str, Any]] = {
    "ddpmpp": {
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": (1, 1),
        "model_channels": 128,
        "channel_mult": (2, 2, 2),
    },
    "ncsnpp": {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "decoder_type": "standard",
        "channel_mult_noise": 2,
        "resample_filter": (1, 3, 3, 1),
        "model_channels": 128,
        "channel_mult": (2, 2, 2),
    },
    "adm": {"model_channels": 192, "channel_mult": (1, 2, 3, 4)},
}
PRESET_NETWORKS: dict[str, str] = {
    "ddpmpp": "SongUNet",
    "ncsnpp": "SongUNet",
    "adm": "DhariwalUNet",
}


def build(name: str, **kwargs: Any) -> nn.Module:
    """A network from its name and arguments, as a configuration file holds them.

    Args:
      name: a key of NETWORKS, or of PRESETS, whose arguments then are the defaults.
      **kwargs: constructor arguments of that network; lists may stand for tuples.

    Raises:
      ValueError: for an unknown name or argument (with the nearest known one), a missing
        argument, or a value no network can be built from.
    """
    if name in PRESETS:
        kwargs = {**PRESETS[name], **kwargs}
        name = PRESET_NETWORKS[name]
    if name not in NETWORKS:
        raise unknown("network", name, [*NETWORKS, *PRESETS])
    network = NETWORKS[name]
    fields = {f.name: f for f in dataclasses.fields(network) if f.name not in ("parent", "name")}
    for key in kwargs:
        if key not in fields:
            raise unknown(f"argument of {name}", key, list(fields))
    required = [key for key, field in fields.items() if field.default is dataclasses.MISSING]
    missing = [key for key in required if key not in kwargs]
    if missing:
        raise ValueError(f"{name} needs the argument {', '.join(missing)}")
    # Tuples are hashable, so that a network can be static under jit.
    return network(**{key: _as_tuples(value) for key, value in kwargs.items()})


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, list | tuple) else value
