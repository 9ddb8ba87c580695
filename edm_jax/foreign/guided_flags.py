"""The flags of guided-diffusion's programs, as far as a weight file leaves them open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax.foreign.guided import Structure
from edm_jax.respacing import ddpm_levels
from edm_jax.store.description import MAX_LEVELS, is_number
from edm_jax.store.errors import WeightsError, show

# Flags that are allowed but say nothing about the network.
_IGNORED = frozenset({"use_fp16", "use_checkpoint", "rescale_learned_sigmas"})
# Flags with one value that has a counterpart here.
_FIXED = {
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "learn_sigma": True,
}
_HEAD_CHANNELS = 64
_SCHEDULES = ("linear", "cosine")
# With this image size a model is taken for one trained like the released one, whose
# schedule and heads are then assumed.  Those released in other sizes differ.
_RELEASED_SIZE = 64
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
        "noise_schedule",
        "num_head_channels",
        "num_heads",
        "use_new_attention_order",
        "class_cond",
        "num_classes",
        "narrow_norms",
        "rescale_timesteps",
    }
)
_BOOLEANS = (
    *_IGNORED,
    *_FIXED,
    "use_new_attention_order",
    "class_cond",
    "narrow_norms",
    "rescale_timesteps",
)
# Its last beta, 0.02 times 1000 / M, must stay below 1.
_LEAST_LINEAR = 21
_INTEGERS = (
    "image_size",
    "num_channels",
    "num_res_blocks",
    "num_classes",
    "num_heads",
    "num_head_channels",
)
# With rescale_timesteps the network was told t 1000 / M.
_UNSCALED_LEVELS = 1000
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
      noise_schedule: "linear" or "cosine".
      narrow_norms: the model was trained with min(32, channels / 4) groups per norm, as
        DhariwalUNet has, not with the 32 of guided-diffusion.
    """

    image_size: int | None = None
    attention_resolutions: list[int] | None = None
    attention_order: str | None = None
    dropout: float | None = None
    num_levels: int = 1000
    noise_schedule: str | None = None
    narrow_norms: bool = False

    def precond(self) -> dict[str, Any]:
        """``description["precond"]``: iDDPM's, with its own table or that of the schedule."""
        precond = {"name": "iddpm", "num_levels": self.num_levels}
        if self.noise_schedule == "linear":
            levels = ddpm_levels("linear", self.num_levels)
            precond["levels"] = levels.astype(np.float32).tolist()
        return precond


def _integers(value: object, flag: str) -> list[int] | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = value.split(",")
        value = [int(v) if v.strip().isdecimal() else v for v in value]
    if not isinstance(value, list) or not all(type(v) is int for v in value):
        raise ValueError(f"config: {flag} must be a list of integers, got {show(value)}")
    return value


def read_flags(config: Mapping[str, Any], attention_order: str | None) -> GuidedFlags:
    """The flags within ``config``; keys that are no flags are passed over.

    Raises:
      ValueError: a flag of a model that has no counterpart here, or two that disagree.
    """
    for flag in _BOOLEANS:
        if not isinstance(config.get(flag, False), bool):
            raise ValueError(f"config: {flag} must be true or false, got {show(config[flag])}")
    for flag in _INTEGERS:
        if type(config.get(flag, 0)) is not int:
            raise ValueError(f"config: {flag} must be an integer, got {show(config[flag])}")
    dropout = config.get("dropout", 0)
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"config: dropout must be in [0, 1), got {show(dropout)}")
    for flag, value in _FIXED.items():
        if flag in config and config[flag] != value:
            raise ValueError(
                f"config: {flag} is {config[flag]!r}, only {value!r} has a counterpart"
            )
    schedule, num_levels = _read_schedule(config)
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
        num_levels=num_levels,
        noise_schedule=schedule,
        narrow_norms=config.get("narrow_norms", False),
    )


def _read_schedule(config: Mapping[str, Any]) -> tuple[str | None, int]:
    """noise_schedule and diffusion_steps, if nothing contradicts them."""
    precond = config.get("precond", {})
    flags = [flag for flag in ("noise_schedule", "diffusion_steps") if flag in config]
    if flags and (precond.get("name", "iddpm") != "iddpm" or precond.keys() - {"name"}):
        raise ValueError(
            f"config: {' and '.join(flags)} and 'precond' both say the noise levels; leave one out"
        )
    schedule, num_levels = config.get("noise_schedule"), config.get("diffusion_steps", 1000)
    if schedule not in (None, *_SCHEDULES):
        raise ValueError(
            f"config: noise_schedule is {show(schedule)}, known are {', '.join(_SCHEDULES)}; for "
            "another one give its table as config={'precond': {'levels': [...]}}"
        )
    if type(num_levels) is not int or not 2 <= num_levels <= MAX_LEVELS:
        raise ValueError(
            f"config: diffusion_steps must be an integer in 2..{MAX_LEVELS}, got {show(num_levels)}"
        )
    if schedule == "linear" and num_levels < _LEAST_LINEAR:
        raise ValueError(
            f"config: diffusion_steps is {num_levels}, the linear schedule needs at least "
            f"{_LEAST_LINEAR}"
        )
    levels = precond.get("levels")
    steps = len(levels) - 1 if isinstance(levels, list) else precond.get("num_levels", num_levels)
    if config.get("rescale_timesteps") and steps != _UNSCALED_LEVELS:
        raise ValueError(
            f"config: rescale_timesteps with {show(steps)} steps has no counterpart; the network "
            f"was told other times than its step, which they are with {_UNSCALED_LEVELS} alone"
        )
    return schedule, num_levels


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
    _check_heads(config, structure)


def _head_channels(config: Mapping[str, Any]) -> int | None:
    """The flag num_head_channels; -1 is its default and means that num_heads counts."""
    given = config.get("num_head_channels")
    return None if given == -1 else given


def _check_heads(config: Mapping[str, Any], s: Structure) -> None:
    """Raise WeightsError if the flags say that heads have other than 64 channels."""
    channels, heads = _head_channels(config), config.get("num_heads")
    found = f"num_head_channels is {show(channels)}"
    if channels is None and heads is not None:
        middle = s.channel_mult[-1] * s.model_channels
        widths = {s.channel_mult[i] * s.model_channels for i in s.attention_levels} | {middle}
        channels = _HEAD_CHANNELS if widths == {_HEAD_CHANNELS * heads} else 0
        found = f"num_heads is {show(heads)} at attention widths {sorted(widths)}"
    if channels not in (None, _HEAD_CHANNELS):
        raise WeightsError(
            f"config: {found}; only heads of {_HEAD_CHANNELS} channels have a counterpart"
        )


def assumptions(
    config: Mapping[str, Any], attention_order: str | None, structure: Structure, size: int
) -> dict[str, Any]:
    """The flags that neither file nor user gave, with the values they are taken to have.

    Raises:
      WeightsError: one is needed that cannot be assumed at this image size.
    """
    network = config.get("network", {})
    # That the preconditioning is iDDPM's, or one of its constants, says nothing of the schedule.
    precond = config.get("precond", {})
    precond_given = "levels" in precond or precond.get("name", "iddpm") != "iddpm"
    schedule_given = config.get("noise_schedule") is not None or precond_given
    heads_given = _head_channels(config) is not None or config.get("num_heads") is not None
    if size != _RELEASED_SIZE and not (schedule_given and heads_given):
        missing = [] if schedule_given else [
            "'noise_schedule': 'linear' (all released models but 64x64) or 'cosine'"
        ]  # fmt: skip
        if not heads_given:
            missing.append("'num_head_channels': 64 (or 'num_heads', as it was trained)")
        raise WeightsError(
            f"the file does not say how a model of image_size {size} was trained, and a wrong "
            f"choice gives wrong images; give config={{{', '.join(missing)}}}, on the command line "
            "as --source_options"
        )
    assumed: dict[str, Any] = {"dropout": 0.1, "num_head_channels": _HEAD_CHANNELS}
    if heads_given:
        del assumed["num_head_channels"]
    if not precond_given:
        assumed["noise_schedule"] = "cosine"
        if "num_levels" not in precond:
            assumed["diffusion_steps"] = 1000
    if not config.get("attention_resolutions") and "img_resolution" not in network:
        assumed["image_size"] = size
    if structure.heads > 1 and attention_order is None:
        assumed["use_new_attention_order"] = True
    return {k: v for k, v in assumed.items() if k not in config and k not in network}
