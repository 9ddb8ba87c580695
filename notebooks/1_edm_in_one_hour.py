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
# # EDM in one hour
#
# A diffusion model takes noise away. Karras et al. (2022) see such a model as a few independent choices, and this
# notebook turns each of them on data where the exact answer is known: what a denoiser is, what path it implies, and
# what the choices of schedule, scaling, time steps and solver cost. No network is trained here.

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

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Image

from edm_jax import exact, grids, samplers
from edm_jax.data.sources.digits import digits
from edm_jax.exact import bed
from edm_jax.figures import curvature, denoising, flow, nfe

jax.config.update("jax_enable_x64", True)  # the exact answers deserve it
out = pathlib.Path("out/1")

# %% [markdown]
# ## The denoiser is all there is
#
# Add noise of deviation σ to an image, and ask for the best guess of what lies beneath. For a finite set of images the
# answer is a formula, the mean of the images weighted by how likely each is under the noise (EDM Fig. 1):
#
# $$D(x; \sigma) = \sum_k y_k\,\mathrm{softmax}_k\!\left(-\frac{|x - y_k|^2}{2\sigma^2}\right)$$
#
# At low noise it finds the image itself, at high noise only the mean of all images is left.

# %%
source = digits()
images = np.stack([source[i]["image"] for i in range(len(source))]) / 127.5 - 1
ideal = exact.FiniteData(np.float32(images))
denoising.denoised_images(
    out / "fig1.png", images[[3, 8]], [0.1, 0.5, 1, 2, 5, 20], {"ideal $D$": ideal.denoise}
)
Image(out / "fig1.png", width=520)

# %% [markdown]
# ## A denoiser implies a path from noise to data
#
# The probability flow moves a point so that its law at time $t$ is that of data with noise σ(t). In $x$ itself, with
# σ(t) = t, its slope is $(x - D(x;\sigma))/\sigma$. Other choices of σ(t), and of a scaling $s(t)$, draw the same paths in
# other coordinates. On one-dimensional data, two points at ±1 (EDM Fig. 3):

# %%
two_points = exact.GaussianMixture(np.array([-1.0, 1.0]), 0.02)
flow.flow_panels(out / "fig3.png", two_points, sigma_max=1.0)
Image(out / "fig3.png", width=760)

# %% [markdown]
# EDM's lines are straight but for a short bend near the data. A solver makes straight steps, so what bends costs steps.
# How much do they bend in all?

# %%
sigmas = grids.make_sigmas("edm", 300, sigma_max=25.0, sigma_min=0.02)[:-1]
starts = np.linspace(-60, 60, 31) + 0.3
lines = np.asarray(two_points.flow(np.broadcast_to(starts, (300, 31)), 25.0, sigmas))
curves = {}
for title, schedule, scaling in flow.PANELS:
    states = lines * np.asarray(scaling.scale(sigmas))[:, None]
    times = np.asarray(schedule.inverse(sigmas))
    curves[title.split(":")[0]] = sigmas[1:-1], curvature.turning_angles(states[..., None], times)
curvature.curvature_curves(out / "turns.png", curves)
Image(out / "turns.png", width=400)

# %% [markdown]
# ## Mixing the choices of Table 1
#
# The sampler called `general` takes any of them by name. We run it on a mixture of three Gaussians whose exact flow is
# known, so what is left is the solver's own error, and we count network calls.

# %%
choices = {
    "Euler, VE": {"solver": "euler", "schedule": "ve", "discretization": "ve"},
    "Euler, VP": {"solver": "euler", "schedule": "vp", "scaling": "vp", "discretization": "vp"},
    "Euler, EDM": {"solver": "euler", "discretization": "edm"},
    "Heun, VE": {"solver": "heun", "schedule": "ve", "discretization": "ve"},
    "Heun, EDM": {"solver": "heun", "discretization": "edm"},
}


def error(num_steps, discretization, **options):
    """RMS distance to the exact flow after N steps, and the network calls."""
    grid = grids.make_sigmas(discretization, num_steps)
    asked = samplers.request("general", options, sigmas=grid)
    x = bed.mixture_start(grid[0])
    result = asked(bed.MIXTURE.denoise, x, jnp.asarray(grid))
    return asked.nfe(num_steps), bed.flow_errors(np.asarray(result), x, grid)["denoised"]


lines = {
    name: [(*error(n, **settings), 0.0) for n in (6, 10, 18, 34, 66)]
    for name, settings in choices.items()
}
nfe.quality_curves(out / "table1.png", lines, "RMS error (data units)")
Image(out / "table1.png", width=420)

# %%
print(f"{'network calls':>16s}", *(f"{name:>12s}" for name in lines))
for row in zip(*lines.values(), strict=True):
    print(f"{'/'.join(sorted({str(p[0]) for p in row})):>16s}", *(f"{p[1]:12.2e}" for p in row))

# %% [markdown]
# Heun's method has order two: twice the steps, a quarter of the error. It costs two network calls a step (the last step,
# to σ = 0, costs one), and still wins at every budget but the smallest. Any choice can be changed alone, from the command line too:
#
#     python experiments/main.py --mode=study --models=runs/digits --workdir=studies/solvers \
#         --grid='sampler=euler,heun,dpmpp_2m;num_steps=6,9,18,36'
#
# ## Where the steps go
#
# The time steps of EDM crowd towards low noise: ρ = 7. Errors made there are the ones that are seen.

# %%
for rho in (1.0, 3.0, 7.0, 20.0):
    grid = grids.make_sigmas("edm", 18, rho=rho)
    asked = samplers.request("heun", sigmas=grid)
    x = bed.mixture_start(grid[0])
    result = np.asarray(asked(bed.MIXTURE.denoise, x, jnp.asarray(grid)))
    share = np.mean(grid < 1)
    print(
        f"rho {rho:4.0f}: {share:4.0%} of the levels below 1, error "
        f"{bed.flow_errors(result, x, grid)['denoised']:.1e}"
    )

# %% [markdown]
# ## What the network sees
#
# A network is not asked for D at once. Preconditioning gives it an input of unit variance and asks for an output of unit
# variance, whatever the noise level: $D = c_{skip}\,x + c_{out}\,F(c_{in}\,x;\,c_{noise})$.

# %%
from edm_jax import edm_coefs

sigma = jnp.array([0.01, 0.1, 0.5, 2.0, 80.0])
coefs = edm_coefs(sigma, 0.5)
print("sigma   ", *(f"{s:9.3g}" for s in sigma))
for name in ("c_skip", "c_out", "c_in", "c_noise"):
    print(f"{name:8s}", *(f"{v:9.3g}" for v in getattr(coefs, name)))
print("variance of the input:", np.round(coefs.c_in**2 * (0.5**2 + sigma**2), 6))

# %% [markdown]
# Next: `2_sampling_churn_guidance.ipynb`, the same on a trained model of handwritten digits.
