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
# # Your own denoiser, or somebody's weights
#
# Every sampler takes a function `denoise(x, sigma)`. Where it comes from does not matter: a formula, a Flax NNX or
# Equinox network of your own, a network that predicts noise, or published weights.

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
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import edm_jax
from edm_jax import adapters, samplers, seeds
from edm_jax.noise import LogNormal, edm_weight, sample_sigma

# %% [markdown]
# ## A plain function
#
# The data: two interleaved half circles. Of these points the denoiser is a formula.

# %%
rng = np.random.default_rng(0)
angle = rng.uniform(0, np.pi, 2000)
upper = rng.uniform(size=2000) < 0.5
points = np.stack([np.where(upper, np.cos(angle), 1 - np.cos(angle)),
                   np.where(upper, np.sin(angle), 0.5 - np.sin(angle))], 1)  # fmt: skip
points = np.float32((points - points.mean(0)) / points.std(0) * 0.5)  # sigma_data = 0.5


def ideal(x, sigma):
    """The best guess of a point under noise: a weighted mean of all points."""
    distances = jnp.sum((x[:, None] - points[None]) ** 2, -1)
    return jax.nn.softmax(-distances / (2 * sigma**2), axis=1) @ points


sigmas = edm_jax.karras_sigmas(18)
keys = seeds.image_keys(range(1500))
noise = seeds.latents(keys, (1500, 2))
exact = edm_jax.sample_heun(ideal, noise * sigmas[0], sigmas)

# %% [markdown]
# ## A Flax NNX network
#
# `precondition` makes a denoiser of any network `net(c_in x, c_noise)`; the loss takes any denoiser. That is the whole
# training of a diffusion model.


# %%
class Net(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        sizes = (2 + 16, width, width, width, 2)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x, c_noise):
        level = jnp.broadcast_to(c_noise, x.shape[:1])[:, None] * 2.0 ** jnp.arange(-2, 6)
        h = jnp.concatenate([x, jnp.sin(level), jnp.cos(level)], -1)
        for layer in self.layers[:-1]:
            h = nnx.silu(layer(h))
        return self.layers[-1](h)


net = Net(128, nnx.Rngs(0))
graph, params = nnx.split(net)
optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 3000))


def denoiser(params):
    return edm_jax.precondition(nnx.merge(graph, params), edm_jax.edm_coefs)


@jax.jit
def train(params):
    def step(carry, key):
        params, state = carry
        which, level, noise = jax.random.split(key, 3)
        y = jnp.asarray(points)[jax.random.randint(which, (256,), 0, len(points))]
        sigma = sample_sigma(LogNormal(), level, (256,))
        noise = jax.random.normal(noise, y.shape)

        def loss(params):
            return edm_jax.denoising_loss(denoiser(params), y, sigma, noise, edm_weight).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(jax.random.key(0), 3000)
    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params, losses


params, losses = train(params)
print(f"loss {losses[:100].mean():.3f} -> {losses[-100:].mean():.3f}")
learnt = edm_jax.sample_heun(denoiser(params), noise * sigmas[0], sigmas)

# %% [markdown]
# ## Any sampler
#
# The registry has them by name, with what each promises.

# %%
dpmpp = samplers.get("dpmpp_2m")
fast = jax.jit(lambda x, s: dpmpp(denoiser(params), x, s))(noise * sigmas[0], jnp.asarray(sigmas))
print(f"dpmpp_2m: {dpmpp.nfe(18)} network calls, Heun: {samplers.get('heun').nfe(18)}")
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True)
for axis, (title, some) in zip(
    axes, {"formula": exact, "NNX, Heun": learnt, "NNX, DPM-Solver++": fast}.items(), strict=True
):
    axis.plot(*np.asarray(some).T, ".", ms=2, color="#0072B2")
    axis.set(title=title, aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
figure.tight_layout()

# %% [markdown]
# ## A network that predicts something else
#
# Noise, velocity, score: an adapter says what the network was trained on, and the result is a denoiser again. Here the
# noise that our own denoiser would predict, as a network of the variance-preserving kind would see it.

# %%
path = adapters.VPPath()


def eps_net(z, label, *args):
    """z = alpha (y + sigma n); the label is 999 t.  Predicts n."""
    sigma = path.sigma(label)
    column = jnp.reshape(sigma, (-1, 1))
    x = z * jnp.sqrt(1 + column**2)
    return (x - denoiser(params)(x, jnp.broadcast_to(sigma, x.shape[:1]))) / column


from_eps = adapters.adapt(eps_net, "eps", path)
level = jnp.full(len(noise), 0.7)
x = jnp.asarray(points[:1500]) + 0.7 * noise
difference = jnp.abs(from_eps(x, level) - denoiser(params)(x, level)).max()
print(f"largest difference to the denoiser itself: {difference:.1e}")

# %% [markdown]
# ## Imported weights
#
# `edm_jax.load` reads a run, a checkpoint, a single file, and the files of published programs (`.pkl` of EDM, `.pt` of
# guided-diffusion) without executing anything in them. What comes back is one object with everything in it.

# %%
model = edm_jax.load("digits.safetensors")
print(model)
edm_jax.image_grid(
    edm_jax.sample(model, seeds=range(10), labels=range(10), num_steps=12), num_columns=10
)

# %% [markdown]
# Its denoiser is a function like the others: `model.denoise(x, sigma, labels)`, pure, to be jitted, vmapped and
# differentiated. docs/using_models.md has the same inside Linen, NNX and Equinox modules.
