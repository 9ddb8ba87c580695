"""The two-dimensional toy of guidance: densities, samples and their ways there."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.figures import files
from edm_jax.guidance.toy import Toy, guided_log_density, trajectories

LOW, HIGH = np.array([-1.1, -1.1]), np.array([1.3, 1.3])


def guided_toy(
    path: pathlib.Path,
    toy: Toy,
    *,
    label: int = 0,
    scale: float = 3.0,
    sigma: float = 0.02,
    count: int = 256,
    paths: int = 12,
    seed: int = 0,
    resolution: int = 160,
) -> None:
    """Guided densities, sampled points and some of their ways there (Karras et al. 2024, Fig. 1).

    Panels: the data, the model, and the model under classifier-free guidance and under
    autoguidance, from the same noise.

    Args:
      path: file to write, .png, .pdf or .svg.
      toy: the data and its models.
      label: class that is sampled.
      scale: w of both guidances.
      sigma: noise level of the densities shown.
      count: points.
      paths: of how many the way is drawn.
      seed: of the noise, the same in every panel.
      resolution: of the density maps.
    """
    grid = np.stack(np.meshgrid(*np.linspace(LOW, HIGH, resolution).T), axis=-1)
    points = jnp.asarray(grid.reshape(-1, 2), jnp.float32)
    key = jax.random.key(seed)
    titles = {
        "data": "data",
        "none": "model",
        "classifier_free": f"classifier-free, $w = {scale:g}$",
        "autoguidance": f"autoguidance, $w = {scale:g}$",
    }
    with files.style():
        fig, axes = files.subplots(1, 4, size=(2 * files.COLUMN, 1.85), sharex=True, sharey=True)
        for axis, (name, title) in zip(axes, titles.items(), strict=True):
            if name == "data":
                log_p = toy.data.log_density(points, sigma, label)
                ends = toy.data.classes[label].sample(key, (count,))
            else:
                log_p = guided_log_density(toy, points, sigma, label, name, scale)
                run = trajectories(toy, key, label=label, guidance=name, scale=scale, count=count)
                ends = run.x[-1]
                ways = np.moveaxis(np.asarray(run.x[:, :paths]), -1, 0)
                axis.plot(*ways, "w-", lw=0.4, alpha=0.6)
            shown = np.asarray(log_p - jnp.max(log_p)).reshape(resolution, resolution)
            extent = (LOW[0], HIGH[0], LOW[1], HIGH[1])
            # Blocks, not a smooth surface: the file is half as large.
            colours = {"vmin": -12, "vmax": 0, "cmap": "magma", "interpolation": "nearest"}
            axis.imshow(shown, extent=extent, origin="lower", **colours)
            axis.plot(*np.asarray(ends).T, "c.", ms=1)
            axis.set(title=title, xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
        files.save(fig, path)
