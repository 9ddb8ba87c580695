"""Log densities and latent codes of a denoiser through its probability flow.

On denoise functions and arrays of any shape: `flow_log_likelihood`, `adaptive_log_likelihood`,
`elbo`, `flow_encode`, `flow_decode`, `slerp`.  On a Model and its images: `log_likelihood`,
`encode`, `decode`, `interpolate`, which `edm_jax` exports.
"""

from edm_jax.likelihood.adaptive import adaptive_log_likelihood
from edm_jax.likelihood.bound import Bound, elbo
from edm_jax.likelihood.codes import flow_decode, flow_encode, slerp
from edm_jax.likelihood.divergence import exact_trace, hutchinson_trace, probe_vectors
from edm_jax.likelihood.flow import FlowLikelihood, Prior, flow_log_likelihood
from edm_jax.likelihood.kinds import likelihood_settings
from edm_jax.likelihood.levels import flow_levels, noise_range
from edm_jax.likelihood.model_codes import Codes, decode, encode, interpolate
from edm_jax.likelihood.model_likelihood import log_likelihood
from edm_jax.likelihood.quantisation import bits_per_dim
from edm_jax.likelihood.results import Likelihood, Settings

__all__ = [
    "Bound",
    "Codes",
    "FlowLikelihood",
    "Likelihood",
    "Prior",
    "Settings",
    "adaptive_log_likelihood",
    "bits_per_dim",
    "decode",
    "elbo",
    "encode",
    "exact_trace",
    "flow_decode",
    "flow_encode",
    "flow_levels",
    "flow_log_likelihood",
    "hutchinson_trace",
    "interpolate",
    "likelihood_settings",
    "log_likelihood",
    "noise_range",
    "probe_vectors",
    "slerp",
]
