r"""Checks every sampler, or your own, against exact answers and prints a table.

python experiments/main.py --mode=validate --workdir=runs/validate
python experiments/commands/validate.py --workdir=runs/validate
python experiments/commands/validate.py --sampler=my_package.my_module:my_sampler

Your sampler is called as ``my_sampler(denoise, x, sigmas, key)`` (or without key); if it
is stochastic, let it accept ``noise_fn`` too, and its distribution is measured exactly.
Expected: every line passes, in about a minute and a half on two cores.  Network calls
are counted while the samplers run.  Exit codes: 0 every promise was kept, 1 one was
broken, 2 the command was wrong.  With --workdir the results are also written to
promises.json and promises.png.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

if __package__ in (None, ""):  # run as a script: make the repository importable
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from edm_jax import samplers
from edm_jax.exact import promises


def _subjects(user_sampler: str | None) -> list[promises.Subject]:
    if user_sampler is None:
        return promises.builtin_subjects()
    if ":" in user_sampler:
        sys.path.insert(0, "")  # the user's module may lie in the working directory
        return [promises.load_subject(user_sampler)]
    return [promises.subject_of(samplers.get(user_sampler))]


def plot(reports: list[promises.Report], path: pathlib.Path) -> None:
    """Error against NFE of every sampler, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharex=True)
    styles = ["-", "--", ":"]
    for axis, stochastic in zip(axes, (False, True), strict=True):
        kind = [r for r in reports if r.stochastic == stochastic]
        for index, report in enumerate(kind):
            style = styles[index // 10 % len(styles)]
            axis.loglog(report.nfe, report.errors, style, marker="o", ms=3, label=report.name)
        axis.set_title("stochastic" if stochastic else "deterministic")
        axis.set_xlabel("network calls")
        axis.set_ylabel("distance to the exact samples")
        axis.grid(alpha=0.3)
        if kind:
            axis.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(workdir: str | None = None, user_sampler: str | None = None) -> int:
    """Validate, print the table, write the files; the exit code of the program.

    Args:
      workdir: where promises.json and promises.png go; None writes nothing.
      user_sampler: "module:function", or a name of the registry; None for all.

    Returns:
      0 if every promise was kept, 1 otherwise.
    """
    start, reports = time.perf_counter(), []
    for subject in _subjects(user_sampler):
        reports.append(promises.validate(subject))
        lines = promises.table(reports[-1:]).splitlines()
        print("\n".join(lines if len(reports) == 1 else lines[-1:]), flush=True)
    failed = [report.name for report in reports if not report.passed]
    seconds = time.perf_counter() - start
    print(f"{len(reports) - len(failed)} of {len(reports)} samplers keep their promises; "
          f"{seconds:.0f} s")  # fmt: skip
    if workdir is not None:
        directory = pathlib.Path(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        results = {"seconds": seconds, "samplers": promises.to_json(reports)}
        (directory / "validate.json").write_text(json.dumps(results, indent=1))
        plot(reports, directory / "validate.png")
    return 1 if failed else 0


def main() -> int:
    """Command line; see the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", help="directory for promises.json and promises.png")
    parser.add_argument("--sampler", help="module:function, or a name of the registry")
    arguments = parser.parse_args()
    try:
        return run(arguments.workdir, arguments.sampler)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
