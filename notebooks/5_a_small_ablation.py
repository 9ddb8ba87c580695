# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A small ablation
#
# Which sampler, how many steps, how much churn? A study measures settings on the same seeds and shows what they cost.
# The same on the command line: `--mode=study` and `--mode=tune`.

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("edm_jax") is None:  # from the clone that this notebook is in
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "-e", "..[train,tune]"], check=True
    )
    sys.path.insert(0, os.path.abspath(".."))


# %%
import pathlib

from IPython.display import Image

import edm_jax
from edm_jax import studies
from edm_jax.data.sources.digits import digits
from edm_jax.studies import space, tuning

out = pathlib.Path("out/5")
model = edm_jax.load("digits.safetensors")
quiet = dict(report=lambda line: None)

# %% [markdown]
# ## How far from the accurate solution?
#
# No features are needed: every cell starts from the same latents, and the distance to what 127 network calls give is the
# error of the solver on this very model. Bars are standard errors over blocks of seeds.

# %%
study = studies.Study.from_json(
    {
        "grid": {"sampler": ["euler", "heun", "dpmpp_2m"], "num_steps": [4, 8, 16]},
        "quality": "distance", "num_images": 16, "blocks": 3,
        "accurate": {"sampler": "heun", "num_steps": 64},
    },
    models=["digits"],
)  # fmt: skip
found = studies.run(study, {"digits": model}, **quiet)
found

# %%
Image(found.draw(out / "distance")[0], width=420)

# %% [markdown]
# ## Where are the errors made?
#
# One step of a solver, begun on the accurate path, against many small ones (EDM section D.1): the paper's study of ρ. All
# cells of a number of steps run in one program: ρ is a number of it.

# %%
study = studies.Study.from_json(
    {"grid": {"num_steps": 8, "rho": [1.0, 3.0, 7.0, 20.0]}, "quality": "truncation",
     "num_images": 8, "blocks": 1},
    models=["digits"],
)  # fmt: skip
steps = studies.run(study, {"digits": model}, **quiet)
steps.draw(out / "truncation")
Image(out / "truncation" / "truncation_per_step.png", width=420)

# %% [markdown]
# ## Against real images
#
# Any metric of the evaluation works as well, here the Fréchet distance in pixels to the training digits. Noise that is added on
# the way (churn) has no accurate solution to compare with, but it has a quality.

# %%
study = studies.Study.from_json(
    {"grid": {"s_churn": [0, 1, 4], "num_steps": 12}, "quality": "frechet_pixels",
     "num_images": 150, "blocks": 2, "batch_size": 300},
    models=["digits"],
)  # fmt: skip
churn = studies.run(study, {"digits": model}, reference=digits(), **quiet)
churn

# %% [markdown]
# ## Let it search
#
# A budget of trials instead of a grid; the best is compared with the default on seeds that no trial has seen, and where it is
# not better, the default stays.

# %%
study = studies.Study.from_json(
    {"grid": {"num_steps": 8}, "quality": "distance", "num_images": 8, "blocks": 2,
     "accurate": {"sampler": "heun", "num_steps": 64}},
    models=["digits"],
)  # fmt: skip
tuned = tuning.tune(
    study,
    {"num_steps": 8},
    space.read({"rho": [2.0, 15.0], "sigma_max": None}),
    12,
    {"digits": model},
    **quiet,
)
print(tuned.report())
