"""Model files that others wrote, read without executing anything from them."""

from edm_jax.foreign.importer import read_model_file
from edm_jax.foreign.published import write_state_dict
from edm_jax.foreign.training_state import OptimizerState, read_optimizer_state

__all__ = ["OptimizerState", "read_model_file", "read_optimizer_state", "write_state_dict"]
