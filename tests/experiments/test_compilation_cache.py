"""What is compiled is kept: a second start compiles nothing again."""

import os
import pathlib

import jax
import pytest

from experiments import compilation_cache
from tests.support.command_line import assert_same_run, start

TINY = ["--config=configs/tiny.py", "--config.train.total_kimg=0.08"]


@pytest.fixture
def kept(monkeypatch):
    """JAX's settings of its cache as they were, afterwards."""
    names = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_directory_is_that_of_the_user(kept, tmp_path):
    kept.setenv("HOME", str(tmp_path))
    assert compilation_cache.default_directory() == tmp_path / ".cache/edm_jax/compiled"
    kept.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compilation_cache.default_directory() == tmp_path / "xdg/edm_jax/compiled"
    kept.setenv("JAX_COMPILATION_CACHE_DIR", "~/mine")
    assert compilation_cache.default_directory() == tmp_path / "mine"


def test_it_is_said_in_one_line(kept, tmp_path, capsys):
    assert compilation_cache.enable(str(tmp_path / "a")) == tmp_path / "a"
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and str(tmp_path / "a") in said
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a")
    assert compilation_cache.enable("off") is None
    assert capsys.readouterr().out == "" and not jax.config.jax_enable_compilation_cache


def test_a_directory_that_cannot_be_written_costs_no_run(kept, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert compilation_cache.enable(str(tmp_path / "file" / "x")) is None
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("warning: --compilation_cache=") and "not kept" in captured.err


@pytest.mark.slow
def test_a_second_start_compiles_nothing(run_dir, command, environment, tmp_path):
    """Every program of a second run is one that the first has kept.

    Programs are files of the directory; a name is the hash of all that a program depends on.
    Those of the training step are taken away: it is compiled once more, under the same name.
    """
    cache = pathlib.Path(environment["JAX_COMPILATION_CACHE_DIR"])
    first = set(os.listdir(cache))
    steps = {name for name in first if "train_step" in name}
    assert len(first) > 20 and steps
    for name in steps:
        (cache / name).unlink()
    said = command(*TINY, f"--workdir={tmp_path / 'b'}", f"--compilation_cache={cache}").stdout
    assert f"compiled programs are kept in {cache}" in said
    second = set(os.listdir(cache))
    assert second <= first and second & steps


@pytest.mark.soak
def test_processes_share_a_directory_and_a_damaged_entry_is_no_failure(
    command, environment, tmp_path
):
    cache = tmp_path / "programs"
    flags = [*TINY, f"--compilation_cache={cache}", "--config.evaluation.num_images=0"]
    both = [start(environment, *flags, f"--workdir={tmp_path / name}") for name in "ab"]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    command(*flags, f"--workdir={tmp_path / 'c'}")
    assert_same_run(tmp_path / "a", tmp_path / "c")
