"""The data source protocol and the sources that need no files."""

import pickle

import numpy as np
import pytest

from edm_jax.data.sources import base
from edm_jax.data.sources.base import (
    ArraySource,
    ImageSource,
    Mirrored,
    Subset,
    max_size_indices,
)

IMAGES = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)


def test_items_of_each_kind_of_label():
    classes = ArraySource(IMAGES, [0, 2, 1, 0], ["a", "b", "c"])
    assert isinstance(classes, ImageSource)
    assert (classes.image_shape, classes.num_classes, len(classes)) == ((2, 3, 3), 3, 4)
    assert classes.label_names == ("a", "b", "c")
    item = classes[1]
    np.testing.assert_array_equal(item["image"], IMAGES[1])
    assert item["image"].dtype == np.uint8
    assert item["label"] == 2 and item["label"].dtype == np.int32 and item["label"].shape == ()

    vectors = ArraySource(IMAGES, np.eye(4)[:, :2])
    assert vectors.num_classes == 2 and vectors.label_names is None
    assert vectors[0]["label"].dtype == np.float32
    np.testing.assert_array_equal(vectors[0]["label"], [1, 0])

    bare = ArraySource(IMAGES)
    assert bare.num_classes == 0 and bare[0].keys() == {"image"}


def test_more_classes_than_occur():
    assert ArraySource(IMAGES, [0, 0, 0, 0], num_classes=10).num_classes == 10


def test_data_cannot_be_changed_through_items():
    source = ArraySource(IMAGES.copy())
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][:] = 0


@pytest.mark.parametrize("index", [4, -1, 100])
def test_index_range(index):
    for source in (ArraySource(IMAGES), Subset(ArraySource(IMAGES), [0, 1, 2, 3])):
        with pytest.raises(IndexError, match="4 images"):
            source[index]


@pytest.mark.parametrize(
    ("images", "kwargs", "message"),
    [
        (IMAGES.astype(np.float32), {}, "must be uint8"),
        (IMAGES[0], {}, "shape"),
        (IMAGES[:0], {}, "shape"),
        (np.zeros((2, 4, 4, 4), np.uint8), {}, "C = 1 or 3"),
        (IMAGES, {"labels": [0, 1]}, r"shape \(4,\)"),
        (IMAGES, {"labels": [0, 1, 2, -1]}, r"must lie in .* got -1 to 2"),
        (IMAGES, {"labels": [0, 1, 2, 3], "num_classes": 3}, r"\[0, 3\), got 0 to 3"),
        (IMAGES, {"labels": [0.5, 1, 2, 3]}, "must be integers, got float64"),
        (IMAGES, {"labels": [True] * 4}, "must be integers, got bool"),
        (IMAGES, {"labels": np.full((4, 2), np.nan)}, "label vector 0 is not finite"),
        (IMAGES, {"labels": np.zeros((4, 0))}, "at least one"),
        (IMAGES, {"labels": np.zeros((4, 2)), "num_classes": 3}, "not num_classes = 3"),
        (IMAGES, {"labels": [0, 1, 2, 1], "label_names": ["a"]}, "must name 3 classes"),
        (IMAGES, {"num_classes": 3}, "needs labels"),
    ],
)
def test_bad_arrays(images, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(images, **kwargs)


def test_published_subset():
    # The specification, 11.6: 4 of 10, seed 0.
    np.testing.assert_array_equal(max_size_indices(10, 4, seed=0), [2, 4, 8, 9])
    np.testing.assert_array_equal(max_size_indices(10, 4, seed=2**31), [2, 4, 8, 9])
    np.testing.assert_array_equal(max_size_indices(3, 4), [0, 1, 2])
    with pytest.raises(ValueError, match="max_size"):
        max_size_indices(3, 0)


def test_subset_keeps_the_label_dimension_of_the_whole():
    part = Subset(ArraySource(IMAGES, [0, 1, 2, 3]), [2, 0])
    assert len(part) == 2 and part.num_classes == 4
    assert [int(part[i]["label"]) for i in range(2)] == [2, 0]
    for bad in ([], [[0]], [4], [-1]):
        with pytest.raises(ValueError, match="indices must"):
            Subset(ArraySource(IMAGES), bad)


def test_mirror_images_follow_the_originals():
    source = Mirrored(ArraySource(IMAGES, [0, 1, 2, 3]))
    assert len(source) == 8
    np.testing.assert_array_equal(source[2]["image"], IMAGES[2])
    np.testing.assert_array_equal(source[6]["image"], IMAGES[2, :, ::-1])
    assert source[6]["label"] == 2
    with pytest.raises(IndexError):
        source[8]


def test_all_labels_at_once():
    whole = ArraySource(IMAGES, [2, 0, 1, 2])
    np.testing.assert_array_equal(whole.labels, [2, 0, 1, 2])
    np.testing.assert_array_equal(Subset(whole, [3, 1]).labels, [2, 0])
    np.testing.assert_array_equal(Mirrored(Subset(whole, [3, 1])).labels, [2, 0, 2, 0])
    assert ArraySource(IMAGES).labels is Mirrored(Subset(ArraySource(IMAGES), [0])).labels is None


def test_pickling():
    source = Mirrored(Subset(ArraySource(IMAGES, [0, 1, 2, 3]), [3, 1]))
    copy = pickle.loads(pickle.dumps(source))
    for i in range(4):
        np.testing.assert_array_equal(copy[i]["image"], source[i]["image"])
        assert copy[i]["label"] == source[i]["label"]


def test_classes_that_have_images():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    source = base.ArraySource(images, [1, 3, 3, 9])
    assert base.present_classes(source) == (1, 3, 9)
    assert base.present_classes(base.Subset(source, [1, 2])) == (3,)
    assert base.present_classes(base.Mirrored(source)) == (1, 3, 9)
    assert base.present_classes(base.Unlabelled(source)) is None
    eye = np.eye(5, dtype=np.float32)
    assert base.present_classes(base.ArraySource(images, eye[[4, 1, 1, 4]])) == (1, 4)
    assert base.present_classes(base.ArraySource(images, eye[[4, 1, 1, 4]] * 2)) is None


def test_some_of_the_label_vectors_are_kept():
    images = np.zeros((200, 2, 2, 1), np.uint8)
    vectors = np.repeat(
        np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32), 2, axis=0
    )
    found = base.example_vectors(base.ArraySource(images, vectors))
    assert len(found) == 64 and len({tuple(row) for row in found}) == 64
    assert {tuple(row) for row in found} <= {tuple(row) for row in vectors.tolist()}
    assert base.example_vectors(base.ArraySource(images[:3], vectors[:3])) == [
        vectors[0].tolist(), vectors[2].tolist()
    ]  # fmt: skip
    # Long ones are few: 4096 numbers in all, one vector at least.
    for width, count in ((1024, 4), (5000, 1)):
        wide = np.random.default_rng(0).normal(size=(10, width)).astype(np.float32)
        assert len(base.example_vectors(base.ArraySource(images[:10], wide))) == count
    one_hot = np.eye(3, dtype=np.float32)[[0, 2, 1]]
    for labels in (one_hot, np.array([0, 1, 2]), None):
        assert base.example_vectors(base.ArraySource(images[:3], labels)) is None
