"""Images under noise, and what a denoiser expects beneath it (EDM Fig. 1)."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.figures import files
from edm_jax.figures.sheets import image_sheet
from edm_jax.typing import Array, ArrayLike

Denoise = Callable[[Array, Array], Array]


def denoised_images(
    path: pathlib.Path,
    images: np.ndarray,
    sigmas: ArrayLike,
    denoisers: Mapping[str, Denoise],
    *,
    seed: int = 0,
) -> None:
    """Rows of noisy images, and of what each denoiser makes of them; a column for each level.

    Args:
      path: file to write, .png, .pdf or .svg.
      images: ``(n, H, W, C)`` in [-1, 1]; one block of rows for each.
      sigmas: ``(S,)`` noise levels.
      denoisers: label -> ``denoise(x, sigma)``, x ``(n, H, W, C)`` and sigma a number: a model
        (with its labels bound), or the ideal denoiser of a data set, `exact.FiniteData`.
      seed: of the noise, the same at every level.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images) or not denoisers:
        raise ValueError(
            f"needs images (n, H, W, C) and denoisers, got {images.shape}, {len(denoisers)}"
        )
    sigmas = np.asarray(sigmas, np.float32)
    noise = jax.random.normal(jax.random.key(seed, impl="threefry2x32"), images.shape)
    noisy = [jnp.asarray(images) + sigma * noise for sigma in sigmas]
    rows = {r"$y+n$": noisy}
    for name, denoise in denoisers.items():
        rows[files.plain(name, 24)] = [
            denoise(x, sigma) for x, sigma in zip(noisy, sigmas, strict=True)
        ]
    cells = [np.asarray(row[k])[i] for i in range(len(images)) for row in rows.values()
             for k in range(len(sigmas))]  # fmt: skip
    sheet = image_sheet(np.stack(cells), len(sigmas))
    height, width = sheet.shape[:2]
    count = len(images) * len(rows)
    with files.style():
        unit = min(0.62, (2 * files.COLUMN - 1.3) / len(sigmas))
        size = (max(unit * len(sigmas) + 1.3, files.COLUMN), unit * count + 0.6)
        fig, axes = files.subplots(size=size)
        picture = sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xticks([(k + 0.5) * width / len(sigmas) for k in range(len(sigmas))],
                        [f"{sigma:.2g}" for sigma in sigmas])  # fmt: skip
        axes.set_yticks([(k + 0.5) * height / count for k in range(count)],
                        [name for _ in images for name in rows])  # fmt: skip
        axes.set_xlabel(r"noise level $\sigma$ (data units)")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        files.save(fig, path)
