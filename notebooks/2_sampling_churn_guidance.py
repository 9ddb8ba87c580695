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
# # Sampling, churn and guidance
#
# A small model of handwritten digits, trained for three minutes on two CPU cores (`configs/digits.py:cfg`), under
# everything that can be chosen when images are drawn: solver, steps, stochasticity, guidance. Nothing here trains.

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

import numpy as np
from IPython.display import Image, display

import edm_jax
from edm_jax import guidance, karras_sigmas
from edm_jax.figures import trajectories

out = pathlib.Path("out/2")
model = edm_jax.load("digits.safetensors")
model

# %% [markdown]
# ## Images from seeds
#
# Image i depends on seed i and its label alone: not on the batch, nor on the others. The first call compiles.

# %%
images = edm_jax.sample(model, seeds=range(40), labels=np.repeat(range(10), 4), num_steps=18)
edm_jax.image_grid(images, np.repeat(range(10), 4), num_columns=10)

# %% [markdown]
# ## From noise to image
#
# Above, what the sampler carries along; below, what the network expects beneath the noise (EDM Fig. 3).

# %%
path = edm_jax.sample(model, seeds=[1, 2], labels=[3, 8], num_steps=18, trajectory=True)
sigmas = karras_sigmas(18)
trajectories.denoising_trajectories(
    out / "path.png",
    path.x,
    path.denoised,
    sigmas,
    ["seed 1, a 3", "seed 2, an 8"],
    sigma_data=0.75,
)
Image(out / "path.png", width=720)

# %% [markdown]
# ## Steps and solvers
#
# The same seeds and labels with few and with many network calls. Deterministic solvers go to the same images; how soon
# they arrive is what tells them apart.

# %%
labels = [0, 2, 3, 4, 5, 6, 8, 9]
asked = {
    "euler, 9 calls": dict(sampler="euler", num_steps=9),
    "heun, 9 calls": dict(sampler="heun", num_steps=5),
    "dpmpp_2m, 9 calls": dict(sampler="dpmpp_2m", num_steps=9),
    "heun, 199 calls": dict(sampler="heun", num_steps=100),
}
drawn = {name: edm_jax.sample(model, range(8), labels, **one) for name, one in asked.items()}
for name, some in drawn.items():
    distance = np.sqrt(np.mean((some - drawn["heun, 199 calls"]) ** 2))
    print(f"{name:20s} RMS distance to the accurate images {distance:.3f}")
edm_jax.image_grid(np.concatenate(list(drawn.values())), num_columns=8, row_names=list(drawn))

# %% [markdown]
# ## Churn: noise on the way
#
# EDM's stochastic sampler (Algorithm 2) adds a little noise before every step and takes it away again. It corrects
# errors of earlier steps, and it forgets where it came from: with more churn, the images of a seed change.
# No step adds more than a share √2 - 1 of its level: with 32 steps, S_churn above 13 changes nothing more.

# %%
rows, churns = [], (0, 1, 4, 12)
for s_churn in churns:
    settings = dict(s_churn=s_churn, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
    churned = dict(sampler="edm", **settings) if s_churn else dict(sampler="heun")
    rows.append(edm_jax.sample(model, range(8), labels, num_steps=32, **churned))
    print(f"S_churn {s_churn:2d}: RMS change {np.sqrt(np.mean((rows[-1] - rows[0]) ** 2)):.3f}")
edm_jax.image_grid(
    np.concatenate(rows), num_columns=8, row_names=[f"S_churn {s_churn}" for s_churn in churns]
)

# %% [markdown]
# ## Guidance
#
# The model has also learnt what an image without a label looks like (its training left the label out one time in ten).
# Classifier-free guidance exaggerates the difference: D + (w - 1)(D - D₀). Images of a class become more alike.

# %%
rows, scales = [], (0.0, 1.0, 2.0, 4.0)
for scale in scales:
    guided = guidance.classifier_free(scale) if scale != 1 else None
    rows.append(edm_jax.sample(model, range(10), 3, num_steps=18, guidance=guided))
    print(f"w = {scale}: deviation between the images {rows[-1].std(axis=0).mean():.3f}")
edm_jax.image_grid(
    np.concatenate(rows), num_columns=10, row_names=[f"w = {scale:g}" for scale in scales]
)

# %% [markdown]
# Guidance in an interval of noise levels (Kynkäänniemi et al. 2024) acts where it helps and costs nothing elsewhere:
# outside, the second network call is not made.

# %%
everywhere, middle = guidance.classifier_free(3.0), guidance.classifier_free(3.0, (0.3, 5.0))
pictures = [
    edm_jax.sample(model, range(10), 3, num_steps=18, guidance=g) for g in (everywhere, middle)
]
names = ("at every level", "0.3 < sigma <= 5")
for name, some in zip(names, pictures, strict=True):
    print(f"{name:18s} deviation between the images {some.std(axis=0).mean():.3f}")
display(edm_jax.image_grid(np.concatenate(pictures), num_columns=10, row_names=names))

# %% [markdown]
# Which scale, interval or churn is best for a model is a measurement, not a taste:
# `5_a_small_ablation.ipynb`, or `--mode=tune`.
