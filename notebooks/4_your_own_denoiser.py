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
# Every sampler takes a function `denoise(x, sigma)`, and `edm_jax.from_denoiser` makes a model of it that `edm_jax.sample` and
# everything else takes. Where it comes from does not matter: here are a formula, a Flax NNX network, an Equinox network, a
# network that predicts noise, and weights of another program.

# %%
import importlib.util
import os
import subprocess
import sys

if not all(importlib.util.find_spec(name) for name in ("edm_jax", "equinox", "safetensors")):
    subprocess.run(  # from the clone that this notebook is in
        [sys.executable, "-m", "pip", "install", "-q", "-e", "..[train,tune,notebooks]"], check=True
    )
    sys.path.insert(0, os.path.abspath(".."))


# %%
import functools
import itertools
import pathlib
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from IPython.display import display
from safetensors.numpy import save_file

import edm_jax
from edm_jax import adapters, foreign, models, samplers
from edm_jax.model import from_description
from edm_jax.noise import LogNormal, edm_weight, sample_sigma

out = pathlib.Path("out/4")
out.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## A plain function
#
# The data: two interleaved half circles. Of these points the best denoiser is a formula. It is called with a batch of points, or
# of images, and a noise level for each.

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
    return jax.nn.softmax(-distances / (2 * sigma[:, None] ** 2), axis=1) @ points


formula = edm_jax.from_denoiser(ideal, image_shape=(2,))
draw = functools.partial(edm_jax.sample, seeds=range(1500), num_steps=18, batch_size=1500)
drawn = {"formula": draw(formula)}
print(formula, drawn["formula"].shape)

# %% [markdown]
# ## A Flax NNX network
#
# `precondition` makes a denoiser of any network `net(c_in x, c_noise)`; the loss takes any denoiser. That is the whole
# training of a diffusion model, and it is the same for every kind of module: NNX and Equinox modules are pytrees of their
# weights.


# %%
SIZES = (2 + 16, 128, 128, 128, 2)


def features(x, c_noise):
    """A point, and waves of its noise level."""
    level = jnp.broadcast_to(c_noise, x.shape[:1])[:, None] * 2.0 ** jnp.arange(-2, 6)
    return jnp.concatenate([x, jnp.sin(level), jnp.cos(level)], -1)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(SIZES)])

    def __call__(self, x, c_noise):
        h = features(x, c_noise)
        for layer in self.layers[:-1]:
            h = nnx.silu(layer(h))
        return self.layers[-1](h)


def denoise(net, x, sigma):
    return edm_jax.precondition(net, edm_jax.edm_coefs)(x, sigma)


@jax.jit
def train(net):
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 3000))

    def step(carry, key):
        net, state = carry
        which, level, noise = jax.random.split(key, 3)
        y = jnp.asarray(points)[jax.random.randint(which, (256,), 0, len(points))]
        sigma = sample_sigma(LogNormal(), level, (256,))
        noise = jax.random.normal(noise, y.shape)

        def loss(net):
            own = functools.partial(denoise, net)
            return edm_jax.denoising_loss(own, y, sigma, noise, edm_weight).mean()

        value, gradient = jax.value_and_grad(loss)(net)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(net, updates), state), value

    keys = jax.random.split(jax.random.key(0), 3000)
    (net, _), losses = jax.lax.scan(step, (net, optimizer.init(net)), keys)
    return net, losses


net, losses = train(Net(nnx.Rngs(0)))
print(f"loss {losses[:100].mean():.3f} -> {losses[-100:].mean():.3f}")

# %% [markdown]
# A function of weights is passed with them, as a `jax.tree_util.Partial`: the compiled program takes them as an argument, and
# other weights of the same network compile nothing anew. (A module that is a denoiser itself is passed as it is.)

# %%
of_nnx = edm_jax.from_denoiser(jax.tree_util.Partial(denoise, net), image_shape=(2,))
drawn["Flax NNX"] = draw(of_nnx)
of_nnx


# %% [markdown]
# ## An Equinox network
#
# Nothing else changes.


# %%
class EquinoxNet(eqx.Module):
    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, len(SIZES) - 1)
        pairs = zip(itertools.pairwise(SIZES), keys, strict=True)
        self.layers = [eqx.nn.Linear(a, b, key=key) for (a, b), key in pairs]

    def __call__(self, x, c_noise):
        h = features(x, c_noise)
        for layer in self.layers[:-1]:
            h = jax.nn.silu(jax.vmap(layer)(h))
        return jax.vmap(self.layers[-1])(h)


net, losses = train(EquinoxNet(jax.random.key(0)))
print(f"loss {losses[:100].mean():.3f} -> {losses[-100:].mean():.3f}")
of_equinox = edm_jax.from_denoiser(jax.tree_util.Partial(denoise, net), image_shape=(2,))
drawn["Equinox"] = draw(of_equinox)
of_equinox

# %% [markdown]
# ## Any sampler
#
# The registry has them by name, with what each promises.

# %%
drawn["Equinox, DPM-Solver++"] = draw(of_equinox, sampler="dpmpp_2m")
for name in ("dpmpp_2m", "heun"):
    print(f"{name}: {samplers.get(name).nfe(18)} network calls")
figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), sharex=True, sharey=True)
for axis, (title, some) in zip(axes, drawn.items(), strict=True):
    axis.plot(*some.T, ".", ms=2, color="#0072B2")
    axis.set(title=title, aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    axis.set_xlabel("$x_1$ (data units)")
axes[0].set_ylabel("$x_2$ (data units)")
figure.tight_layout()

# %% [markdown]
# ## A network that predicts something else
#
# Noise, velocity, score: an adapter says what the network was trained on, and the result is a denoiser again. Here the
# noise that our own denoiser would predict, as a network of the variance-preserving kind would see it.

# %%
path = adapters.VPPath()


def eps_net(z, label):
    """z = alpha (y + sigma n); the label is 999 t.  Predicts n."""
    sigma = jnp.broadcast_to(path.sigma(label), z.shape[:1])
    x = z * jnp.sqrt(1 + sigma**2)[:, None]
    return (x - of_nnx.denoise(x, sigma)) / sigma[:, None]


from_eps = edm_jax.from_denoiser(adapters.adapt(eps_net, "eps", path), image_shape=(2,))
difference = np.abs(draw(from_eps) - drawn["Flax NNX"])
print(f"distance to what the denoiser itself draws: median {np.median(difference):.1e}")

# %% [markdown]
# ## Imported weights
#
# `edm_jax.load` reads a run, a checkpoint, a single file, and the files of published programs without executing anything in
# them: `.pkl` of EDM, `.pt` of guided-diffusion, state dictionaries in the names of either as `.pt` or `.safetensors`.
#
# A program in PyTorch would write our digits like this: kernels in its layout (OIHW), by the names of EDM's networks.

# %%
digits = edm_jax.load("digits.safetensors")
state_dict = models.to_state_dict(digits.variables, digits.net)
tensors = {f"model.{name}": np.array(kernel) for name, kernel in state_dict.items()}
save_file(tensors, out / "other.safetensors")
for name in ("enc.8x8_conv.weight", "enc.4x4_down.conv0.weight", "dec.8x8_aux_conv.bias"):
    print(f"model.{name:28s}", state_dict[name].shape)

# %% [markdown]
# Such a file holds weights and nothing else. The network is seen from their names and shapes; what leaves no trace in them
# is assumed, and said:

# %%
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    imported = edm_jax.load(out / "other.safetensors")
print(imported)
print(said[0].message)

# %% [markdown]
# The digits were trained with σ_data = 0.75, so that the assumption is wrong. With what the publisher says beside the file, the model is the
# same (on the command line: `--mode=import --source_options`), and draws what it always drew.

# %%
found = foreign.read_model_file(
    out / "other.safetensors", config={"precond": {"name": "edm", "sigma_data": 0.75}}
)
imported = from_description(found.description, found.variables["ema"])
asked = dict(seeds=range(10), labels=range(10), num_steps=12)
pictures = [edm_jax.sample(model, **asked) for model in (digits, imported)]
print(f"largest difference of a pixel: {np.abs(pictures[0] - pictures[1]).max():.1e}")
display(
    edm_jax.image_grid(np.concatenate(pictures), num_columns=10, row_names=["ours", "imported"])
)

# %% [markdown]
# Each of these models is also a function, `model.denoise(x, sigma, labels)`, pure, to be jitted, vmapped and
# differentiated. docs/using_models.md has it inside Linen, NNX and Equinox modules of another program.
