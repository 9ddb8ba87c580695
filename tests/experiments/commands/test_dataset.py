"""--mode=dataset: what it prints and returns, and kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from edm_jax.data.sources.image_files import open_images
from experiments.commands import dataset
from tests.support.made_images import (
    encode,
    noise,
    write_folder,
    write_odd_source,
    write_source,
    write_zip,
)
from tests.support.paths import ROOT


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


@pytest.fixture
def odd_source(tmp_path):
    return write_odd_source(tmp_path / "odd")


def test_command_line(tmp_path, odd_source, call):
    dest = tmp_path / "out.zip"
    options = ["--mode=dataset", f"--source={odd_source}", "--max_images=8"]
    done = call(*options, f"--dest={dest}", code=1)
    assert "6 remarks on images" in done.stdout and "SKIPPED  2 emptÿ.png: " in done.stdout
    assert "3 images written, 5 skipped; 16x16, 3 channels, no labels." in done.stdout
    assert "error: most images were skipped, 5 of 8, such as 1 truncated.jpg" in done.stderr
    assert "img/s" in done.stderr  # the progress bar
    assert "error: dest" in call(*options, f"--dest={dest}", code=2).stderr
    refused = call(*options, "--dest=x", "--resolution=5", code=2).stderr
    assert "resolution must be WxH" in refused
    os.remove(dest)
    assert "1 truncated.jpg" in call(*options, f"--dest={dest}", "--strict", code=2).stderr


def test_long_lists_go_to_a_file(tmp_path, capsys):
    files = {f"{i:02d}.png": b"rubbish" for i in range(60)}
    source = write_folder(tmp_path / "s", files | {"a.png": encode(noise(8, 8))})
    with pytest.raises(dataset.MostSkipped, match=r"most images were skipped, 60 of 61"):
        dataset.convert_images(source, tmp_path / "out.zip", progress=False)
    assert "10 more; all are in" in capsys.readouterr().out
    lines = (tmp_path / "out.zip.problems.txt").read_text().splitlines()
    assert len(lines) == 60 and lines[59].startswith("SKIPPED  59.png: cannot be used")


def test_names_of_classes_and_a_background(tmp_path, call):
    clear = np.zeros((8, 8, 4), np.uint8)
    files = {f"pets/{name}/x.png": encode(clear) for name in ("10", "9", "@eaDir")}
    source = write_zip(tmp_path / "pets.zip", files)
    options = ["--mode=dataset", f"--source={source}", "--background=white"]
    done = call(*options, f"--dest={tmp_path / 'out.zip'}")
    assert "Note: 1 image(s) left out" in done.stdout
    assert "2 images written, 0 skipped; 8x8, 3 channels, 2 classes" in done.stdout
    assert "(0 9, 1 10)" in done.stdout
    read = open_images(tmp_path / "out.zip", use_labels=True)
    assert read.label_names == ("9", "10") and (read[0]["image"] == 255).all()


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_no_utf8_do_not_end_it(tmp_path, command):
    (tmp_path / "s").mkdir()
    for i in range(60):
        with open(os.fsencode(tmp_path / "s") + b"/\xff%d.png" % i, "wb") as file:
            file.write(b"rubbish")
    for i in range(61):
        (tmp_path / "s" / f"é{i}.png").write_bytes(encode(noise(8, 8)))
    done = command("--mode=dataset", "--source=s", "--dest=out.zip", cwd=tmp_path)
    assert r"SKIPPED  \xff0.png" in done.stdout
    assert len((tmp_path / "out.zip.problems.txt").read_text().splitlines()) == 60


def test_the_real_program_converts(tmp_path, source, command):
    command(
        "--mode=dataset", "--source=source", "--dest=out.zip", "--resolution=16,16", cwd=tmp_path
    )
    assert len(open_images(tmp_path / "out.zip", use_labels=True)) == 12


@pytest.fixture(params=["out.zip", "out"])
def dest(request, tmp_path):
    return tmp_path / request.param


def _content(dest):
    if dest.is_file():
        return dest.read_bytes()
    return {p.relative_to(dest).as_posix(): p.read_bytes() for p in dest.rglob("*") if p.is_file()}


# Slowed down, so that there is something to kill; otherwise the real program.
_SLOW = """
import sys, time
from edm_jax.data.conversion import convert
from experiments import main

one = convert._convert_one

def slow(*args):
    time.sleep(0.01)
    return one(*args)

convert._convert_one, convert._COMMIT_IMAGES = slow, 5
sys.exit(main.main(sys.argv))
"""


def test_kill_nine_on_the_command_line(tmp_path, dest, call):
    files = {f"{i % 2}/{i:03d}.png": encode(noise(20, 24)) for i in range(150)}
    source = write_folder(tmp_path / "s", files | {"0/071.png": b"rubbish"})
    options = ["--mode=dataset", "--source", source, "--resolution=16x16", "--num_workers", "3"]
    whole = tmp_path / f"whole{dest.suffix}"
    call(*options, "--dest", whole)
    journal = tmp_path / f"{dest.name}.partial" / "journal"

    def committed():
        lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
        return max([json.loads(x)["next"] for x in lines[1:] if x.endswith("\n")], default=0)

    kills = 0
    for target in (20, 60, 110, None):
        command = [sys.executable, "-c", _SLOW, *map(str, options), f"--dest={dest}"]
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
