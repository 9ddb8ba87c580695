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
    for bad in ("64", "64x", "x64", "64x64x3", "0x64", "-4x4", "64 x 64", ""):
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


def test_center_crop_makes_grey_images_rgb():
    grey = noise(20, 20, 1)
    out = np.asarray(make_transform("center-crop", (16, 16))(Image.fromarray(grey)))
    alone = Image.fromarray(grey).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(out, np.repeat(np.asarray(alone)[:, :, None], 3, axis=2))


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
        (None, (16, 8), "must be square, the width a power of two, got 16x8"),
        ("center-crop", (24, 24), "power of two, got 24x24"),
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
    report = convert(source, tmp_path / "none.zip", resolution=(16, 16))
    assert json.loads(_read(tmp_path / "none.zip")["dataset.json"]) == {"labels": None}
    assert "11 of 12 images have no label" in report.notes[0] and report.labels == "no labels"
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
    assert (report.written, report.skipped) == (3, 6)
    found = [(p.name[0], p.used) for p in report.problems]
    assert found == [("1", False), ("2", False), ("3", True), ("4", False), ("5", False),
                     ("6", False), ("7", False), ("8", True)]  # fmt: skip
    texts = {p.name: p.text for p in report.problems}
    assert texts["3 cmyk.jpg"] == "CMYK converted to RGB"
    assert "transparent" in texts["4 transparent.png"]
    assert texts["5 grey.png"] == "16x16x1 (width, height, channels), others 16x16x3"
    assert texts["6 small.png"] == "8x8x3 (width, height, channels), others 16x16x3"
    names = [n for n in _read(tmp_path / "out.zip") if n.endswith("png")]
    assert names == [f"00000/img{i:08d}.png" for i in (0, 3, 8)]


def test_strict_fails_at_the_first(tmp_path, odd_source):
    with pytest.raises(ValueError, match=r"1 truncated\.jpg: .*without strict"):
        convert(odd_source, tmp_path / "out.zip", strict=True, num_workers=3)
    assert not (tmp_path / "out.zip").exists()
    os.remove(odd_source / "1 truncated.jpg")
    (odd_source / "2 emptÿ.png").unlink()
    shutil.rmtree(tmp_path / "out.zip.partial")
    with pytest.raises(ValueError, match=r"3 cmyk\.jpg: CMYK converted to RGB"):
        convert(odd_source, tmp_path / "out.zip", strict=True)


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


@pytest.mark.parametrize("shape", [(16, 20), (12, 12)])
def test_first_image_must_be_a_square_power_of_two(tmp_path, shape):
    source = write_folder(tmp_path / "s", {"a.png": encode(noise(*shape))})
    with pytest.raises(ValueError, match=rf"a\.png is {shape[1]}x{shape[0]}: .* give a resolution"):
        convert(source, tmp_path / "out.zip")
    assert os.listdir(tmp_path) == ["s"]


# ---------------------------------------------------------------- bad destinations


def test_destinations_are_checked_before_any_work(tmp_path, source, monkeypatch):
    monkeypatch.setattr(convert_lib, "open_raw_images", None)  # would fail if called
    (tmp_path / "there.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"there\.zip exists; delete it"):
        convert(source, tmp_path / "there.zip")
    write_folder(tmp_path / "full", {"x": b""})
    with pytest.raises(ValueError, match="full exists and is not an empty folder"):
        convert(source, tmp_path / "full")
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
