"""A run is killed, starved, damaged and moved; the same command always ends as if it had not.

The real program, as a user starts it, on the tiny configuration.
"""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import edm_jax
from edm_jax.store import checkpoints
from experiments import workdir
from tests.support import command_line
from tests.support.command_line import metric_rows, start, wait_until

TINY = "--config=configs/tiny.py"
LONGER = [
    TINY,
    "--config.train.total_kimg=4.8",
    "--config.train.sample_kimg=0.8",
    "--config.evaluation.num_images=0",
]


# ------------------------------------------------------------------------------ kill -9


def is_saving(path):
    return any((path / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def strike(process, path, rng):
    """Kill -9 at a random moment of start-up, of training, or of saving."""
    lines = len(metric_rows(path))
    moment = rng.choice(("any", "training", "training", "saving", "saving"))
    if moment == "any":
        time.sleep(rng.uniform(0, 6))
    elif moment == "training":
        more = rng.randrange(1, 4)
        wait_until(lambda: len(metric_rows(path)) >= lines + more, process)
        time.sleep(rng.uniform(0, 0.1))
    else:
        wait_until(lambda: is_saving(path), process)
        time.sleep(rng.uniform(0, 0.05))
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return moment, alive


@pytest.mark.soak
@pytest.mark.parametrize("kills", [3, 30])
def test_many_random_kills_end_bit_identical(kills, command, environment, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = [*LONGER, f"--config.train.total_kimg={0.16 * max(kills, 10)}"]
    command(*longer, f"--workdir={whole}")
    rng = random.Random(0)
    struck, newest = [], []
    while len(struck) < kills:
        process = start(environment, *longer, f"--workdir={killed}")
        moment, alive = strike(process, killed, rng)
        assert alive, f"the run ended after {len(struck)} kills: make it longer"
        struck.append(moment)
        steps = checkpoints.checkpoint_steps(killed / "checkpoints")
        newest.append(int(steps[-1].name) if steps else 0)
    assert kills < 30 or set(struck) == {"any", "training", "saving"}
    assert newest == sorted(newest)  # nothing that was saved is ever lost
    assert len(set(newest)) > kills / 4  # stopped at many points
    command(*longer, f"--workdir={killed}")
    command_line.assert_same_run(whole, killed)


@pytest.mark.slow
def test_stopped_killed_and_gone_on_with_ends_bit_identical(
    run_dir, command, environment, tmp_path
):
    """SIGTERM after the first line; kill -9 while saving; ended with processes that read."""
    path = tmp_path / "stopped"
    process = start(environment, TINY, f"--workdir={path}", stderr=-1)
    assert wait_until(lambda: metric_rows(path), process)
    process.terminate()
    _, said = process.communicate(timeout=300)
    # Twenty-five steps before its end.
    assert process.returncode == 75 and "asked to stop; saved at step" in said, said
    saved = checkpoints.checkpoint_steps(path / "checkpoints")[-1]
    assert f"saved at step {int(saved.name)} " in said

    process = start(environment, TINY, f"--workdir={path}")
    assert wait_until(lambda: is_saving(path), process)
    process.kill()
    process.wait()
    assert checkpoints.checkpoint_steps(path / "checkpoints")[-1].name >= saved.name

    assert "resuming" in command(TINY, f"--workdir={path}", "--config.data.num_workers=2").stdout
    command_line.assert_same_run(run_dir, path)


# ------------------------------------------------------------------------- asked to stop


KILLED_AFTER_SAVING = """
import os, runpy, signal, sys
from experiments.training import loop

save = loop._save

def save_and_die(run, state, step):
    save(run, state, step)
    if step == 10:
        run.store.wait()
        os.kill(os.getpid(), signal.SIGKILL)

loop._save = save_and_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.soak
def test_kill_right_after_a_checkpoint_loses_no_line(run_dir, command, environment, tmp_path):
    path = tmp_path / "killed"
    arguments = [command_line.MAIN, TINY, f"--workdir={path}"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_SAVING, *arguments],
        env=environment | {"PYTHONPATH": str(command_line.ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoints.checkpoint_steps(path / "checkpoints")[-1].name == "00000010"
    said = command(TINY, f"--workdir={path}", "--profile_steps=3-5").stdout
    assert "no trace of --profile_steps=3-5: the run goes on after 10" in said
    command_line.assert_same_run(run_dir, path)


ASKED_AT_THE_END = """
import atexit, os, runpy, signal, sys

atexit.register(os.kill, os.getpid(), signal.SIGTERM)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_sigterm_while_the_program_ends_changes_no_exit_code(run_dir, environment):
    arguments = [command_line.MAIN, TINY, f"--workdir={run_dir}"]
    done = subprocess.run(
        [sys.executable, "-c", ASKED_AT_THE_END, *arguments],
        env=environment | {"PYTHONPATH": str(command_line.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "asked to stop" not in done.stderr, done.stderr


@pytest.mark.soak
def test_sigterm_cuts_an_evaluation_short_and_it_is_made_again(command, environment, tmp_path):
    path = tmp_path / "stopped"
    # Steps 9, 18 and 27, none of which has a checkpoint of its own.
    config = [TINY, "--config.evaluation.every_kimg=0.144", "--config.evaluation.num_images=3000"]
    process = start(environment, *config, f"--workdir={path}", stdout=-1, stderr=-1)
    for line in process.stdout:
        if line.startswith("drawing 3000 images"):
            break
    process.terminate()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75 and "asked to stop; saved at step 9 " in said, said
    assert not (path / "evaluations.jsonl").read_text()
    command(*config, f"--workdir={path}")
    rows = [json.loads(line) for line in (path / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [9, 18, 27]
    assert json.loads((path / "evaluation.json").read_text())["num_images"] == 3000


# ----------------------------------------------------------------- damage and full disks


@pytest.mark.soak
def test_a_run_made_longer_is_the_long_run(run_dir, command, tmp_path):
    path = tmp_path / "longer"
    command(TINY, f"--workdir={path}", "--config.train.total_kimg=0.24")
    done = command(TINY, f"--workdir={path}")
    assert "train.total_kimg goes from 0.24 to 0.48: the run goes on" in done.stdout
    assert "resuming at kimg 0.2" in done.stdout
    command_line.assert_same_run(run_dir, path)
    evaluations = (json.loads((d / "evaluation.json").read_text()) for d in (run_dir, path))
    one, other = ({k: v for k, v in e.items() if k != "seconds"} for e in evaluations)
    assert one == other
    shorter = command(TINY, f"--workdir={path}", "--config.train.total_kimg=0.24")
    assert "finished" in shorter.stdout and "has trained its 0.48 kimg" in shorter.stdout


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over(run_dir, command, tmp_path):
    """A bit of the newest is wrong, files of the one before are gone."""
    path = tmp_path / "damaged"
    shutil.copytree(run_dir, path)
    (path / "evaluation.json").unlink()
    before, newest = checkpoints.checkpoint_steps(path / "checkpoints")[-2:]
    # Of the averages: loading reads them, and resuming reads everything.
    victim = max(files_of(newest / "ema"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    for file in files_of(before / "ema")[::2]:
        file.unlink()
    with pytest.warns(UserWarning, match="skipping damaged checkpoint") as warned:
        assert edm_jax.load(path).description["progress"]["step"] == 20
    assert len([w for w in warned if "skipping damaged" in str(w.message)]) == 2
    said = command(TINY, f"--workdir={path}").stdout
    assert said.count("damaged checkpoint passed over") == 2
    assert newest.name in said and before.name in said and "resuming at kimg 0.3" in said
    command_line.assert_same_run(run_dir, path)


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.soak
def test_full_disk_is_one_line_and_loses_nothing(command, environment, tmp_path):
    """Files cannot grow beyond a limit below the size of a checkpoint."""
    path = tmp_path / "full"
    arguments = [
        *LONGER,
        f"--workdir={path}",
        "--config.model.SongUNet.model_channels=32",
        "--config.train.total_kimg=0.8",
        "--config.train.sample_kimg=0",
    ]
    process = start(environment, *arguments)
    saved = checkpoints.checkpoint_steps
    assert wait_until(lambda: len(saved(path / "checkpoints")) >= 2, process)
    process.kill()
    process.wait()
    before = [step.name for step in saved(path / "checkpoints")]
    limited = ["bash", "-c", 'ulimit -f 150; exec "$@"', "limited"]  # kB; the weights are 600
    process = start(environment, *arguments, prefix=limited, stderr=-1)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1, said
    # TensorStore's threads and event loop report the writes that fail; one line says what it
    # means.
    lines = [line for line in said.splitlines() if "error: " in line and "disk full" in line]
    assert len(lines) == 1 and "could not be written" in lines[0], said
    assert [step.name for step in saved(path / "checkpoints")] == before
    assert "resuming" in command(*arguments).stdout


@pytest.mark.slow
def test_diverging_run_stops_and_keeps_its_checkpoint(command, tmp_path):
    """A learning rate no network survives: the step is named, what was good is kept."""
    path = tmp_path / "diverged"
    done = command(
        TINY,
        f"--workdir={path}",
        "--config.train.lr=1e30",
        "--config.train.lr_rampup_kimg=1000000.0",
        "--config.train.adam_eps=1e-30",
        "--config.train.total_kimg=1.6",
        code=1,
    )
    found = re.search(r"not finite at step (\d+) .*--config.train.max_bad_steps=1 ", done.stderr)
    assert found, done.stderr
    # Counted like the lines of metrics.jsonl, the last of which tells of that step.
    last = metric_rows(path)[-1]
    assert last["num_bad_steps"] == last["step"] - int(found[1]) + 1 > 0
    assert "Traceback" not in done.stderr
    for step in checkpoints.checkpoint_steps(path / "checkpoints"):
        for array in jax.tree.leaves([checkpoints.read_arrays(step, i) for i in ("params", "ema")]):
            assert np.isfinite(array).all()


# ------------------------------------------------------------------- one directory, a run


@pytest.mark.slow
def test_second_run_is_refused_and_the_first_stops_when_asked(environment, call, tmp_path):
    """While the first compiles: it has no step to save yet."""
    path = tmp_path / "run"
    process = start(environment, TINY, f"--workdir={path}", stderr=-1)
    try:
        assert wait_until((path / "config.json").exists, process)
        refused = call(TINY, f"--workdir={path}", code=2).stderr
    finally:
        process.terminate()
        _, said = process.communicate(timeout=300)
    assert f"is in use by process {process.pid}" in refused
    assert process.returncode == 75 and "error: asked to stop" in said, said


def test_lock_goes_with_its_holder(tmp_path):
    for _ in range(2):
        with (
            workdir.locked(tmp_path),
            pytest.raises(workdir.WorkdirError, match="is in use by process"),
            workdir.locked(tmp_path),
        ):
            pass


def test_only_free_options_may_change(tmp_path):
    config = {"train": {"lr": 1e-3, "max_bad_steps": 1}, "data": {"num_threads": 8}}
    workdir.record_config(tmp_path, config)
    (tmp_path / "checkpoints" / "00000005").mkdir(parents=True)
    changed = {"train": {"lr": 1e-3, "max_bad_steps": 9}, "data": {"num_threads": 2}}
    workdir.record_config(tmp_path, changed)
    assert json.loads((tmp_path / "config.json").read_text()) == changed
    train = changed["train"] | {"micro_batch": 8, "total_kimg": 2.0}
    notes = workdir.check_same_config(tmp_path, {"train": train, "data": {"path": "b"}})
    assert len(notes) == 3
    assert "train.micro_batch goes from (not set) to 8: the run goes on, equal" in notes[1]
    assert "train.total_kimg goes from (not set) to 2.0: the run goes on, only its" in notes[2]
    with pytest.raises(ValueError, match=r"train\.lr: 0\.001 there, 0\.002 now"):
        workdir.record_config(tmp_path, changed | {"train": {"lr": 2e-3, "max_bad_steps": 9}})
    assert json.loads((tmp_path / "config.json").read_text()) == changed


@pytest.mark.parametrize("text", ["[]", "3", "{"])
def test_unreadable_configuration_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(workdir.WorkdirError, match=r"config\.json cannot be read"):
        workdir.read_config(tmp_path)
