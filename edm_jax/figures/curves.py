"""Curves: loss per noise level (EDM Fig. 5a), loss and evaluations during training."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from edm_jax.figures import files
from edm_jax.figures.ticks import log_axes

# Those of EDM Fig. 5, as far as every kind of colour vision tells them apart.
INK, GREEN, ORANGE, RED = "#222222", "#009E73", "#E69F00", "#D55E00"


def loss_per_noise_level(
    path: pathlib.Path,
    sigmas: np.ndarray,
    initial: np.ndarray,
    final: np.ndarray,
    draws: np.ndarray,
    *,
    title: str = "",
) -> None:
    """Weighted loss against sigma before and after training (EDM Fig. 5a).

    Args:
      path: file to write, .png, .pdf or .svg.
      sigmas: ``(S,)`` noise levels.
      initial, final: ``(S, n)`` loss per element of n images at each level.
      draws: noise levels drawn from p(sigma); their density per unit of ln sigma is shown
        on an axis of its own, so that the area beneath it is 1.
      title: above the axes.
    """
    with files.style():
        fig, axes = files.subplots(size=(files.COLUMN, 2.5))
        for values, colour, name in ((initial, GREEN, "initial"), (final, ORANGE, "trained")):
            mean, std = values.mean(1), values.std(1)
            axes.plot(sigmas, mean, color=colour, label=f"{name} (mean, 1 std)")
            axes.fill_between(sigmas, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
        axes.set(xlabel=r"noise level $\sigma$ (data units)", ylabel="weighted loss per element")
        log_axes(axes, "x")
        axes.set_xlim(sigmas[0], sigmas[-1])
        means = np.r_[initial.mean(1), final.mean(1)]
        axes.set_ylim(0, max(1.5, float(np.percentile(means, 95)) * 1.2))
        density = axes.twinx()
        edges = np.linspace(np.log(sigmas[0]), np.log(sigmas[-1]), 61)
        counts = np.histogram(np.log(draws), edges)[0]
        height = counts / (len(draws) * (edges[1] - edges[0]))
        density.stairs(height, np.exp(edges), color=RED, ls="--", label=r"$p(\ln\sigma)$")
        density.set_ylabel(r"density of training, per unit of $\ln\sigma$", color=RED)
        density.tick_params(axis="y", colors=RED)
        density.set_ylim(0, 1.7 * max(float(height.max()), 1e-12))
        lines = [a.get_legend_handles_labels() for a in (axes, density)]
        # Above the axes: within, it would cover one of the curves.
        handles, names = lines[0][0] + lines[1][0], lines[0][1] + lines[1][1]
        axes.legend(
            handles, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False
        )
        axes.set_title(files.plain(title, 60))
        files.save(fig, path)


def accuracy_per_noise_level(
    path: pathlib.Path,
    sigmas: np.ndarray,
    accuracies: Mapping[str, np.ndarray],
    num_classes: int,
    *,
    title: str = "",
) -> None:
    """Accuracy of a classifier of noisy images against sigma.

    Args:
      path: file to write, .png, .pdf or .svg.
      sigmas: ``(S,)`` noise levels.
      accuracies: what each is called -> ``(S,)`` fractions, 0 to 1.
      num_classes: a line shows what is reached by chance.
      title: above the axes.
    """
    with files.style():
        fig, axes = files.subplots(size=(files.COLUMN, 2.5))
        for (name, values), colour in zip(
            accuracies.items(), (ORANGE, GREEN, RED, INK), strict=False
        ):
            axes.plot(sigmas, 100 * np.asarray(values), color=colour, label=files.plain(name))
        axes.axhline(100 / num_classes, color=INK, ls=":", label="by chance")
        axes.set(xlabel=r"noise level $\sigma$ (data units)", ylabel="accuracy (%)", ylim=(0, 102))
        log_axes(axes, "x")
        axes.set_xlim(sigmas[0], sigmas[-1])
        axes.legend(framealpha=0.7)
        axes.set_title(files.plain(title, 60))
        files.save(fig, path)


def training_curve(path: pathlib.Path, kimg: Sequence[float], loss: Sequence[float | None]) -> None:
    """Loss against images seen; None where it was not finite leaves a gap."""
    loss = np.array([np.nan if value is None else value for value in loss], float)
    with files.style():
        fig, axes = files.subplots(size=(files.COLUMN, 2.1))
        axes.plot(kimg, loss, color=INK)
        axes.set(xlabel="thousands of images (kimg)", ylabel="loss per element")
        axes.set_ylim(0, 1.1 * max(loss[np.isfinite(loss)], default=1.0))
        axes.grid(alpha=0.3)
        files.save(fig, path)


def evaluation_curves(
    path: pathlib.Path, kimg: Sequence[float], curves: Mapping[str, Sequence[float]]
) -> None:
    """What was evaluated during training against images seen, a panel for each measure."""
    if not curves:
        return
    with files.style():
        size = (files.COLUMN, 1.7 * len(curves))
        fig, panels = files.subplots(len(curves), size=size, squeeze=False, sharex=True)
        for axes, (label, values) in zip(panels[:, 0], curves.items(), strict=True):
            axes.plot(kimg, values, color=INK, marker="o", ms=2)
            axes.set_title(files.plain(label, 60))
            axes.grid(alpha=0.3)
        panels[-1, 0].set_xlabel("thousands of images (kimg)")
        files.save(fig, path)


def lines_of_models(
    path: pathlib.Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
) -> None:
    """Measures of several models: a panel for each measure, a line for each kind of weights.

    Where all models have seen as many images, the kinds of weights are the axis.

    Args:
      path: of the figure.
      panels: measure -> name of the weights -> pairs of kimg and value.
    """
    with files.style():
        size = (files.COLUMN, 1.7 * len(panels))
        fig, rows = files.subplots(len(panels), size=size, squeeze=False, sharex=True)
        times = {kimg for lines in panels.values() for line in lines.values() for kimg, _ in line}
        for axes, (label, lines) in zip(rows[:, 0], panels.items(), strict=True):
            if len(times) == 1:
                axes.plot(
                    [files.plain(name) for name in lines],
                    [line[0][1] for line in lines.values()],
                    "o-",
                    color=INK,
                )
            else:
                for name, line in lines.items():
                    axes.plot(
                        *zip(*sorted(line), strict=True), marker="o", ms=2, label=files.plain(name)
                    )
                axes.legend()
            axes.set_title(files.plain(label, 60))
            axes.grid(alpha=0.3)
        told = "weights" if len(times) == 1 else "thousands of images (kimg)"
        rows[-1, 0].set_xlabel(told)
        files.save(fig, path)
