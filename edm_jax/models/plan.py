"""The steps of a network in order: what it is made of, before any array exists.

The plan is what the modules run, what their parameters are named after, and what the
order of the parameters in published training states follows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

ENCODER_TYPES = ("standard", "skip", "residual")
DECODER_TYPES = ("standard", "skip")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One step of encoder or decoder.

    Attributes:
      name: as in the published state dictionaries, such as ``enc.32x32_block0``.
      kind: ``conv``, ``block``, ``norm``, ``output``, or a step of an auxiliary branch:
        ``aux_down``, ``aux_skip``, ``aux_residual``, ``aux_up``.
      in_channels: of its input, a concatenated skip included.
      out_channels: of its output.
      up, down: whether it resamples.
      attention: whether a block asks for attention.
      concat: whether the newest stored skip is concatenated to the input.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    up: bool = False
    down: bool = False
    attention: bool = False
    concat: bool = False

    @property
    def module_name(self) -> str:
        """Name of the Flax submodule: the dot after ``enc`` or ``dec`` becomes ``_``."""
        return self.name.replace(".", "_", 1)


def encoder_plan(net: Any, first_width: int, encoder_type: str = "standard") -> list[Entry]:
    """Steps of the encoder.

    Args:
      net: a network; its sizes are read.
      first_width: output channels of the first convolution.
      encoder_type: one of ENCODER_TYPES.
    """
    entries: list[Entry] = []
    width = aux = net.in_channels
    for level, mult in enumerate(net.channel_mult):
        r = net.img_resolution >> level
        prefix = f"enc.{r}x{r}_"
        if level == 0:
            entries.append(Entry(prefix + "conv", "conv", width, first_width))
            width = first_width
        else:
            entries.append(Entry(prefix + "down", "block", width, width, down=True))
            if encoder_type == "skip":
                entries.append(Entry(prefix + "aux_down", "aux_down", aux, aux, down=True))
                entries.append(Entry(prefix + "aux_skip", "aux_skip", aux, width))
            if encoder_type == "residual":
                name = prefix + "aux_residual"
                entries.append(Entry(name, "aux_residual", aux, width, down=True))
                aux = width
        for i in range(net.num_blocks):
            out = int(net.model_channels * mult)  # half a width at 512x512 (ADM's classifier)
            attention = r in net.attn_resolutions
            entries.append(Entry(f"{prefix}block{i}", "block", width, out, attention=attention))
            width = out
    return entries


def decoder_plan(net: Any, encoder: list[Entry], attend_all: bool) -> dict[int, list[Entry]]:
    """Steps of the decoder by level, lowest resolution first, without output heads.

    Args:
      net: a network; its sizes are read.
      encoder: its encoder, whose outputs other than auxiliary ones are the skips.
      attend_all: attention in every block of a level of attn_resolutions; else in its
        last one alone.  The very first block of the decoder has it anyhow.
    """
    skips = [entry.out_channels for entry in encoder if not entry.kind.startswith("aux")]
    width = skips[-1]
    levels: dict[int, list[Entry]] = {}
    lowest = len(net.channel_mult) - 1
    for level in range(lowest, -1, -1):
        r = net.img_resolution >> level
        prefix = f"dec.{r}x{r}_"
        if level == lowest:
            entries = [
                Entry(prefix + "in0", "block", width, width, attention=True),
                Entry(prefix + "in1", "block", width, width),
            ]
        else:
            entries = [Entry(prefix + "up", "block", width, width, up=True)]
        for i in range(net.num_blocks + 1):
            total, width = width + skips.pop(), net.model_channels * net.channel_mult[level]
            attention = r in net.attn_resolutions and (attend_all or i == net.num_blocks)
            name = f"{prefix}block{i}"
            entries.append(Entry(name, "block", total, width, attention=attention, concat=True))
        levels[level] = entries
    assert not skips
    return levels


def song_plan(net: Any) -> tuple[Entry, ...]:
    """All steps of a `SongUNet`, in order."""
    encoder = encoder_plan(net, net.model_channels, net.encoder_type)
    entries = list(encoder)
    for level, blocks in decoder_plan(net, encoder, attend_all=False).items():
        entries += blocks
        r, width, out = net.img_resolution >> level, blocks[-1].out_channels, net.out_channels
        if net.decoder_type == "skip" or level == 0:
            if net.decoder_type == "skip" and level < len(net.channel_mult) - 1:
                entries.append(Entry(f"dec.{r}x{r}_aux_up", "aux_up", out, out, up=True))
            entries.append(Entry(f"dec.{r}x{r}_aux_norm", "norm", width, width))
            entries.append(Entry(f"dec.{r}x{r}_aux_conv", "output", width, out))
    return tuple(entries)


def dhariwal_plan(net: Any) -> tuple[Entry, ...]:
    """All steps of a `DhariwalUNet`, in order."""
    encoder = encoder_plan(net, net.model_channels * net.channel_mult[0])
    entries = list(encoder)
    for blocks in decoder_plan(net, encoder, attend_all=True).values():
        entries += blocks
    width = entries[-1].out_channels
    entries.append(Entry("out_norm", "norm", width, width))
    entries.append(Entry("out_conv", "output", width, net.out_channels))
    return tuple(entries)
