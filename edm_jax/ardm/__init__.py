"""Autoregressive diffusion: discrete data, any order, several variables at once.

    orders      random orders as ranks; which step of an order an example shows
    outputs     distributions of one variable: softmax, mixtures of logistics
    process     what is shown and what is drawn: the plain model (`Absorbing`)
    upscale     the model from coarse to fine (`Upscale`)
    objective   the training loss; its history is the `profile` of losses per step
    policy      which variables to draw at once, and the cheapest way to do so
    sample      one scan over a policy; inpainting
    likelihood  bounds, exact code lengths
    registry    models by name; what the functions above take of a loaded one
    request     how many calls and which policy: what `edm_jax.sample` takes
    drawing     batches of a loaded model
    model_bits  bits per dimension of data under a loaded model
    codec       lossless compression

Hoogeboom et al. 2022, "Autoregressive Diffusion Models".  t counts the known variables,
0..D-1 (the paper's t is one more).
"""

from edm_jax.ardm.model_bits import model_bits
from edm_jax.ardm.objective import OrderAgnostic
from edm_jax.ardm.outputs import DiscretizedLogistic, DiscretizedLogisticRGB, Softmax
from edm_jax.ardm.policy import optimal_policies, policy_table, sequential_policy, uniform_policy
from edm_jax.ardm.process import Absorbing, network_predictor
from edm_jax.ardm.profile import LossProfile
from edm_jax.ardm.registry import build, model_predictor, network_sizes
from edm_jax.ardm.request import Decoding
from edm_jax.ardm.sample import Path, sample_ardm
from edm_jax.ardm.upscale import Upscale

__all__ = [
    "Absorbing",
    "Decoding",
    "DiscretizedLogistic",
    "DiscretizedLogisticRGB",
    "LossProfile",
    "OrderAgnostic",
    "Path",
    "Softmax",
    "Upscale",
    "build",
    "model_bits",
    "model_predictor",
    "network_predictor",
    "network_sizes",
    "optimal_policies",
    "policy_table",
    "sample_ardm",
    "sequential_policy",
    "uniform_policy",
]
