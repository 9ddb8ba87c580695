"""Model files that others wrote, read without executing anything from them."""

from edm_jax.foreign.importer import read_model_file
from edm_jax.foreign.published import write_state_dict

__all__ = ["read_model_file", "write_state_dict"]
