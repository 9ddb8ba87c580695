r"""Guidance in the plane with exact scores: what it does to densities, samples and their ways.

python experiments/main.py --mode=study --study=guidance_toy --workdir=docs

Two classes are branching trees; a model sees them blurred, a weaker one blurred more.  Writes
guidance_toy.png: the data, the model, and the model under classifier-free guidance and under
autoguidance (Karras et al. 2024, Figure 1), from the same noise.  Seconds.
"""

from __future__ import annotations

import pathlib

from edm_jax.figures.guided_toy import guided_toy
from edm_jax.guidance.toy import branching_toy


def run(workdir: pathlib.Path, *, figure_format: str = "png") -> None:
    """Draw the picture into a directory."""
    guided_toy(workdir / f"guidance_toy.{figure_format}", branching_toy())
