"""Distributions whose denoiser, score and density are exact; the bed and promises built on them."""

from edm_jax.exact.distributions import ExactDistribution, FiniteData, Gaussian, GaussianMixture

__all__ = ["ExactDistribution", "FiniteData", "Gaussian", "GaussianMixture"]
