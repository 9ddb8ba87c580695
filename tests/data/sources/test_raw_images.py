"""Sources of the conversion: what is an image, and which label it gets."""

import gzip
import json
import pickle
import struct

import numpy as np
import pytest

from edm_jax.data.sources import decode
from edm_jax.data.sources.raw_images import open_raw_images
from tests.data.sources.test_cifar import write_archive
from tests.support.made_images import write_folder, write_zip

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
PNG = decode.encode_png(IMAGES[0])


def _metadata(labels):
    return {"dataset.json": json.dumps({"labels": labels}).encode()}


TREE = {"b/2.png": PNG, "a/1.png": PNG, "c/d/3.JPG": PNG, "b/notes.txt": b""}


def test_folder_with_classes(tmp_path):
    images = open_raw_images(write_folder(tmp_path / "x", TREE))
    assert images.names == ["a/1.png", "b/2.png", "c/d/3.JPG"]
    assert images.labels == [0, 1, 2] and images.notes == ()
    image, notes = images.load(0)
    np.testing.assert_array_equal(np.asarray(image), IMAGES[0])
    assert notes == []


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_archive_with_classes(tmp_path, separator):
    tree = {name.replace("/", separator): data for name, data in TREE.items()}
    images = open_raw_images(write_zip(tmp_path / "x.zip", tree))
    assert images.names == ["a/1.png", "b/2.png", "c/d/3.JPG"]
    assert images.labels == [0, 1, 2] and images.label_names == ("a", "b", "c")
    images = open_raw_images(tmp_path / "x.zip", use_labels=False)
    assert images.labels == [None] * 3 and images.label_names is None


@pytest.mark.parametrize("make", [write_folder, write_zip])
def test_dataset_json(tmp_path, make):
    labels = [["c/d/3.JPG", 7], ["a/1.png", 0], ["b/2.png", 7]]
    images = open_raw_images(make(tmp_path / "x.zip", TREE | _metadata(labels)))
    assert images.labels == [0, 7, 7]
    vectors = [[name, [0.1, 2]] for name, _ in labels]
    images = open_raw_images(make(tmp_path / "y.zip", TREE | _metadata(vectors)))
    assert images.labels == [[0.1, 2]] * 3
    # null says that there are none, whatever the folders are called.
    images = open_raw_images(make(tmp_path / "z.zip", TREE | _metadata(None)))
    assert images.labels == [None] * 3


def test_missing_labels_are_noted_and_wrong_ones_refused(tmp_path):
    path = write_folder(tmp_path / "a", TREE | _metadata([["a/1.png", 3]]))
    images = open_raw_images(path)
    assert images.labels == [3, None, None]
    images.check_labelled(1)
    with pytest.raises(ValueError, match=r"2 of 3 images have no label, for example 'b/2\.png'"):
        images.check_labelled(3)
    with pytest.raises(ValueError, match=r"labels 'x\.png' and others, but none of the images"):
        open_raw_images(write_folder(tmp_path / "c", TREE | _metadata([["x.png", 3]])))
    mixed = [["a/1.png", 3], ["b/2.png", [1.0]], ["c/d/3.JPG", 1]]
    with pytest.raises(ValueError, match="a label is a whole number from 0 on, or a list"):
        open_raw_images(write_folder(tmp_path / "b", TREE | _metadata(mixed)))


def test_two_spellings_of_one_name(tmp_path):
    """An archive can hold both; no label is left over, and none is missing."""
    files = {"a/1.png": PNG, "./a/1.png": PNG, "b/2.png": PNG}
    labels = [["a/1.png", 3], ["b/2.png", 4]]
    images = open_raw_images(write_zip(tmp_path / "x.zip", files | _metadata(labels)))
    assert sorted(images.labels) == [3, 3, 4] and images.notes == ()
    more = [*labels, ["c.png", 5]]
    images = open_raw_images(write_zip(tmp_path / "y.zip", files | _metadata(more)))
    assert images.notes[0].startswith("1 labels of") and len(images.notes) == 1


def test_folders_that_are_no_classes(tmp_path):
    images = open_raw_images(write_folder(tmp_path / "a", {"one/1.png": PNG, "one/2.png": PNG}))
    assert images.labels == [None, None] and "no labels" in images.notes[0]
    path = write_folder(tmp_path / "b", TREE | {"root.png": PNG})
    with pytest.raises(
        ValueError, match=r"1 of 4 images lie in none of them.*root\.png.*unlabelled"
    ):
        open_raw_images(path)
    assert open_raw_images(path, use_labels=False).labels == [None] * 4
    numbered = {"00000/img00000000.png": PNG, "00001/img00001000.png": PNG}
    images = open_raw_images(write_folder(tmp_path / "d", numbered))
    assert images.labels == [None] * 2 and "running numbers" in images.notes[0]
    images = open_raw_images(write_folder(tmp_path / "c", {"1.png": PNG}))
    assert images.labels == [None] and images.notes == ()


def test_damaged_images_are_found_when_loaded(tmp_path):
    images = open_raw_images(write_folder(tmp_path, {"a.png": b"rubbish", "b.png": PNG}))
    with pytest.raises(ValueError, match=r"a\.png: cannot be used as an image"):
        images.load(0)
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"b\.png: cannot be read"):
        images.load(1)


def test_fingerprint(tmp_path):
    first = open_raw_images(write_folder(tmp_path / "a", TREE)).fingerprint()
    assert open_raw_images(tmp_path / "a").fingerprint() == first
    assert (
        open_raw_images(write_folder(tmp_path / "b", TREE | {"a/2.png": PNG})).fingerprint()
        != first
    )
    relabelled = _metadata([[n, 1] for n in ("a/1.png", "b/2.png", "c/d/3.JPG")])
    assert open_raw_images(write_folder(tmp_path / "c", TREE | relabelled)).fingerprint() != first


def test_lsun(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "bedroom_train_lmdb"
    with lmdb.open(str(path), map_size=1 << 20) as environment:
        with environment.begin(write=True) as transaction:
            for i in (2, 0, 1):
                transaction.put(f"key{i}".encode(), decode.encode_png(IMAGES[i]))
            transaction.put(b"key3", b"rubbish")
    images = open_raw_images(path)
    assert images.names == ["key0", "key1", "key2", "key3"]  # the order of the database
    assert images.labels == [None] * 4
    np.testing.assert_array_equal(np.asarray(images.load(1)[0]), IMAGES[1])
    with pytest.raises(ValueError, match="key3: cannot be used"):
        images.load(3)
    (tmp_path / "not_lmdb").mkdir()
    with pytest.raises(ValueError, match="not an LMDB database"):
        open_raw_images(tmp_path / "not_lmdb")


def test_cifar(tmp_path):
    data = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
    batch = pickle.dumps({"data": data, "labels": [4, 9]}, protocol=2)
    batches = {f"data_batch_{i}": batch for i in range(1, 6)}
    images = open_raw_images(write_archive(tmp_path / "cifar-10-python.tar.gz", batches))
    assert len(images) == 10 and images.labels == [4, 9] * 5
    assert images.label_names[4] == "deer" and images.label_names[9] == "truck"
    expected = data[1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(images.load(3)[0]), expected)


def _idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + (
        array.astype(np.uint8).tobytes()
    )  # fmt: skip


def _mnist(path, images, labels):
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images)))
    (path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels)))
    return path / "train-images-idx3-ubyte.gz"


def test_mnist_is_padded_to_32(tmp_path):
    digits = RNG.integers(1, 256, (3, 28, 28))
    images = open_raw_images(_mnist(tmp_path, digits, np.array([5, 0, 4])))
    assert images.labels == [5, 0, 4]
    pixels = np.asarray(images.load(2)[0])
    assert pixels.shape == (32, 32)
    np.testing.assert_array_equal(pixels[2:30, 2:30], digits[2])
    assert pixels.astype(int).sum() == digits[2].sum()


def test_bad_mnist(tmp_path):
    digits = np.ones((3, 28, 28))
    path = _mnist(tmp_path, digits, np.arange(2))
    with pytest.raises(ValueError, match="as many labels"):
        open_raw_images(path)
    path = _mnist(tmp_path, digits[:, :20], np.arange(3))
    with pytest.raises(ValueError, match="images of 28x28"):
        open_raw_images(path)
    path.write_bytes(gzip.compress(_idx(digits)[:-5]))
    with pytest.raises(ValueError, match="2347 values for shape"):
        open_raw_images(path)
    path.write_bytes(gzip.compress(b"rubbish of some length"))
    with pytest.raises(ValueError, match="not an IDX file"):
        open_raw_images(path)
    path.write_bytes(gzip.compress(_idx(digits))[:-20])
    with pytest.raises(ValueError, match="damaged"):
        open_raw_images(path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match="must lie beside it"):
        open_raw_images(path)


def test_unknown_sources(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        open_raw_images(tmp_path / "absent")
    with pytest.raises(ValueError, match="no images in it"):
        open_raw_images(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not recognised; expected .*cifar-10-python\.tar\.gz"):
        open_raw_images(tmp_path / "x.tar.gz")
