"""Where data live, and how noise behaves there: a box with reflecting faces."""

from edm_jax.domains.box import Box, Domain

__all__ = ["Box", "Domain"]
