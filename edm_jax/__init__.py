"""Diffusion models as EDM (Karras et al. 2022) describes them, in JAX and Flax."""
