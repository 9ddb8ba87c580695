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
# # Training from scratch, and reading the diagnostics
#
# A small model of the digits, trained in about a minute with the parts of the library; then the page that
# `--mode=diagnose` writes, picture by picture. A run of one's own, resumable and evaluated, is one command:
# `python experiments/main.py --config=configs/digits.py --workdir=runs/digits`.

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
import numpy as np
from IPython.display import display

from edm_jax import models
from edm_jax.data import pipeline
from edm_jax.data.sources.digits import digits
from edm_jax.diagnostics import diagnose, write_page
from edm_jax.evaluation.loss_levels import loss_at_levels
from edm_jax.figures import diagnosis as pictures
from edm_jax.model import describe, from_description
from edm_jax.noise import EdmWeight, LogNormal
from edm_jax.precond import edm_preconditioning
from edm_jax.train.averaging import Averaging
from edm_jax.train.objective import DenoisingObjective
from edm_jax.train.optimizer import make_optimizer
from edm_jax.train.step import init_state, make_train_step

# %matplotlib inline

# %% [markdown]
# ## What is learnt
#
# Every choice of Table 1 is one value: preconditioning, distribution of noise levels, weight of the loss.

# %%
source, test = digits(), digits("test")
network = dict(
    name="SongUNet", img_resolution=8, in_channels=1, out_channels=1, label_dim=10,
    model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.0,
)  # fmt: skip
net = models.build(**network)
distribution, weight = LogNormal(0.4, 1.2), EdmWeight(0.75)
objective = DenoisingObjective(
    net.apply, edm_preconditioning(0.75), distribution, weight, num_classes=10
)
BATCH = 128
optimizer = make_optimizer(batch_size=BATCH, lr=3e-3, lr_rampup_kimg=2.0)
averaging = Averaging((2.0,), None)
variables = models.init_variables(net, jax.random.key(0))
state = init_state(variables, optimizer, averaging, objective)
step = jax.jit(
    make_train_step(objective, optimizer, averaging, batch_size=BATCH, log_every=20),
    donate_argnums=0,
)


def model_of(state):
    """The averaged weights, with everything needed to use them."""
    description = describe(
        network=network, precond={"name": "edm", "sigma_data": 0.75}, image_shape=(8, 8, 1),
        num_classes=10,
    )  # fmt: skip
    average = jax.tree.map(np.asarray, state.ema[averaging.names()[0]])
    return from_description(description, {"params": average})


# %% [markdown]
# ## Training
#
# The order of images follows from a seed alone; so do the noise levels and the noise.

# %%
sigmas = np.geomspace(0.02, 80, 16)
images = np.stack([test[i]["image"] for i in range(64)]) / 127.5 - 1
labels = np.stack([test[i]["label"] for i in range(64)])
before = loss_at_levels(model_of(state), images, sigmas, labels, weight)
batches = pipeline.host_batches(source, BATCH, seed=0, num_threads=1)
for batch in itertools.islice(batches, 160):
    state = step(state, batch, jax.random.key(1))
model = model_of(state)
after = loss_at_levels(model, images, sigmas, labels, weight)
print(
    f"{int(state.step) * BATCH} images seen, {(after.mean() / before.mean()):.0%} of the loss is left"
)

# %% [markdown]
# ## Loss per noise level (EDM Fig. 5a)
#
# At both ends nothing can be learnt: at low noise nothing is missing, at high noise nothing is there. Training belongs in
# between, and the distribution of levels puts it there.

# %%
display(pictures.loss_curves(sigmas, {"before": before, "trained": after}, "test digits"))
draws = diagnose(
    model, source, test, distribution=distribution, weight=weight, num_levels=14, num_images=48,
    num_samples=36, report=lambda line: None,
)  # fmt: skip
display(
    pictures.sigma_histogram(draws.sigma_draws, draws.levels.sigmas, "levels that training draws")
)

# %% [markdown]
# ## Against the ideal denoiser
#
# The best denoiser of the training set knows it by heart: at low noise it finds the very image. A model that has understood
# something is worse there on training images, and better than the ideal denoiser on images it has not seen.

# %%
levels, unseen = draws.levels, draws.unseen
display(pictures.error_curves(levels.sigmas, {
    "model, training": levels.error, "ideal, training": levels.ideal_error,
    "model, unseen": unseen.error, "ideal, unseen": unseen.ideal_error,
}))  # fmt: skip
display(pictures.gradient_curve(levels.sigmas, levels.gradient, "gradient of the weighted loss"))

# %% [markdown]
# ## Drawn, or remembered?
#
# Samples, and beneath each the three training images that are nearest to it in pixels.

# %%
order = np.argsort(draws.sample_neighbours.distance[:, 0])[::3]
display(pictures.neighbour_sheet(draws.samples, draws.nearest_images, order))
print(*(draws.warnings or ["nothing stands out"]), sep="\n")
print(f"sigma_data: {draws.sigma_data:.3f} measured, {draws.sigma_data_config} configured")

# %% [markdown]
# All of it as one page that can be sent to somebody:

# %%
write_page("out/3/diagnosis.html", draws, "The model of this notebook")
