"""The page of a model from the command line."""

import pytest

from tests.support.small_model import write_small_model

FEW = ("--num_levels=3", "--num_images=6", "--num_samples=12", "--max_training=100",
       "--num_steps=2")  # fmt: skip


def test_diagnose_writes_one_page(call, tmp_path):
    model = write_small_model(tmp_path / "small.safetensors")
    words = ("--mode=diagnose", f"--workdir={model}", f"--dest={tmp_path / 'out' / 'page.html'}",
             "--config=configs/digits.py", *FEW)  # fmt: skip
    said = call(*words).stdout
    assert str(tmp_path / "out" / "page.html") in said
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["page.html"]
    assert "measured, 0.75 configured" in (tmp_path / "out" / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir=gone"], "no such file or directory: gone"),
        (["--workdir=gone", "--dest=page.pdf"], "--dest=page.pdf: the name must end in .html"),
    ],
)
def test_bad_input_is_one_line(words, message, call, tmp_path):
    done = call("--mode=diagnose", *words, code=2, cwd=tmp_path)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
