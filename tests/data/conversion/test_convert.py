"""Conversion: shapes, names, labels, odd images and bad destinations."""

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from edm_jax.data.conversion import convert as convert_lib
from edm_jax.data.conversion import output
from edm_jax.data.conversion.convert import make_transform, parse_resolution
from edm_jax.data.sources import decode
from edm_jax.data.sources.image_files import open_images
from tests.support.made_images import encode, noise, write_folder, write_odd_source, write_source


def convert(*args, **kwargs):
    return convert_lib.convert(*args, progress=False, **kwargs)


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


def _read(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


# ------------------------------------------------------------------------- transforms


def test_parse_resolution():
    assert parse_resolution("64x32") == parse_resolution("64,32") == (64, 32)
    assert parse_resolution(None) is None
    for bad in ("64", "64x", "x64", "64x64x3", "0x64", "1x1", "-4x4", "64 x 64", ""):
        with pytest.raises(ValueError, match="must be WxH"):
            parse_resolution(bad)


def test_resize_alone():
    image = Image.fromarray(noise(20, 30))
    expected = image.resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(make_transform(None, (16, 16))(image), expected)
    assert make_transform(None, None)(image) is image
    assert make_transform(None, (16, 16))(Image.new("L", (16, 16))).mode == "L"


@pytest.mark.parametrize(("height", "width"), [(21, 30), (30, 21), (24, 24)])
def test_center_crop(height, width):
    pixels = noise(height, width)
    # The specification, 8.2: offset (dim - crop) // 2, end (dim + crop) // 2.
    crop = min(height, width)
    rows = slice((height - crop) // 2, (height + crop) // 2)
    columns = slice((width - crop) // 2, (width + crop) // 2)
    square = Image.fromarray(np.ascontiguousarray(pixels[rows, columns]))
    expected = np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS))
    out = make_transform("center-crop", (16, 16))(Image.fromarray(pixels))
    np.testing.assert_array_equal(out, expected)


def test_center_crop_of_another_aspect_ratio():
    # 40 wide, 30 high, to 8x12: of 2 to 3, the highest part is 20 wide and 30 high, from 10 on.
    pixels = noise(30, 40)
    part = Image.fromarray(np.ascontiguousarray(pixels[:, 10:30]))
    expected = np.asarray(part.resize((8, 12), Image.Resampling.LANCZOS))
    out = make_transform("center-crop", (8, 12))(Image.fromarray(pixels))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("transform", [None, "center-crop", "center-crop-wide"])
def test_transforms_keep_grey(transform):
    assert make_transform(transform, (16, 12))(Image.fromarray(noise(20, 20, 1))).mode == "L"


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 3)])
def test_images_of_a_few_pixels_are_not_blown_up(size):
    image = Image.fromarray(noise(*size))
    for transform in (None, "center-crop", "center-crop-wide"):
        with pytest.raises(ValueError, match="pixels are too few for 64x64"):
            make_transform(transform, (64, 64))(image)
    if min(size) < 2:
        with pytest.raises(ValueError, match="too few for a network"):
            make_transform(None, None)(image)
    assert make_transform(None, (64, 64))(Image.fromarray(noise(4, 4))).size == (64, 64)


def test_center_crop_wide():
    # The specification, 8.2, 40 wide, 35 high, to 16x10: ch = round(16 * 35 / 40) = 14, rows
    # (35 - 14) // 2 = 10 to (35 + 14) // 2 = 24 are resized to 16x10 and put in row 3.
    pixels = noise(35, 40)
    band = Image.fromarray(np.ascontiguousarray(pixels[10:24]))
    expected = np.zeros((16, 16, 3), np.uint8)
    expected[3:13] = np.asarray(band.resize((16, 10), Image.Resampling.LANCZOS))
    wide = make_transform("center-crop-wide", (16, 10))
    np.testing.assert_array_equal(wide(Image.fromarray(pixels)), expected)
    for height, width in ((35, 15), (20, 40)):  # too narrow; ch = 8 < 10
        with pytest.raises(ValueError, match="too few for 16x10"):
            wide(Image.fromarray(noise(height, width)))


@pytest.mark.parametrize(
    ("transform", "resolution", "message"),
    [
        ("crop", (16, 16), "transform must be one of center-crop, center-crop-wide"),
        ("center-crop", None, "needs a resolution"),
        (None, (16, 1), "at least 2x2, got 16x1"),
        ("center-crop-wide", (16, 17), "WxH with H <= W"),
    ],
)
def test_bad_transforms(transform, resolution, message):
    with pytest.raises(ValueError, match=message):
        make_transform(transform, resolution)


# ---------------------------------------------------------------------------- results


def test_archive(tmp_path, source):
    report = convert(source, tmp_path / "out.zip", resolution=(16, 16))
    assert (report.written, report.skipped, report.resumed, report.problems) == (12, 0, 0, ())
    files = _read(tmp_path / "out.zip")
    names = [f"00000/img{i:08d}.png" for i in range(12)]
    assert list(files) == [*names, "dataset.json"]
    # Sorted by name: class0/00, 03, 06, 09, class1/01, ...
    labels = [i // 4 for i in range(12)]
    expected = {"labels": [[n, c] for n, c in zip(names, labels, strict=True)]}
    expected["label_names"] = ["class0", "class1", "class2"]
    assert report.label_names == ("class0", "class1", "class2")
    assert report.labels == "3 classes, labels up to 2 (0 class0, 1 class1, 2 class2)"
    assert json.loads(files["dataset.json"]) == expected
    with Image.open(source / "class1" / "04.png") as image:
        resized = np.asarray(image.resize((16, 16), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(decode.decode_image(files[names[5]], "x"), resized)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    images = open_images(tmp_path / "out.zip", use_labels=True, resolution=16)
    assert [int(images[i]["label"]) for i in range(12)] == labels
    assert sorted(os.listdir(tmp_path)) == ["out.zip", "source"]


def test_folder_has_the_same_files(tmp_path, source):
    convert(source, tmp_path / "out.zip", resolution=(16, 16))
    (tmp_path / "out").mkdir()  # empty is as good as absent
    convert(source, tmp_path / "out", resolution=(16, 16))
    files = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert files == _read(tmp_path / "out.zip")
    # Converting what is converted changes nothing.
    for again in ("out", "out.zip"):
        convert(tmp_path / again, tmp_path / "again.zip")
        assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()
        os.remove(tmp_path / "again.zip")


@pytest.mark.parametrize("num_workers", [2, 7])
def test_number_of_workers_does_not_show(tmp_path, source, num_workers):
    convert(source, tmp_path / "one.zip", resolution=(16, 16), num_workers=1)
    convert(source, tmp_path / "many.zip", resolution=(16, 16), num_workers=num_workers)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "many.zip").read_bytes()


def test_folders_of_a_thousand():
    assert output.image_name(0) == "00000/img00000000.png"
    assert output.image_name(1_281_166) == "01281/img01281166.png"


def test_max_images_and_partial_labels(tmp_path, source):
    report = convert(source, tmp_path / "out.zip", resolution=(16, 16), max_images=5)
    assert report.written == 5 and len(_read(tmp_path / "out.zip")) == 6
    labels = [["class0/00.png", 4]]
    (source / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=r"11 of 12 images have no label, .* --unlabelled"):
        convert(source, tmp_path / "none.zip", resolution=(16, 16))
    report = convert(source, tmp_path / "none.zip", resolution=(16, 16), unlabelled=True)
    assert json.loads(_read(tmp_path / "none.zip")["dataset.json"]) == {"labels": None}
    assert report.labels == "no labels"
    # Every image that is written has one.
    convert(source, tmp_path / "first.zip", resolution=(16, 16), max_images=1)
    metadata = json.loads(_read(tmp_path / "first.zip")["dataset.json"])
    assert metadata == {"labels": [["00000/img00000000.png", 4]]}


def test_grey_images_stay_grey(tmp_path):
    pixels = noise(16, 16, 1)
    source = write_folder(tmp_path / "s", {"a.png": encode(pixels)})
    report = convert(source, tmp_path / "out.zip")
    assert (report.channels, report.width, report.height) == (1, 16, 16)
    data = _read(tmp_path / "out.zip")["00000/img00000000.png"]
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(image, pixels)


# ------------------------------------------------------------------------- odd images


@pytest.fixture
def odd_source(tmp_path):
    return write_odd_source(tmp_path / "odd")


def test_odd_images_are_listed_and_leave_gaps(tmp_path, odd_source):
    report = convert(odd_source, tmp_path / "out.zip")
    assert (report.written, report.skipped) == (4, 5)
    found = [(p.name[0], p.used) for p in report.problems]
    assert found == [("1", False), ("2", False), ("3", True), ("4", False),
                     ("6", False), ("7", False), ("8", True)]  # fmt: skip
    texts = {p.name: p.text for p in report.problems}
    assert texts["3 cmyk.jpg"] == "CMYK converted to RGB"
    assert "transparent" in texts["4 transparent.png"]
    assert texts["6 small.png"] == "8x8 pixels, the first image 16x16; give a resolution"
    files = _read(tmp_path / "out.zip")
    names = [n for n in files if n.endswith("png")]
    assert names == [f"00000/img{i:08d}.png" for i in (0, 3, 5, 8)]
    with Image.open(odd_source / "5 grey.png") as grey:
        np.testing.assert_array_equal(
            decode.decode_image(files[names[2]], ""), np.asarray(grey.convert("RGB"))
        )


def test_one_remark_for_an_image_that_is_skipped(tmp_path):
    cmyk = Image.fromarray(noise(8, 8, 4), "CMYK")
    files = {"a.png": encode(noise(16, 16)), "b.jpg": encode(cmyk, "jpeg")}
    report = convert(write_folder(tmp_path / "s", files), tmp_path / "out.zip")
    assert [(p.name, p.used) for p in report.problems] == [("b.jpg", False)]


def test_strict_fails_at_the_first_that_cannot_be_used(tmp_path, odd_source):
    with pytest.raises(ValueError, match=r"1 truncated\.jpg: .*without strict"):
        convert(odd_source, tmp_path / "out.zip", strict=True, num_workers=3)
    assert not (tmp_path / "out.zip").exists()
    os.remove(odd_source / "1 truncated.jpg")
    (odd_source / "2 emptÿ.png").unlink()
    shutil.rmtree(tmp_path / "out.zip.partial")
    with pytest.raises(ValueError, match=r"4 transparent\.png: .*transparent"):
        convert(odd_source, tmp_path / "out.zip", strict=True)
    for name in ("4 transparent.png", "6 small.png", "7 text.png"):
        (odd_source / name).unlink()
    shutil.rmtree(tmp_path / "out.zip.partial")
    assert len(convert(odd_source, tmp_path / "out.zip", strict=True).problems) == 2  # both used


def test_too_small_for_wide_crops(tmp_path):
    source = write_folder(
        tmp_path / "s", {"0.png": encode(noise(10, 12)), "1.png": encode(noise(40, 40))}
    )
    report = convert(source, tmp_path / "o", resolution=(16, 12), transform="center-crop-wide")
    assert report.skipped == 1 and report.problems[0].text == "12x10 pixels are too few for 16x12"
    assert (tmp_path / "o" / "00000" / "img00000001.png").exists()


def test_no_image_can_be_used(tmp_path):
    source = write_folder(tmp_path / "s", {"a.png": b"1", "b.png": b"2"})
    with pytest.raises(ValueError, match=r"none of 2 images can be used, for example a\.png: cann"):
        convert(source, tmp_path / "out.zip")
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("shape", [(16, 20), (28, 28), (7, 5)])
def test_any_size_that_is_trained_on(tmp_path, shape):
    files = {f"{i}.png": encode(noise(*shape)) for i in range(2)}
    convert(write_folder(tmp_path / "s", files), tmp_path / "as it is.zip")
    assert open_images(tmp_path / "as it is.zip").image_shape == (*shape, 3)
    for transform in (None, "center-crop"):
        report = convert(
            tmp_path / "s",
            tmp_path / f"{transform}.zip",
            resolution=shape[::-1],
            transform=transform,
        )
        assert (report.height, report.width, report.written) == (*shape, 2)


@pytest.mark.parametrize("transform", [None, "center-crop"])
@pytest.mark.parametrize("colours", ["gc", "cg", "ggggc", "g"])
def test_grey_becomes_colour_where_there_is_colour(tmp_path, colours, transform):
    files = {
        f"{i}.png": encode(noise(16, 16, 1 if colour == "g" else 3))
        for i, colour in enumerate(colours)
    }
    source = write_folder(tmp_path / "s", files)
    options = {"resolution": (8, 8), "transform": transform} if transform else {}
    report = convert(source, tmp_path / "out.zip", **options)
    assert (report.written, report.problems) == (len(colours), ())
    assert report.channels == (3 if "c" in colours else 1)
    grey = decode.decode_image(_read(tmp_path / "out.zip")["00000/img00000000.png"], "")
    if colours[0] == "g":
        assert (grey == grey[:, :, :1]).all()


def test_a_damaged_image_is_no_colour(tmp_path):
    damaged = encode(noise(16, 16))[:200]
    files = {"a.png": damaged, "b.png": encode(noise(16, 16, 1)), "c.png": b""}
    report = convert(write_folder(tmp_path / "s", files), tmp_path / "out.zip")
    assert (report.written, report.channels) == (1, 1)


def test_background(tmp_path):
    pixels = np.dstack([noise(16, 16), np.full((16, 16), 255, np.uint8)])
    pixels[3, 4] = (10, 20, 30, 0)
    grey = np.dstack([noise(16, 16, 1), np.zeros((16, 16), np.uint8)])
    files = {"a.png": encode(pixels), "b.png": encode(Image.fromarray(grey, "LA"))}
    source = write_folder(tmp_path / "s", files)
    with pytest.raises(ValueError, match=r"partly transparent; .* --background=white"):
        convert(source, tmp_path / "out.zip")
    convert(source, tmp_path / "out.zip", background="#ff8000")
    first, second = (
        decode.decode_image(data, "")
        for name, data in _read(tmp_path / "out.zip").items()
        if name.endswith("png")
    )
    expected = pixels[:, :, :3].copy()
    expected[3, 4] = (255, 128, 0)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, np.broadcast_to((255, 128, 0), (16, 16, 3)))
    for bad in ("", "chalk", "rgba(1, 2, 3, 4)", "#12345", "rgb(300, 0, 0)"):
        with pytest.raises(ValueError, match="background must be a colour, such as white"):
            convert(source, tmp_path / "bad.zip", background=bad)


def test_all_grey_on_a_grey_background_stays_grey(tmp_path):
    grey = np.dstack([noise(16, 16, 1), noise(16, 16, 1)])
    source = write_folder(tmp_path / "s", {"a.png": encode(Image.fromarray(grey, "LA"))})
    assert convert(source, tmp_path / "w.zip", background="white").channels == 1
    assert convert(source, tmp_path / "r.zip", background="red").channels == 3


# ------------------------------------------------------------------------------ names


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_no_utf8(tmp_path):
    root = os.fsencode(tmp_path / "s")
    for folder in (b"\xff\xfe", b"caf\xe9"):
        os.makedirs(root + b"/" + folder)
        for name, data in ((b"\xe9.png", encode(noise(16, 16))), (b"\x80\n.png", b"rubbish")):
            with open(root + b"/" + folder + b"/" + name, "wb") as file:
                file.write(data)
    report = convert(tmp_path / "s", tmp_path / "out.zip")
    assert report.label_names == (r"caf\xe9", r"\xff\xfe")
    assert [p.name for p in report.problems] == [r"caf\xe9/\x80\n.png", r"\xff\xfe/\x80\n.png"]
    assert open_images(tmp_path / "out.zip", use_labels=True).label_names == report.label_names


# ---------------------------------------------------------------- bad destinations


def test_destinations_are_checked_before_any_work(tmp_path, source, monkeypatch):
    monkeypatch.setattr(convert_lib, "open_raw_images", None)  # would fail if called
    (tmp_path / "there.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"there\.zip exists; delete it"):
        convert(source, tmp_path / "there.zip")
    write_folder(tmp_path / "full", {"x": b""})
    with pytest.raises(ValueError, match="full exists and is not an empty folder"):
        convert(source, tmp_path / "full")
    for name in ("m5.tar", "m5.tar.gz", "m5.TGZ", "m5.npz", "m5.png"):
        with pytest.raises(
            ValueError, match=rf"{name}: what is written is a \.zip file or a folder"
        ):
            convert(source, tmp_path / name)
    with pytest.raises(ValueError, match="lies in the source"):
        convert(source, source / "out.zip")
    with pytest.raises(ValueError, match="lies in the source"):
        convert(source, source)
    for kwargs, message in [({"max_images": 0}, "max_images"), ({"num_workers": 0}, "num_workers")]:
        with pytest.raises(ValueError, match=f"{message} must be at least 1, got 0"):
            convert(source, tmp_path / "out.zip", **kwargs)
    assert sorted(os.listdir(tmp_path)) == ["full", "source", "there.zip"]


def test_destination_below_a_file(tmp_path, source):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be written"):
        convert(source, tmp_path / "file" / "out.zip", resolution=(16, 16))
