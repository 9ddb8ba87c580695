"""Conversion: shapes, names, labels, odd images, and that no interruption shows."""

import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from edm_jax.data import convert as convert_lib
from edm_jax.data import convert_output, decode
from edm_jax.data.convert import make_transform, parse_resolution
from edm_jax.data.image_files import open_images
from experiments import dataset_tool

RNG = np.random.default_rng(0)
ROOT = pathlib.Path(__file__).parent.parent


def convert(*args, **kwargs):
    return convert_lib.convert(*args, progress=False, **kwargs)


def _encode(pixels, fmt="png"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=fmt)
    return buffer.getvalue()


def _folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _noise(height, width, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def source(tmp_path):
    """Twelve images of different sizes in three classes."""
    files = {}
    for i in range(12):
        files[f"class{i % 3}/{i:02d}.png"] = _encode(_noise(20 + i, 30 - i))
    return _folder(tmp_path / "source", files)


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
    image = Image.fromarray(_noise(20, 30))
    expected = image.resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(make_transform(None, (16, 16))(image), expected)
    assert make_transform(None, None)(image) is image
    assert make_transform(None, (16, 16))(Image.new("L", (16, 16))).mode == "L"


@pytest.mark.parametrize(("height", "width"), [(21, 30), (30, 21), (24, 24)])
def test_center_crop(height, width):
    pixels = _noise(height, width)
    # edm.md 8.2: offset (dim - crop) // 2, end (dim + crop) // 2.
    crop = min(height, width)
    rows = slice((height - crop) // 2, (height + crop) // 2)
    columns = slice((width - crop) // 2, (width + crop) // 2)
    square = Image.fromarray(np.ascontiguousarray(pixels[rows, columns]))
    expected = np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS))
    out = make_transform("center-crop", (16, 16))(Image.fromarray(pixels))
    np.testing.assert_array_equal(out, expected)


def test_center_crop_makes_grey_images_rgb():
    grey = _noise(20, 20, 1)
    out = np.asarray(make_transform("center-crop", (16, 16))(Image.fromarray(grey)))
    alone = Image.fromarray(grey).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(out, np.repeat(np.asarray(alone)[:, :, None], 3, axis=2))


def test_center_crop_wide():
    # edm.md 8.2, 40 wide, 35 high, to 16x10: ch = round(16 * 35 / 40) = 14, rows
    # (35 - 14) // 2 = 10 to (35 + 14) // 2 = 24 are resized to 16x10 and put in row 3.
    pixels = _noise(35, 40)
    band = Image.fromarray(np.ascontiguousarray(pixels[10:24]))
    expected = np.zeros((16, 16, 3), np.uint8)
    expected[3:13] = np.asarray(band.resize((16, 10), Image.Resampling.LANCZOS))
    wide = make_transform("center-crop-wide", (16, 10))
    np.testing.assert_array_equal(wide(Image.fromarray(pixels)), expected)
    for height, width in ((35, 15), (20, 40)):  # too narrow; ch = 8 < 10
        with pytest.raises(ValueError, match="too few for 16x10"):
            wide(Image.fromarray(_noise(height, width)))


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
    assert convert_output.image_name(0) == "00000/img00000000.png"
    assert convert_output.image_name(1_281_166) == "01281/img01281166.png"


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
    pixels = _noise(16, 16, 1)
    source = _folder(tmp_path / "s", {"a.png": _encode(pixels)})
    report = convert(source, tmp_path / "out.zip")
    assert (report.channels, report.width, report.height) == (1, 16, 16)
    data = _read(tmp_path / "out.zip")["00000/img00000000.png"]
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(image, pixels)


# ------------------------------------------------------------------------- odd images


@pytest.fixture
def odd_source(tmp_path):
    """Good ones are 0, 3 and 8; 3 and 8 come with a remark."""
    rgba = np.dstack([_noise(16, 16), np.zeros((16, 16), np.uint8)])
    gif = io.BytesIO()
    frames = [Image.fromarray(_noise(16, 16)) for _ in range(3)]
    frames[0].save(gif, format="gif", save_all=True, append_images=frames[1:])
    cmyk = io.BytesIO()
    Image.fromarray(_noise(16, 16, 4), "CMYK").save(cmyk, format="jpeg")
    jpeg = _encode(_noise(16, 16), "jpeg")
    return _folder(
        tmp_path / "odd",
        {
            "0.png": _encode(_noise(16, 16)),
            "1 truncated.jpg": jpeg[: len(jpeg) // 2],
            "2 emptÿ.png": b"",
            "3 cmyk.jpg": cmyk.getvalue(),
            "4 transparent.png": _encode(rgba),
            "5 grey.png": _encode(_noise(16, 16, 1)),
            "6 small.png": _encode(_noise(8, 8)),
            "7 text.png": b"<html>404</html>",
            "8 animated.gif": gif.getvalue(),
        },
    )


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


def test_strict_notices_what_an_earlier_run_let_pass(tmp_path, odd_source, monkeypatch):
    _stop_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        convert(odd_source, tmp_path / "out.zip")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"1 truncated\.jpg: .*without strict"):
        convert(odd_source, tmp_path / "out.zip", strict=True)


def test_too_small_for_wide_crops(tmp_path):
    source = _folder(
        tmp_path / "s", {"0.png": _encode(_noise(10, 12)), "1.png": _encode(_noise(40, 40))}
    )
    report = convert(source, tmp_path / "o", resolution=(16, 12), transform="center-crop-wide")
    assert report.skipped == 1 and report.problems[0].text == "12x10 pixels are too few for 16x12"
    assert (tmp_path / "o" / "00000" / "img00000001.png").exists()


def test_no_image_can_be_used(tmp_path):
    source = _folder(tmp_path / "s", {"a.png": b"1", "b.png": b"2"})
    with pytest.raises(ValueError, match=r"none of 2 images can be used, for example a\.png: cann"):
        convert(source, tmp_path / "out.zip")
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("shape", [(16, 20), (12, 12)])
def test_first_image_must_be_a_square_power_of_two(tmp_path, shape):
    source = _folder(tmp_path / "s", {"a.png": _encode(_noise(*shape))})
    with pytest.raises(ValueError, match=rf"a\.png is {shape[1]}x{shape[0]}: .* give a resolution"):
        convert(source, tmp_path / "out.zip")
    assert os.listdir(tmp_path) == ["s"]


# ---------------------------------------------------------------- bad destinations


def test_destinations_are_checked_before_any_work(tmp_path, source, monkeypatch):
    monkeypatch.setattr(convert_lib, "open_raw_images", None)  # would fail if called
    (tmp_path / "there.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"there\.zip exists; delete it"):
        convert(source, tmp_path / "there.zip")
    _folder(tmp_path / "full", {"x": b""})
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


def test_too_little_space(tmp_path, source, monkeypatch):
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr(convert_output.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"needs 0\.00 GB, the disk has 0\.00 GB free; make room"):
        convert(source, tmp_path / "out.zip", resolution=(16, 16))
    assert os.listdir(tmp_path) == ["source"]


def test_two_writers(tmp_path, source):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out.zip.partial").mkdir()
    with open(tmp_path / "out.zip.partial" / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="being written by another process"):
            convert(source, tmp_path / "out.zip", resolution=(16, 16))


# ------------------------------------------------------------------------ resumption


def _stop_after(monkeypatch, count):
    """Ctrl-C after ``count`` images."""
    take = convert_lib._Run._take

    def stopping(self, index, result):
        if self.output.uncommitted == count:
            raise KeyboardInterrupt
        take(self, index, result)

    monkeypatch.setattr(convert_lib._Run, "_take", stopping)


@pytest.fixture(params=["out.zip", "out"])
def dest(request, tmp_path):
    return tmp_path / request.param


def _content(dest):
    if dest.is_file():
        return dest.read_bytes()
    return {p.relative_to(dest).as_posix(): p.read_bytes() for p in dest.rglob("*") if p.is_file()}


@pytest.mark.parametrize("count", [1, 4, 11])
def test_interrupted_conversions_go_on(tmp_path, source, dest, monkeypatch, count):
    whole = tmp_path / f"whole{dest.suffix}"
    convert(source, whole, resolution=(16, 16))
    _stop_after(monkeypatch, count)
    with pytest.raises(KeyboardInterrupt):
        convert(source, dest, resolution=(16, 16))
    monkeypatch.undo()
    assert not dest.exists()
    report = convert(source, dest, resolution=(16, 16))
    assert report.resumed == count and report.written == 12
    assert _content(dest) == _content(whole)
    assert not os.path.exists(f"{dest}.partial")


def test_problems_survive_an_interruption(tmp_path, odd_source, dest, monkeypatch):
    expected = convert(odd_source, tmp_path / "whole.zip")
    _stop_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        convert(odd_source, dest)
    monkeypatch.undo()
    report = convert(odd_source, dest)
    assert report.resumed == 5 and report.problems == expected.problems
    assert (report.written, report.skipped) == (3, 6)


def _damage_data_cut(partial):
    data = partial / "data.zip"
    if data.exists():
        data.write_bytes(data.read_bytes()[:-100])
    else:
        os.remove(partial / "data" / "00000" / "img00000007.png")


def _damage_data_flip(partial):
    data = partial / "data.zip"
    data = data if data.exists() else partial / "data" / "00000" / "img00000003.png"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def _damage_data_gone(partial):
    data = partial / "data.zip"
    if data.exists():
        os.remove(data)
    else:
        os.rename(partial / "data" / "00000", partial / "data" / "elsewhere")


def _damage_data_longer(partial):
    data = partial / "data.zip"
    if data.exists():
        data.write_bytes(data.read_bytes() + b"half an image")
    else:
        (partial / "data" / "00000" / "img00000008.png").write_bytes(b"half an image")


def _damage_journal_cut(partial):
    journal = partial / "journal"
    journal.write_bytes(journal.read_bytes()[:-10])


def _damage_journal_gone(partial):
    os.remove(partial / "journal")


@pytest.mark.parametrize(
    "damage",
    [_damage_data_cut, _damage_data_flip, _damage_data_gone, _damage_data_longer,
     _damage_journal_cut, _damage_journal_gone],
)  # fmt: skip
def test_damaged_leftovers_do_no_harm(tmp_path, source, dest, monkeypatch, damage):
    whole = tmp_path / f"whole{dest.suffix}"
    convert(source, whole, resolution=(16, 16))
    _stop_after(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        convert(source, dest, resolution=(16, 16))
    monkeypatch.undo()
    damage(tmp_path / f"{dest.name}.partial")
    report = convert(source, dest, resolution=(16, 16))
    # Of eight images, those before the damage.
    assert report.resumed == 8 if damage is _damage_data_longer else report.resumed < 8
    assert _content(dest) == _content(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": (8, 8)}, r"resolution was \[16, 16\], now \[8, 8\]"),
        ({"transform": "center-crop"}, "transform was None, now center-crop"),
        ({"max_images": 10}, "count was 12, now 10"),
        ("relabel", "images was"),
    ],
)
def test_leftovers_of_another_conversion(tmp_path, source, monkeypatch, change, message):
    _stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out.zip", resolution=(16, 16))
    monkeypatch.undo()
    if change == "relabel":
        os.rename(source / "class0", source / "class9")
        change = {}
    with pytest.raises(ValueError, match=rf"another kind: .*{message}.* Repeat that command"):
        convert(source, tmp_path / "out.zip", **{"resolution": (16, 16)} | change)


def test_killed_right_after_the_final_name_appeared(tmp_path, source):
    convert(source, tmp_path / "out.zip", resolution=(16, 16))
    _folder(tmp_path / "out.zip.partial", {"journal": b"{}\n", "lock": b""})
    with pytest.raises(ValueError, match="exists; delete it"):
        convert(source, tmp_path / "out.zip", resolution=(16, 16))
    assert sorted(os.listdir(tmp_path)) == ["out.zip", "source"]


def test_full_disk(tmp_path, source, monkeypatch):
    def full(self, entry, record, png):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_output.ZipOutput, "_write", full)
    with pytest.raises(
        OSError, match=r"writing dest .* failed .*No space left.* goes on from here"
    ):
        convert(source, tmp_path / "out.zip", resolution=(16, 16))
    monkeypatch.undo()
    assert convert(source, tmp_path / "out.zip", resolution=(16, 16)).written == 12


# Slowed down, so that there is something to kill; otherwise the real program.
_SLOW = """
import sys, time
from edm_jax.data import convert
from experiments import dataset_tool

one = convert._convert_one

def slow(*args):
    time.sleep(0.01)
    return one(*args)

convert._convert_one, convert._COMMIT_IMAGES = slow, 5
sys.exit(dataset_tool.main(sys.argv[1:]))
"""


def test_kill_nine_on_the_command_line(tmp_path, dest):
    files = {f"{i % 2}/{i:03d}.png": _encode(_noise(20, 24)) for i in range(150)}
    source = _folder(tmp_path / "s", files | {"0/071.png": b"rubbish"})
    options = ["--source", str(source), "--resolution", "16x16", "--num_workers", "3"]
    whole = tmp_path / f"whole{dest.suffix}"
    assert dataset_tool.main([*options, "--dest", str(whole)]) == 0
    journal = tmp_path / f"{dest.name}.partial" / "journal"

    def committed():
        lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
        return max([json.loads(x)["next"] for x in lines[1:] if x.endswith("\n")], default=0)

    kills = 0
    for target in (20, 60, 110, None):
        command = [sys.executable, "-c", _SLOW, *options, "--dest", str(dest)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        deadline = time.monotonic() + 60
        while target and process.poll() is None and time.monotonic() < deadline:
            if committed() >= target:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        output = process.communicate(timeout=60)[0].decode()
        assert dest.exists() == (target is None)
    assert kills == 3 and process.returncode == 0
    assert "0/071.png" in output and "were there already" in output
    assert _content(dest) == _content(whole)


# ----------------------------------------------------------------------- command line


def test_command_line(tmp_path, odd_source, capsys):
    dest = tmp_path / "out.zip"
    options = ["--source", str(odd_source), "--dest", str(dest), "--max-images", "8"]
    assert dataset_tool.main(options) == 0
    printed = capsys.readouterr()
    assert "7 remarks on images" in printed.out and "SKIPPED  2 emptÿ.png: " in printed.out
    assert "2 images written, 6 skipped; 16x16, 3 channels, no labels." in printed.out
    assert "Most images were skipped" in printed.out
    assert "img/s" in printed.err  # the progress bar
    assert dataset_tool.main(options) == 2
    assert "error: dest" in capsys.readouterr().err
    assert dataset_tool.main([*options[:2], "--dest", "x", "--resolution", "5"]) == 2
    assert "resolution must be WxH" in capsys.readouterr().err
    os.remove(dest)
    assert dataset_tool.main([*options, "--strict"]) == 2
    assert "1 truncated.jpg" in capsys.readouterr().err


def test_long_lists_go_to_a_file(tmp_path, capsys):
    files = {f"{i:02d}.png": b"rubbish" for i in range(60)}
    source = _folder(tmp_path / "s", files | {"a.png": _encode(_noise(8, 8))})
    assert dataset_tool.run(source, tmp_path / "out.zip", progress=False) == 0
    assert "10 more; all are in" in capsys.readouterr().out
    lines = (tmp_path / "out.zip.problems.txt").read_text().splitlines()
    assert len(lines) == 60 and lines[59].startswith("SKIPPED  59.png: cannot be used")


def test_runs_as_a_script(tmp_path, source):
    script = ROOT / "experiments" / "dataset_tool.py"
    command = [sys.executable, str(script.resolve()), "--source", str(source)]
    command += ["--dest", str(tmp_path / "out.zip"), "--resolution=16,16"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    assert len(open_images(tmp_path / "out.zip", use_labels=True)) == 12
