"""From noise to image: what a sampler visits, and what it predicts there (EDM Fig. 3)."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np

from edm_jax.figures import files
from edm_jax.figures.sheets import image_sheet

MAX_COLUMNS = 9
NAME, LINE = 34, 18  # characters of a name, and of a line of it


def _wrapped(name: str) -> str:
    return "\n".join(map(files.plain, textwrap.wrap(files.one_line(name, NAME), LINE)))


def denoising_trajectories(
    path: pathlib.Path,
    x: np.ndarray,
    denoised: np.ndarray,
    sigmas: np.ndarray,
    names: Sequence[str],
    *,
    sigma_data: float = 0.5,
) -> None:
    """States x_i above, predictions D below: a pair of rows per image, evenly spaced steps.

    A state is shown as x_i sigma_data / sqrt(sigma_i^2 + sigma_data^2), which has the
    contrast of an image at every level.  There is no prediction at the last column, the
    image itself: nothing is evaluated there.

    Args:
      path: file to write, .png, .pdf or .svg.
      x: ``(N+1, n, H, W, C)`` states.
      denoised: ``(N, n, H, W, C)`` what each step predicted first: D(x_i; sigma_i), or at the
        raised level where the sampler adds noise before.
      sigmas: ``(N+1,)`` noise levels.
      names: of the n images, such as "seed 3, class 7".
      sigma_data: deviation of the data.
    """
    steps, count = len(denoised), len(names)
    # The same number of steps between all columns, and the last one is the image.
    stride = -(-steps // (MAX_COLUMNS - 1))
    shown = sorted(range(steps, -1, -stride))
    contrast = sigma_data / np.sqrt(np.asarray(sigmas, float) ** 2 + sigma_data**2)
    blank = np.ones_like(x[-1, 0])
    rows = []
    for n in range(count):
        rows.extend(x[i, n] * contrast[i] for i in shown)
        rows.extend(denoised[i, n] if i < steps else blank for i in shown)
    columns = len(shown)
    sheet = image_sheet(np.stack(rows), columns)
    height, width = sheet.shape[:2]
    with files.style():
        # One cell is a square; names stand in front, levels and the scale beneath.
        unit = min(0.62, (2 * files.COLUMN - 1.5) / columns)
        size = (max(columns * unit + 1.5, files.COLUMN), 2 * count * unit + 0.95)
        fig, axes = files.subplots(size=size)
        picture = sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        cell_w, cell_h = width / columns, height / (2 * count)
        axes.set_xticks(
            [(k + 0.5) * cell_w for k in range(columns)],
            [f"{i}\n{sigmas[i]:.2g}" for i in shown],
        )
        labels = [
            text for name in names for text in (f"{_wrapped(name)}   $x_i$", r"$D(x_i;\sigma_i)$")
        ]
        axes.set_yticks([(k + 0.5) * cell_h for k in range(2 * count)], labels)
        # Of the figure, not of its axes: these are narrower than the words at few steps.
        fig.supxlabel(
            "step $i$ and noise level $\\sigma_i$;  $x_i$ is shown times\n"
            r"$\sigma_{\rm data}/\sqrt{\sigma_i^2+\sigma_{\rm data}^2}$",
            fontsize=8,
        )
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        files.save(fig, path)
