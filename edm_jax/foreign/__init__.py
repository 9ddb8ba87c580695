"""Foreign and own model files, read without executing anything from them.

`read_model_file` reads any known kind; `write_single_file` and `read_single_file` are the
project's own self-describing format.
"""

from edm_jax.foreign.importer import ImportedModel, read_model_file
from edm_jax.foreign.training_state import OptimizerState, read_optimizer_state
from edm_jax.store.errors import WeightsError
from edm_jax.store.single_file import read_single_file, write_single_file, write_state_dict

__all__ = [
    "ImportedModel",
    "OptimizerState",
    "WeightsError",
    "read_model_file",
    "read_optimizer_state",
    "read_single_file",
    "write_single_file",
    "write_state_dict",
]
