"""The TFDS source, over a tiny data set that TFDS itself writes as array_record.

Images are handed to TFDS as PNG files, which needs no TensorFlow.
"""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

from edm_jax.data.sources import decode
from edm_jax.data.sources.base import ImageSource
from edm_jax.data.sources.tfds import TfdsSource

tfds = pytest.importorskip("tensorflow_datasets")

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
VECTORS = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)


class EdmTiny(tfds.core.GeneratorBasedBuilder):
    """Twelve images; the last one of split "odd" is of another size, "bare" unlabelled."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["cat", "dog", "émeu"]),
                "vector": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                "number": tfds.features.Scalar(dtype=np.int64),
                "text": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "odd", "bare")}

    def _generate_examples(self, split):
        for i, image in enumerate(IMAGES):
            image = image[:4] if split == "odd" and i == 11 else image
            yield (
                i,
                {
                    "image": io.BytesIO(decode.encode_png(image)),
                    "label": -1 if split == "bare" else i % 3,
                    "vector": VECTORS[i],
                    "number": i,
                    "text": "a text",
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    EdmTiny(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def _find(source, image):
    """The item with that image: TFDS shuffles what it writes."""
    found = [item for item in map(source.__getitem__, range(len(source))) if
             np.array_equal(item["image"], image)]  # fmt: skip
    assert len(found) == 1
    return found[0]


def test_classes_and_their_names(data_dir):
    source = TfdsSource("edm_tiny", data_dir=data_dir, use_labels=True, resolution=8)
    assert isinstance(source, ImageSource)
    assert (len(source), source.image_shape, source.num_classes) == (12, (8, 8, 3), 3)
    assert source.label_names == ("cat", "dog", "émeu")
    for i, image in enumerate(IMAGES):
        item = _find(source, image)
        assert item["label"] == i % 3 and item["label"].dtype == np.int32
        assert item["image"].dtype == np.uint8 and item["image"].shape == (8, 8, 3)


def test_without_labels(data_dir):
    source = TfdsSource("edm_tiny", data_dir=data_dir)
    assert source.num_classes == 0 and source[0].keys() == {"image"}


def test_vectors_and_plain_numbers(data_dir):
    source = TfdsSource("edm_tiny", data_dir=data_dir, label_key="vector", use_labels=True)
    assert source.num_classes == 4 and source.label_names is None
    np.testing.assert_array_equal(_find(source, IMAGES[5])["label"], VECTORS[5])
    source = TfdsSource(
        "edm_tiny", data_dir=data_dir, label_key="number", use_labels=True, num_classes=20
    )
    assert source.num_classes == 20 and _find(source, IMAGES[7])["label"] == 7


def test_labels_without_their_images(data_dir, monkeypatch):
    sources = [
        TfdsSource("edm_tiny", data_dir=data_dir, label_key=key, use_labels=True)
        for key in ("label", "vector")
    ]
    expected = [[source[i]["label"] for i in range(12)] for source in sources]
    bare = TfdsSource("edm_tiny", "bare", data_dir=data_dir, use_labels=True)
    monkeypatch.setattr(TfdsSource, "_image", None)  # decoding would fail
    for source, labels in zip(sources, expected, strict=True):
        np.testing.assert_array_equal([source.read_label(i) for i in range(12)], labels)
        with pytest.raises(IndexError):
            source.read_label(12)
    with pytest.raises(ValueError, match=r"record 0: label -1 is not in \[0, 3\)"):
        bare.read_label(0)


def test_slices_of_splits(data_dir):
    first = TfdsSource("edm_tiny", "train[:25%]", data_dir=data_dir)
    both = TfdsSource("edm_tiny:1.0.0", "train+bare", data_dir=data_dir)
    assert len(first) == 3 and len(both) == 24


def test_pickled(data_dir):
    source = TfdsSource("edm_tiny", data_dir=data_dir, use_labels=True)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])
    assert copy[3]["label"] == source[3]["label"]


def test_read_from_disk_alone(data_dir):
    # In a fresh interpreter the builder's class does not exist, and TensorFlow, where it
    # is installed, stays unused.
    code = (
        "import sys\n"
        "from edm_jax.data.sources.tfds import TfdsSource\n"
        "source = TfdsSource('edm_tiny', data_dir=sys.argv[1], use_labels=True)\n"
        "assert source[11]['image'].shape == (8, 8, 3) and source.label_names[0] == 'cat'\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(data_dir)], check=True, timeout=120)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("no_such_set",), {}, "cannot open 'no_such_set' .* check name, version"),
        (("edm_tiny:3.0.0",), {}, "cannot open 'edm_tiny:3.0.0'"),
        (("edm_tiny", "test"), {}, "cannot open split 'test' .*; it has train"),
        (("edm_tiny", "train[:0]"), {}, "cannot open split"),
        (("edm_tiny",), {"image_key": "picture"}, "no feature 'picture', only image, label"),
        (("edm_tiny",), {"label_key": "class", "use_labels": True}, "no feature 'class'"),
        (("edm_tiny",), {"label_key": "text", "use_labels": True}, "neither a class nor"),
        (("edm_tiny",), {"label_key": "number", "use_labels": True}, "give num_classes"),
        (("edm_tiny",), {"num_classes": 5, "use_labels": True}, "has 3 classes, not"),
        (("edm_tiny",), {"resolution": 32}, "images are 8x8, expected 32x32"),
    ],
)
def test_bad_arguments(data_dir, args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        TfdsSource(*args, data_dir=data_dir, **kwargs)


def test_data_that_is_not_prepared(tmp_path):
    with pytest.raises(ValueError, match=r"is not prepared in .*`tfds build edm_tiny"):
        TfdsSource("edm_tiny", data_dir=tmp_path)


def test_data_without_random_access(data_dir, monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("Random access data source for file format")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", refuse)
    with pytest.raises(ValueError, match=r"no random access; run .*--file_format=array_record"):
        TfdsSource("edm_tiny", data_dir=data_dir)


def test_prepared_on_demand(tmp_path):
    source = TfdsSource("edm_tiny", data_dir=tmp_path, download=True)
    assert len(source) == 12


def test_odd_images_and_labels_are_named_when_read(data_dir):
    source = TfdsSource("edm_tiny", "odd", data_dir=data_dir)
    shape = source.image_shape  # the odd one may come first: TFDS shuffles
    with pytest.raises(ValueError, match=r"split odd, record \d+: image of shape"):
        for i in range(len(source)):
            assert source[i]["image"].shape == shape
    source = TfdsSource("edm_tiny", "bare", data_dir=data_dir, use_labels=True)
    with pytest.raises(ValueError, match=r"record 0: label -1 is not in \[0, 3\); choose"):
        source[0]
    source = TfdsSource(
        "edm_tiny", data_dir=data_dir, label_key="number", use_labels=True, num_classes=3
    )
    with pytest.raises(ValueError, match=r"is not in \[0, 3\)"):
        for i in range(12):
            source[i]
