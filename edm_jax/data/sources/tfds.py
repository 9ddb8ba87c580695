"""Data sets prepared by TensorFlow Datasets (TFDS), read at random from array_record.

Reading needs `tensorflow_datasets` and `array_record`, not TensorFlow.  Preparing a data
set (``tfds build NAME --file_format=array_record``) needs TensorFlow as well where the
builder hands over decoded pixels, as those of CIFAR-10 and MNIST do.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from edm_jax.data.sources import base as source_lib
from edm_jax.data.sources.decode import decode_image


class TfdsSource:
    """One split of a TFDS data set; see `ImageSource`.

    Args:
      name: such as "cifar10" or "imagenet_resized/64x64:0.1.0".
      split: such as "train", "train+test" or "train[:90%]".
      data_dir: where TFDS keeps its data; None: its default.
      image_key: feature with the image, of which all have one size.
      label_key: feature with the class, or with a vector of numbers.
      use_labels: whether items carry labels.
      num_classes: for a label feature that does not say it itself.
      resolution: what width and height must be; None takes the first image's.
      download: prepare the data set if it is not there yet.

    Raises:
      ValueError: for an unknown name, split or feature, for data that is not prepared as
        array_record, or a first image of another size.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        *,
        data_dir: str | os.PathLike | None = None,
        image_key: str = "image",
        label_key: str = "label",
        use_labels: bool = False,
        num_classes: int | None = None,
        resolution: int | None = None,
        download: bool = False,
    ):
        self._where = f"TFDS {name}, split {split}"
        self._image_key, self._label_key = image_key, label_key
        builder = _open_builder(name, data_dir, download)
        features = builder.info.features
        for key in [image_key] + [label_key] * use_labels:
            if key not in features:
                raise ValueError(
                    f"TFDS {name} has no feature {key!r}, only {', '.join(sorted(features))}; "
                    "choose image_key and label_key among them"
                )
        self._features = features
        self._records = _open_split(builder, name, split)
        self.num_classes, self.label_names = 0, None
        if use_labels:
            self.num_classes, self.label_names = _label_dimension(
                features[label_key], f"TFDS {name}: feature {label_key!r}", num_classes
            )
        self.image_shape = self._image(0, _parse(self._records[0])).shape
        if resolution is not None and self.image_shape[:2] != (resolution, resolution):
            raise ValueError(
                f"{self._where}: images are {self.image_shape[1]}x{self.image_shape[0]}, expected "
                f"{resolution}x{resolution}; choose another data set, or export it and convert "
                "it with --mode=dataset"
            )

    def __len__(self) -> int:
        return len(self._records)

    def _image(self, index: int, features: Any) -> np.ndarray:
        data = features[self._image_key].bytes_list.value[0]
        return decode_image(data, f"{self._where}, record {index}")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `ImageSource`.  Raises ValueError for an image of another shape than the
        first, and for a label outside its range (-1 marks an unlabelled split)."""
        index = source_lib.check_index(index, len(self))
        record = self._records[index]
        features = _parse(record)
        pixels = self._image(index, features)
        if pixels.shape != self.image_shape:
            raise ValueError(
                f"{self._where}, record {index}: image of shape {pixels.shape}, expected "
                f"{self.image_shape} like the first; export and convert it with --mode=dataset"
            )
        item = {"image": pixels}
        if self.num_classes:
            item["label"] = self._label(index, record, features)
        return item

    def read_label(self, index: int) -> np.generic | np.ndarray:
        """The label of an image that is not decoded; errors as of the image itself."""
        record = self._records[source_lib.check_index(index, len(self))]
        return self._label(index, record, _parse(record))

    def _label(self, index: int, record: bytes, features: Any) -> np.generic | np.ndarray:
        if self._features[self._label_key].shape == ():
            label = np.asarray(features[self._label_key].int64_list.value[0])
        else:  # vectors have several encodings, which TFDS knows
            label = np.asarray(self._deserialize(record)[self._label_key])
        return self._check_label(index, label)

    def _deserialize(self, record: bytes) -> dict[str, Any]:
        import tensorflow_datasets as tfds

        skip = {self._image_key: tfds.decode.SkipDecoding()}
        return self._features.deserialize_example_np(record, decoders=skip)

    def _check_label(self, index: int, label: np.ndarray) -> np.generic | np.ndarray:
        if label.ndim:
            if label.shape != (self.num_classes,) or not np.isfinite(label).all():
                raise ValueError(
                    f"{self._where}, record {index}: label {label} is not {self.num_classes} "
                    "finite numbers; set use_labels=False"
                )
            return label.astype(np.float32)
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"{self._where}, record {index}: label {label} is not in [0, "
                f"{self.num_classes}); choose a labelled split, or set use_labels=False"
            )
        return np.int32(label)

    def __repr__(self) -> str:
        return (
            f"TfdsSource({self._where}: {len(self)} images {self.image_shape}, "
            f"{self.num_classes} classes)"
        )


def _parse(record: bytes) -> Any:
    """The features of a serialised ``tf.train.Example`` by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _open_builder(name: str, data_dir: str | os.PathLike | None, download: bool) -> Any:
    # Imported here: it takes seconds, and only these data sets need it.
    import tensorflow_datasets as tfds

    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if download:
            builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise ValueError(
            f"preparing TFDS {name} needs another package ({error}); install it, for example "
            "tensorflow, or prepare the data elsewhere: reading works without"
        ) from error
    except (AssertionError, ValueError) as error:  # what TFDS raises for unknown names
        raise ValueError(
            f"TFDS cannot open {name!r} in {data_dir or 'its default folder'}: "
            f"{str(error).splitlines()[0]}; check name, version and data_dir"
        ) from error
    return builder


def _open_split(builder: Any, name: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    if not builder.info.splits:
        raise ValueError(
            f"TFDS {name} is not prepared in {builder.data_path}; run `tfds build {name} "
            "--file_format=array_record`, or set download=True"
        )
    try:
        # TFDS's own decoding takes five times as long, and other decoders where OpenCV
        # is installed.
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(split, deserialize_method=raw)
    except NotImplementedError as error:
        raise ValueError(
            f"TFDS {name} in {builder.data_path} is stored as {builder.info.file_format}, which "
            f"has no random access; run `tfds build {name} --file_format=array_record`"
        ) from error
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"TFDS {name}: cannot open split {split!r} ({str(error).splitlines()[0]}); it has "
            f"{', '.join(builder.info.splits)}: choose one, or a slice such as 'train[:90%]'"
        ) from error
    return records


def _label_dimension(
    feature: Any, where: str, num_classes: int | None
) -> tuple[int, tuple[str, ...] | None]:
    known = getattr(feature, "num_classes", None)
    if known:
        if num_classes not in (None, known):
            raise ValueError(f"{where} has {known} classes, not num_classes = {num_classes}")
        return known, tuple(feature.names)
    shape, kind = feature.shape, np.dtype(feature.np_dtype).kind
    if len(shape) == 1 and shape[0] and kind in "fiu":
        return shape[0], None
    if shape == () and kind in "iu" and num_classes:
        return num_classes, None
    raise ValueError(
        f"{where} is {feature}: neither a class nor a vector of numbers of fixed length; give "
        "num_classes for plain integers, or choose another label_key"
    )


def open_split(
    path: str, split: str = "train", *, use_labels: bool = True, **options: Any
) -> source_lib.ImageSource:
    """A TFDS data set as `registry.SOURCES` opens it.

    Args:
      path: ``name`` or ``name:split``, where the split is what to train on.
      split: ``train``, or ``test`` for the split of that name.
      use_labels: whether items carry labels.
      **options: of `TfdsSource`.

    Raises:
      ValueError: as `TfdsSource`, or without a path.
    """
    if not path:
        raise ValueError("path is missing: the name of the TFDS data set")
    name, _, own = path.partition(":")
    return TfdsSource(
        name, own if own and split == "train" else split, use_labels=use_labels, **options
    )
