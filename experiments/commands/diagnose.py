r"""Look into a trained model: one page of pictures and warnings.

    python experiments/main.py --mode=diagnose --workdir=runs/digits

Writes <workdir>/diagnosis.html, which needs nothing beside it: loss and error per noise level
against the ideal denoiser of the training set, gradient norms, the levels that training draws,
sigma_data as measured, and samples beside the training images that are nearest to them.
"""

from __future__ import annotations

import types

from experiments import compilation_cache, flags, sampling_flags

FLAGS = (
    flags.path("workdir", "The model: a run directory, a checkpoint or a file that edm_jax.load "
               "reads.", example="runs/digits", required=True),
    flags.config("Configuration with its data; by default the run's.", required=False),
    flags.path("dest", "The page; by default <workdir>/diagnosis.html.", example="page.html"),
    flags.text("variant", "Which weights; by default the first average.", example="raw"),
    flags.integer("num_levels", "Noise levels.", least=2, default=20, example="20"),
    flags.integer("num_images", "Images whose errors are measured.", least=2, default=64,
                  example="64"),
    flags.integer("num_samples", "Samples that are drawn.", least=2, default=64, example="64"),
    flags.integer("max_training", "Training images of the ideal denoiser, at most.", least=2,
                  default=50_000, example="50000"),
    *sampling_flags.FLAGS,
    compilation_cache.FLAG,
)  # fmt: skip
more_help = sampling_flags.more_help


def run(values: types.SimpleNamespace) -> None:
    """Measure and write."""
    from edm_jax import load
    from edm_jax.diagnostics import diagnose, write_page
    from experiments.config import build
    from experiments.config.flag import UsageError
    from experiments.workdir import prepare, read_config

    if values.dest is None and values.workdir.is_file():
        raise UsageError(
            f"--workdir={values.workdir} is a file: say where the page goes, for example "
            "--dest=diagnosis.html"
        )
    dest = values.dest or values.workdir / "diagnosis.html"
    if dest.suffix != ".html":
        raise UsageError(f"--dest={dest}: the name must end in .html")
    if not values.workdir.exists():
        raise FileNotFoundError(f"no such file or directory: {values.workdir}")
    experiment = build.experiment(
        read_config(values.workdir) if values.config is None else values.config
    )
    sampling = sampling_flags.request(values, experiment.sampling)
    model = load(values.workdir, variant=values.variant)
    source = experiment.data.open()
    prepare(dest.parent, "dest")
    compilation_cache.enable(values.compilation_cache)
    found = diagnose(
        model,
        source,
        experiment.data.open_test(),
        distribution=experiment.distribution,
        weight=experiment.weight,
        sampling=sampling,
        num_levels=values.num_levels,
        num_images=values.num_images,
        num_samples=values.num_samples,
        max_training=values.max_training,
        batch_size=values.batch_size or experiment.sample_batch,
    )
    for line in found.warnings:
        print(f"warning: {line}")
    print(f"\n  {write_page(dest, found, f'Diagnosis of {values.workdir}')}")
