"""TPU topologies by name, and what their chips can do.

Figures are those of Google's system architecture pages (cloud.google.com/tpu/docs): dense
bfloat16 products, memory and its bandwidth, and the links between the chips of a slice.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

INSTALL = "python -m pip install -e '.[tpu]'"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      tflops: dense bfloat16 products, in 1e12 operations per second.
      memory_gib: of the chip.
      memory_gbps: bandwidth of that, in 1e9 bytes per second.
      link_gbps: of a link to the next chip, in one direction, in 1e9 bytes per second.
      products: multiplications that its matrix units begin in a cycle.
      devices: how many devices of a program it is; each has its part of all of the above.
      sides: 2 for a grid of chips, 3 for a cube.
      ring: the ends of a side of so many chips, or of a multiple, are joined; in a cube only if
        all its sides are of such lengths.
      host: chips of one host, as the sides of a box.
      accelerator: a type that the library accepts for the family.
      counts: what the number in a name such as v5p-8 counts, per chip.
      options: of the compiler's library, as machines with such chips have them.
    """

    tflops: float
    memory_gib: float
    memory_gbps: float
    link_gbps: float
    products: int
    devices: int = 1
    sides: int = 2
    ring: int = 16
    host: tuple[int, ...] = (2, 2, 1)
    accelerator: str = ""
    counts: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def hertz(self) -> float:
        """Clock, which the peak and the size of the matrix units imply."""
        return self.tflops * 1e12 / (2 * self.products)


_SQUARE, _LARGE = 128**2, 256**2
CHIPS = {
    # The two cores of a v4 chip are one device, which the library does not assume by itself.
    "v4": Chip(275, 32, 1228, 50, 8 * _SQUARE, 1, 3, 4, accelerator="v4-8", counts=2,
               options={"chip_config_name": "megacore"}),
    "v5e": Chip(197, 16, 819, 50, 4 * _SQUARE, accelerator="v5litepod-16"),
    "v5p": Chip(459, 95, 2765, 100, 8 * _SQUARE, 1, 3, 4, accelerator="v5p-8", counts=2),
    "v6e": Chip(918, 32, 1640, 100, 4 * _LARGE, accelerator="v6e-16"),
    "tpu7x": Chip(2307, 192, 7380, 100, 8 * _LARGE, 2, 3, 4, accelerator="tpu7x-8", counts=2),
}  # fmt: skip
# Shapes of the sizes that clouds rent out, by number of chips.
_GRIDS = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8",
          256: "4x8x8", 512: "8x8x8", 1024: "8x8x16"}  # fmt: skip
EXAMPLES = "v5e:4x4 (or v5e-16), v6e:4x4 (v6e-16), v5p:2x2x1 (v5p-8), v4:2x2x4 (v4-32)"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of chips.

    Attributes:
      family: a key of CHIPS.
      shape: chips of a slice along each side.
      slices: how many.
    """

    family: str
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Topology:
        """That of `dataclasses.asdict`, which may have been JSON meanwhile."""
        return cls(**{**fields, "shape": tuple(fields["shape"])})

    @property
    def chip(self) -> Chip:
        """What one chip can do."""
        return CHIPS[self.family]

    @property
    def name(self) -> str:
        """As the compiler's library has it, such as ``v5e:4x4``."""
        return f"{self.family}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Devices of a program on all slices."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """Of all slices; each runs a process."""
        return self.slices * max(1, math.prod(self.shape) // math.prod(self.chip.host))

    @property
    def links_gbps(self) -> float:
        """Rate at which a chip takes in what all others send, in 1e9 bytes per second.

        Chips at the end of a side are the slowest: they have one neighbour along it, but two
        where the ends are joined.
        """
        chip = self.chip
        if math.prod(self.shape) == 1:
            return 2 * chip.sides * chip.link_gbps  # between cores of a chip, which are faster
        rings = [n % chip.ring == 0 for n in self.shape]
        if chip.sides == 3:
            rings = [all(rings)] * 3
        neighbours = sum(1 + ring for n, ring in zip(self.shape, rings, strict=True) if n > 1)
        return neighbours * chip.link_gbps

    def options(self) -> dict[str, Any]:
        """Further arguments of ``jax.experimental.topologies.get_topology_desc``."""
        box = self.shape + (1,) * (3 - len(self.shape))
        host = tuple(min(side, most) for side, most in zip(box, self.chip.host, strict=True))
        given = {} if host == self.chip.host else {"chips_per_host_bounds": host}
        if self.slices > 1:
            given["num_slices"] = self.slices
        return {**self.chip.options, **given}

    def environment(self) -> dict[str, str]:
        """Variables without which the library looks for chips of this machine."""
        return {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": self.chip.accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }


def parse(text: str, slices: int = 1) -> Topology:
    """The topology of a name.

    Args:
      text: ``v5e:4x4``, chips along each side; or ``v5e-16`` (``v5litepod-16``), ``v5p-8``, as
        clouds call them (of v4, v5p and tpu7x the number counts cores, two a chip).
      slices: how many such slices.

    Raises:
      ValueError: for another name.
    """
    name = text.strip().lower().replace("v5litepod", "v5e")
    if (family := re.match(r"\w*", name)[0]) not in CHIPS:
        raise ValueError(_unknown(text, f"the chips are {', '.join(CHIPS)}"))
    chip = CHIPS[family]
    found = re.fullmatch(r"(\w+)(?::(\d+(?:x\d+)*)|-(\d+))", name)
    if found is None:
        raise ValueError(_unknown(text, "after the chip comes :AxB, or - and how many"))
    side = found[2]
    if side is None:
        sizes = _GRIDS if chip.sides == 2 else _CUBES
        side = sizes.get(int(found[3]) // chip.counts) if int(found[3]) % chip.counts == 0 else None
        if side is None:
            known = ", ".join(f"{found[1]}-{chips * chip.counts}" for chips in sizes)
            raise ValueError(_unknown(text, f"there are {known}"))
    shape = tuple(int(n) for n in side.split("x"))
    # A host has 2x2 chips; a single one is a host of its own.
    whole = all(n % 2 == 0 for n in shape[:2]) or math.prod(shape) == 1
    if len(shape) != chip.sides or not math.prod(shape) or not whole:
        example = "4x4" if chip.sides == 2 else "2x2x1"
        rule = f"{found[1]} has {chip.sides} sides, the first two even, as {example}"
        raise ValueError(_unknown(text, rule))
    return Topology(found[1], shape, slices)


def _unknown(text: str, why: str) -> str:
    return f"must be a topology such as {EXAMPLES}; {why}; got {text!r}"


def require_compiler() -> None:
    """Raise ValueError with the command that installs it unless TPU's compiler is there."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"needs the compiler for TPUs, which is not installed: {INSTALL}")


def leave_chips_alone() -> None:
    """Keep JAX in this process on the CPU unless JAX_PLATFORMS names something.

    With the library installed it would look for TPUs of this machine, at length and aloud.  In a
    process that has imported JAX already the variable comes too late.
    """
    import jax

    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
