"""Latent codes of a model's images: encode, decode, and the images between two images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
import numpy as np

from edm_jax.arguments import check_count, check_switch
from edm_jax.likelihood import batching, codes, kinds
from edm_jax.likelihood.denoisers import solver_for
from edm_jax.likelihood.levels import flow_levels
from edm_jax.model import Model
from edm_jax.names import brief
from edm_jax.progress import ReportFn
from edm_jax.pytree import short_repr
from edm_jax.typing import Array, ArrayLike

NUM_STEPS = 32


def fingerprint(model: Model) -> str:
    """16 hexadecimal digits that differ between models: network, coefficients and weights.

    Of the weights the first 256 numbers of every array.
    """
    parts = {name: model.description[name] for name in ("network", "precond", "image_shape")}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.asarray(leaf.reshape(-1)[:256]).tobytes())
    return digest.hexdigest()[:16]


@short_repr
@dataclasses.dataclass(frozen=True)
class Codes:
    """Codes of images and what decodes them.  As an array (``np.asarray``) they are ``values``.

    Attributes:
      values: ``(B, H, W, C)`` float32, x(S) / S.
      rows: ``(B, num_classes)`` label rows they were made with, or None.
      model: `fingerprint` of the model.
      sigma_min, sigma_max: s0 and S.
    """

    values: np.ndarray
    rows: np.ndarray | None
    model: str
    sigma_min: float
    sigma_max: float

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype)

    def __len__(self) -> int:
        return len(self.values)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays, for `numpy.savez`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: np.asarray(value) for name, value in fields.items() if value is not None}

    @classmethod
    def from_arrays(cls, arrays: Any) -> Codes:
        """Of what `to_arrays` gave; ValueError if something is missing."""
        names = {"values", "model", "sigma_min", "sigma_max"}
        missing = sorted(names - set(arrays))
        if missing:
            raise ValueError(f"no file of codes: {', '.join(missing)} missing; `encode` makes them")
        rows = np.asarray(arrays["rows"]) if "rows" in arrays else None
        return cls(
            np.asarray(arrays["values"]), rows, str(arrays["model"]),
            float(arrays["sigma_min"]), float(arrays["sigma_max"]),
        )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("solver", "up", "final_denoise"))
def _batch_flow(
    model: Model,
    batch: dict[str, Array],
    sigmas: Array,
    *,
    solver: str,
    up: bool,
    final_denoise: bool = False,
) -> Array:
    """One batch along the flow, from images to codes or back."""
    denoise = model.denoiser(model.variables)
    x, rows = batch["x"], batch.get("rows")
    if up:
        return codes.flow_encode(denoise, x, sigmas, rows=rows, solver=solver)
    return codes.flow_decode(
        denoise, x, sigmas, rows=rows, solver=solver, final_denoise=final_denoise
    )


def _run(
    model: Model,
    arrays: dict[str, np.ndarray],
    sigmas: np.ndarray,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None,
    progress: bool | ReportFn,
    **static: Any,
) -> np.ndarray:
    count = len(arrays["x"])
    model = batching.everywhere(model, sharding)
    size = batching.check_batch_size(batch_size, count)
    results = []
    for at, batch in batching.batches(arrays, count, size, sharding, progress):
        result = _batch_flow(model, batch, sigmas.astype(np.float32), **static)
        results.append(np.asarray(result)[: at.stop - at.start])
    return np.concatenate(results)


def _with_rows(x: np.ndarray, rows: np.ndarray | None) -> dict[str, np.ndarray]:
    return {"x": x} if rows is None else {"x": x, "rows": rows}


def encode(
    model: Model,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    num_steps: int = NUM_STEPS,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    solver: str | None = None,
    batch_size: int = 64,
    sharding: jax.sharding.NamedSharding | None = None,
    progress: bool | ReportFn = False,
    churn: None = None,
    guidance: None = None,
) -> Codes:
    """The latent code of each image: where the probability flow takes it at sigma_max.

    Args:
      model: as `load` returns it.
      images: ``(B, H, W, C)`` uint8, or floats in [-1, 1].
      labels: of a class-conditional model, as in `log_likelihood`; decoding needs them too.
      num_steps: N; one-way errors are below an 8-bit level (0.008) from 16 steps on where the
        test bed is a guide (docs/likelihood.md).
      sigma_min, sigma_max: s0 and S; by default 0.002 and 80, within the network's range.
      solver: of `solvers.SOLVERS`; by default ``rk4``, and ``adams`` for networks that know a
        table of levels.
      batch_size, sharding, progress: as in `log_likelihood`.
      churn, guidance: not supported, and must be None: noise cannot be undone, and a guided
        denoiser is not the flow of a density.

    Returns:
      Codes.

    Raises:
      ValueError: for anything that cannot work, before any work.
    """
    batching.refuse_guidance(guidance)
    kinds.check_codes(model)
    if churn is not None:
        raise ValueError(
            f"encoding takes no churn, got {churn!r}: its noise cannot be undone; leave it out"
        )
    x = batching.check_images(images, model)
    rows = batching.check_label_rows(labels, model, len(x))
    solver = solver_for(model, solver, adaptive=False)
    sigmas = flow_levels(
        num_steps, sigma_min=sigma_min, sigma_max=sigma_max, preconditioning=model.preconditioning
    )
    values = _run(
        model, _with_rows(x, rows), sigmas, batch_size, sharding, progress, solver=solver, up=True
    )
    return Codes(values, rows, fingerprint(model), float(sigmas[0]), float(sigmas[-1]))


def decode(
    model: Model,
    z: Codes | ArrayLike,
    labels: ArrayLike | None = None,
    *,
    num_steps: int = NUM_STEPS,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    solver: str | None = None,
    final_denoise: bool = False,
    batch_size: int = 64,
    sharding: jax.sharding.NamedSharding | None = None,
    progress: bool | ReportFn = False,
    guidance: None = None,
) -> np.ndarray:
    """The image of each code; inverse of `encode` up to the error of the solver.

    Args:
      model: that made the codes.
      z: Codes, whose labels and noise range are taken unless given here; or an array
        ``(B, H, W, C)`` of codes of unit variance from anywhere.
      labels: other labels than those of the codes draw the code's image of another class.
      num_steps, sigma_min, sigma_max, solver: as in `encode`.
      final_denoise: end on D(x; s0), as EDM's samplers do, instead of at s0.
      batch_size, sharding, progress, guidance: as in `encode`.

    Returns:
      ``(B, H, W, C)`` float32, nominally in [-1, 1] (see to_uint8).

    Raises:
      ValueError: for codes of another model or of another form, before any work.
    """
    batching.refuse_guidance(guidance)
    kinds.check_codes(model)
    check_switch("final_denoise", final_denoise)
    rows = None
    if isinstance(z, Codes):
        codes.check_codes(z.values, model.image_shape)
        if z.model != fingerprint(model):
            raise ValueError(
                f"the codes were made by another model ({z.model}, this one is "
                f"{fingerprint(model)}); pass np.asarray(codes) to decode them all the same"
            )
        sigma_min = z.sigma_min if sigma_min is None else sigma_min
        sigma_max = z.sigma_max if sigma_max is None else sigma_max
        rows = z.rows
    values = np.asarray(z)
    if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
        raise ValueError(f"codes are numbers, got {brief(z)}; encode makes them")
    values = values.astype(np.float32)
    codes.check_codes(values, model.image_shape)
    if labels is not None or rows is None:
        rows = batching.check_label_rows(labels, model, len(values))
    solver = solver_for(model, solver, adaptive=False)
    sigmas = flow_levels(
        num_steps, sigma_min=sigma_min, sigma_max=sigma_max, preconditioning=model.preconditioning
    )
    return _run(
        model, _with_rows(values, rows), sigmas, batch_size, sharding, progress,
        solver=solver, up=False, final_denoise=final_denoise,
    )  # fmt: skip


def interpolate(
    model: Model,
    images_a: ArrayLike,
    images_b: ArrayLike,
    labels: ArrayLike | None = None,
    labels_b: ArrayLike | None = None,
    *,
    num_frames: int = 9,
    num_steps: int = NUM_STEPS,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    solver: str | None = None,
    final_denoise: bool = False,
    batch_size: int = 64,
    sharding: jax.sharding.NamedSharding | None = None,
    progress: bool | ReportFn = False,
    guidance: None = None,
) -> np.ndarray:
    """Images on the way from one image to another, along the circle between their codes.

    Args:
      model: as `load` returns it.
      images_a, images_b: ``(B, H, W, C)`` uint8, or floats in [-1, 1].
      labels, labels_b: of the two; labels_b by default as labels.  Rows of different classes
        are mixed in proportion.
      num_frames: F >= 2, both ends included; they are the images up to the solver's error.
      num_steps, sigma_min, sigma_max, solver, final_denoise: as in `encode` and `decode`.
      batch_size, sharding, guidance: as in `encode`.
      progress: True for a bar, or a function (done, total), of decoded frames.

    Returns:
      ``(B, F, H, W, C)`` float32, nominally in [-1, 1]; `figures.codes.strip` puts them on a
      sheet.
    """
    batching.refuse_guidance(guidance)
    kinds.check_codes(model)
    check_count("num_frames", num_frames, least=2)
    check_switch("final_denoise", final_denoise)
    a, b = (batching.check_images(images, model) for images in (images_a, images_b))
    if a.shape != b.shape:
        raise ValueError(f"images_a and images_b must be as many, got {len(a)} and {len(b)}")
    count = len(a)
    labels_b = labels if labels_b is None else labels_b
    rows = [batching.check_label_rows(each, model, count) for each in (labels, labels_b)]
    common = {
        "num_steps": num_steps, "sigma_min": sigma_min, "sigma_max": sigma_max,
        "solver": solver, "batch_size": batch_size, "sharding": sharding,
    }  # fmt: skip
    both = None if rows[0] is None else np.concatenate(rows)
    z = encode(model, np.concatenate([a, b]), both, **common).values
    weights = np.linspace(0, 1, num_frames)
    path = np.asarray(codes.slerp(z[:count], z[count:], weights))  # (F, B, ...)
    if both is not None:
        w = weights[:, None, None]
        both = ((1 - w) * rows[0][None] + w * rows[1][None]).reshape(num_frames * count, -1)
    frames = decode(
        model, path.reshape(-1, *model.image_shape), both,
        final_denoise=final_denoise, progress=progress, **common,
    )  # fmt: skip
    return frames.reshape(num_frames, count, *model.image_shape).swapaxes(0, 1)
