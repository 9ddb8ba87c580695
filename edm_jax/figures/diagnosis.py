"""Pictures of a model at every noise level, and of samples beside their nearest images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.figures import files
from edm_jax.figures.sheets import image_sheet, to_pil
from edm_jax.figures.ticks import log_axes

SIZE = (files.COLUMN, 2.4)
ROUNDING = 1e-6  # of errors in float32, of images in [-1, 1]
# Dashes, width and opacity: of two curves that lie on each other both are seen.
LINES = (("-", 3.2, 0.5), ("--", 1.2, 1.0), (":", 1.6, 1.0), ("-.", 1.2, 1.0))


def _level_axes(title: str, ylabel: str, sigmas: np.ndarray) -> tuple[Any, Any]:
    fig, axes = files.subplots(size=SIZE)
    axes.set(
        xlabel=r"noise level $\sigma$ (data units)", ylabel=ylabel, title=files.plain(title, 60)
    )
    log_axes(axes, "x")
    axes.set_xlim(sigmas[0], sigmas[-1])
    axes.grid(alpha=0.3, lw=0.4)
    return fig, axes


def error_curves(sigmas: np.ndarray, curves: Mapping[str, np.ndarray], title: str = "") -> Any:
    """RMS errors against the noise level, a figure of matplotlib.

    Args:
      sigmas: ``(S,)``.
      curves: label -> ``(S,)``, in data units; what is below the rounding of float32 (an ideal
        denoiser has errors of exactly 0) is left out, and the figure says so.
      title: above the axes.
    """
    with files.style():
        fig, axes = _level_axes(title, "RMS error (data units)", sigmas)
        left_out = False
        for i, (name, values) in enumerate(curves.items()):
            shown = np.where(np.asarray(values) > ROUNDING, values, np.nan)
            left_out |= bool(np.isnan(shown).any())
            dashes, width, alpha = LINES[i % len(LINES)]
            axes.plot(sigmas, shown, color=files.colour(i), ls=dashes, lw=width, alpha=alpha,
                      label=files.plain(name))  # fmt: skip
        log_axes(axes, "y")
        if left_out:
            axes.annotate("errors below $10^{-6}$ are left out", (0.98, 0.03), ha="right",
                          xycoords="axes fraction", fontsize=6, color="#555555")  # fmt: skip
        # Beneath the axes, where it covers no curve.
        fig.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                   frameon=False)  # fmt: skip
        return fig


def loss_curves(sigmas: np.ndarray, losses: Mapping[str, np.ndarray], title: str = "") -> Any:
    """Weighted loss per element against the noise level: mean, and one deviation of images.

    Args:
      sigmas: ``(S,)``.
      losses: label -> ``(S, n)``.
      title: above the axes.
    """
    with files.style():
        fig, axes = _level_axes(title, "weighted loss per element", sigmas)
        top = 0.0
        for i, (name, values) in enumerate(losses.items()):
            mean, std = values.mean(1), values.std(1)
            axes.plot(sigmas, mean, color=files.colour(i), label=files.plain(name))
            axes.fill_between(sigmas, mean - std, mean + std, color=files.colour(i), alpha=0.2,
                              lw=0)  # fmt: skip
            top = max(top, float(np.percentile(mean, 95)))
        axes.set_ylim(0, max(1.2, 1.3 * top))
        axes.legend(framealpha=0.7)
        return fig


def gradient_curve(sigmas: np.ndarray, norms: np.ndarray, title: str = "") -> Any:
    """Norm of the gradient of the weighted loss against the noise level, ``(S,)``."""
    with files.style():
        fig, axes = _level_axes(title, "gradient norm", sigmas)
        axes.plot(sigmas, np.maximum(norms, 1e-12), color=files.colour(0), marker="o", ms=2)
        log_axes(axes, "y")
        return fig


def sigma_histogram(draws: np.ndarray, sigmas: np.ndarray, title: str = "") -> Any:
    """Density of the levels that training draws, per unit of ln sigma."""
    with files.style():
        fig, axes = _level_axes(title, r"density per unit of $\ln\sigma$", sigmas)
        edges = np.linspace(np.log(sigmas[0]), np.log(sigmas[-1]), 61)
        counts = np.histogram(np.log(draws), edges)[0]
        height = counts / (len(draws) * (edges[1] - edges[0]))
        axes.stairs(height, np.exp(edges), fill=True, color=files.colour(4), alpha=0.8)
        return fig


def distance_histogram(groups: Mapping[str, np.ndarray], title: str = "", bins: int = 30) -> Any:
    """How far images are from the nearest training image: label -> ``(n,)`` distances."""
    with files.style():
        fig, axes = files.subplots(size=SIZE)
        top = max(float(values.max()) for values in groups.values())
        edges = np.linspace(0, 1.05 * top + 1e-9, bins + 1)
        for i, (name, values) in enumerate(groups.items()):
            height = np.histogram(values, edges)[0] / len(values)
            axes.stairs(height, edges, color=files.colour(i), fill=i == 0,
                        alpha=0.5 if i == 0 else 1, label=files.plain(name))  # fmt: skip
        # In two lines: one would be wider than the figure.
        axes.set(xlabel="RMS distance to the nearest training image\n(data units)",
                 ylabel="share of images", title=files.plain(title, 60))  # fmt: skip
        axes.legend(framealpha=0.7)
        return fig


def neighbour_sheet(
    samples: np.ndarray, nearest: np.ndarray, order: Sequence[int], *, scale: int | None = None
) -> Any:
    """Samples in a row, beneath each its nearest training images; a Pillow image.

    Args:
      samples: ``(n, H, W, C)`` in [-1, 1].
      nearest: ``(n, k, H, W, C)``.
      order: which samples, from left to right.
      scale: enlargement; by default small images become 40 pixels high.
    """
    scale = scale or max(1, 40 // samples.shape[1])
    rows = [samples[list(order)], *(nearest[list(order), i] for i in range(nearest.shape[1]))]
    sheet = image_sheet(np.concatenate(rows), len(order), pad=1)
    return to_pil(sheet.repeat(scale, axis=0).repeat(scale, axis=1)).convert("RGB")
