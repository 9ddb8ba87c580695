"""Labels that are there are read, or somebody is told: folders and archives, both readers."""

import json

import pytest

from edm_jax.data.sources import decode
from edm_jax.data.sources.class_folders import in_numbered_folders, labels_from_folders
from edm_jax.data.sources.image_files import open_images
from edm_jax.data.sources.raw_images import open_raw_images
from tests.support.made_images import noise, write_folder, write_zip

PNG = decode.encode_png(noise(4, 4))
PETS = ["cat/1.png", "cat/2.png", "dog/1.png"]


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """Writes images, and contents of dataset.json by their names, as a folder or an archive."""

    def write(names, **metadata):
        files = dict.fromkeys(names, PNG)
        files |= {name: json.dumps(content).encode() for name, content in metadata.items()}
        if request.param == "folder":
            return write_folder(tmp_path / "data", files)
        return write_zip(tmp_path / "data.zip", files)

    return write


def read(path):
    """Labels and names of classes by the converter, which training reads alike."""
    images = open_raw_images(path)
    source = open_images(path, use_labels=True)
    assert source.labels.tolist() == images.labels and source.label_names == images.label_names
    return images.labels, images.label_names


def refused(path):
    """The line of the converter; training stops too, and neither looks at labels unasked."""
    with pytest.raises(ValueError) as training:
        open_images(path, use_labels=True)
    with pytest.raises(ValueError) as converting:
        open_raw_images(path)
    assert "\n" not in str(converting.value) + str(training.value)
    images = open_raw_images(path, use_labels=False)
    assert images.labels == [None] * len(images) and len(open_images(path)) == len(images)
    return str(converting.value)


# ---------------------------------------------------------- dataset.json without labels


@pytest.mark.parametrize("content", [{}, {"info": "pets"}, {"images": [{"id": 3}]}])
def test_without_the_key_class_folders_count(make, content):
    assert read(make(PETS, **{"dataset.json": content})) == ([0, 0, 1], ("cat", "dog"))


@pytest.mark.parametrize(
    ("folders", "names", "labels"),
    [
        (("cat", "dog"), ["cat", "dog"], [0, 1]),
        (("cat", "dog"), ["dog", "cat"], [1, 0]),
        (("cat", "dog"), ["ant", "cat", "dog"], [1, 2]),  # no image of an ant
        (("0", "1"), ["cat", "dog"], [0, 1]),
    ],
)
def test_names_alone_name_class_folders(make, folders, names, labels):
    path = make([f"{name}/x.png" for name in folders], **{"dataset.json": {"label_names": names}})
    assert read(path) == (labels, tuple(names))


@pytest.mark.parametrize(
    ("images", "names", "message"),
    [
        (PETS, ["cat"], "'dog' is not among 1 names"),
        (PETS, ["cat", "cow"], "'dog' is not among 2 names"),
        (["0/x.png", "1/x.png"], ["a", "b", "c"], "'0' is not among 3 names"),
        (["1/x.png", "2/x.png"], ["a", "b"], "'1' is not among 2 names"),
        (["x.png", "y.png"], ["a", "b"], "names 2 classes, but no image has one"),
        (["one/x.png"], ["a"], "names 1 classes, but no image has one"),
    ],
)
def test_names_that_fit_no_class_folders(make, images, names, message):
    assert message in refused(make(images, **{"dataset.json": {"label_names": names}}))


PAIRS = [[name, 1] for name in PETS]


@pytest.mark.parametrize(
    "content",
    [
        {"Labels": PAIRS}, {"label": PAIRS}, {"lables": PAIRS}, {" labels": None},
        {"labels": PAIRS, "label_name": ["a", "b"]}, {"labels": None, "LABELS": PAIRS},
        {"class_labels": PAIRS}, {"annotations": PAIRS}, {"classes": {"cat/1.png": 0}},
        {"cat/1.png": 0, "dog/1.png": 1},
    ],
)  # fmt: skip
def test_misspelt_keys_are_named(make, content):
    said = refused(make(PETS, **{"dataset.json": content}))
    key = next(key for key in content if key != "labels")
    assert f"unknown key {key!r}; did you mean" in said


@pytest.mark.parametrize(
    ("images", "places"),
    [
        (["part1/x.png", "part2/x.png"], ["part1/dataset.json", "part2/dataset.json"]),
        (["img/a/x.png", "img/b/x.png"], ["meta/dataset.json"]),
        (["a/x.png", "b/x.png"], ["b/Dataset.JSON"]),
        (["x.png", "y.png"], ["labels/dataset.json"]),
    ],
)
def test_dataset_json_elsewhere(make, images, places):
    said = refused(make(images, **{place: {"labels": [["x.png", 1]]} for place in places}))
    assert f"data{'.zip' if 'zip' in said else ''}: {', '.join(places)}: only one" in said


def test_dataset_json_elsewhere_beside_one_that_labels(make):
    """That of the whole decides, where it has labels; those of tools are nobody's."""
    whole = {"labels": [["a/x.png", 1], ["b/x.png", 0]]}
    names = ["a/x.png", "b/x.png"]
    assert read(make(names, **{"dataset.json": whole, "a/dataset.json": {"labels": [["x.png", 5]]},
                               ".old/dataset.json": {}}))[0] == [1, 0]  # fmt: skip
    path = make(names, **{"dataset.json": {"labels": None}, "a/dataset.json": {}})
    assert "a/dataset.json: only one" in refused(path)


# ------------------------------------------------------------------- numbers and classes


def numbered(folder, *numbers):
    return [f"{folder}/img{n:08d}.png" for n in numbers]


def test_class_folders_of_five_digits(make):
    """The EDM format writes image i to folder i // 1000, so that no number is there twice."""
    path = make(numbered("00000", 0, 1) + numbered("00001", 0, 1))
    assert read(path) == ([0, 0, 1, 1], ("00000", "00001"))
    # Numbers that go on from class to class.
    names = numbered("00000", 0, 1) + numbered("00001", 2, 3)
    assert labels_from_folders(names).labels.tolist() == [0, 0, 1, 1]
    # A class of more than a thousand: number 1000 is there twice.
    names = numbered("00000", 0, 1000) + numbered("00001", 0, 1000)
    assert labels_from_folders(names).names == ("00000", "00001")


@pytest.mark.parametrize(
    "names",
    [
        numbered("00000", 0, 999) + numbered("00001", 1000),
        [f"data/{name}" for name in numbered("00000", 5) + numbered("01281", 1281166)],
        ["000000/000007.png", "001000/001999.png"],  # as --mode=sample --subdirs
    ],
)
def test_running_numbers_are_no_classes(names):
    assert in_numbered_folders(names) and labels_from_folders(names) is None


def test_both_readings(make):
    path = make([*numbered("00000", 0, 1), *numbered("00001", 1000), "00001/extra.png"])
    assert "may be classes, or those of the EDM format" in refused(path)


# ------------------------------------------------------------------------------- splits


def tree(splits, classes="", beside=()):
    below = [f"{c}/" for c in classes] or [""]
    return [f"{split}/{c}x.png" for split in splits for c in below] + list(beside)


@pytest.mark.parametrize(
    "names",
    [
        tree(["train", "eval"], "ab"),
        tree(["Train_images", "Test_images"]),
        tree(["Train_images", "Test_images"], "ab"),
        tree(["train", "test"]),
        tree(["TRAIN", "Validation"], "ab"),
        tree(["train2017", "val2017"]),
        tree(["cats_train", "cats_test"]),
        tree(["TrainImages", "TestImages"], "ab"),
        tree(["trainset", "testset", "dev"]),
        tree(["train", "val"], "ab", ["test/x.png", "more/x.png"]),
    ],
)
def test_splits_are_no_classes(make, names):
    said = refused(make(names))
    assert "are splits of a data set, not classes" in said and "--source=.../" in said
    assert "train" in said.split("--source=.../")[1].split(",")[0].lower()


@pytest.mark.parametrize(
    "folders",
    [["bus", "train"], ["bus", "test_tube", "train"], ["invalid", "valid"], ["devil", "trained"],
     ["cat", "valley"]],
)  # fmt: skip
def test_classes_that_are_named_like_splits(make, folders):
    assert read(make(tree(folders)))[1] == tuple(folders)
