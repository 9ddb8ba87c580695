"""References from data sets: made once, kept by digest; or read from published files."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax.arguments import user_path
from edm_jax.data.sources.base import ImageSource, Mirrored, max_size_indices
from edm_jax.evaluation import drawing, measuring
from edm_jax.metrics import frechet
from edm_jax.metrics.extractors import Extractor
from edm_jax.metrics.feature_metrics import Accumulation
from edm_jax.metrics.reference import Reference, load_reference, save_reference
from edm_jax.metrics.registry import OF_PIXELS
from edm_jax.store.errors import WeightsError
from edm_jax.train import distributed

# Features of so many images are kept, for the metrics that compare single images.
MAX_FEATURES = 50_000
_BATCH = 256
_THREADS = 8


def unmirrored(source: ImageSource) -> ImageSource:
    """The images themselves: a reference has no flips (EDM section F.3)."""
    return source.source if isinstance(source, Mirrored) else source


def read_batches(
    source: ImageSource, *, start: int = 0, batch_size: int = _BATCH, num_threads: int = _THREADS
) -> Iterator[tuple[int, np.ndarray]]:
    """All images of a source: index of the first of a batch, ``(b, H, W, C)`` uint8."""
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for first in range(start, len(source), batch_size):
            indices = range(first, min(first + batch_size, len(source)))
            yield first, np.stack(list(pool.map(lambda i: source[i]["image"], indices)))


def source_digest(source: ImageSource) -> str:
    """SHA-256 of all pixels in their order, 64 hexadecimal digits."""
    digest = hashlib.sha256(repr((len(source), source.image_shape)).encode())
    for _, images in read_batches(source):
        digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def make_reference(
    source: ImageSource,
    extractor: Extractor,
    *,
    features: bool = True,
    name: str = "",
    poll: Callable[[], None] | None = None,
) -> Reference:
    """Statistics of all images of a source, and features of up to `MAX_FEATURES` of them.

    All processes call this together.

    Args:
      source: the images.
      extractor: of the features.
      features: whether they are kept.
      name: of the data, for people.
      poll: called for each batch.

    Raises:
      ValueError: fewer than two images, or what the extractor does not take.
    """
    source = unmirrored(source)
    if len(source) < 2:
        raise ValueError(f"a reference needs at least 2 images, got {len(source)}")
    resolution = tuple(source.image_shape[:2])
    moments = Accumulation((), extractor, resolution, more=("halves",))
    rows = Accumulation((), extractor, resolution, more=("features",))
    kept = np.zeros(len(source), bool)
    if features:
        kept[max_size_indices(len(source), MAX_FEATURES)] = True
    with drawing.progress_bar(len(source), "reference") as bar:
        for first, images in read_batches(source):
            outputs = measuring.extract(extractor, images)
            moments.update(outputs, first)
            mine = kept[first : first + len(images)]
            if mine.any():
                some = dataclasses.replace(outputs, features=outputs.features[mine], logits=None)
                rows.update(some, first + np.flatnonzero(mine))
            bar.update(len(images))
            if poll is not None:
                poll()
    made = moments.reference(name)
    if not features:
        return made
    return dataclasses.replace(made, features=rows.accumulators["features"].result())


def kept_reference(
    source: ImageSource,
    extractor: Extractor,
    *,
    features: bool,
    name: str = "",
    cache: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = print,
    poll: Callable[[], None] | None = None,
) -> Reference:
    """`make_reference`, or the file that an earlier one left in ``cache``.

    The file is named by the digests of the pixels and of the extractor.  Raw pixels are made
    anew: that costs no more than reading them.
    """
    if cache is None or extractor.name in OF_PIXELS:
        return make_reference(source, extractor, features=features, name=name, poll=poll)
    source = unmirrored(source)
    digest = hashlib.sha256(f"{source_digest(source)}{extractor.digest}".encode()).hexdigest()
    path = user_path("cache", cache) / f"{extractor.name}-{digest[:24]}.npz"

    def usable() -> Reference | None:
        try:
            found = load_reference(path, extractor.name)
        except (FileNotFoundError, WeightsError):
            return None
        return found if found.features is not None or not features else None

    if distributed.lead_says(lambda: usable() is not None) and (found := usable()) is not None:
        report(f"reference: {path}")
        return found
    report(f"making the reference of {len(source)} images with {extractor.name}")
    made = make_reference(source, extractor, features=features, name=name, poll=poll)

    def save() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_reference(path, made)

    distributed.on_lead(save)
    return made


def find_reference(
    given: Sequence[Any],
    extractor: Extractor,
    *,
    features: bool,
    image_shape: Sequence[int],
    **making: Any,
) -> tuple[int, Reference]:
    """The reference of an extractor among what a user gives.

    Args:
      given: image sources, references, or paths of such; the first that is of this extractor.
      extractor: whose features are compared.
      features: whether single features are wanted.
      image_shape: ``(H, W, C)`` of the images.
      **making: of `kept_reference`.

    Returns:
      Which of ``given``, and the reference.

    Raises:
      ValueError: there is none for this extractor, or it is of images of another size.
      FileNotFoundError, WeightsError: no such file, or a damaged one.
    """
    resolution = tuple(image_shape[:2])
    for i, one in enumerate(given):
        last, path = i == len(given) - 1, None
        if isinstance(one, str | os.PathLike):
            path = one
            one = load_reference(one, extractor.name)
        if not isinstance(one, Reference):
            shape = tuple(one.image_shape[:2])
            if shape != resolution:
                raise ValueError(
                    f"the real images have {shape[0]}x{shape[1]} pixels, these "
                    f"{resolution[0]}x{resolution[1]}; take those of their size"
                )
            return i, kept_reference(one, extractor, features=features, **making)
        # A published file does not say so, but is of a feature network.
        unlikely = one.extractor is None and extractor.name in OF_PIXELS
        if not last and (unlikely or one.extractor not in (None, extractor.name)):
            continue
        # One image, as the file may be of features of another width.
        width = extractor(np.zeros((1, *image_shape), np.uint8)).features.shape[1]
        if not last and one.extractor is None and len(one.mean) != width:
            continue
        try:
            one.check(extractor.name, extractor.digest, width, resolution)
            frechet.covariance_root(one.cov)  # before images are drawn for it
        except ValueError as error:
            where = one.source if path is None else os.fspath(path)
            raise ValueError(f"{where}: {error}") from None
        return i, one
    raise ValueError(f"no reference for {extractor.name}; give one, or the data set")


def reference_digest(reference: Reference) -> str:
    """SHA-256 of mean and covariance."""
    digest = hashlib.sha256()
    for array in (reference.mean, reference.cov):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def default_sharding() -> jax.sharding.NamedSharding | None:
    """Of images over the devices of this process; None for one device."""
    if jax.local_device_count() == 1:
        return None
    from edm_jax.train.sharding import batch_sharding, make_mesh

    return batch_sharding(make_mesh(jax.local_devices()))
