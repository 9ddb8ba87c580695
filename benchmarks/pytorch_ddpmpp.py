r"""Published networks and a small one in plain PyTorch, to compare speed with; needs torch.

    python -m pip install torch
    python benchmarks/pytorch_ddpmpp.py [--net=cifar10] [--batch=8]
    python benchmarks/pytorch_ddpmpp.py --net=small             32x32 grey, 32 channels, batch 64
    python benchmarks/pytorch_ddpmpp.py --net=imagenet64 --device=cuda --dtype=bfloat16 --compile

Forward pass and training step (EDM loss, gradient, Adam) of the layers that
`benchmarks/networks.py` measures, in the layout and with the kernels PyTorch has: images per
second, median, and the least processor time of a call.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    sys.exit("error: this comparison needs PyTorch: python -m pip install torch")

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A network.

    Attributes:
      resolution, colours: of the images.
      channels, mult, blocks: width, its factor and the blocks of each level.
      attention: resolutions with attention.
      labels, augment: dimensions of the conditions.
      adm: the blocks of ADM (the embedding scales and shifts, heads of 64 channels, attention
        in the whole decoder), not those of DDPM++.
      dropout: rate.
      batch: images per call on a CPU.
    """

    resolution: int = 32
    colours: int = 3
    channels: int = 128
    mult: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    labels: int = 10
    augment: int = 9
    adm: bool = False
    dropout: float = 0.13
    batch: int = 8


NETS = {
    "cifar10": Sizes(),
    "imagenet64": Sizes(
        64, 3, 192, (1, 2, 3, 4), 3, (32, 16, 8), 1000, 0, adm=True, dropout=0.1, batch=2
    ),
    "small": Sizes(32, 1, 32, (1, 2, 2), 1, labels=0, augment=0, batch=64),
    "tiny": Sizes(16, 3, 32, (1, 2), 1, (8,), 10, 0, adm=True, batch=4),  # to try the program
}


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


def _resampled(x: Tensor, by: str) -> Tensor:
    """``(B, C, H, W)`` up or down by two with the box filter; as it is otherwise."""
    if by == "up":
        return functional.interpolate(x, scale_factor=2, mode="nearest")
    return functional.avg_pool2d(x, 2) if by == "down" else x


class Block(nn.Module):
    """Two convolutions with norms, the embedding between, a skip, perhaps attention."""

    def __init__(self, net: Sizes, inputs: int, outputs: int, by: str = "", attends: bool = False):
        super().__init__()
        eps = 1e-5 if net.adm else 1e-6
        self.by, self.attends, self.adm, self.dropout = by, attends, net.adm, net.dropout
        self.scale = 1.0 if net.adm else math.sqrt(0.5)
        self.heads = outputs // 64 if net.adm else 1
        if net.adm and not self.heads:
            self.attends = attends = False
        self.norm0, self.conv0 = _norm(inputs, eps), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(4 * net.channels, outputs * (2 if net.adm else 1))
        self.norm1, self.conv1 = _norm(outputs, eps), nn.Conv2d(outputs, outputs, 3, padding=1)
        # DDPM++ has a kernel where it resamples too.
        plain = inputs == outputs and (net.adm or not by)
        self.skip = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1)
        if attends:
            self.norm2 = _norm(outputs, eps)
            self.qkv, self.proj = nn.Conv2d(outputs, 3 * outputs, 1), nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` and ``(B, E)`` -> ``(B, outputs, H', W')``."""
        h = self.conv0(_resampled(functional.silu(self.norm0(x)), self.by))
        p = self.affine(embedding)[:, :, None, None]
        if self.adm:
            scale, shift = p.chunk(2, 1)
            h = functional.silu(self.norm1(h) * (1 + scale) + shift)
        else:
            h = functional.silu(self.norm1(h + p))
        h = self.conv1(functional.dropout(h, self.dropout, self.training))
        x = (h + self.skip(_resampled(x, self.by))) * self.scale
        if self.attends:
            batch, channels, height, width = x.shape
            shape = (batch, self.heads, channels // self.heads, 3, height * width)
            q, k, v = self.qkv(self.norm2(x)).reshape(shape).permute(3, 0, 1, 4, 2)
            a = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)
            x = (self.proj(a.reshape(batch, channels, height, width)) + x) * self.scale
        return x


class Network(nn.Module):
    """DDPM++ or ADM with class and augmentation labels."""

    def __init__(self, net: Sizes) -> None:
        super().__init__()
        self.net = net
        width, inner = net.channels, 4 * net.channels
        self.map0, self.map1 = nn.Linear(width, inner), nn.Linear(inner, inner)
        if net.labels:
            self.label = nn.Linear(net.labels, inner if net.adm else width, bias=not net.adm)
        if net.augment:
            self.augment = nn.Linear(net.augment, width, bias=False)
        width *= net.mult[0] if net.adm else 1
        self.first = nn.Conv2d(net.colours, width, 3, padding=1)
        widths, encoder, decoder = [width], [], []
        sizes = [net.resolution >> level for level in range(len(net.mult))]
        for level, size in enumerate(sizes):
            if level:
                encoder.append(Block(net, width, width, "down"))
                widths.append(width)
            for _ in range(net.blocks):
                out = net.channels * net.mult[level]
                encoder.append(Block(net, width, out, attends=size in net.attention))
                width = out
                widths.append(width)
        middle = [Block(net, width, width, attends=True), Block(net, width, width)]
        for level in range(len(sizes) - 1, -1, -1):
            if level < len(sizes) - 1:
                decoder.append(Block(net, width, width, "up"))
            for i in range(net.blocks + 1):
                attends = sizes[level] in net.attention and (net.adm or i == net.blocks)
                out = net.channels * net.mult[level]
                decoder.append(Block(net, width + widths.pop(), out, attends=attends))
                width = out
        self.encoder, self.middle = nn.ModuleList(encoder), nn.ModuleList(middle)
        self.decoder = nn.ModuleList(decoder)
        self.norm = _norm(width, 1e-5 if net.adm else 1e-6)
        self.last = nn.Conv2d(width, net.colours, 3, padding=1)
        phases = torch.arange(net.channels // 2) / (net.channels // 2 - (not net.adm))
        self.register_buffer("frequencies", 1e-4**phases, persistent=False)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor, augment: Tensor) -> Tensor:
        """``(B, C, R, R)``, ``(B,)``, ``(B, labels)``, ``(B, augment)`` -> ``(B, C, R, R)``."""
        phase = torch.outer(c_noise, self.frequencies)
        e = torch.cat([phase.sin(), phase.cos()], 1)
        if self.net.augment:
            e = e + self.augment(augment)
        if self.net.labels and not self.net.adm:
            e = e + self.label(labels * math.sqrt(self.net.labels))
        e = self.map1(functional.silu(self.map0(e)))
        if self.net.labels and self.net.adm:
            e = e + self.label(labels)
        e = functional.silu(e)
        x = self.first(x)
        skips = [x]
        for block in self.encoder:
            x = block(x, e)
            skips.append(x)
        for block in self.middle:
            x = block(x, e)
        for block in self.decoder:
            x = block(x if block.by else torch.cat([x, skips.pop()], 1), e)
        return self.last(functional.silu(self.norm(x)))


class Case:
    """A network on a device with a batch: what is timed."""

    def __init__(self, net: Sizes, batch: int, device: str, dtype: str, compiled: bool):
        self.device = device
        self.net = Network(net).to(device)
        if device != "cpu":
            self.net = self.net.to(memory_format=torch.channels_last)
        self.call = torch.compile(self.net) if compiled else self.net
        half = getattr(torch, dtype)
        self.precision = contextlib.nullcontext
        if half != torch.float32:
            self.precision = lambda: torch.autocast(device, dtype=half)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-4)
        self.batch = batch
        self.y = torch.randn(batch, net.colours, net.resolution, net.resolution, device=device)
        classes = torch.arange(batch) % max(net.labels, 1)
        self.labels = functional.one_hot(classes, max(net.labels, 1)).float().to(device)
        self.augment = torch.zeros(batch, net.augment, device=device)

    def parameters(self) -> int:
        """How many there are."""
        return sum(p.numel() for p in self.net.parameters())

    def forward(self) -> None:
        """One call of the network."""
        with torch.no_grad(), self.precision():
            noise = torch.randn(self.batch, device=self.device)
            self.call(self.y, noise, self.labels, self.augment)
        self.wait()

    def step(self) -> None:
        """One training step."""
        self.optimizer.zero_grad(set_to_none=True)
        y = self.y
        sigma = (torch.randn(self.batch, 1, 1, 1, device=self.device) * 1.2 - 1.2).exp()
        x, total = y + torch.randn_like(y) * sigma, sigma**2 + 0.25
        with self.precision():
            c_noise = sigma.flatten().log() / 4
            out = self.call(x / total.sqrt(), c_noise, self.labels, self.augment).float()
        denoised = 0.25 / total * x + 0.5 * sigma / total.sqrt() * out
        weight = total / (0.5 * sigma) ** 2
        (weight * (denoised - y) ** 2).sum().div(self.batch).backward()
        self.optimizer.step()
        self.wait()

    def wait(self) -> None:
        """Until the device is done."""
        if self.device != "cpu":
            torch.cuda.synchronize()


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds and least processor seconds of a call."""
    call()
    wall, busy = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - used)
    return float(np.median(wall)), min(busy)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="cifar10", choices=NETS, help="which network")
    parser.add_argument("--batch", type=int, default=0, help="images per call; 0: by the network")
    parser.add_argument("--repeats", type=int, default=5, help="timings taken, median shown")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (autocast)")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    args = parser.parse_args()
    if args.batch < 0 or args.repeats < 1:
        parser.error("--batch must be at least 0 and --repeats at least 1")
    torch.set_num_threads(os.cpu_count() or 1)
    batch = args.batch or NETS[args.net].batch
    case = Case(NETS[args.net], batch, args.device, args.dtype, args.compile)
    how = "torch.compile" if args.compile else "eager"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}, "
        f"{args.dtype}, {how}, {case.parameters():,} parameters"
    )
    rows = []
    for name, call in (("forward", case.forward), ("training step", case.step)):
        case.net.train(call == case.step)
        start = time.perf_counter()
        call()
        first = time.perf_counter() - start
        wall, busy = timed(call, args.repeats)
        row = [f"{args.net} {name}", batch, f"{batch / wall:.2f}", f"{busy:.2f}", f"{first:.1f}"]
        if args.device != "cpu":
            row.append(f"{torch.cuda.max_memory_allocated() / 2**30:.2f}")
        rows.append(row)
    header = ["", "batch", "img/s", "processor s a call", "first call s"]
    common.print_table(header + ["GiB"] * (args.device != "cpu"), rows)


if __name__ == "__main__":
    main()
