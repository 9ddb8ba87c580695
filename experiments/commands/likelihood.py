r"""Measure how likely images are under a model, in nats and bits per dimension.

    python experiments/main.py --mode=likelihood --workdir=runs/digits
    python experiments/main.py --mode=likelihood --workdir=runs/cifar10 --bound=ode \
        --num_images=1000 --solver=adams --num_steps=64
    python experiments/main.py --mode=likelihood --workdir=runs/digits --source=pictures.zip

Two numbers: ode, along the probability-flow ODE, and elbo, the variational bound.  Of the
run's own test images, unless other data are named.  The result is
<workdir>/likelihoods/<name>/likelihood.json, with what each number depends on and how far N
steps are from N/2; the values of single images stand beside it (ode.npz, elbo.npz), and
another request never takes the place of one.  Stopped at any moment, the same command goes
on.  docs/likelihood.md tells what the numbers mean.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from experiments import compilation_cache, flags, flow_flags
from experiments.config.flag import UsageError

if TYPE_CHECKING:
    from edm_jax.data.sources.base import ImageSource
    from edm_jax.likelihood import Settings
    from edm_jax.model import Model

FLAGS = (
    *flow_flags.MODEL,
    flags.choice("bound", ("ode", "elbo"), "Only this number; by default both.", example="ode"),
    flags.path("source", "Other images: a folder, a .zip, a .npz.", example="pictures.zip"),
    flags.config("Configuration of other data; by default the run's.", required=False),
    flags.choice("split", ("test", "train"), "Of the data; by default test.", example="test"),
    flags.integer(
        "num_images", "So many of them, always the same ones; by default all.", least=1,
        example="1000",
    ),
    flags.text(
        "labels",
        "A class for all images, or none for the all-zero label; by default those of the images.",
        example="3",
    ),
    flags.choice(
        "dequantisation", ("gaussian", "uniform", "none"),
        "How densities become probabilities of bytes; by default gaussian.", example="uniform",
    ),
    *flow_flags.SOLVER,
    flags.number("tolerance", "Of --solver=adaptive.", example="1e-5"),
    flags.integer("num_probes", "Random signs per image of the ode; 0 is the exact trace.",
                  least=0, example="1"),
    flags.integer("num_levels", "Noise levels of the elbo; of an autoregressive model the "
                  "network calls of its policy, by default one for each variable.", least=1,
                  example="128"),
    flags.integer("passes", "Draws of all noise that are averaged.", least=1, example="1"),
    flags.text("name", "Of this result, by default made of what was asked.", example="adams"),
    flags.path("outdir", "Folder of the results; by default <workdir>/likelihoods.",
               example="likelihoods"),
    *flow_flags.REFUSED,
    compilation_cache.FLAG,
)  # fmt: skip

# Flags that say something about one of the numbers only.
_OF_ODE = ("num_steps", "solver", "tolerance", "num_probes")
_OF_ELBO = ("num_levels",)


def run(values: types.SimpleNamespace) -> None:
    """Check, evaluate, write and show."""
    _check(values)
    from experiments import likelihoods
    from experiments.evaluations import check_name
    from experiments.flow_images import check_label_text, images_of
    from experiments.workdir import locked, prepare

    check_label_text(values.labels)
    if values.name is not None:
        check_name(values.name)
    model = flow_flags.load_model(values, codes=False)
    settings = _settings(values, model)
    source, told = _open(values)
    images = images_of(
        model, source, num_images=values.num_images, labels=values.labels, name=told["name"]
    )
    request = _request(values, model, settings, told | images.told())
    folder = values.outdir or values.workdir / likelihoods.FOLDER
    directory = folder / (values.name or likelihoods.default_name(request))
    prepare(directory, "workdir" if values.outdir is None else "outdir")
    with locked(directory):
        likelihoods.claim(directory, request)
        if (directory / likelihoods.RESULT).exists():
            print(f"{directory} is finished already")
        else:
            compilation_cache.enable(values.compilation_cache)
            size = flow_flags.batch_size(values, len(images.indices))
            print(f"{len(images.indices)} images of {told['name']}, {size} at a time", flush=True)
            likelihoods.measure(
                model, images, settings, request, directory,
                batch_size=size, sharding=flow_flags.sharding(),
            )  # fmt: skip
    print(f"\n{likelihoods.table(likelihoods.found(folder))}\n\n  {directory}")


def _check(values: types.SimpleNamespace) -> None:
    """Raise UsageError for flags that contradict each other."""
    for of, names in (("ode", _OF_ODE), ("elbo", _OF_ELBO)):
        for name in names:
            if name in values.given and values.bound not in (None, of):
                raise UsageError(f"--{name} belongs to --bound={of}, not to {values.bound}")
    if values.tolerance is not None and values.solver != "adaptive":
        raise UsageError("--tolerance belongs to --solver=adaptive")
    if values.solver == "adaptive" and values.num_steps is not None:
        raise UsageError("--solver=adaptive chooses its steps: leave --num_steps out")
    if values.dequantisation == "uniform" and values.bound != "ode":
        raise UsageError(
            "--dequantisation=uniform: the elbo has its own decoder of bytes; give --bound=ode too"
        )
    if values.source is not None:
        for name in ("config", "split"):
            if name in values.given:
                raise UsageError(f"--{name} and --source name two data sets: leave one out")
    if values.outdir is None and values.workdir.is_file():
        raise UsageError(
            f"--workdir={values.workdir} is a file: say where results go, for example "
            "--outdir=likelihoods"
        )


def _settings(values: types.SimpleNamespace, model: Model) -> dict[str, Settings]:
    """Of every number that is asked for."""
    from edm_jax.likelihood import kinds
    from experiments.likelihoods import METHODS

    kind = kinds.of(model)
    common = {
        "dequantisation": values.dequantisation or kind.dequantisation[0],
        "sigma_min": values.sigma_min,
        "sigma_max": values.sigma_max,
        "passes": values.passes or 1,
    }
    own: dict[str, dict[str, Any]] = {
        "ode": {name: getattr(values, name) for name in ("num_steps", "solver", "num_probes")},
        "elbo": {"num_steps": values.num_levels},
    }
    if values.tolerance is not None:
        own["ode"]["tolerance"] = values.tolerance
    numbers = [name for name, method in METHODS.items() if method in kind.methods]
    numbers = [values.bound] if values.bound else numbers
    for name in _OF_ODE:
        if name in values.given and "ode" not in numbers:
            cure = "; the calls of its policy are --num_levels" * (model.kind == "ardm")
            raise UsageError(f"--{name} belongs to --bound=ode, which this model has not{cure}")
    return {
        name: kind.settings(model, method=METHODS[name], **common, **own[name]) for name in numbers
    }


def _open(values: types.SimpleNamespace) -> tuple[ImageSource, dict[str, Any]]:
    """The images, and what they are: ``name`` and ``split``."""
    from edm_jax.data.sources.base import NoTestSplit
    from edm_jax.evaluation.pictures import open_pictures
    from experiments.config import build
    from experiments.workdir import CONFIG, read_config

    if values.source is not None:
        return open_pictures(values.source), {"name": str(values.source), "split": None}
    if values.config is not None:
        data = build.experiment(values.config).data
    elif (values.workdir / CONFIG).exists():
        data = build.experiment(read_config(values.workdir)).data
    else:
        raise UsageError(
            f"{values.workdir} has no run that says which images: give --source=FOLDER or the "
            "--config of a data set"
        )
    split = values.split or "test"
    name = f"the {split} images of {data.path or data.source}"
    try:
        return data.open(split), {"name": name, "split": split}
    except NoTestSplit as error:
        raise UsageError(
            f"{error}: give --split=train for the images trained on, or others with --source"
        ) from None


def _request(
    values: types.SimpleNamespace,
    model: Model,
    settings: dict[str, Settings],
    data: dict[str, Any],
) -> dict[str, Any]:
    """What tells a result from others, as JSON values."""
    import json

    from edm_jax.evaluation.reporting import weights_digest
    from edm_jax.likelihood.kinds import settings_json
    from experiments.workdir import to_json

    request = {
        "numbers": list(settings),
        "data": data,
        "labels": values.labels,
        "weights_sha256": weights_digest(model),
        "settings": {name: settings_json(model, one) for name, one in settings.items()},
    }
    return json.loads(json.dumps(to_json(request)))
