"""One page about a model that a person can send to a colleague: pictures are inside."""

from __future__ import annotations

import base64
import html
import io
import os
import pathlib
from typing import Any

import numpy as np

from edm_jax.arguments import user_path
from edm_jax.diagnostics.diagnosis import Diagnosis, copies
from edm_jax.figures import diagnosis as draw
from edm_jax.figures import files
from edm_jax.figures.sheets import image_grid

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 0; flex: 1 1 20rem; }}
figure svg, figure img {{ width: 100%; height: auto; }}
img.pixels {{ image-rendering: pixelated; width: auto; max-width: 100%; }}
figcaption {{ color: #555; font-size: 0.9rem; }}
.warning {{ background: #fff3cd; border-left: 4px solid #e69f00; padding: 0.5rem 1rem; }}
.good {{ background: #e7f5ee; border-left: 4px solid #009e73; padding: 0.5rem 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 0.2rem 0.8rem 0.2rem 0; text-align: left;
vertical-align: top; }}
</style></head><body>
"""


def _svg(figure: Any) -> str:
    """A figure of matplotlib as markup; text stays text."""
    file = io.StringIO()
    with files.style():
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _png(image: Any) -> str:
    """A Pillow image as an element."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="pixels" alt="images" src="data:image/png;base64,{data}">'


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _plots(found: Diagnosis) -> list[str]:
    sigmas, own, unseen = found.levels.sigmas, found.levels, found.unseen
    losses = {"training images": own.loss}
    curves = {"model, training images": own.error, "ideal, training images": own.ideal_error}
    apart = {"training images": own.from_ideal}
    if unseen is not None:
        losses["unseen images"] = unseen.loss
        curves |= {"model, unseen images": unseen.error, "ideal, unseen images": unseen.ideal_error}
        apart["unseen images"] = unseen.from_ideal
    return [
        _figure(_svg(draw.loss_curves(sigmas, losses)),
                "Loss per noise level (mean and one deviation of images). 1 is no better than "
                "knowing nothing at either end; the gap between the curves is overfitting."),
        _figure(_svg(draw.error_curves(sigmas, curves)),
                "Denoising error, and that of the ideal denoiser of the training set, which knows "
                "it by heart (errors of 0 are not drawn). The model should be above it at low "
                "levels."),
        _figure(_svg(draw.error_curves(sigmas, apart)),
                "Distance to the ideal denoiser. At high levels it should vanish: there every "
                "denoiser gives the mean of the data."),
        _figure(_svg(draw.gradient_curve(sigmas, own.gradient)),
                "Gradient norm of the weighted loss. A level with far larger gradients than the "
                "others decides every step of the training."),
        _figure(_svg(draw.sigma_histogram(found.sigma_draws, sigmas)),
                "Levels that training draws."),
    ]  # fmt: skip


def _facts(found: Diagnosis) -> dict[str, str]:
    config = found.sigma_data_config
    distances = found.sample_neighbours.distance[:, 0]
    facts = {
        "model": str(found.told.get("model", "")),
        "weights": str(found.told.get("weights", "")),
        "training images": str(found.told.get("training_images", "")),
        "sigma_data": f"{found.sigma_data:.4g} measured"
        + ("" if config is None else f", {config:.4g} configured"),
        "spread": f"{found.spread:.4g} between two samples, {found.training_spread:.4g} between "
        "two training images (RMS per element)",
        "nearest training image": f"{np.median(distances):.4g} (median over samples)",
    }
    if found.unseen_neighbours is not None:
        unseen = np.median(found.unseen_neighbours.distance[:, 0])
        facts["nearest training image"] += f", {unseen:.4g} (unseen real images)"
    facts["near copies"] = f"{copies(found)} of {len(found.samples)} samples"
    return facts


def render(found: Diagnosis, title: str = "Diagnosis") -> str:
    """The page as text."""
    parts = [_HEAD.format(title=html.escape(title)), f"<h1>{html.escape(title)}</h1>"]
    if not found.warnings:
        parts.append('<p class="good">Nothing stands out.</p>')
    parts += [f'<p class="warning">{html.escape(line)}</p>' for line in found.warnings]
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
        for key, value in _facts(found).items()
    )
    parts.append(f"<table>{rows}</table>")
    parts.append(f'<h2>Noise levels</h2><div class="plots">{"".join(_plots(found))}</div>')
    order = np.argsort(found.sample_neighbours.distance[:, 0])
    nearest, typical = order[:12], order[:: max(1, len(order) // 12)][:12]
    groups = {"samples": found.sample_neighbours.distance[:, 0]}
    if found.unseen_neighbours is not None:
        groups["unseen images"] = found.unseen_neighbours.distance[:, 0]
    parts.append("<h2>Samples and their nearest training images</h2>")
    sheets = [
        (typical, "Samples (top row), from the nearest to the farthest, and beneath each the three "
         "training images nearest to it in pixels."),
        (nearest, "The twelve samples that are nearest to a training image."),
    ]  # fmt: skip
    for chosen, caption in sheets:
        sheet = draw.neighbour_sheet(found.samples, found.nearest_images, chosen)
        parts.append(_figure(_png(sheet), caption))
    parts.append('<div class="plots">')
    parts.append(_figure(_svg(draw.distance_histogram(groups)),
                         "Distances to the nearest training image. Samples that are much nearer "
                         "than unseen images are copies."))  # fmt: skip
    parts.append(_figure(_png(image_grid(found.samples)), "All samples, not chosen.") + "</div>")
    return "\n".join([*parts, "</body></html>\n"])


def write_page(
    path: str | os.PathLike[str], found: Diagnosis, title: str = "Diagnosis"
) -> pathlib.Path:
    """Write the page, whole or not at all; nothing beside it is needed to read it."""
    path = user_path("path", path)
    text = render(found, title)
    with files.replacing(path) as temporary:
        temporary.write_text(text)
    return path
