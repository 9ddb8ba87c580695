r"""Measure the images of a model against its data.

    python experiments/main.py --mode=evaluate --workdir=runs/digits
    python experiments/main.py --mode=evaluate --workdir=runs/digits --sampler=dpmpp_2m \
        --num_steps=20 --name=dpmpp

As the run was configured, the numbers go to <workdir>/evaluation.json.  Asked otherwise,
they go to <workdir>/evaluations/<name>/ and the former stay as they are; a table shows
them together.  A model without a run (a file, an import) needs the --config of its data.
"""

from __future__ import annotations

import pathlib
import types
from typing import Any

from experiments import compilation_cache, flags, sampling_flags
from experiments.config.flag import UsageError

FLAGS = (
    flags.path(
        "workdir",
        "The model: a run directory, a checkpoint or a file that edm_jax.load reads.",
        example="runs/digits",
        required=True,
    ),
    flags.config("Configuration with the data and the metrics; by default the run's.",
                 required=False),
    flags.text("variant", "Which weights; by default the first average.", example="raw"),
    flags.text("name", "Of this evaluation, by default made of what was asked.", example="dpmpp"),
    flags.path(
        "outdir",
        "Folder of the evaluations; by default <workdir>/evaluations.",
        example="evaluations",
    ),
    flags.integer("num_images", "How many images are drawn.", least=2, example="2000"),
    flags.integer("first_seed", "The seeds are this and those after it.", least=0, example="0"),
    flags.text("metrics", "Which metrics.", example="frechet_pixels,classifier"),
    *sampling_flags.FLAGS,
    compilation_cache.FLAG,
)  # fmt: skip
more_help = sampling_flags.more_help


def run(values: types.SimpleNamespace) -> None:
    """Evaluate, write and show."""
    from edm_jax import load
    from edm_jax.evaluation import protocol
    from experiments import evaluations

    asked = _request(values)
    model = load(values.workdir, variant=values.variant)
    train, test = _data(asked["experiment"], model)
    request = {
        "sampling": asked["sampling"].to_json(),
        "num_images": asked["num_images"],
        "first_seed": asked["first_seed"],
        "metrics": list(asked["metrics"]),
        "weights": model.variant,
        "progress": model.description.get("progress"),
    }
    folder = values.outdir or values.workdir / evaluations.FOLDER
    directory = _directory(values, request, folder)
    compilation_cache.enable(values.compilation_cache)
    result = protocol.evaluate(
        model,
        train,
        test,
        metrics=asked["metrics"],
        num_images=asked["num_images"],
        first_seed=asked["first_seed"],
        sampling=asked["sampling"],
        batch_size=asked["batch_size"],
    )
    file = evaluations.write(directory, result)
    print(f"\n{protocol.result_table(result)}\n\n  {file}")
    others = evaluations.found(values.workdir, folder)
    if len(others) > 1:
        print(f"\nevaluations of {values.workdir}:\n{protocol.comparison_table(others)}")


def _stored(workdir: pathlib.Path) -> Any:
    """The experiment that a run directory holds."""
    from experiments.config import build
    from experiments.workdir import read_config

    return build.experiment(read_config(workdir))


def _request(values: types.SimpleNamespace) -> dict[str, Any]:
    """What is to be evaluated, as far as it is known without the model."""
    from edm_jax import names
    from edm_jax.metrics.registry import METRICS
    from experiments.config import build

    if values.config is None:
        experiment = _stored(values.workdir)
    else:
        experiment = build.experiment(values.config)
    own = experiment.evaluation
    num_images = values.num_images or own.num_images
    if not num_images:
        raise UsageError(
            "config.evaluation.num_images is 0: there is nothing to evaluate; give --num_images"
        )
    metrics = tuple(values.metrics.split(",")) if values.metrics else tuple(own.metrics)
    for name in metrics:
        names.lookup(METRICS, name, "metric")
    return {
        "experiment": experiment,
        "sampling": sampling_flags.request(values, experiment.sampling),
        "num_images": num_images,
        "first_seed": own.first_seed if values.first_seed is None else values.first_seed,
        "metrics": metrics,
        "batch_size": values.batch_size or experiment.sample_batch,
    }


def _data(experiment: Any, model: Any) -> tuple[Any, Any]:
    """The images that the model was trained on, and others of the same kind or None."""
    from experiments.config.experiment import data_difference

    source = experiment.data.open()
    if difference := data_difference(model.description, source):
        raise ValueError(f"the model makes {difference}; give the --config of its data")
    return source, experiment.data.open_test()


def _directory(
    values: types.SimpleNamespace, request: dict[str, Any], folder: pathlib.Path
) -> pathlib.Path:
    """Where the result goes, which can be written and holds no other."""
    from experiments import evaluations
    from experiments.workdir import WorkdirError, prepare

    if values.outdir is None and not values.workdir.is_dir():
        raise UsageError(
            f"--workdir={values.workdir} is a file: say where results go, for example "
            "--outdir=evaluations"
        )
    if values.name is None and values.outdir is None and _is_headline(values, request):
        directory = values.workdir
    else:
        name = evaluations.check_name(values.name or evaluations.default_name(request))
        directory = folder / name
        evaluations.check_free(directory, request)
    try:
        prepare(directory, "workdir" if values.outdir is None else "outdir")
    except WorkdirError as error:
        cure = "" if values.outdir else "; --outdir=DIR puts results elsewhere"
        raise WorkdirError(f"{error}{cure}") from error
    return directory


def _is_headline(values: types.SimpleNamespace, request: dict[str, Any]) -> bool:
    """Whether this is the evaluation that the run itself would make."""
    from experiments import evaluations
    from experiments.workdir import CONFIG

    if values.variant is not None:
        return False
    if not (values.workdir / CONFIG).exists():
        there = evaluations.read(values.workdir)
        return there is None or evaluations.asked(there) == evaluations.asked(request)
    experiment = _stored(values.workdir)
    own = {
        "sampling": experiment.sampling.to_json(),
        "num_images": experiment.evaluation.num_images,
        "first_seed": experiment.evaluation.first_seed,
        "metrics": list(experiment.evaluation.metrics),
    }
    wanted = evaluations.asked(request)
    return all(evaluations.asked(own)[key] == wanted[key] for key in own)
