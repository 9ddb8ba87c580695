r"""What every sampler gains for its network calls, where the exact answer is known.

python experiments/main.py --mode=study --study=sampler_costs --workdir=docs

Writes ``sampler_costs.json`` (errors of every sampler of the library over network calls, and
what is best at 10, 20 and 40), ``sampler_costs.png`` of them, and ``noise_path.png``: the same
seeds with more and more steps, with fresh noise and with noise from a path.  Takes a few
minutes on two cores.

Deterministic samplers: RMS distance to the exact flow of a one-dimensional mixture.
Stochastic ones: Wasserstein-2 distance of the distribution on Gaussian data of deviation 0.5,
exactly, from impulse responses (from samples, where the result is no affine map of the
noise).  Samplers of a box: largest error in the frequency of a level of one dimension, with
correctors of a point of the plane.  These beds are smooth and small: they rank solvers, not
images.  EDM's grid from 80 to 0.002, or the one that a sampler was published with.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact, grids, samplers, schedules, seeds
from edm_jax.exact import bed, reflected_promises, subjects

BUDGETS = (10, 14, 20, 28, 40, 56, 80)
CHOICES = (10, 20, 40)
Settings = Mapping[str, tuple[str, Mapping[str, Any]]]

# Label -> sampler and its options, where they differ from those of the name.
DETERMINISTIC: Settings = {
    "euler": ("euler", {}),
    "heun": ("heun", {}),
    "midpoint": ("midpoint", {}),
    "ralston": ("ralston", {}),
    "general, VP schedule": (
        "general",
        {"schedule": schedules.VPSchedule.fit(0.002, 80.0), "scaling": schedules.VPScaling()},
    ),
    "dpm_2": ("dpm_2", {}),
    "dpmpp_2s": ("dpmpp_2s", {}),
    "dpmpp_2m": ("dpmpp_2m", {}),
    "dpmpp_3m": ("dpmpp_3m", {}),
    "dpmpp_3m, kappa 2": ("dpmpp_3m", {"kappa": 2.0}),
    "unipc_1": ("unipc_1", {}),
    "unipc_2": ("unipc_2", {}),
    "unipc_3": ("unipc_3", {}),
    "lms_2": ("lms_2", {}),
    "lms_3": ("lms_3", {}),
    "lms_4": ("lms_4", {}),
    "ipndm": ("ipndm", {}),
    "ipndm, order 3": ("ipndm", {"order": 3}),
    "deis": ("deis", {}),
    "seeds_3, eta 0": ("seeds_3", {"eta": 0.0}),
    "er_sde, ODE, kappa 1": ("er_sde", {"function": "power", "eta": 0.0, "kappa": 1.0}),
    "sa_solver, tau 0": ("sa_solver", {"tau": 0.0}),
    "adaptive": ("adaptive", {}),
    "ve_ode": ("ve_ode", {}),
    "vp_ode": ("vp_ode", {}),
}
STOCHASTIC: Settings = {
    "edm, churn 10": ("edm", {"churn": samplers.Churn(10.0, 0.05, 50.0, 1.0)}),
    "ddim, eta 1 (euler_ancestral)": ("ddim", {"eta": 1.0}),
    "ddpm": ("ddpm", {}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", {}),
    "dpm_2_ancestral": ("dpm_2_ancestral", {}),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}),
    # Recorded noise belongs to the parts of a step here; the method is that of one path.
    "dpmpp_sde": ("dpmpp_sde", {"noise": "step"}),
    "seeds_2": ("seeds_2", {}),
    "seeds_3": ("seeds_3", {}),
    "er_sde": ("er_sde", {}),
    "er_sde, power": ("er_sde", {"function": "power"}),
    "sa_solver": ("sa_solver", {}),
    "sa_solver, 3 4, tau in [.05, 1]": (
        "sa_solver",
        {"predictor": 3, "corrector": 4, "tau_min": 0.05, "tau_max": 1.0},
    ),
    "restart": ("restart", {}),
    "lcm": ("lcm", {}),
    "ve_reverse_diffusion": ("ve_reverse_diffusion", {}),
    "ve_predictor_corrector": ("ve_predictor_corrector", {}),
    "vp_euler_maruyama": ("vp_euler_maruyama", {}),
    "vp_reverse_diffusion": ("vp_reverse_diffusion", {}),
    "vp_ancestral": ("vp_ancestral", {}),
}
BOX: Settings = {
    "reflected": ("reflected", {}),
    "reflected, kappa 0": ("reflected", {"kappa": 0.0}),
    "reflected_project": ("reflected_project", {}),
    "reflected_threshold": ("reflected_threshold", {}),
    "reflected_predictor_corrector (in 2 d)": ("reflected_predictor_corrector", {}),
}
GROUPS = {"deterministic": DETERMINISTIC, "stochastic": STOCHASTIC, "box": BOX}
# Of `adaptive`, whose tolerances decide the cost.
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)


def error_of(name: str, options: Mapping[str, Any], num_steps: int, group: str) -> float:
    """Distance to the exact answer after N steps; see the head of the file."""
    info = samplers.get(name)
    if group == "box":
        presets = {**info.presets, **options}
        measured = dataclasses.replace(info, presets=presets)
        if presets.get("corrector_steps"):  # its steps depend on norms of whole images
            with jax.enable_x64(False):
                return reflected_promises.plane_error(measured, num_steps)
        return reflected_promises.law_error(measured, num_steps)
    setting = samplers.Measured("", options, stochastic=group == "stochastic")
    subject = subjects.subject_of(info, setting)
    if group == "deterministic":
        return bed.deterministic_runs(subject, (num_steps,))[0].error
    one = bed.sampled_run if subject.replay is None else bed.impulse_run
    return one(subject, num_steps).error


def adaptive_errors(most: int) -> dict[int, float]:
    """Those of `adaptive` over the calls of the slowest image, up to ``most`` of them."""
    subject = subjects.subject_of(samplers.get("adaptive"))
    with jax.enable_x64(True):
        runs = bed.adaptive_runs(dataclasses.replace(subject, tolerances=TOLERANCES))
    return {run.stated: run.error for run in runs if run.stated <= most}


def measure(
    settings: Settings, group: str, budgets: tuple[int, ...] = BUDGETS
) -> dict[str, dict[int, float]]:
    """Errors of samplers within budgets of network calls.

    Args:
      settings: some of those of the group.
      group: of GROUPS.
      budgets: most network calls.

    Returns:
      label -> {network calls that are really made: error}.
    """
    errors: dict[str, dict[int, float]] = {}
    for label, (name, options) in settings.items():
        info, found = samplers.get(name), {}
        if info.nfe_fn is None:
            found = adaptive_errors(max(budgets))
        for budget in budgets if info.nfe_fn is not None else ():
            try:
                steps = info.steps_within(budget, **options)
            except ValueError:  # one step costs more
                continue
            if steps < info.min_steps:
                continue
            with jax.enable_x64(True):
                found[info.nfe(steps, **options)] = error_of(name, options, steps, group)
        errors[label] = found
        print(f"{label}: {', '.join(f'{n}: {e:.2g}' for n, e in found.items())}", flush=True)
    return errors


def best(errors: Mapping[str, Mapping[int, float]], calls: int, count: int = 5) -> list[list]:
    """The samplers with the least error within a number of calls: [label, calls, error].

    The error is the largest at so many calls or more: that of a distribution may pass through
    zero where its deviation goes from too small to too large.
    """
    ranked = []
    for label, found in errors.items():
        within = max((n for n in found if n <= calls), default=None)
        # One that spends far less than is allowed was measured for another budget.
        if within is not None and within >= 0.7 * calls:
            ranked.append([label, within, max(e for n, e in found.items() if n >= within)])
    return sorted(ranked, key=lambda row: row[2])[:count]


def draw_costs(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Error over network calls, groups apart; those worth choosing are drawn thick."""
    from matplotlib import colormaps

    from edm_jax.figures import files
    from edm_jax.figures.ticks import log_axes

    titles = {
        "deterministic": "deterministic: RMS distance to the exact flow",
        "stochastic": "stochastic: distance of the distribution (W2)",
        "box": "of a box: largest error of a frequency",
    }
    figure, axes = files.subplots(1, 3, size=(16, 9), width_ratios=(5, 5, 3))
    colors = colormaps["tab10"].colors
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        chosen = {row[0] for rows in results["best"][kind].values() for row in rows[:2]}
        for i, (label, found) in enumerate(results[kind].items()):
            style = {"color": colors[i % 10], "ls": ("-", "--", ":", "-.")[i // 10]}
            width = 2.6 if label in chosen else 0.9
            calls = sorted(found, key=int)
            axis.plot(
                [int(n) for n in calls], [found[n] for n in calls], label=label, lw=width,
                marker="os^v"[i % 4], ms=3, **style,
            )  # fmt: skip
        log_axes(axis)
        ticks = sorted({int(n) for n in CHOICES} | {80})
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("network calls")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.09)}
        axis.legend(fontsize=8, ncols=1 if kind == "box" else 3, frameon=False, **below)
    files.save(figure, path, dpi=90)


def path_images(
    points: np.ndarray, steps: tuple[int, ...], noise: str, count: int, name: str = "seeds_2"
) -> np.ndarray:
    """Images of the same seeds at several numbers of steps; ``(len(steps), count, H, W, C)``.

    Args:
      points: ``(K, H, W, C)`` data set, whose exact denoiser is the network.
      steps: N of each row.
      noise: "step" or "tree".
      count: seeds 0 .. count - 1.
      name: of the sampler.
    """
    data, keys = exact.FiniteData(points), seeds.image_keys(range(count))
    shape = (count, *points.shape[1:])
    rows = []
    for num_steps in steps:
        sigmas = jnp.asarray(grids.karras_sigmas(num_steps, sigma_min=0.02), jnp.float32)
        x = seeds.latents(keys, shape) * sigmas[0]
        run = jax.jit(lambda x, s: samplers.get(name)(data.denoise, x, s, keys, noise=noise))
        rows.append(np.asarray(run(x, sigmas)))
    return np.stack(rows)


def draw_paths(path: pathlib.Path, steps: tuple[int, ...] = (10, 20, 40, 80)) -> None:
    """The same seeds with more steps; fresh noise beside noise from a path."""
    from edm_jax.data.sources.digits import digits
    from edm_jax.figures import files

    source = digits()
    points = np.stack([source[i]["image"] for i in range(len(source))]) / 127.5 - 1
    figure, axes = files.subplots(1, 2, size=(12, 3.4))
    titles = {"step": "fresh noise at every step", "tree": "noise from a path (noise='tree')"}
    for axis, (noise, title) in zip(axes, titles.items(), strict=True):
        images = path_images(points.astype(np.float32), steps, noise, 12)[..., 0]
        framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
        side = framed.shape[-1]
        axis.imshow(np.block([list(row) for row in framed]), cmap="gray_r")
        axis.set_yticks([side * (i + 0.5) for i in range(len(steps))], [f"N = {n}" for n in steps])
        axis.set_xticks([])
        axis.set_xlabel("seeds 0 to 11")
        axis.set_title(title)
    files.save(figure, path, dpi=90)


def run(
    workdir: pathlib.Path, budgets: tuple[int, ...] = BUDGETS, *, figure_format: str = "png"
) -> dict[str, Any]:
    """Measure everything, write the three files into a directory, and return the numbers."""
    draw_paths(workdir / f"noise_path.{figure_format}")
    results: dict[str, Any] = {
        group: measure(settings, group, budgets) for group, settings in GROUPS.items()
    }
    results["best"] = {kind: {n: best(results[kind], n) for n in CHOICES} for kind in list(results)}
    results["samplers"] = {
        label: name for settings in GROUPS.values() for label, (name, _) in settings.items()
    }
    # Three digits: the file stays readable.
    rounded = json.loads(json.dumps(results), parse_float=lambda text: float(f"{float(text):.3g}"))
    (workdir / "sampler_costs.json").write_text(json.dumps(rounded, indent=1) + "\n")
    draw_costs(workdir / f"sampler_costs.{figure_format}", rounded)
    for kind, choices in rounded["best"].items():
        for calls, rows in choices.items():
            shown = "; ".join(f"{label} {error:.2g} ({n})" for label, n, error in rows)
            print(f"{kind}, {calls} calls: {shown}")
    return rounded
