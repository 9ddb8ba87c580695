"""What generated images are compared with: statistics, and perhaps features, of real ones."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax.foreign.numpy_pickle import read_array_pickle
from edm_jax.pytree import short_repr
from edm_jax.store.errors import WeightsError, show

_FORMAT = "edm_jax reference 1"
# The keys of EDM2's pickles by the extractor whose features they are of.
_PICKLED = {"inception": "fid", "dinov2": "fd_dinov2"}
_UNKNOWN = "does not say of which {} it is; nothing was checked there"


@short_repr
@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the features of real images.

    What is None is not known: published files hold mean and covariance only.

    Attributes:
      mean: ``(D,)`` float64.
      cov: ``(D, D)`` float64, unbiased.
      extractor: name of the feature extractor.
      digest: of its weights and of its preprocessing.
      resolution: ``(H, W)`` of the images.
      count: number of images.
      features: ``(n, D)`` float32, for the metrics that need them; not always of all images.
      floor: Frechet distance of two halves of the images.
      floor_count: images in each half.
      source: what the images are, or the file; for people.
    """

    mean: np.ndarray
    cov: np.ndarray
    extractor: str | None = None
    digest: str | None = None
    resolution: tuple[int, int] | None = None
    count: int | None = None
    features: np.ndarray | None = None
    floor: float | None = None
    floor_count: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        shapes = (np.shape(self.mean), np.shape(self.cov))
        width = shapes[0][0] if len(shapes[0]) == 1 else 0
        if not width or shapes[1] != (width, width):
            raise WeightsError(
                f"a reference has a mean (D,) and a covariance (D, D), got {shapes[0]} and "
                f"{shapes[1]}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            raise WeightsError("a reference with numbers that are not finite")
        if not np.allclose(self.cov, self.cov.T, rtol=1e-6, atol=1e-8 * np.abs(self.cov).max()):
            raise WeightsError("a reference whose covariance is not symmetric")
        if self.features is not None:
            shape = np.shape(self.features)
            if len(shape) != 2 or shape[1] != width or not np.isfinite(self.features).all():
                raise WeightsError(f"features of a reference are finite (n, {width}), got {shape}")

    def check(self, extractor: str, digest: str, width: int, resolution: tuple[int, int]) -> None:
        """Refuse to compare what cannot be compared.

        Args:
          extractor, digest: of the features to compare.
          width: numbers of a feature.
          resolution: ``(H, W)`` of the images.

        Raises:
          ValueError: one line that says what differs.
        """
        where = f"the reference {self.source}".rstrip()
        if self.extractor not in (None, extractor):
            raise ValueError(
                f"{where} is of the extractor {self.extractor!r}, the images of {extractor!r}; "
                "make the reference with the same"
            )
        if len(self.mean) != width:
            raise ValueError(
                f"{where} has features of {len(self.mean)} numbers, the extractor {extractor!r} "
                f"gives {width}; make the reference with the same"
            )
        if self.digest not in (None, digest):
            raise ValueError(
                f"{where} was made with other weights or another preprocessing of {extractor!r} "
                f"({self.digest[:12]}, here {digest[:12]}); make it again"
            )
        if self.resolution not in (None, resolution):
            raise ValueError(
                f"{where} is of images of {self.resolution[0]}x{self.resolution[1]} pixels, these "
                f"have {resolution[0]}x{resolution[1]}; take the reference of their size"
            )

    def remarks(self) -> tuple[str, ...]:
        """What the file leaves open."""
        known = {"extractor": self.extractor, "resolution": self.resolution}
        return tuple(
            f"the reference {self.source} {_UNKNOWN.format(name)}"
            for name, value in known.items()
            if value is None
        )


def save_reference(path: str | os.PathLike[str], reference: Reference) -> None:
    """Write one ``.npz``, completely or not at all.

    It has ``mu`` and ``sigma`` as the published files do, ``features`` if there are any, and
    everything else as JSON in ``meta``.
    """
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"a reference is written to a file that ends with .npz, got {path.name}")
    fields = dataclasses.asdict(reference)
    arrays = {"mu": fields.pop("mean"), "sigma": fields.pop("cov")}
    features = fields.pop("features")
    if features is not None:
        arrays["features"] = np.asarray(features, np.float32)
    meta = json.dumps({"format": _FORMAT, **fields})
    # Beside the target, since a rename is atomic within a file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, meta=np.array(meta), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def load_reference(path: str | os.PathLike[str], extractor: str) -> Reference:
    """Read a reference of ours, or a published ``.npz`` or ``.pkl``; nothing is executed.

    Args:
      path: the file.
      extractor: whose features are wanted; chooses within EDM2's pickles, which hold those of
        several.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it is damaged, or no reference.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no reference {path}")
    reader = _from_pickle if path.suffix == ".pkl" else _from_npz
    try:
        return reader(path, extractor)
    except WeightsError as error:
        said = str(error)
        raise WeightsError(said if said.startswith(str(path)) else f"{path}: {said}") from None


def _float64(arrays: Mapping[str, Any], name: str) -> np.ndarray:
    array = arrays.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise WeightsError(f"{name!r} is {show(array)}, expected an array of numbers")
    return np.array(array, np.float64)


def _from_npz(path: pathlib.Path, extractor: str) -> Reference:
    del extractor  # such a file holds one set of statistics
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        LookupError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"no readable .npz: {reason[:80]}; copy it again") from None
    missing = {"mu", "sigma"} - set(arrays)
    if missing:
        raise WeightsError(
            f"no reference: {sorted(missing)[0]!r} is missing, it has "
            f"{', '.join(map(show, list(arrays)[:6]))}"
        )
    statistics = {"mean": _float64(arrays, "mu"), "cov": _float64(arrays, "sigma")}
    if "meta" not in arrays:
        return Reference(**statistics, source=path.name)
    return Reference(**statistics, features=arrays.get("features"), **_meta(arrays["meta"]))


def _meta(text: np.ndarray) -> dict[str, Any]:
    """The fields that are no arrays."""
    try:
        fields = json.loads(str(text))
        if fields.pop("format") != _FORMAT:
            raise WeightsError("a reference of another version of edm_jax; make it again")
        resolution = fields.pop("resolution")
        fields["resolution"] = None if resolution is None else tuple(map(int, resolution))
        known = {field.name for field in dataclasses.fields(Reference)}
        if not set(fields) <= known:
            raise WeightsError(
                f"a reference with an unknown field {sorted(set(fields) - known)[0]}"
            )
        return fields
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError("the description of the reference is damaged; make it again") from None


def _from_pickle(path: pathlib.Path, extractor: str) -> Reference:
    root = read_array_pickle(path)
    key = _PICKLED.get(extractor, extractor)
    statistics = root if {"mu", "sigma"} <= set(root) else root.get(key)
    if not isinstance(statistics, dict):
        raise WeightsError(
            f"the file has no {key!r}, which {extractor!r} needs; it has "
            f"{', '.join(map(show, list(root)[:6]))}"
        )
    count = root.get("num_images")
    return Reference(
        _float64(statistics, "mu"),
        _float64(statistics, "sigma"),
        extractor=None if statistics is root else extractor,
        count=count if type(count) is int else None,
        source=path.name,
    )
