"""Unfinished conversions: nothing half-written, nothing lost, no trace of the interruption."""

import os

import pytest

from edm_jax.data.conversion import convert as convert_lib
from edm_jax.data.conversion import output
from tests.support.made_images import write_folder, write_odd_source, write_source


def convert(*args, **kwargs):
    return convert_lib.convert(*args, progress=False, **kwargs)


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


@pytest.fixture
def odd_source(tmp_path):
    return write_odd_source(tmp_path / "odd")


def test_too_little_space(tmp_path, source, monkeypatch):
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage)
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


def test_strict_notices_what_an_earlier_run_let_pass(tmp_path, odd_source, monkeypatch):
    _stop_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        convert(odd_source, tmp_path / "out.zip")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"1 truncated\.jpg: .*without strict"):
        convert(odd_source, tmp_path / "out.zip", strict=True)


def test_problems_survive_an_interruption(tmp_path, odd_source, dest, monkeypatch):
    expected = convert(odd_source, tmp_path / "whole.zip")
    _stop_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        convert(odd_source, dest)
    monkeypatch.undo()
    report = convert(odd_source, dest)
    assert report.resumed == 5 and report.problems == expected.problems
    assert (report.written, report.skipped) == (4, 5)


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
    write_folder(tmp_path / "out.zip.partial", {"journal": b"{}\n", "lock": b""})
    with pytest.raises(ValueError, match="exists; delete it"):
        convert(source, tmp_path / "out.zip", resolution=(16, 16))
    assert sorted(os.listdir(tmp_path)) == ["out.zip", "source"]


def test_full_disk(tmp_path, source, monkeypatch):
    def full(self, entry, record, png):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.ZipOutput, "_write", full)
    with pytest.raises(
        OSError, match=r"writing dest .* failed .*No space left.* goes on from here"
    ):
        convert(source, tmp_path / "out.zip", resolution=(16, 16))
    monkeypatch.undo()
    assert convert(source, tmp_path / "out.zip", resolution=(16, 16)).written == 12
