r"""Train, sample and evaluate EDM diffusion models.

Train (and evaluate at the end), or resume; the same command does both:

    python experiments/main.py --config=configs/digits.py --workdir=runs/digits

Any option of the configuration can be set: --config.train.lr=1e-3 (configs/base.py lists
and explains them).  Images from a trained run, with no configuration:

    python experiments/main.py --mode=sample --workdir=runs/digits --seeds=0-63 --labels=3 \
        --num_steps=18 --outdir=out

Before a long run: check everything and say what it costs, without an accelerator:

    python experiments/main.py --mode=preflight --config=configs/imagenet64.py --devices=8

Evaluate a trained run again:

    python experiments/main.py --mode=evaluate --workdir=runs/digits

Published weights into a directory that edm_jax.load reads, and any model into one file:

    python experiments/main.py --mode=import --source=FILE.pkl --workdir=runs/imported
    python experiments/main.py --mode=export --workdir=runs/digits --dest=digits.safetensors

Images of any kind (folder, zip, CIFAR-10, MNIST, LSUN) into the EDM zip format:

    python experiments/main.py --mode=dataset --source=images/ --dest=images-64x64.zip \
        --resolution=64x64 --transform=center-crop

Every sampler, or your own, against distributions whose answers are known:

    python experiments/main.py --mode=validate [--sampler=my_module:my_sampler]

Exit codes: 0 done, 1 the work failed, 2 the command or its input was wrong, 75 stopped on
request (SIGTERM) after saving, 130 interrupted from the keyboard.
"""

from __future__ import annotations

import logging as standard_logging
import math
import os
import pathlib
import signal
import sys
import time
import traceback
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Run as a script, Python sees only this folder; configs and experiments are beside it.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from experiments.config.flag import UsageError, complete, unknown_option  # noqa: E402

MODES = (
    "train", "preflight", "sample", "evaluate", "import", "export", "dataset", "validate"
)  # fmt: skip

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file; --config.a.b=value sets one option of it.",
    lock_config=True,
)
flags.DEFINE_enum("mode", "train", MODES, "What to do.")
flags.DEFINE_string("workdir", None, "Directory of the run: all results are below it.")
flags.DEFINE_string("seeds", "0-63", "sample: seeds, such as 0-63 or 1,2,5-10.")
flags.DEFINE_string(
    "labels", None, "sample: a class index for all images, or one per seed; default: random."
)
flags.DEFINE_string("outdir", None, "sample: where images go; default: <workdir>/generated.")
flags.DEFINE_bool("grid", False, "sample: one sheet of all images instead of a file for each.")
flags.DEFINE_string("variant", None, "sample, evaluate: which weights; default: the first EMA.")
flags.DEFINE_integer("num_steps", None, "sample: steps N (2N - 1 network calls).", lower_bound=1)
flags.DEFINE_float("sigma_min", None, "sample: lowest noise level before 0.")
flags.DEFINE_float("sigma_max", None, "sample: highest noise level.")
flags.DEFINE_float("rho", None, "sample: warp of the noise levels.")
flags.DEFINE_float("s_churn", None, "sample: amount of churn; 0 is deterministic.", lower_bound=0)
flags.DEFINE_float("s_tmin", None, "sample: lowest noise level that churns.")
flags.DEFINE_float("s_tmax", None, "sample: highest noise level that churns.")
flags.DEFINE_float("s_noise", None, "sample: scale of the churned noise.")
flags.DEFINE_integer("batch_size", None, "sample: images at a time.", lower_bound=1)

flags.DEFINE_string(
    "source", None, "import: the file of weights (.pkl .pt .safetensors); dataset: what to convert."
)
flags.DEFINE_enum(
    "attention_order",
    None,
    ("new", "legacy"),
    "import: row order of attention in guided-diffusion weights, which their file does not say.",
)
flags.DEFINE_string(
    "source_options", None, "import: what else the file does not say, as JSON or a file of it."
)
flags.DEFINE_string(
    "dest", None, "export: the .safetensors file to write; dataset: the .zip or folder to write."
)
flags.DEFINE_string("resolution", None, "dataset: size of the images written, such as 64x64.")
flags.DEFINE_enum(
    "transform",
    None,
    ("center-crop", "center-crop-wide"),
    "dataset: how images become square; default: resized as they are.",
)
flags.DEFINE_integer("max_images", None, "dataset: stop after this many.", lower_bound=1)
flags.DEFINE_integer("num_workers", None, "dataset: threads; default: one per core.", lower_bound=1)
flags.DEFINE_bool("strict", False, "dataset: end with an error at the first unusable image.")

SAMPLER_FLAGS = "num_steps sigma_min sigma_max rho s_churn s_tmin s_tmax s_noise batch_size".split()
flags.DEFINE_integer(
    "devices",
    None,
    "preflight: devices of the run; its memory is found by compiling for them.",
    lower_bound=1,
)
flags.DEFINE_string(
    "sampler", None, "validate: a sampler of the library or module:function; default: all."
)
flags.DEFINE_float("images_per_second", None, "preflight: rate of training, to tell its time.")
flags.DEFINE_float("device_gib", None, "preflight: memory of one device, in GiB.")
flags.DEFINE_string("profile_steps", None, "train: steps of a jax.profiler trace, such as 100-110.")
flags.DEFINE_string(
    "wandb", None, "train: project of Weights & Biases to report to, if wandb is installed."
)
flags.DEFINE_string(
    "coordinator_address", None, "train: host:port of process 0, for several processes."
)
flags.DEFINE_integer("num_processes", None, "train: how many processes there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "train: which process this is, from 0.", lower_bound=0)

# Flags that only some modes read; given to another mode they are refused.
READ_BY = {name: ("sample",) for name in ("seeds", "labels", "outdir", "grid", *SAMPLER_FLAGS)} | {
    "variant": ("sample", "evaluate", "export"),
    "source": ("import", "dataset"),
    **{name: ("dataset",) for name in ("resolution", "transform", "max_images", "num_workers")},
    "strict": ("dataset",),
    "sampler": ("validate",),
    "attention_order": ("import",),
    "source_options": ("import",),
    "dest": ("export", "dataset"),
    "config": ("train", "evaluate", "preflight"),
    **{name: ("train",) for name in ("profile_steps", "wandb")},
    **{name: ("train",) for name in ("coordinator_address", "num_processes", "process_id")},
    **{name: ("preflight",) for name in ("devices", "images_per_second", "device_gib")},
}


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; what is wrong ends the program with one line and code 2."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
        rest = FLAGS(complete(argv))
        if len(rest) > 1:
            raise UsageError(f"unexpected argument {rest[1]!r}; options are written --name=value")
        return rest
    except (flags.Error, UsageError) as error:
        # A configuration that raises comes with the traceback of its file.
        _fail(str(error).strip().splitlines()[-1].removeprefix("ValueError: "), 2)
    except (AttributeError, KeyError) as error:  # an unknown key of the configuration
        _fail(unknown_option(argv) or f"unknown configuration option {error}", 2)
    except (ImportError, SyntaxError, TypeError, ValueError, OSError) as error:
        _fail(f"the configuration cannot be read: {error}", 2)


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    _leave(code)


EXIT_PREEMPTED = 75  # EX_TEMPFAIL: not an error; the same command goes on
# Time for processes that were told of a failure to say so.
GRACE_SECONDS = 5


def _ignore_requests() -> None:
    """While the program ends, Python would let one kill it, and the exit code would be lost."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave(code: int) -> None:
    """End; of several processes, not by the barrier that those still at work would never reach."""
    _ignore_requests()
    jax = sys.modules.get("jax")
    if code != EXIT_PREEMPTED and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        time.sleep(GRACE_SECONDS)
        os._exit(code)
    sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    """Of a failure that its message explains; None for one that needs its traceback."""
    if isinstance(error, ValueError | FileNotFoundError):
        return 2
    if isinstance(error, OSError):
        return 1
    ours = type(error).__module__.startswith(("experiments.", "edm_jax."))
    if isinstance(error, RuntimeError) and ours:
        return {"Preempted": EXIT_PREEMPTED, "WorkdirError": 2}.get(type(error).__name__, 1)
    return None


def _resolved_config():
    """The configuration of --config, with errors of the file itself in one line."""
    if FLAGS["config"].value is None:
        raise UsageError("--config is missing, for example --config=configs/digits.py")
    config = _CONFIG.value
    try:
        config.to_dict()
    except AttributeError:
        raise UsageError(f"--config: {getattr(config, '_error', 'cannot be loaded')}") from None
    return config


def _workdir() -> pathlib.Path:
    return _required("workdir", "runs/digits")


def _check_flags_of_mode() -> None:
    for name, modes in READ_BY.items():
        if FLAGS[name].present and FLAGS.mode not in modes:
            cure = "; training takes --config.sampler.* instead" if FLAGS.mode == "train" else ""
            raise UsageError(f"--{name} belongs to --mode={' or --mode='.join(modes)}{cure}")


def _required(name: str, example: str) -> pathlib.Path:
    if not FLAGS[name].value:
        raise UsageError(f"--{name} is missing, for example --{name}={example}")
    return pathlib.Path(FLAGS[name].value)


# ------------------------------------------------------------------------------ modes


def _train() -> None:
    config = _resolved_config()
    workdir = _workdir()
    from edm_jax.train import distributed
    from experiments.config import build
    from experiments.training import loop, monitor
    from experiments.training.run import Watch

    watch = Watch(monitor.parse_steps(FLAGS.profile_steps), FLAGS.wandb or "")
    distributed.initialize(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
    loop.train(build.experiment(config), workdir, watch)


def _stored_config(workdir: pathlib.Path):
    """The configuration that a run directory was trained with."""
    import ml_collections

    from experiments.workdir import read_config

    return ml_collections.ConfigDict(read_config(workdir), type_safe=False)


def _preflight() -> None:
    config = _resolved_config()
    from experiments.config import build, flag
    from experiments.preflight import report

    workdir = pathlib.Path(FLAGS.workdir) if FLAGS.workdir else None
    code = report.preflight(
        build.experiment(config),
        workdir,
        mesh_devices=FLAGS.devices,
        quick=False,
        preset=flag.default_config(config_flags.get_config_filename(FLAGS["config"])).to_dict(),
        images_per_second=FLAGS.images_per_second,
        device_gib=FLAGS.device_gib,
    )
    if code:
        sys.exit(code)


def _sample() -> None:
    workdir = _workdir()
    from edm_jax.loading import load
    from edm_jax.samplers import Churn
    from experiments.commands import sample

    sample.parse_ranges(FLAGS.seeds, "seeds")  # before the model is loaded
    if FLAGS.labels is not None:
        sample.parse_ranges(FLAGS.labels, "labels")
    settings = dict(
        num_steps=18,
        sigma_min=0.002,
        sigma_max=80.0,
        rho=7.0,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=math.inf,
        s_noise=1.0,
        batch_size=64,
    )
    if (workdir / "config.json").exists():
        stored = _stored_config(workdir).sampler.to_dict()
        settings |= {n: stored[n] for n in SAMPLER_FLAGS if stored[n] is not None}
    settings |= {n: FLAGS[n].value for n in SAMPLER_FLAGS if FLAGS[n].value is not None}
    churn = [settings.pop(n) for n in ("s_churn", "s_tmin", "s_tmax", "s_noise")]
    settings["churn"] = Churn(*churn) if churn[0] else None
    sample.write_samples(
        load(workdir, variant=FLAGS.variant),
        pathlib.Path(FLAGS.outdir) if FLAGS.outdir else workdir / "generated",
        seeds=FLAGS.seeds,
        labels=FLAGS.labels,
        arguments=settings,
        grid=FLAGS.grid,
    )


def _evaluate() -> None:
    workdir = _workdir()
    from edm_jax.loading import load
    from experiments import evaluate
    from experiments.config import build

    config = _resolved_config() if FLAGS["config"].value is not None else _stored_config(workdir)
    experiment = build.experiment(config)
    if not experiment.evaluation.num_images:
        raise UsageError("config.evaluation.num_images is 0: there is nothing to evaluate")
    result = evaluate.evaluate(load(workdir, variant=FLAGS.variant), experiment)
    path = evaluate.write_evaluation(workdir, result)
    print("\n" + evaluate.result_table(result) + f"\n\n  {path}")


def _import() -> None:
    source, workdir = _required("source", "edm-cifar10.pkl"), _workdir()
    from experiments.commands import convert_weights

    options = convert_weights.parse_options(FLAGS.source_options)
    convert_weights.import_model(
        source, workdir, attention_order=FLAGS.attention_order, options=options
    )


def _export() -> None:
    workdir, dest = _workdir(), _required("dest", "digits.safetensors")
    from experiments.commands import convert_weights

    convert_weights.export_model(workdir, dest, variant=FLAGS.variant)


def _dataset() -> None:
    source, dest = _required("source", "images/"), _required("dest", "images-64x64.zip")
    from experiments.commands import dataset

    code = dataset.run(
        source,
        dest,
        resolution=FLAGS.resolution,
        transform=FLAGS.transform,
        max_images=FLAGS.max_images,
        num_workers=FLAGS.num_workers,
        strict=FLAGS.strict,
    )
    if code:
        sys.exit(code)


def _validate() -> None:
    from experiments.commands import validate

    code = validate.run(FLAGS.workdir, FLAGS.sampler)
    if code:
        sys.exit(code)


RUN = {
    "train": _train,
    "preflight": _preflight,
    "sample": _sample,
    "evaluate": _evaluate,
    "import": _import,
    "export": _export,
    "dataset": _dataset,
    "validate": _validate,
}


def _quieten_libraries() -> None:
    """What fails ends in one line of ours, not in the reports of every thread on the way."""
    logging.set_verbosity(logging.FATAL)
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)


def main(argv: list[str]) -> None:
    """Run one mode; known failures end with one line."""
    del argv
    _quieten_libraries()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # What we warn of is for the user: one line, without the place in the code.
    warnings.showwarning = lambda message, *where: print(f"warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if FLAGS.mode == "train":
        # Before and after training takes over: nothing is at stake, but a scheduler wants its code.
        asked = "asked to stop; the same command goes on"
        signal.signal(signal.SIGTERM, lambda *_: _fail(asked, EXIT_PREEMPTED))
    try:
        _check_flags_of_mode()
        RUN[FLAGS.mode]()
        _ignore_requests()
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint", 130)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            traceback.print_exc()
            _leave(1)
        _fail(str(error), code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
