r"""Check every sampler, or your own, and the likelihood against exact answers.

    python experiments/main.py --mode=validate --workdir=runs/validate
    python experiments/main.py --mode=validate --sampler=my_package.my_module:my_sampler

Your sampler is called as ``my_sampler(denoise, x, sigmas, key)`` (or without key); if it
is stochastic, let it accept ``noise_fn`` too, and its distribution is measured exactly.
The last lines are those of reflected diffusion on a box.  Expected: every line passes,
in about three minutes on two cores.  Network calls are counted while the samplers run
(those on a box are stated).  Exit codes: 0 every promise was kept, 1 one was
broken, 2 the command was wrong.  With --workdir the results are also written to
validate.json and validate.png (``--figure_format=pdf`` or ``svg``: those).
"""

from __future__ import annotations

import json
import pathlib
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments import compilation_cache, flags
from experiments.config.flag import UsageError

if TYPE_CHECKING:
    from edm_jax.exact import promises

FLAGS = (
    flags.text(
        "sampler", "A sampler of the library or module:function; by default all.", example="heun"
    ),
    flags.path("workdir", "Directory for validate.json and validate.png.", example="runs/validate"),
    flags.figure_format("Of validate.png."),
    compilation_cache.FLAG,
)


def run(values: types.SimpleNamespace) -> int:
    """Validate and report."""
    if "figure_format" in values.given and values.workdir is None:
        raise UsageError("--figure_format is of the figure in --workdir; give --workdir too")
    compilation_cache.enable(values.compilation_cache)
    return validate(values.workdir, values.sampler, values.figure_format)


def _reports(user_sampler: str | None) -> Iterator[promises.Report]:
    """Every row of the table, as it is measured."""
    from edm_jax import samplers
    from edm_jax.exact import likelihood_promises, promises, subjects
    from edm_jax.exact import reflected_promises as reflected

    if user_sampler is None:
        yield from map(promises.validate, subjects.builtin_subjects())
        yield from reflected.reports()
        yield from likelihood_promises.validate_likelihood()
        return
    if ":" in user_sampler:
        yield promises.validate(subjects.load_subject(user_sampler))
        return
    info = samplers.get(user_sampler)
    if info.domain == "box":
        yield from reflected.reports(user_sampler)
        return
    for setting in info.measured:
        yield promises.validate(subjects.subject_of(info, setting))


def plot(reports: list[promises.Report], path: pathlib.Path) -> None:
    """Error against NFE of every sampler, as a figure of the format of the file's ending."""
    from edm_jax.figures import files
    from edm_jax.figures.ticks import log_axes

    figure, axes = files.subplots(1, 2, size=(11, 4.8), sharex=True)
    styles = ["-", "--", ":"]
    for axis, stochastic in zip(axes, (False, True), strict=True):
        kind = [r for r in reports if r.stochastic == stochastic]
        for index, report in enumerate(kind):
            style = styles[index // 10 % len(styles)]
            axis.plot(report.nfe, report.errors, style, marker="o", ms=3, label=report.name)
        log_axes(axis)
        axis.set_title("stochastic" if stochastic else "deterministic")
        axis.set_xlabel("network calls")
        axis.set_ylabel("distance to the exact samples")
        axis.grid(alpha=0.3)
        if kind:
            axis.legend(fontsize=7, ncols=2)
    files.save(figure, path, dpi=120)


def validate(
    workdir: pathlib.Path | None = None,
    user_sampler: str | None = None,
    figure_format: str = "png",
) -> int:
    """Validate, print the table, write the files; the exit code of the program.

    Args:
      workdir: where validate.json and validate.png go; None writes nothing.
      user_sampler: "module:function", or a name of the registry; None for all.
      figure_format: png, pdf or svg.

    Returns:
      0 if every promise was kept, 1 otherwise.
    """
    from edm_jax.exact import promises
    from experiments.workdir import prepare

    if workdir is not None:
        prepare(workdir)
    start, reports = time.perf_counter(), []
    for report in _reports(user_sampler):
        reports.append(report)
        lines = promises.table(reports[-1:]).splitlines()
        print("\n".join(lines if len(reports) == 1 else lines[-1:]), flush=True)
    failed = [report.name for report in reports if not report.passed]
    seconds = time.perf_counter() - start
    kept = f"{len(reports) - len(failed)} of {len(reports)}"
    print(f"{kept} samplers and solvers keep their promises; {seconds:.0f} s")
    if workdir is not None:
        results = {"seconds": seconds, "samplers": promises.to_json(reports)}
        (workdir / "validate.json").write_text(json.dumps(results, indent=1))
        # Rows of the likelihood have errors in nats, which belong on no axis of distances.
        samplers_only = [r for r in reports if not r.name.startswith("likelihood")]
        plot(samplers_only, workdir / f"validate.{figure_format}")
    return 1 if failed else 0
