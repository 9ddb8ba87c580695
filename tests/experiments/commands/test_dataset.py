"""The conversion program: what it prints and returns, and kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from edm_jax.data.sources.image_files import open_images
from experiments.commands import dataset
from tests.support.made_images import encode, noise, write_folder, write_odd_source, write_source
from tests.support.paths import ROOT


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


@pytest.fixture
def odd_source(tmp_path):
    return write_odd_source(tmp_path / "odd")


def test_command_line(tmp_path, odd_source, capsys):
    dest = tmp_path / "out.zip"
    options = ["--source", str(odd_source), "--dest", str(dest), "--max-images", "8"]
    assert dataset.main(options) == 0
    printed = capsys.readouterr()
    assert "7 remarks on images" in printed.out and "SKIPPED  2 emptÿ.png: " in printed.out
    assert "2 images written, 6 skipped; 16x16, 3 channels, no labels." in printed.out
    assert "Most images were skipped" in printed.out
    assert "img/s" in printed.err  # the progress bar
    assert dataset.main(options) == 2
    assert "error: dest" in capsys.readouterr().err
    assert dataset.main([*options[:2], "--dest", "x", "--resolution", "5"]) == 2
    assert "resolution must be WxH" in capsys.readouterr().err
    os.remove(dest)
    assert dataset.main([*options, "--strict"]) == 2
    assert "1 truncated.jpg" in capsys.readouterr().err


def test_long_lists_go_to_a_file(tmp_path, capsys):
    files = {f"{i:02d}.png": b"rubbish" for i in range(60)}
    source = write_folder(tmp_path / "s", files | {"a.png": encode(noise(8, 8))})
    assert dataset.run(source, tmp_path / "out.zip", progress=False) == 0
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
from experiments.commands import dataset

one = convert._convert_one

def slow(*args):
    time.sleep(0.01)
    return one(*args)

convert._convert_one, convert._COMMIT_IMAGES = slow, 5
sys.exit(dataset.main(sys.argv[1:]))
"""


def test_kill_nine_on_the_command_line(tmp_path, dest):
    files = {f"{i % 2}/{i:03d}.png": encode(noise(20, 24)) for i in range(150)}
    source = write_folder(tmp_path / "s", files | {"0/071.png": b"rubbish"})
    options = ["--source", str(source), "--resolution", "16x16", "--num_workers", "3"]
    whole = tmp_path / f"whole{dest.suffix}"
    assert dataset.main([*options, "--dest", str(whole)]) == 0
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
