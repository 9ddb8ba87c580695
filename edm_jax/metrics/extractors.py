"""From uint8 images to features: Inception-v3, DINOv2, raw pixels, or a function of one's own.

An extractor sees images in batches of one size, padded where they do not fill it, so that one
program is compiled for a size of images and no feature depends on its neighbours.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from edm_jax.arguments import user_path
from edm_jax.foreign import dinov2 as dinov2_file
from edm_jax.foreign import inception as inception_file
from edm_jax.metrics import dinov2, inception, inception_weights
from edm_jax.names import lookup
from edm_jax.pytree import short_repr
from edm_jax.typing import ArrayLike

# The covariance of pixels is a matrix of this size squared.
MAX_PIXEL_NUMBERS = 4096
# On CPUs larger batches leave the caches; on accelerators small ones leave them idle.
_CPU_BATCH, _ACCELERATOR_BATCH = 8, 64


class FeatureFn(Protocol):
    """``(B, H, W, C)`` uint8 images -> ``(B, D)`` features, each from its image alone."""

    def __call__(self, images: np.ndarray) -> ArrayLike: ...


@short_repr
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What metrics are made of.

    Attributes:
      features: ``(B, D)`` float32.
      logits: ``(B, classes)`` float32, of extractors that classify.
      resolution: ``(H, W)`` of the images.
      remarks: lines that belong beside any number made of these.
      labels: ``(B, 1)``, the classes that were asked for, if there are any; the extractor does
        not know them.
    """

    features: np.ndarray
    logits: np.ndarray | None = None
    resolution: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()
    labels: np.ndarray | None = None


@short_repr
@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A function of images, with what tells its features from others.

    Attributes:
      name: for people and for references.
      digest: of the weights and of the preprocessing, 64 hexadecimal digits.
      function: uint8 images ``(batch_size, H, W, C)`` -> features ``(batch_size, D)``, or a
        pair of features and logits.
      batch_size: images of one call of the function.
      repeats_grey: whether images of one channel are repeated to three.
    """

    name: str
    digest: str
    function: Callable[[np.ndarray], Any]
    batch_size: int = 64
    repeats_grey: bool = False

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Outputs:
        """Features of any number of images.

        Args:
          images: ``(B, H, W, C)`` uint8.

        Raises:
          ValueError: images of another kind, or features that are not finite.
        """
        images, remarks = self._checked(images)
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            found = self.function(np.pad(batch, padding, mode="edge"))
            pair = found if isinstance(found, tuple) else (found, None)
            parts.append([None if a is None else np.asarray(a)[: len(batch)] for a in pair])
        features, logits = (
            None if column[0] is None else np.concatenate(column).astype(np.float32, copy=False)
            for column in zip(*parts, strict=True)
        )
        self._check_rows("features", features, len(images))
        if logits is not None:
            self._check_rows("logits", logits, len(images))
        return Outputs(features, logits, images.shape[1:3], remarks)

    def _checked(
        self, images: np.ndarray | Sequence[np.ndarray]
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        if not isinstance(images, np.ndarray | jax.Array):
            sizes = sorted({np.shape(image) for image in images})
            if len(sizes) > 1:
                raise ValueError(
                    f"images of several sizes, {sizes[0]} and {sizes[1]}; a metric compares images "
                    "of one size, resize them first"
                )
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8, got {images.dtype}; convert with edm_jax.to_uint8"
            )
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(f"images must have shape (B, H, W, C), got {images.shape}")
        channels = images.shape[3]
        if channels not in (1, 3):
            raise ValueError(
                f"images must have 1 or 3 channels, got {channels}"
                + ("; remove the transparency first" if channels in (2, 4) else "")
            )
        if channels == 1 and self.repeats_grey:
            return np.repeat(images, 3, axis=3), ("grey images were repeated to three channels",)
        return images, ()

    def _check_rows(self, what: str, rows: np.ndarray, count: int) -> None:
        if rows.ndim != 2 or len(rows) != count:
            raise ValueError(
                f"the extractor {self.name!r} must give {what} (B, D), got {rows.shape} for "
                f"{count} images"
            )
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(
                f"the extractor {self.name!r} gave {what} that are not finite for {bad.size} of "
                f"{count} images, the first is image {bad[0]} of its batch"
            )


def from_function(
    function: FeatureFn, name: str, *, version: str = "", batch_size: int = 64
) -> Extractor:
    """An extractor of one's own.

    Args:
      function: uint8 images ``(B, H, W, C)`` -> features ``(B, D)``; jitted for speed.
      name: under which references are kept.
      version: anything that changes with the features, such as a digest of weights; references
        of another version are refused.
      batch_size: images of one call.
    """
    return Extractor(name, _digest({}, f"{name}\n{version}"), function, batch_size)


def pixels(**_: Any) -> Extractor:
    """The pixels themselves, in [-1, 1]: for tiny images."""

    def flat(images: np.ndarray) -> np.ndarray:
        numbers = int(np.prod(images.shape[1:]))
        if numbers > MAX_PIXEL_NUMBERS:
            raise ValueError(
                f"images of {numbers} numbers are too large for metrics of raw pixels, which take "
                f"up to {MAX_PIXEL_NUMBERS}; use a feature network"
            )
        return images.reshape(len(images), -1) / np.float32(127.5) - 1

    return Extractor("pixels", _digest({}, "pixels: v / 127.5 - 1"), flat)


# ---------------------------------------------------------------- feature networks


def inception_v3(
    weights: str | os.PathLike[str] | None = None,
    *,
    option: str = "weights",
    batch_size: int | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Extractor:
    """The Inception-v3 of FID: 2048 features and 1008 logits.

    Args:
      weights: one of the accepted files, or a folder that has one.
      option: how the user gives it, for messages.
      batch_size: images of one call, on all devices together; None: chosen by the device.
      sharding: of the images over the devices of this process.

    Raises:
      ValueError: no weights (what is accepted is named), or `WeightsError`, unusable ones.
    """
    path = _weights_file("Inception-v3", inception_file.FILES, weights, option)
    tensors = inception_file.read_inception(path, inception_weights.published_shapes())
    rule = "inception: TensorFlow 1 bilinear to 299, (v - 128) / 128"
    params = _placed(inception_weights.params_from(tensors), sharding)

    def function(images: np.ndarray) -> Any:
        return inception.features_and_logits(params, jax.device_put(images, sharding))

    batch_size = batch_size or _default_batch(sharding)
    return Extractor("inception", _digest(tensors, rule), function, batch_size, repeats_grey=True)


def dinov2_vitl14(
    weights: str | os.PathLike[str] | None = None,
    *,
    option: str = "weights",
    batch_size: int | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
    layout: dinov2.Layout = dinov2.VIT_L14,
) -> Extractor:
    """DINOv2's ViT-L/14: 1024 features.  Arguments as of `inception_v3`.

    ``layout``: sizes of the network; other than those of the ViT-L/14 for tests.
    """
    path = _weights_file("DINOv2", dinov2_file.FILES, weights, option)
    tensors = dinov2_file.read_dinov2(path, dinov2.published_shapes(layout))
    rule = "dinov2: antialiased bicubic to 224, not clipped"
    params = _placed(dinov2.params_from(tensors, layout), sharding)

    def function(images: np.ndarray) -> Any:
        return dinov2.class_token(params, jax.device_put(images, sharding), layout)

    batch_size = batch_size or _default_batch(sharding)
    return Extractor("dinov2", _digest(tensors, rule), function, batch_size, repeats_grey=True)


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "inception": inception_v3,
    "dinov2": dinov2_vitl14,
    "pixels": pixels,
}


def build(name: str, **arguments: Any) -> Extractor:
    """An extractor by its name; ``arguments`` as of `inception_v3`, all optional but weights.

    Raises:
      ValueError: an unknown name, or no weights where there must be some.
    """
    return lookup(EXTRACTORS, name, "extractor")(**arguments)


def _default_batch(sharding: jax.sharding.NamedSharding | None) -> int:
    devices = list(sharding.device_set) if sharding is not None else jax.local_devices()[:1]
    each = _CPU_BATCH if devices[0].platform == "cpu" else _ACCELERATOR_BATCH
    return each * len(devices)


def _placed(params: Any, sharding: jax.sharding.NamedSharding | None) -> Any:
    """Parameters on the devices, once."""
    if sharding is None:
        return jax.device_put(params)
    whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.device_put(params, whole)


def _digest(tensors: Mapping[str, np.ndarray], rule: str) -> str:
    """Of what the numbers depend on, whichever file held them."""
    digest = hashlib.sha256(rule.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


@functools.cache
def _accepted(files: tuple[tuple[str, str], ...]) -> str:
    return "; ".join(f"{name} ({what})" for name, what in files)


def _weights_file(
    network: str,
    files: tuple[tuple[str, str], ...],
    weights: str | os.PathLike[str] | None,
    option: str,
) -> pathlib.Path:
    """The file that holds the weights.

    Raises:
      ValueError: none is named, or it is not there.
    """
    cure = (
        f"set {option} to one of these files, or to a folder that has it; nothing is downloaded: "
        f"{_accepted(files)}"
    )
    if not weights:
        raise ValueError(f"the weights of {network} are not given; {cure}")
    path = user_path("weights", weights)
    if path.is_dir():
        found = [path / name for name, _ in files if (path / name).is_file()]
        if not found:
            raise ValueError(f"no weights of {network} in the folder {path}; {cure}")
        return found[0]
    if not path.exists():
        raise ValueError(f"there is no file {path} with weights of {network}; {cure}")
    return path
