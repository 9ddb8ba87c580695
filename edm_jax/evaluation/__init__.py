"""Evaluation of models: images drawn, measured and compared with real ones."""

from edm_jax.evaluation.protocol import evaluate, evaluate_images
from edm_jax.evaluation.references import make_reference
from edm_jax.evaluation.reporting import comparison_table, result_table

__all__ = ["comparison_table", "evaluate", "evaluate_images", "make_reference", "result_table"]
