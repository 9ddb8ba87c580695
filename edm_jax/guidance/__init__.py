"""Guidance: from a denoiser to a denoiser.

    guidance = classifier_free(scale=2.0, interval=(0.19, 1.61))
    denoise = guidance.guide(model.denoise)          # denoise(x, sigma, rows)
    sample_heun(lambda x, sigma: denoise(x, sigma, rows), x, sigmas)

Each guidance is a pytree of numbers and models, so a jitted function takes it as an
argument and new scales never recompile.  `chain` and `added` put several together.
"""

from edm_jax.guidance.autoguidance import Autoguidance, autoguidance
from edm_jax.guidance.base import Guidance, Interval, LabelledDenoiseFn
from edm_jax.guidance.by_step import sample_heun_by_step
from edm_jax.guidance.classifier import (
    ClassifierGuidance,
    classifier_gradient,
    classifier_guidance,
    log_likelihood,
)
from edm_jax.guidance.classifier_free import ClassifierFree, classifier_free
from edm_jax.guidance.compose import (
    Chain,
    Sum,
    added,
    chain,
    guided_denoiser,
    label_dim,
    mean_shift,
    shifts_mean,
)
from edm_jax.guidance.cost import network_rows, visited_levels
from edm_jax.guidance.limits import (
    DynamicThreshold,
    StaticThreshold,
    dynamic_clip,
    dynamic_threshold,
    image_quantile,
    static_threshold,
)

# By the name that a configuration or a flag gives them; those with a second model take it as
# ``classifier`` or ``weaker``.
GUIDANCES = {
    "classifier_free": classifier_free,
    "autoguidance": autoguidance,
    "classifier": classifier_guidance,
    "static_threshold": static_threshold,
    "dynamic_threshold": dynamic_threshold,
}

__all__ = [
    "GUIDANCES",
    "Autoguidance",
    "Chain",
    "ClassifierFree",
    "ClassifierGuidance",
    "DynamicThreshold",
    "Guidance",
    "Interval",
    "LabelledDenoiseFn",
    "StaticThreshold",
    "Sum",
    "added",
    "autoguidance",
    "chain",
    "classifier_free",
    "classifier_gradient",
    "classifier_guidance",
    "dynamic_clip",
    "dynamic_threshold",
    "guided_denoiser",
    "image_quantile",
    "label_dim",
    "log_likelihood",
    "mean_shift",
    "network_rows",
    "sample_heun_by_step",
    "shifts_mean",
    "static_threshold",
    "visited_levels",
]
