r"""The paper's sampling claim on exact denoisers: Figure 2 with numbers, without networks.

python experiments/main.py --mode=study --study=sampling_claim --workdir=docs

For the VP, VE and iDDPM columns of EDM Table 1: how many network calls the original
deterministic sampler needs, and how many Heun's method with EDM's time steps and
sigma(t) = t needs, for the same distance between samples and data.  docs/sampling.md
says what the laws and the distance are and discusses the result.  Writes
sampling_claim.png (the first law) and sampling_claim.json (all numbers), and prints the
table of docs/sampling.md; about three minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import exact, precond, samplers
from edm_jax.typing import Array

RESOLUTION, DATA_STD, NUM_QUANTILES = 32, 0.5, 256
TARGETS = (0.05, 0.02, 0.01)
PAPER = {"vp": 7.3, "ve": 300.0, "iddpm": 3.2}
TITLES = {"vp": "VP", "ve": "VE", "iddpm": "iDDPM + DDIM"}
# discretization, schedule, scaling of each original sampler (EDM Table 1).
COLUMNS = {
    "vp": ("vp", "vp", "vp"),
    "ve": ("ve", "ve", "none"),
    "iddpm": ("iddpm", "linear", "none"),
}
CURVES = {
    "original": "original sampler (Euler)",
    "heun": "+ Heun, EDM time steps",
    "edm": r"+ $\sigma(t)=t$, $s(t)=1$",
    "rk45": "adaptive RK45 in ln $\\sigma$",
}
EULER_STEPS = (16, 32, 64, 128, 256, 512, 992, 2048, 4096, 8192)
HEUN_STEPS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
RK45_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)

# The marginal of a coordinate, before standardisation: means, deviations, weights.
LAWS = {
    "heavy tails": ([0.0, 0.0], [0.4, 2.0], [0.8, 0.2]),
    "three modes": ([-1.1, 0.2, 1.0], [0.25, 0.4, 0.2], [0.35, 0.35, 0.3]),
    "clusters": ([-1.2, -0.3, 0.5, 1.3], [0.05] * 4, [0.25] * 4),
    "Gaussian": ([0.0], [1.0], [1.0]),
}


@dataclasses.dataclass(frozen=True)
class ImageLaw:
    """Images of independent principal components with a 1/f amplitude spectrum.

    Attributes:
      unit: law of a component of unit variance.
      scales: ``(K,)`` deviations of the components, in groups of similar ones.
      counts: ``(K,)`` how many components each group has, per colour channel.
    """

    unit: exact.GaussianMixture
    scales: np.ndarray
    counts: np.ndarray

    def denoise(self, x: Array, sigma: Array) -> Array:
        """D for ``(B, K)`` components; sigma a scalar or ``(B,)``."""
        scales = jnp.broadcast_to(jnp.asarray(self.scales)[None], x.shape)
        sigma = jnp.broadcast_to(jnp.reshape(sigma, (-1, 1)), x.shape)
        unit = self.unit.denoise((x / scales).reshape(-1), (sigma / scales).reshape(-1))
        return scales * unit.reshape(x.shape)


def image_law(name: str) -> ImageLaw:
    """One of LAWS, at the resolution and deviation of CIFAR-10 images."""
    means, stds, weights = (np.array(values) for values in LAWS[name])
    weights = weights / weights.sum()
    mean = np.sum(weights * means)
    std = np.sqrt(np.sum(weights * (stds**2 + (means - mean) ** 2)))
    frequency = np.fft.fftfreq(RESOLUTION, 1 / RESOLUTION)
    radius = np.hypot(frequency[:, None], frequency[None]).ravel()
    amplitude = 1 / np.maximum(radius, 0.5)
    amplitude *= DATA_STD / np.sqrt(np.mean(amplitude**2))
    edges = np.geomspace(amplitude.min() * 0.999, amplitude.max() * 1.001, 17)
    group = np.digitize(amplitude, edges)
    groups = [amplitude[group == g] for g in np.unique(group)]
    return ImageLaw(
        exact.GaussianMixture((means - mean) / std, stds / std, weights),
        np.array([np.sqrt(np.mean(values**2)) for values in groups]),
        np.array([len(values) for values in groups]),
    )


@functools.partial(jax.jit, static_argnames=("denoise", "solver"))
def _sample(latents, setting, *, denoise, solver):
    sigmas, schedule, scaling = setting
    return samplers.sample_general(
        denoise, latents * sigmas[0], sigmas, solver=solver, schedule=schedule, scaling=scaling
    )


@functools.partial(jax.jit, static_argnames="denoise")
def _sample_rk45(latents, sigmas, tolerance, *, denoise):
    return samplers.sample_adaptive(
        denoise, latents * sigmas[0], sigmas, rtol=tolerance, atol=tolerance, stats=True
    )


def curves(law: ImageLaw, column: str) -> dict[str, list[tuple[float, float]]]:
    """(network calls, error) of every sampler of a column.

    The error is the Wasserstein-2 distance between samples and data, per element and
    relative to the deviation of the data.  Components stay independent, so its square
    is the sum over components, and in one dimension it is the distance of quantiles:
    latents at the quantiles of the prior make it exact up to quadrature.
    """
    p = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    prior = np.asarray(jax.scipy.special.ndtri(p))
    targets = np.asarray(jax.jit(law.unit.quantile)(p))[:, None] * law.scales[None]
    # The same quantiles of every component, in another order each, so that the rows
    # are typical images to a solver that looks at whole images.
    shuffle = np.random.default_rng(0).permuted(
        np.tile(prior[:, None], (1, len(law.scales))), axis=0
    )
    share = law.counts / law.counts.sum()

    def error(samples: Array) -> float:
        squared = np.mean((np.sort(np.asarray(samples), axis=0) - targets) ** 2, axis=0)
        return float(np.sqrt(np.sum(share * squared)) / DATA_STD)

    network = precond.PRECONDITIONINGS[column]()
    steps, schedule, scaling = COLUMNS[column]
    choices = {
        "original": ("euler", {"discretization": steps, "schedule": schedule, "scaling": scaling}),
        "heun": ("heun", {"schedule": schedule, "scaling": scaling}),
        "edm": ("heun", {}),
    }
    results: dict[str, list[tuple[float, float]]] = {}
    for name, (solver, choice) in choices.items():
        if name == "heun" and column == "iddpm":
            continue  # its schedule is EDM's already
        results[name] = []
        for num_steps in EULER_STEPS if solver == "euler" else HEUN_STEPS:
            if choice.get("discretization") == "iddpm" and num_steps > 992:
                continue  # the network knows no more levels below 81
            # Where a grid is finer than the network's table, repeated levels are dropped.
            setting = samplers.table1(num_steps, preconditioning=network, merge=True, **choice)
            result = _sample(shuffle, setting, denoise=law.denoise, solver=solver)
            nfe = samplers.get("general").nfe(len(setting.sigmas) - 1, solver=solver)
            results[name].append((nfe, error(result)))
    sigmas = samplers.table1(2, preconditioning=network).sigmas
    results["rk45"] = []
    for tolerance in RK45_TOLERANCES:
        result, stats = _sample_rk45(shuffle, sigmas, tolerance, denoise=law.denoise)
        results["rk45"].append((float(np.mean(stats.nfe)), error(result)))
    return results


def calls_for(curve: list[tuple[float, float]], target: float) -> float | None:
    """Network calls at which a curve falls to the target for good; None if it does not."""
    nfe, errors = np.array(curve).T
    above = np.flatnonzero(errors > target)
    if above.size == 0:
        return float(nfe[0])
    i = above[-1]
    if i == len(errors) - 1:
        return None
    share = np.log(errors[i] / target) / np.log(errors[i] / errors[i + 1])
    return float(np.exp(np.log(nfe[i]) + share * np.log(nfe[i + 1] / nfe[i])))


def table(results: Mapping[str, Mapping[str, dict]]) -> str:
    """Markdown: calls of the original and of EDM's sampler, and their ratio."""
    head = ["law", "error"] + [f"{TITLES[c]}: original / EDM = ratio" for c in COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for law, columns in results.items():
        for target in TARGETS:
            cells = [law, f"{target:.0%}"]
            for column in COLUMNS:
                pair = [calls_for(columns[column][name], target) for name in ("original", "edm")]
                shown = ["not reached" if n is None else f"{n:.0f}" for n in pair]
                ratio = "" if None in pair else f" = **{pair[0] / pair[1]:.1f}x**"
                cells.append(f"{shown[0]} / {shown[1]}{ratio}")
            lines.append("| " + " | ".join(cells) + " |")
    paper = [f"{PAPER[c]:g}x" for c in COLUMNS]
    lines.append("| " + " | ".join(["paper, images", "best FID", *paper]) + " |")
    return "\n".join(lines)


def plot(columns: Mapping[str, dict], law: str, path: pathlib.Path) -> None:
    """The curves of one law, a panel per column, as EDM Figure 2."""
    from edm_jax.figures import files
    from edm_jax.figures.ticks import log_axes

    colors = {"original": "#b5482f", "heun": "#d9a441", "edm": "#2a7f4f", "rk45": "#7a7a7a"}
    figure, axes = files.subplots(1, 3, size=(12.5, 4.2), sharey=True)
    for axis, column in zip(axes, columns, strict=True):
        for name, curve in columns[column].items():
            nfe, errors = np.array(curve).T
            style = ":" if name == "rk45" else "-"
            axis.plot(
                nfe, errors * 100, style, color=colors[name], marker="o", ms=3.5,
                label=CURVES[name],
            )  # fmt: skip
        log_axes(axis)
        target = TARGETS[-1]
        pair = [calls_for(columns[column][name], target) for name in ("original", "edm")]
        axis.axhline(100 * target, color="k", lw=0.6, alpha=0.5)
        if None not in pair:
            axis.annotate(
                "", (pair[1], 100 * target), (pair[0], 100 * target),
                arrowprops={"arrowstyle": "->", "lw": 1.4},
            )  # fmt: skip
            axis.text(
                np.sqrt(pair[0] * pair[1]), 115 * target, f"{pair[0] / pair[1]:.1f}x",
                ha="center", va="bottom", fontsize=11, fontweight="bold",
            )  # fmt: skip
        axis.set_title(f"{TITLES[column]} (paper, FID: {PAPER[column]:g}x)")
        axis.set_xlabel("network calls (NFE)")
        axis.set_ylim(0.1, 200)
        axis.set_xlim(6, 1e4)
        axis.grid(alpha=0.25, which="major")
    axes[0].set_ylabel("Wasserstein-2 distance to the data,\n% of its standard deviation")
    axes[1].legend(fontsize=8.5, loc="upper right")
    figure.suptitle(f"Exact denoiser, {RESOLUTION}x{RESOLUTION} images, 1/f spectrum, {law}")
    files.save(figure, path, dpi=110)


def to_text(results: Mapping[str, Mapping[str, dict]]) -> str:
    """The numbers as JSON, one curve a line."""
    lines = [
        f" {json.dumps(f'{law}/{column}/{curve}')}: {json.dumps(points)}"
        for law, columns in results.items()
        for column, curves_of in columns.items()
        for curve, points in curves_of.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def run(
    workdir: pathlib.Path, laws: Sequence[str] = tuple(LAWS), *, figure_format: str = "png"
) -> dict:
    """Measure, print the table, write the figure and the numbers.

    Args:
      workdir: a directory, which must exist.
      laws: names of LAWS; the figure shows the first.
      figure_format: png, pdf or svg.
    """
    results = {}
    with jax.enable_x64(True):
        for name in laws:
            law = image_law(name)
            results[name] = {column: curves(law, column) for column in COLUMNS}
            print(f"{name}: done", flush=True)
    # Four digits are what the quadrature is good for, and the file stays readable.
    results = json.loads(json.dumps(results), parse_float=lambda text: float(f"{float(text):.4g}"))
    print(table(results))
    first = next(iter(results))
    plot(results[first], first, workdir / f"sampling_claim.{figure_format}")
    (workdir / "sampling_claim.json").write_text(to_text(results))
    return results
