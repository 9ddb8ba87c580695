"""Folders and archives of images, their labels and what is wrong with them."""

import io
import json
import os
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from edm_jax.data.sources import decode
from edm_jax.data.sources.base import ImageSource, present_classes
from edm_jax.data.sources.image_files import ImageFiles, open_images
from tests.support.made_images import write_folder, write_zip

RNG = np.random.default_rng(0)
NAMES = [f"00000/img{i:08d}.png" for i in range(10)]
IMAGES = RNG.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
PNGS = {name: decode.encode_png(image) for name, image in zip(NAMES, IMAGES, strict=True)}


def _metadata(labels):
    return {"dataset.json": json.dumps({"labels": labels}).encode()}


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """Writes files as a folder or as an archive."""
    if request.param == "folder":
        return lambda files: write_folder(tmp_path / "data", files)
    return lambda files: write_zip(tmp_path / "data.zip", files)


def test_images_in_the_order_of_their_names(make):
    source = open_images(make(dict(reversed(PNGS.items())) | {"readme.txt": b"hello"}))
    assert isinstance(source, ImageSource)
    assert (len(source), source.image_shape, source.num_classes) == (10, (8, 8, 3), 0)
    for i, image in enumerate(IMAGES):
        assert source[i].keys() == {"image"}
        np.testing.assert_array_equal(source[i]["image"], image)
    assert source.name(3).endswith(f"{NAMES[3]}")
    with pytest.raises(IndexError):
        source[10]


def test_class_labels_from_dataset_json(make):
    # Labels in another order than the files; the dimension is the largest + 1.
    labels = [[name, (3 * i) % 7] for i, name in enumerate(NAMES)][::-1]
    source = open_images(make(PNGS | _metadata(labels)), use_labels=True)
    assert source.num_classes == 7 and source.label_names is None
    assert [int(source[i]["label"]) for i in range(10)] == [(3 * i) % 7 for i in range(10)]
    assert source[0]["label"].dtype == np.int32
    np.testing.assert_array_equal(source.labels, [(3 * i) % 7 for i in range(10)])


def test_label_vectors_from_dataset_json(make):
    vectors = RNG.normal(size=(10, 3)).round(3).tolist()
    source = open_images(
        make(PNGS | _metadata(list(zip(NAMES, vectors, strict=True)))), use_labels=True
    )
    assert source.num_classes == 3
    np.testing.assert_array_equal(source[4]["label"], np.float32(vectors[4]))


def test_labels_are_left_out_unless_asked_for(make):
    source = open_images(make(PNGS | _metadata([[n, 1] for n in NAMES])))
    assert source.num_classes == 0 and "label" not in source[0] and source.labels is None


def test_subset_then_mirror(make):
    path = make(PNGS | _metadata([[n, i] for i, n in enumerate(NAMES)]))
    source = open_images(path, max_size=4, use_labels=True, mirror=True, seed=0)
    # The specification, 11.6: 2, 4, 8, 9 are kept of ten; the label dimension stays that of all.
    assert len(source) == 8 and source.num_classes == 10
    assert [int(source[i]["label"]) for i in range(8)] == [2, 4, 8, 9, 2, 4, 8, 9]
    np.testing.assert_array_equal(source[5]["image"], IMAGES[4, :, ::-1])
    assert len(open_images(path, max_size=100)) == 10


def test_pickled_and_from_many_threads(make):
    source = pickle.loads(pickle.dumps(open_images(make(PNGS))))
    wrong = []

    def work():
        for i in list(range(10)) * 20:
            if not np.array_equal(source[i]["image"], IMAGES[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_unicode_names_and_grey(make):
    names = ["b/é ü.png", "a/猫.PNG"]
    files = {name: decode.encode_png(IMAGES[i, :, :, :1]) for i, name in enumerate(names)}
    source = open_images(
        make(files | _metadata([[n, i] for i, n in enumerate(names)])), use_labels=True
    )
    assert source.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(source[0]["image"], IMAGES[1, :, :, :1])
    assert [int(source[i]["label"]) for i in range(2)] == [1, 0]


# --------------------------------------------------------------------- class folders

CLASSES = {
    f"{c}/{i}.png": decode.encode_png(IMAGES[i]) for i, c in enumerate(["dog", "cat", "dog"])
}


def test_class_folders_are_labels_in_a_folder(tmp_path):
    source = open_images(write_folder(tmp_path, CLASSES), use_labels=True)
    assert source.label_names == ("cat", "dog") and source.num_classes == 2
    assert [int(source[i]["label"]) for i in range(3)] == [0, 1, 1]


@pytest.mark.parametrize("prefix", ["", "pets/", "my/pets/", "./", "/", ".\\pets\\"])
def test_class_folders_are_labels_in_an_archive(tmp_path, prefix):
    separator = "\\" if "\\" in prefix else "/"
    files = {prefix + name.replace("/", separator): data for name, data in CLASSES.items()}
    path = write_zip(tmp_path / "x.zip", files)
    source = open_images(path, use_labels=True)
    assert source.label_names == ("cat", "dog")
    assert [int(source[i]["label"]) for i in range(3)] == [0, 1, 1]
    assert open_images(path).num_classes == 0


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_dataset_json_in_a_folder_of_its_own(make, prefix):
    files = {prefix + name: data for name, data in PNGS.items()}
    metadata = {"labels": [[f".\\{n}".replace("/", "\\"), 2.0] for n in NAMES]}
    path = make(files | {f"{prefix}Dataset.json": json.dumps(metadata).encode()})
    assert open_images(path, use_labels=True).labels.tolist() == [2] * 10


@pytest.mark.parametrize(
    ("folders", "order"),
    [
        (["1", "2", "10"], ["1", "2", "10"]),
        (["010", "9", "-1"], ["-1", "9", "010"]),
        (["a10", "a2", "b"], ["a10", "a2", "b"]),
        (["1", "10", "2", "x"], ["1", "10", "2", "x"]),
    ],
)
def test_folders_of_whole_numbers_are_in_the_order_of_numbers(make, folders, order):
    source = open_images(make({f"{n}/x.png": PNGS[NAMES[0]] for n in folders}), use_labels=True)
    assert list(source.label_names) == order
    names = [source.name(i).split("/")[-2].split(" ")[-1] for i in range(len(source))]
    assert [source.label_names[label] for label in source.labels] == names


@pytest.mark.parametrize(
    "left",
    [".git/x.png", "cat/.thumbs/x.png", "@eaDir/x.png", "dog/@eaDir/x.png", "__MACOSX/cat/x.png",
     ".x.png", "cat/._0.png", "$RECYCLE.BIN/x.png", "lost+found/x.png", ".ipynb_checkpoints/x.png",
     "System Volume Information/x.png"],
)  # fmt: skip
def test_what_tools_leave_is_neither_image_nor_class(make, left):
    files = CLASSES | {left: PNGS[NAMES[0]], "Thumbs.db": b"", "cat/.DS_Store": b""}
    source = open_images(make(files), use_labels=True)
    assert (len(source), source.label_names) == (3, ("cat", "dog"))
    (note,) = source.notes
    assert "1 image(s) left out" in note and left in note
    assert open_images(make({f"n/{i}": d for i, d in files.items()})).notes


def test_kinds_that_are_not_read_are_told(make):
    assert (
        "for example a.heic" in open_images(make({"b.png": PNGS[NAMES[0]], "a.heic": b""})).notes[0]
    )


def test_names_of_classes_in_dataset_json(make):
    metadata = {"labels": [[n, i % 2] for i, n in enumerate(NAMES)], "label_names": ["x", "y", "z"]}
    source = open_images(
        make(PNGS | {"dataset.json": json.dumps(metadata).encode()}), use_labels=True
    )
    assert source.num_classes == 3 and source.label_names == ("x", "y", "z")
    assert present_classes(source) == (0, 1)


@pytest.mark.parametrize(
    ("names", "message"),
    [("cat", "must be a list of texts"), ([1, 2], "must be a list of texts"),
     (["a", "a"], "'a' twice"), (["a"], "lie in \\[0, 1\\), got 1 to 1"),
     ([], "one per class, got \\[\\]")],
)  # fmt: skip
def test_bad_names_of_classes(make, names, message):
    metadata = {"labels": COMPLETE, "label_names": names}
    path = make(PNGS | {"dataset.json": json.dumps(metadata).encode()})
    with pytest.raises(ValueError, match=message):
        open_images(path, use_labels=True)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "data", PNGS)
    assert len(open_images("~/data")) == 10


@pytest.mark.parametrize("name", ["a.pt", "a.pkl", "a.safetensors", "a.ckpt"])
def test_weights_are_no_images(tmp_path, name):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"is a file of weights.* --mode=import"):
        open_images(tmp_path / name)
    path = write_zip(tmp_path / "x.zip", {"archive/data.pkl": b"", "archive/data/0": b""})
    with pytest.raises(ValueError, match=r"is a file of weights.* --mode=import"):
        open_images(path)
    run = write_folder(tmp_path / "run", {"checkpoints/x": b"", "config.json": b"", "s/0.png": b""})
    with pytest.raises(ValueError, match="the directory of a run"):
        open_images(run)


def test_dataset_json_outranks_class_folders(tmp_path):
    labels = [[name, 5] for name in CLASSES]
    source = open_images(write_folder(tmp_path / "a", CLASSES | _metadata(labels)), use_labels=True)
    assert source.num_classes == 6
    path = write_folder(tmp_path / "b", CLASSES | _metadata(None))
    with pytest.raises(ValueError, match="holds no labels; set use_labels=False"):
        open_images(path, use_labels=True)


@pytest.mark.parametrize(
    "files",
    [
        {f"one/{i}.png": PNGS[NAMES[i]] for i in range(3)},  # a single folder
        CLASSES | {"root.png": PNGS[NAMES[0]]},  # an image outside
        {"00000/img00000000.png": PNGS[NAMES[0]], "00001/img00001000.png": PNGS[NAMES[1]]},
    ],
)
def test_folders_that_are_no_classes(tmp_path, files):
    with pytest.raises(ValueError, match="no labels"):
        open_images(write_folder(tmp_path, files), use_labels=True)


def test_links_are_followed_once(tmp_path):
    write_folder(tmp_path / "real", {"x.png": PNGS[NAMES[0]]})
    root = write_folder(tmp_path / "root", {"a/1.png": PNGS[NAMES[1]]})
    os.symlink(tmp_path / "real", root / "b")
    os.symlink(root, root / "a" / "loop")
    source = open_images(root, use_labels=True)
    assert len(source) == 2 and source.label_names == ("a", "b")


# ----------------------------------------------------------------------------- errors


def test_links_that_lead_nowhere_are_told(tmp_path):
    path = write_folder(tmp_path / "data", PNGS)
    for name in ("b.png", "a.png", "notes.txt"):
        (path / name).symlink_to(tmp_path / "unmounted" / name)
    source = open_images(path)
    assert len(source) == 10
    assert source.notes == ("2 link(s) to images lead nowhere, for example a.png",)


def test_no_images(make, tmp_path):
    with pytest.raises(ValueError, match="no images among 1 files"):
        open_images(make({"notes.txt": b""}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images among 0 files"):
        open_images(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such file or folder"):
        open_images(tmp_path / "absent")
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a folder of images or a \.zip archive"):
        open_images(tmp_path / "x.tar")


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1)])
def test_images_of_a_pixel_are_no_data_set(make, shape):
    pixel = decode.encode_png(np.zeros((*shape, 3), np.uint8))
    with pytest.raises(ValueError, match=rf"is {shape[1]}x{shape[0]} pixels, too few for a netw"):
        open_images(make({NAMES[0]: pixel}))


def test_resolution(make):
    path = make(PNGS)
    assert open_images(path, resolution=8).image_shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"is 8x8 pixels, expected 32x32; convert .*32x32"):
        open_images(path, resolution=32)


def test_images_unlike_the_first_are_named_when_read(make):
    other = {NAMES[4]: decode.encode_png(IMAGES[0, :4])}
    source = open_images(make(PNGS | other | {NAMES[6]: b"rubbish"}))
    assert source[3]["image"].shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"img00000004\.png has shape \(4, 8, 3\), expected"):
        source[4]
    with pytest.raises(ValueError, match=r"img00000006\.png: cannot be used as an image"):
        source[6]


def test_another_size_is_found_from_the_headers(make):
    assert open_images(make(PNGS)).first_odd() is None
    other = {NAMES[9]: decode.encode_png(IMAGES[0, :4]), NAMES[2]: b"rubbish"}
    source = open_images(make(PNGS | other), mirror=True, max_size=9)
    odd = source.first_odd()
    assert "img00000009.png has shape (4, 8, 3), expected (8, 8, 3)" in odd
    assert "--mode=dataset --resolution=8x8 --transform=" in odd
    # Two of ten are the ends; one is the first alone.
    assert source.first_odd(2) == odd and source.first_odd(1) is None


def test_the_size_is_that_of_the_upright_image(make):
    """EXIF 2.3: orientation 6 is a camera held on its side, stored 6 wide and 4 high."""
    stored = Image.fromarray(IMAGES[0, :4, :6])
    exif = stored.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", exif=exif)
    upright = decode.encode_png(IMAGES[1, :6, :4])
    files = {"a.png": upright, "b.jpg": buffer.getvalue()}
    source = open_images(make(files))
    assert source.first_odd() is None and source[1]["image"].shape == (6, 4, 3)


@pytest.mark.parametrize("first", [0, 1])
def test_grey_becomes_colour_where_there_is_colour(make, first):
    """By the rule of conversions, whichever comes first."""
    grey = {"b.png": decode.encode_png(IMAGES[0, :, :, 0])}
    colour = {f"{'ca'[first]}.png": decode.encode_png(IMAGES[1])}
    source = open_images(make(grey | colour))
    assert source.image_shape == (8, 8, 3) and source.first_odd() is None
    np.testing.assert_array_equal(source[first]["image"], np.repeat(IMAGES[0, :, :, :1], 3, axis=2))
    np.testing.assert_array_equal(source[1 - first]["image"], IMAGES[1])
    assert pickle.loads(pickle.dumps(source)).image_shape == (8, 8, 3)


def test_sixteen_bits_of_grey_are_grey(make):
    """The upper 8 of 16 bits, as in conversions."""
    wide = IMAGES[0, :, :, 0].astype(np.uint16) * 256 + 255
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    source = open_images(make({"a.png": decode.encode_png(IMAGES[1, :, :, 0]),
                               "b.png": buffer.getvalue()}))  # fmt: skip
    assert source.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(source[1]["image"], IMAGES[0, :, :, :1])


def test_first_image_damaged(make):
    with pytest.raises(ValueError, match=r"img00000000\.png: cannot be used"):
        open_images(make(PNGS | {NAMES[0]: b"rubbish"}))


COMPLETE = [[name, 1] for name in NAMES]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "must be a JSON object"),
        (b"[]", "must be a JSON object"),
        (b"\xff\xfe", "must be a JSON object"),
        ({"labels": {"a": 1}}, "must be a list of"),
        ({"labels": [["a", 1, 2]]}, "must be a list of"),
        ({"labels": [[1, "a"]]}, "must be a list of"),
        ({"labels": COMPLETE[:7]}, "3 of 10 images have no label, for example '00000/img00000007"),
        ({"labels": [*COMPLETE, COMPLETE[2]]}, "labels '00000/img00000002.png' twice"),
        ({"labels": [*COMPLETE[:9], [NAMES[9], [1.0]]]}, "a label is a whole number from 0"),
        ({"labels": [*COMPLETE[:9], [NAMES[9], "dog"]]}, "got 'dog' for '00000/img00000009"),
        ({"labels": [[n, "dog"] for n in NAMES]}, "got 'dog' for '00000/img00000000.png'; repair"),
        ({"labels": [*COMPLETE[:9], [NAMES[9], True]]}, "got True for"),
        ({"labels": [*COMPLETE[:9], [NAMES[9], None]]}, "got None for"),
        ({"labels": [*COMPLETE[:9], [NAMES[9], -2]]}, "got -2 to 1"),
        ({"labels": [[n, [1.0, 2.0]] for n in NAMES[:9]] + [[NAMES[9], [1.0]]]}, "kind and length"),
        ({"labels": [[n, []] for n in NAMES]}, "got \\[\\] for"),
        ({"labels": [[n, 0.5] for n in NAMES]}, "got 0.5 for"),
    ],
)  # fmt: skip
def test_bad_dataset_json(make, content, message):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    path = make(PNGS | {"dataset.json": content})
    with pytest.raises(ValueError, match=rf"dataset\.json.*({message})"):
        open_images(path, use_labels=True)
    assert len(open_images(path)) == 10  # without labels nobody looks at them


def test_labels_of_absent_images_are_a_warning(make):
    path = make(PNGS | _metadata([*COMPLETE, ["gone.png", 9]]))
    with pytest.warns(UserWarning, match=r"1 labels belong to no image, for example 'gone\.png'"):
        source = open_images(path, use_labels=True)
    assert source.num_classes == 2


def test_repr_says_what_it_is(make):
    assert "10 images (8, 8, 3), 0 classes" in repr(ImageFiles(make(PNGS)))
