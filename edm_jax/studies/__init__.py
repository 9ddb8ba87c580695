"""Studies: many settings of sampling on the same seeds, compared.

    study = Study.from_json({"grid": {"sampler": ["euler", "heun"], "num_steps": [6, 9, 18]}})
    results = run(study, {"digits": edm_jax.load("runs/digits")}, "studies/solvers")
    print(results.table())

`--mode=study` does the same from a file.
"""

from edm_jax.studies.declaration import Study
from edm_jax.studies.results import Results
from edm_jax.studies.running import run

__all__ = ["Results", "Study", "run"]
