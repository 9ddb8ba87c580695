"""The flags of what follows a model's probability flow: likelihoods and latent codes."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from experiments import flags, guidance_flags, sampling_flags
from experiments.config.flag import UsageError

if TYPE_CHECKING:
    import pathlib

    import jax

    from edm_jax.model import Model

MODEL = (
    flags.path(
        "workdir",
        "The model: a run directory, a checkpoint or a file that edm_jax.load reads.",
        example="runs/digits",
        required=True,
    ),
    flags.text("variant", "Which weights; by default the first average.", example="raw"),
)
SOLVER = (
    flags.integer("num_steps", "Steps N of the flow.", least=2, example="32"),
    flags.number("sigma_min", "s0, where the flow ends.", example="0.002"),
    flags.number("sigma_max", "S, where the prior is.", example="80"),
    flags.text(
        "solver",
        "rk4, adams, heun or heun_sigma (and adaptive, of likelihoods); by default rk4, and adams "
        "for networks that know a table of levels.",
        example="adams",
    ),
    flags.integer("batch_size", "Images at a time.", least=1, example="64"),
)
_GUIDED = "a guided, thresholded or clipped denoiser is not the flow of a density"
_CHURNED = "the flow has no noise, which could not be undone"
REFUSED = (
    *(flags.refusal(flag.name, _GUIDED) for flag in guidance_flags.FLAGS),
    *(flags.refusal(name, _CHURNED) for name in sampling_flags.CHURN),
)


def check_free(path: pathlib.Path, flag: str, ending: str) -> None:
    """Raise unless a file to write is new, ends so, and its folder can be written."""
    from experiments.workdir import prepare

    if path.suffix != ending:
        raise UsageError(f"--{flag}={path}: must be a file that ends with {ending}")
    if path.exists():
        raise UsageError(f"--{flag}={path} exists; delete it or choose another name")
    prepare(path.parent, flag)


def load_model(values: types.SimpleNamespace, *, codes: bool = True) -> Model:
    """The model of ``--workdir``; ValueError for one without codes, or else likelihoods."""
    from edm_jax import load
    from edm_jax.likelihood import kinds

    model = load(values.workdir, variant=values.variant)
    try:
        (kinds.check_codes if codes else kinds.of)(model)
    except ValueError as error:
        raise ValueError(f"--workdir={values.workdir}: {error}") from None
    return model


def solver_options(values: types.SimpleNamespace) -> dict[str, Any]:
    """What was given of the solver, as arguments of `edm_jax.encode` and the like."""
    names = ("num_steps", "sigma_min", "sigma_max", "solver")
    return {name: getattr(values, name) for name in names if getattr(values, name) is not None}


def check_solver(model: Model, options: dict[str, Any]) -> None:
    """Raise ValueError for a solver or noise levels that the network cannot take.

    Before images are drawn or folders made; `edm_jax.encode` and the like check the same.
    """
    from edm_jax.likelihood import flow_levels
    from edm_jax.likelihood.denoisers import solver_for

    solver_for(model, options.get("solver"), adaptive=False)
    levels = {"num_steps": 2, **options}
    levels.pop("solver", None)
    flow_levels(preconditioning=model.preconditioning, **levels)


def batch_size(values: types.SimpleNamespace, count: int) -> int:
    """How many images at a time: as asked, else as the run draws, and no more than there are."""
    from experiments.config import build
    from experiments.workdir import CONFIG, read_config

    size = values.batch_size
    if size is None:
        size = 64
        if (values.workdir / CONFIG).exists():
            size = build.experiment(read_config(values.workdir)).sample_batch
    return min(size, count)


def sharding() -> jax.sharding.NamedSharding | None:
    """Over the devices of this process; None for a single one."""
    import jax

    from edm_jax.train.sharding import batch_sharding, make_mesh

    devices = jax.local_devices()
    return batch_sharding(make_mesh(devices)) if len(devices) > 1 else None
