"""The flags of guided-diffusion's programs, as far as a weight file leaves them open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edm_jax.weights.errors import WeightsError, show
from edm_jax.weights.guided import Structure

# Flags that are allowed but say nothing about the network.
_IGNORED = frozenset({"use_fp16", "use_checkpoint", "rescale_timesteps", "rescale_learned_sigmas"})
# Flags with one value that has a counterpart here.
_FIXED = {
    "num_head_channels": 64,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "learn_sigma": True,
    "noise_schedule": "cosine",
}
# Flags the file answers: ours to compare with.
_SEEN = {
    "num_channels": "model_channels",
    "num_res_blocks": "num_blocks",
    "channel_mult": "channel_mult",
}
_USED = frozenset(
    {
        "image_size",
        "attention_resolutions",
        "dropout",
        "diffusion_steps",
        "use_new_attention_order",
        "class_cond",
        "num_classes",
        "narrow_norms",
    }
)
FLAGS = _IGNORED | _FIXED.keys() | _SEEN.keys() | _USED


@dataclasses.dataclass(frozen=True)
class GuidedFlags:
    """The flags that fill gaps; None where not given.

    Attributes:
      image_size: of the images.
      attention_resolutions: resolutions with attention.
      attention_order: ``"new"`` or ``"legacy"``.
      dropout: rate the model was trained with.
      num_levels: M, the number of diffusion steps it was trained with.
      narrow_norms: the model was trained with min(32, channels / 4) groups per norm, as
        DhariwalUNet has, not with the 32 of guided-diffusion.
    """

    image_size: int | None = None
    attention_resolutions: list[int] | None = None
    attention_order: str | None = None
    dropout: float | None = None
    num_levels: int = 1000
    narrow_norms: bool = False


def _integers(value: object, flag: str) -> list[int] | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = value.split(",")
    try:
        return [int(v) for v in value]
    except (TypeError, ValueError):
        raise ValueError(f"config: {flag} must be a list of integers, got {show(value)}") from None


def read_flags(config: Mapping[str, Any], attention_order: str | None) -> GuidedFlags:
    """The flags within ``config``; keys that are no flags are passed over.

    Raises:
      ValueError: a flag of a model that has no counterpart here, or two that disagree.
    """
    for flag, value in _FIXED.items():
        if flag in config and config[flag] != value:
            hint = ""
            if flag == "noise_schedule":
                hint = "; for another one give its table as config={'precond': {'levels': [...]}}"
            raise ValueError(
                f"config: {flag} is {config[flag]!r}, only {value!r} has a counterpart{hint}"
            )
    order = attention_order
    if "use_new_attention_order" in config:
        flagged = "new" if config["use_new_attention_order"] else "legacy"
        if order not in (None, flagged):
            raise ValueError(
                f"attention_order {order!r}, but use_new_attention_order says {flagged!r}"
            )
        order = flagged
    return GuidedFlags(
        image_size=config.get("image_size"),
        attention_resolutions=_integers(
            config.get("attention_resolutions"), "attention_resolutions"
        ),
        attention_order=order,
        dropout=config.get("dropout"),
        num_levels=config.get("diffusion_steps", 1000),
        narrow_norms=bool(config.get("narrow_norms", False)),
    )


def check_flags(config: Mapping[str, Any], structure: Structure) -> None:
    """Raise WeightsError if a flag contradicts what the file shows."""
    seen = {flag: getattr(structure, ours) for flag, ours in _SEEN.items()}
    if "class_cond" in config:
        seen["class_cond"] = structure.num_classes > 0
    if structure.num_classes:
        seen["num_classes"] = structure.num_classes
    for flag, found in seen.items():
        given = config.get(flag)
        if flag == "channel_mult":
            given = _integers(given, flag)
        if given is not None and given != found:
            raise WeightsError(f"config: {flag} is {show(given)}, but the file has {show(found)}")
