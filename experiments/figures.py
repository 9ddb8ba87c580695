"""Pictures of a run: grids of samples, loss per noise level, denoising trajectories."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.generate import to_uint8

INK, GREEN, ORANGE, RED = "#222222", "#2a9d5c", "#e08214", "#c0392b"


def _pyplot():
    """matplotlib without a display, loaded when a figure is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def image_sheet(images: np.ndarray, num_columns: int, *, pad: int = 1, fill: int = 255):
    """Images in rows on one sheet: ``(n, H, W, C)`` in [-1, 1] -> ``(H', W', C)`` uint8."""
    count, height, width, channels = images.shape
    num_rows = -(-count // num_columns)
    shape = (num_rows * (height + pad) + pad, num_columns * (width + pad) + pad, channels)
    sheet = np.full(shape, fill, np.uint8)
    for i, image in enumerate(to_uint8(images)):
        row, column = divmod(i, num_columns)
        top, left = pad + row * (height + pad), pad + column * (width + pad)
        sheet[top : top + height, left : left + width] = image
    return sheet


def to_pil(array: np.ndarray):
    """``(H, W, C)`` uint8 as a Pillow image, mode L or RGB."""
    from PIL import Image

    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write to, which becomes ``path`` when the file is whole: never half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    yield temporary
    temporary.replace(path)


def _save(fig: Any, path: pathlib.Path) -> None:
    """Write a figure of matplotlib and let go of it."""
    with _replacing(path) as temporary:
        fig.savefig(temporary, dpi=130, format="png")
    _pyplot().close(fig)


def save_image(path: pathlib.Path, array: np.ndarray) -> None:
    """Write ``(H, W, C)`` uint8 as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(array).save(path, format="PNG")


def sample_grid(
    path: pathlib.Path,
    images: np.ndarray,
    num_columns: int,
    *,
    row_names: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """A sheet of samples with a title, and a name in front of every row.

    Args:
      path: PNG to write.
      images: ``(n, H, W, C)`` in [-1, 1], row by row.
      num_columns: images per row.
      row_names: one for each row, or None.
      title: above the sheet.
    """
    from PIL import Image, ImageDraw, ImageFont

    size = images.shape[1]
    scale = max(1, 40 // size)  # small images are enlarged, pixels kept square
    sheet = to_pil(np.kron(image_sheet(images, num_columns), np.ones((scale, scale, 1), np.uint8)))
    font = ImageFont.load_default(size=14)
    names = list(row_names or [])
    margin = 8 + max((int(font.getlength(name)) + 10 for name in names), default=0)
    canvas = Image.new("RGB", (sheet.width + margin + 8, sheet.height + 34), "white")
    canvas.paste(sheet, (margin, 26))
    draw = ImageDraw.Draw(canvas)
    draw.text((margin, 5), title, fill=INK, font=font)
    step = (size + 1) * scale
    for row, name in enumerate(names):
        draw.text((8, 26 + row * step + step // 2), name, fill=INK, font=font, anchor="lm")
    with _replacing(path) as temporary:
        canvas.save(temporary, format="PNG")


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
      path: PNG to write.
      sigmas: ``(S,)`` noise levels.
      initial, final: ``(S, n)`` loss per element of n images at each level.
      draws: noise levels drawn from p(sigma), shown as a histogram.
      title: above the axes.
    """
    plt = _pyplot()
    fig, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for values, colour, name in ((initial, GREEN, "initial"), (final, ORANGE, "trained")):
        mean, std = values.mean(1), values.std(1)
        axes.plot(sigmas, mean, color=colour, lw=2, label=f"{name} (mean, 1 std)")
        axes.fill_between(sigmas, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
    axes.set(xscale="log", xlabel=r"noise level $\sigma$", ylabel="weighted loss per element")
    axes.set_xlim(sigmas[0], sigmas[-1])
    axes.set_ylim(
        0, max(1.5, float(np.percentile(np.r_[initial.mean(1), final.mean(1)], 95)) * 1.2)
    )
    density = axes.twinx()
    bins = np.geomspace(sigmas[0], sigmas[-1], 61)
    density.hist(draws, bins=bins, histtype="step", color=RED, ls="--", label=r"$p(\sigma)$")
    density.set(yticks=[])
    density.margins(y=0.4)
    lines = [a.get_legend_handles_labels() for a in (axes, density)]
    axes.legend(lines[0][0] + lines[1][0], lines[0][1] + lines[1][1], frameon=False)
    axes.set_title(title)
    _save(fig, path)


def denoising_trajectories(
    path: pathlib.Path,
    x: np.ndarray,
    denoised: np.ndarray,
    sigmas: np.ndarray,
    seeds: Sequence[int],
) -> None:
    """From noise to image: x_i above, D(x_i; sigma_i) below, a pair of rows per seed.

    Args:
      path: PNG to write.
      x: ``(N+1, n, H, W, C)`` states.
      denoised: ``(N, n, H, W, C)`` denoiser outputs.
      sigmas: ``(N+1,)`` noise levels.
      seeds: of the n images.
    """
    plt = _pyplot()
    steps = len(denoised)
    # Half of the columns where the noise drowns everything, half where the image forms.
    half = int(np.searchsorted(-sigmas[:-1], -3.0))
    parts = (np.linspace(0, half, 4), np.linspace(half, steps - 1, 7))
    shown = np.unique(np.concatenate(parts).clip(0, steps - 1).round().astype(int))
    # A state is shown at unit contrast: divided by its own spread, as noise has no range.
    spread = np.sqrt(sigmas[:-1] ** 2 + 1)
    rows = []
    for n in range(len(seeds)):
        rows.extend(x[i, n] / spread[i] for i in shown)
        rows.append(x[-1, n])
        rows.extend(denoised[i, n] for i in shown)
        rows.append(x[-1, n])
    columns = len(shown) + 1
    sheet = image_sheet(np.stack(rows), columns)
    height, width = sheet.shape[:2]
    unit = 0.62
    fig, axes = plt.subplots(
        figsize=(columns * unit + 1.2, 2 * len(seeds) * unit + 0.9), layout="constrained"
    )
    axes.imshow(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet, cmap="gray", vmin=0, vmax=255)
    cell_w, cell_h = width / columns, height / (2 * len(seeds))
    axes.set_xticks(
        [(k + 0.5) * cell_w for k in range(columns)],
        [rf"{sigmas[i]:.2g}" for i in shown] + ["0"],
    )
    labels = [name for s in seeds for name in (f"seed {s}   $x_i$", r"$D(x_i;\sigma_i)$")]
    axes.set_yticks([(k + 0.5) * cell_h for k in range(2 * len(seeds))], labels, fontsize=8)
    axes.set_xlabel(r"noise level $\sigma_i$")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _save(fig, path)


def training_curve(path: pathlib.Path, kimg: Sequence[float], loss: Sequence[float | None]) -> None:
    """Loss against images seen; None where it was not finite leaves a gap."""
    plt = _pyplot()
    loss = np.array([np.nan if value is None else value for value in loss], float)
    fig, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot(kimg, loss, color=INK, lw=1.5)
    axes.set(xlabel="thousands of images (kimg)", ylabel="loss per element")
    axes.set_ylim(0, 1.1 * max(loss[np.isfinite(loss)], default=1.0))
    axes.grid(alpha=0.3)
    _save(fig, path)


def evaluation_curves(
    path: pathlib.Path, kimg: Sequence[float], curves: Mapping[str, Sequence[float]]
) -> None:
    """What was evaluated during training against images seen, a panel for each measure."""
    if not curves:
        return
    plt = _pyplot()
    fig, panels = plt.subplots(
        1, len(curves), figsize=(4 * len(curves), 3.2), layout="constrained", squeeze=False
    )
    for axes, (label, values) in zip(panels[0], curves.items(), strict=True):
        axes.plot(kimg, values, color=INK, lw=1.5, marker="o", ms=3)
        axes.set(xlabel="thousands of images (kimg)", title=label)
        axes.grid(alpha=0.3)
    _save(fig, path)
