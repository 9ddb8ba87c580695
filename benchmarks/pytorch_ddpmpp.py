r"""The CIFAR-10 DDPM++ network in plain PyTorch, to compare speed with; needs torch.

    python -m pip install torch && python benchmarks/pytorch_ddpmpp.py [--batch=8]

Forward pass and training step (EDM loss, gradient, Adam) of the layers that
`benchmarks/networks.py` measures, in the layout and with the kernels PyTorch has: images per
second, median, and the least processor time of a call.
"""

from __future__ import annotations

import argparse
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
CHANNELS, EMBEDDING, DROPOUT, EPS = 256, 512, 0.13, 1e-6
RESOLUTIONS = (32, 16, 8)


def _resampled(x: Tensor, by: str) -> Tensor:
    """``(B, C, H, W)`` up or down by two with the box filter; as it is otherwise."""
    box = torch.ones(x.shape[1], 1, 2, 2)
    if by == "up":
        return functional.conv_transpose2d(x, box, stride=2, groups=x.shape[1])
    return functional.conv2d(x, box / 4, stride=2, groups=x.shape[1]) if by == "down" else x


class Block(nn.Module):
    """Two convolutions with norms, the embedding added between, a skip, perhaps attention."""

    def __init__(self, inputs: int, outputs: int, by: str = "", attention: bool = False):
        super().__init__()
        self.by, self.attention = by, attention
        self.norm0, self.conv0 = (
            nn.GroupNorm(32, inputs, EPS),
            nn.Conv2d(inputs, outputs, 3, padding=1),
        )
        self.affine = nn.Linear(EMBEDDING, outputs)
        self.norm1 = nn.GroupNorm(32, outputs, EPS)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        plain = inputs == outputs and not by
        self.skip = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1)
        if attention:
            self.norm2, self.qkv = (
                nn.GroupNorm(32, outputs, EPS),
                nn.Conv2d(outputs, 3 * outputs, 1),
            )
            self.proj = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` and ``(B, EMBEDDING)`` -> ``(B, outputs, H', W')``."""
        h = self.conv0(_resampled(functional.silu(self.norm0(x)), self.by))
        h = functional.silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        h = self.conv1(functional.dropout(h, DROPOUT, self.training))
        x = (h + self.skip(_resampled(x, self.by))) * math.sqrt(0.5)
        if self.attention:
            batch, channels, height, width = x.shape
            q, k, v = self.qkv(self.norm2(x)).reshape(batch, channels, 3, -1).unbind(2)
            weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(channels)).softmax(2)
            a = torch.einsum("nqk,nck->ncq", weights, v)
            x = (self.proj(a.reshape(batch, channels, height, width)) + x) * math.sqrt(0.5)
        return x


class Network(nn.Module):
    """DDPM++ for CIFAR-10 with class and augmentation labels."""

    def __init__(self) -> None:
        super().__init__()
        self.map0, self.map1 = nn.Linear(128, EMBEDDING), nn.Linear(EMBEDDING, EMBEDDING)
        self.label = nn.Linear(10, 128)
        self.augment = nn.Linear(9, 128, bias=False)
        self.first = nn.Conv2d(3, 128, 3, padding=1)
        widths, width, encoder, decoder = [128], 128, [], []
        for size in RESOLUTIONS:
            if size < RESOLUTIONS[0]:
                encoder.append(Block(width, width, "down"))
                widths.append(width)
            for _ in range(4):
                encoder.append(Block(width, CHANNELS, attention=size == 16))
                width = CHANNELS
                widths.append(width)
        middle = [Block(CHANNELS, CHANNELS, attention=True), Block(CHANNELS, CHANNELS)]
        for size in RESOLUTIONS[::-1]:
            if size > RESOLUTIONS[-1]:
                decoder.append(Block(CHANNELS, CHANNELS, "up"))
            for i in range(5):
                attends = size == 16 and i == 4
                decoder.append(Block(CHANNELS + widths.pop(), CHANNELS, attention=attends))
        self.encoder, self.middle = nn.ModuleList(encoder), nn.ModuleList(middle)
        self.decoder = nn.ModuleList(decoder)
        self.norm, self.last = nn.GroupNorm(32, CHANNELS, EPS), nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor, augment: Tensor) -> Tensor:
        """``(B, 3, 32, 32)``, ``(B,)``, ``(B, 10)``, ``(B, 9)`` -> ``(B, 3, 32, 32)``."""
        phase = torch.outer(c_noise, 1e-4 ** (torch.arange(64) / 63))
        e = torch.cat([phase.sin(), phase.cos()], 1)
        e = e + self.label(labels * math.sqrt(10)) + self.augment(augment)
        e = functional.silu(self.map1(functional.silu(self.map0(e))))
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
    parser.add_argument("--batch", type=int, default=8, help="images per call")
    parser.add_argument("--repeats", type=int, default=5, help="timings taken, median shown")
    args = parser.parse_args()
    if args.batch < 1 or args.repeats < 1:
        parser.error("--batch and --repeats must be at least 1")
    torch.set_num_threads(os.cpu_count() or 1)
    net = Network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    y = torch.randn(args.batch, 3, 32, 32)
    labels = functional.one_hot(torch.arange(args.batch) % 10, 10).float()
    augment = torch.zeros(args.batch, 9)

    def forward() -> None:
        with torch.no_grad():
            net(y, torch.randn(args.batch), labels, augment)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sigma = (torch.randn(args.batch, 1, 1, 1) * 1.2 - 1.2).exp()
        x, total = y + torch.randn_like(y) * sigma, sigma**2 + 0.25
        out = net(x / total.sqrt(), sigma.flatten().log() / 4, labels, augment)
        denoised = 0.25 / total * x + 0.5 * sigma / total.sqrt() * out
        (total / (0.5 * sigma) ** 2 * (denoised - y) ** 2).sum().div(args.batch).backward()
        optimizer.step()

    count = sum(p.numel() for p in net.parameters())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {count:,} parameters")
    rows = []
    for name, call in (("forward", forward), ("training step", step)):
        net.train(call is step)
        wall, busy = timed(call, args.repeats)
        rows.append([name, f"{args.batch / wall:.2f}", f"{busy:.2f}"])
    common.print_table(["", "img/s", "processor s a call"], rows)


if __name__ == "__main__":
    main()
