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
# # Reflected and autoregressive diffusion
#
# Two relatives of the diffusion models of the other notebooks, on data where everything is known exactly, so that nothing is
# trained: diffusion in a box that no sample leaves, and autoregressive diffusion of discrete data in any order.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import edm_jax
from edm_jax import grids, samplers, seeds
from edm_jax.ardm import (
    Absorbing,
    Softmax,
    optimal_policies,
    sample_ardm,
    sequential_policy,
    uniform_policy,
)
from edm_jax.ardm.policy import policy_cost
from edm_jax.data.sources.digits import digits
from edm_jax.domains.box import Box
from edm_jax.reflected import sampling as reflected
from edm_jax.reflected.sources import ReflectedPoints

# %% [markdown]
# ## A box with reflecting faces (Lou and Ermon 2023)
#
# Images live in [-1, 1]. Ordinary noise leaves that box, and samplers clip. Here noise is reflected at the faces: at every
# level the state is inside, at high levels it is uniform, and nothing is ever clipped.

# %%
box = Box()
y = jnp.full((4000, 1), 0.8)
noise = jax.random.normal(jax.random.key(0), y.shape)
figure, axes = plt.subplots(1, 4, figsize=(10, 2), sharey=True)
for axis, sigma in zip(axes, (0.05, 0.3, 1.0, 3.0), strict=True):
    axis.hist(np.asarray(box.corrupt(y, sigma, noise)).ravel(), 40, (-1, 1), color="#0072B2")
    axis.set(title=f"sigma = {sigma}", xlabel="x (data units)")
axes[0].set_ylabel("samples of 4000\nin bins of 0.05")
figure.tight_layout()

# %% [markdown]
# Its denoiser is known for a few points. Any sampler runs on it, through the same registry; the samples are the points, in
# their proportions.

# %%
points = np.float32([[-0.9, -0.5], [-0.2, 0.6], [0.4, -0.8], [0.9, 0.9]])
weights = np.float32([0.1, 0.2, 0.3, 0.4])
source = ReflectedPoints(points, weights, box)
sigmas = grids.make_sigmas("ve", 60, sigma_min=0.01, sigma_max=4.0)
keys = seeds.image_keys(range(4000))
latents = seeds.latents(keys, (4000, 2))
for name in ("reflected", "heun"):
    run = jax.jit(
        lambda noise, keys, s=samplers.get(name): reflected.run(
            s, source.denoise, noise, sigmas, keys
        )
    )
    drawn = np.asarray(run(latents, keys))
    nearest = np.argmin(((drawn[:, None] - points) ** 2).sum(-1), axis=1)
    share = np.bincount(nearest, minlength=4) / len(drawn)
    print(
        f"{name:10s} inside: {np.all(np.abs(drawn) <= 1)}, shares {np.round(share, 3)} of {weights}"
    )

# %% [markdown]
# A trained one: `configs/digits_reflected.py`.
#
# ## Autoregressive diffusion: any order, several at once (Hoogeboom et al. 2022)
#
# The data are black and white digits, the variables their 64 pixels. A model of any order says how likely every unknown pixel
# is black, given those that are known. Of a set of images this is a count, softened so that a few odd pixels do not rule an image
# out.

# %%
train = digits()
binary = np.stack([train[i]["image"][..., 0] for i in range(len(train))]) > 127
patterns = jnp.asarray(binary.reshape(-1, 64), jnp.float32)
SOFT = 2.0  # nats for each pixel that disagrees


def predict(x_in, known, t, stage):
    """log p(pixel = 0 or 1 | the known pixels), (B, 64, 2)."""
    shown = jnp.where(known, x_in, 0).astype(jnp.float32)
    black, white = shown, jnp.where(known, 1 - shown, 0.0)
    agree = black @ patterns.T + white @ (1 - patterns).T
    disagree = known.sum(-1, keepdims=True) - agree
    share = jax.nn.softmax(-SOFT * disagree, axis=-1) @ patterns
    share = 0.98 * share + 0.01
    return jnp.log(jnp.stack([1 - share, share], -1))


process = Absorbing(Softmax(2), absorbing=2)  # unknown pixels show a class of their own
keys = seeds.image_keys(range(20))
draw = jax.jit(lambda keys, policy: sample_ardm(predict, process, keys, (64,), policy))
images = draw(keys, sequential_policy(64))
edm_jax.image_grid(np.asarray(images, np.uint8).reshape(-1, 8, 8, 1) * 255, num_columns=10)

# %% [markdown]
# ## Several pixels at once
#
# 64 pixels take 64 calls. Fewer calls draw several pixels independently, which costs bits: how many, follows from what a pixel costs
# after t known ones. From that profile a dynamic program finds the best policy for any budget.

# %%
test = digits("test")
held = jnp.asarray(
    np.stack([test[i]["image"][..., 0] for i in range(100)]).reshape(-1, 64) > 127, jnp.int32
)
ranks = jnp.argsort(jax.random.uniform(jax.random.key(1), held.shape), axis=1).argsort(1)


def cost(t):
    """Mean nats of an unknown pixel after t known ones."""
    known = ranks < t
    logp = predict(held, known, t, 0)
    own = jnp.take_along_axis(logp, held[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(known, 0, own)) / jnp.sum(~known)


profile = np.asarray(jax.lax.map(jax.jit(cost), jnp.arange(64)))
figure, axis = plt.subplots(figsize=(5, 2.6))
axis.plot(profile, color="#0072B2")
axis.set(xlabel="known pixels t", ylabel="nats of the next pixel")
for calls in (4, 8, 16, 64):
    best, even = optimal_policies(profile, calls)[0], uniform_policy(calls, 64)
    bits = [policy_cost(np.sort(profile)[::-1], p) / np.log(2) / 64 for p in (best, even)]
    print(
        f"{calls:2d} calls: {bits[0]:.3f} bits per pixel with the best policy, {bits[1]:.3f} with equal steps"
    )

# %%
few = [draw(keys, optimal_policies(profile, calls)[0]) for calls in (4, 16)]
edm_jax.image_grid(
    np.asarray(jnp.concatenate([f[:10] for f in few]), np.uint8).reshape(-1, 8, 8, 1) * 255,
    num_columns=10,
    row_names=["4 calls", "16 calls"],
)

# %% [markdown]
# ## Filling in
#
# Any pixels may be given: here the upper half of test digits. What is known never changes.

# %%
given = jnp.broadcast_to(jnp.arange(64) < 32, (20, 64))
filled = jax.jit(
    lambda keys, values: sample_ardm(
        predict, process, keys, (64,), sequential_policy(64), values=values, given=given
    )
)(keys, held[:20])
assert np.array_equal(filled[:, :32], held[:20, :32])
shown = np.stack([np.asarray(held[:20]), np.asarray(filled)], 1)[:10].transpose(1, 0, 2)
edm_jax.image_grid(
    shown.reshape(-1, 8, 8, 1).astype(np.uint8) * 255,
    num_columns=10,
    row_names=["test digits", "filled in"],
)
