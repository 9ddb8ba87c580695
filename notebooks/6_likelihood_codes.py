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
# # Likelihood, latent codes and interpolation
#
# The probability flow is a map between images and noise that can be followed both ways. Down, it draws; up, it gives every
# image a code, and along the way the change of volume gives the likelihood of the image.

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

import edm_jax
from edm_jax.data.sources.digits import digits
from edm_jax.figures import codes

out = pathlib.Path("out/6")
model = edm_jax.load("digits.safetensors")
test = digits("test")
images = np.stack([test[i]["image"] for i in range(12)])
labels = np.stack([test[i]["label"] for i in range(12)])
edm_jax.image_grid(images, labels, num_columns=12)

# %% [markdown]
# ## How likely is an image?
#
# Two numbers: the probability-flow ODE with the exact change of volume, and the variational bound, a Monte Carlo
# estimate without any ODE. Both in bits per dimension; `step_difference` says which digits the solver supports.

# %%
flow = edm_jax.log_likelihood(model, images, labels, num_steps=12)
bound = edm_jax.log_likelihood(model, images, labels, method="bound")
for name, one in (("flow", flow), ("bound", bound)):
    print(f"{name:6s} {np.mean(one.bits_per_dim):.3f} bits per dimension")
print(
    f"half the steps would change the first by {np.abs(flow.step_difference).mean() / 64:.1e} nats per dimension"
)

# %% [markdown]
# The same images under the wrong label: a model that knows its classes finds them less likely. The largest of the ten is
# a classifier that nobody trained.

# %%
guesses = np.stack(
    [
        edm_jax.log_likelihood(model, images, np.full(12, label), method="bound").bits_per_dim
        for label in range(10)
    ]
)
right = np.mean(guesses.argmin(axis=0) == labels)
print(f"{right:.0%} of the test digits are most likely under their own label")

# %% [markdown]
# ## Codes
#
# An image goes up to its code, which looks like noise, and comes back.

# %%
z = edm_jax.encode(model, images[:8], labels[:8])
again = edm_jax.decode(model, z)
pixels = np.abs(edm_jax.to_uint8(again).astype(int) - images[:8]).max()
print(f"largest difference after the way up and down: {pixels} of 255 levels")
edm_jax.image_grid(
    np.concatenate([edm_jax.to_uint8(again), images[:8]]),
    num_columns=8,
    row_names=["up and down", "test digits"],
)

# %% [markdown]
# A code holds what the label does not say: slant, stroke, position. The same codes under other labels:

# %%
asked = (0, 1, 4, 7)
others = [edm_jax.decode(model, z, np.full(8, label)) for label in asked]
edm_jax.image_grid(
    np.concatenate(others), num_columns=8, row_names=[f"as a {label}" for label in asked]
)

# %% [markdown]
# ## From one image to another
#
# On the circle between two codes every point is as likely as the ends, so all frames are digits.

# %%
frames = edm_jax.interpolate(model, images[:4], images[4:8], labels[:4], labels[4:8], num_frames=7)
edm_jax.figures.sheets.to_pil(codes.strip(frames, side=40))
