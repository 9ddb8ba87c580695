"""What a trained model has learnt, level by level, and what it has only remembered.

found = diagnose(model, source)
write_page("diagnosis.html", found)
"""

from edm_jax.diagnostics.diagnosis import Diagnosis, diagnose
from edm_jax.diagnostics.page import write_page

__all__ = ["Diagnosis", "diagnose", "write_page"]
