"""A run is killed, starved, damaged and moved; the same command always ends as if it had not.

The real program, as a user starts it, on the tiny configuration.
"""

import json
import random
import shutil
import signal
import time

import command_line
import jax
import numpy as np
import pytest
from command_line import metric_rows, start, wait_until

import edm_jax
from edm_jax.train import distributed
from edm_jax.weights import checkpoints
from experiments import workdir

TINY = "--config=configs/tiny.py"
# Sixty checkpoints, five grids.
LONGER = [
    TINY,
    "--config.train.total_kimg=4.8",
    "--config.train.sample_kimg=1.2",
    "--config.evaluation.num_images=0",
]
NUM_KILLS = 30


def assert_close_run(a, b):
    """The same run but for the order of sums over devices.

    A weight moves by up to lr = 3e-3 a step in the direction of its gradient's sign, so a
    gradient that is 0 but for rounding moves it anywhere; after 30 steps few weights
    differ by more than 1e-3 of the largest one.  The losses average that out.
    """
    rows = metric_rows(a), metric_rows(b)
    assert [row["images_per_sigma_bin"] for row in rows[0]] == [
        row["images_per_sigma_bin"] for row in rows[1]
    ]  # the same noise levels, so the same random numbers
    losses = [[row["loss"] for row in part] for part in rows]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)
    for one, other in zip(
        *(jax.tree.leaves(command_line.final_arrays(path)[1][1]) for path in (a, b)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


def with_devices(environment, count):
    return environment | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


# ------------------------------------------------------------------------------ kill -9


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
        unfinished = (path / "checkpoints").glob
        wait_until(lambda: any(unfinished("*orbax-checkpoint-tmp*")), process)
        time.sleep(rng.uniform(0, 0.05))
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return moment, alive


@pytest.mark.slow
def test_many_random_kills_end_bit_identical(command, environment, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command(*LONGER, f"--workdir={whole}")
    rng = random.Random(0)
    struck, newest = [], []
    while len(struck) < NUM_KILLS:
        process = start(environment, *LONGER, f"--workdir={killed}")
        moment, alive = strike(process, killed, rng)
        assert alive, f"the run ended after {len(struck)} kills: make it longer"
        struck.append(moment)
        steps = checkpoints.checkpoint_steps(killed / "checkpoints")
        newest.append(int(steps[-1].name) if steps else 0)
    assert set(struck) == {"any", "training", "saving"}
    assert newest == sorted(newest)  # nothing that was saved is ever lost
    assert len(set(newest)) > NUM_KILLS / 4  # stopped at many points
    command(*LONGER, f"--workdir={killed}")
    command_line.assert_same_run(whole, killed)


# ------------------------------------------------------------------------- asked to stop


@pytest.mark.slow
def test_sigterm_saves_and_leaves(run_dir, command, environment, tmp_path):
    path = tmp_path / "stopped"
    process = start(environment, TINY, f"--workdir={path}", stderr=-1)
    assert wait_until(lambda: metric_rows(path), process)
    process.terminate()
    _, said = process.communicate(timeout=300)
    # The run may have been at its end already; otherwise it says where it stopped.
    if process.returncode != 0:
        assert process.returncode == 75 and "asked to stop; saved at step" in said
    command(TINY, f"--workdir={path}")
    command_line.assert_same_run(run_dir, path)


# ----------------------------------------------------------------- damage and full disks


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "half deleted"])
def test_damaged_newest_checkpoint_is_passed_over(damage, run_dir, command, tmp_path):
    path = tmp_path / "damaged"
    shutil.copytree(run_dir, path)
    (path / "evaluation.json").unlink()
    newest = checkpoints.checkpoint_steps(path / "checkpoints")[-1]
    # Of the averages: loading reads them, and resuming reads everything.
    averages = [p for p in (newest / "ema").rglob("*") if p.is_file()]
    victim = max(averages, key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "bit flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        for file in averages[::2]:
            file.unlink()
    with pytest.warns(UserWarning, match="skipping damaged checkpoint"):
        assert edm_jax.load(path).description["progress"]["step"] == 25
    said = command(TINY, f"--workdir={path}").stdout
    assert "damaged checkpoint passed over" in said and newest.name in said
    assert "resuming at kimg 0.4" in said
    command_line.assert_same_run(run_dir, path)


@pytest.mark.slow
def test_full_disk_is_one_line_and_loses_nothing(command, environment, tmp_path):
    """Files cannot grow beyond a limit below the size of a checkpoint."""
    path = tmp_path / "full"
    arguments = [
        *LONGER,
        f"--workdir={path}",
        "--config.model.model_channels=32",
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
    # TensorStore's threads report each write that fails; the last line says what it means.
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ") and "could not be written" in last
    assert "is the disk full?" in last
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
    assert "the loss or its gradient was not finite at step" in done.stderr
    assert "Traceback" not in done.stderr
    for step in checkpoints.checkpoint_steps(path / "checkpoints"):
        for array in jax.tree.leaves([checkpoints.read_arrays(step, i) for i in ("params", "ema")]):
            assert np.isfinite(array).all()


# ------------------------------------------------------------------- one directory, a run


@pytest.mark.slow
def test_second_run_in_one_directory_is_refused(command, environment, tmp_path):
    path = tmp_path / "run"
    process = start(environment, *LONGER, f"--workdir={path}")
    try:
        assert wait_until((path / "config.json").exists, process)
        refused = command(*LONGER, f"--workdir={path}", code=2).stderr
    finally:
        process.kill()
        process.wait()
    assert f"is in use by process {process.pid}" in refused


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
    changed = {"train": {"lr": 1e-3, "max_bad_steps": 9}, "data": {"num_threads": 2}}
    workdir.record_config(tmp_path, changed)
    assert json.loads((tmp_path / "config.json").read_text()) == changed
    with pytest.raises(ValueError, match=r"train\.lr: 0\.001 there, 0\.002 now"):
        workdir.record_config(tmp_path, changed | {"train": {"lr": 2e-3, "max_bad_steps": 9}})
    assert json.loads((tmp_path / "config.json").read_text()) == changed


# ------------------------------------------------------------------ devices and processes


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_resumed_on_other_numbers_of_devices(layout, run_dir, command, environment, tmp_path):
    """Begun on two devices, killed; gone on with on eight, killed; ended on one."""
    path = tmp_path / "moved"
    arguments = [TINY, f"--workdir={path}", f"--config.train.sharding={layout}"]
    for count, lines in ((2, 2), (8, 4)):
        process = start(with_devices(environment, count), *arguments)
        assert wait_until(lambda least=lines: len(metric_rows(path)) >= least, process)
        process.kill()
        process.wait()
    assert "resuming" in command(*arguments).stdout
    assert_close_run(run_dir, path)


def start_both(environment, path, port, *arguments):
    """Two processes with a device each, as on two hosts."""
    return [
        start(
            environment,
            TINY,
            f"--workdir={path}",
            f"--coordinator_address=localhost:{port}",
            "--num_processes=2",
            f"--process_id={i}",
            *arguments,
            stdout=-1,
            stderr=-1,
        )
        for i in range(2)
    ]


@pytest.fixture
def free_port():
    """A port of this machine that nothing listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_two_processes_train_as_one(layout, run_dir, environment, tmp_path, free_port):
    path = tmp_path / "two"
    both = start_both(environment, path, free_port, f"--config.train.sharding={layout}")
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "2 cpu device(s)" in said[0][0]
    assert "kimg" not in said[1][0]  # one process speaks
    assert_close_run(run_dir, path)
    assert edm_jax.load(path).description["progress"]["step"] == 30


@pytest.mark.slow
def test_two_processes_stop_and_resume_together(run_dir, command, environment, tmp_path, free_port):
    """SIGTERM to one of them; the end is by a single process."""
    path = tmp_path / "two"
    both = start_both(environment, path, free_port)
    assert wait_until(lambda: metric_rows(path), both[0])
    both[1].terminate()
    said = [process.communicate(timeout=300) for process in both]
    codes = {process.returncode for process in both}
    assert codes in ({75}, {0}), said  # 0: it was at its end already
    command(TINY, f"--workdir={path}")
    assert_close_run(run_dir, path)


@pytest.mark.slow
def test_no_process_waits_for_one_that_was_refused(environment, tmp_path, free_port):
    (tmp_path / "file").write_text("not a directory")
    both = start_both(environment, tmp_path / "file", free_port)
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 1], said
    assert "cannot be written" in said[0]
    assert "process 0 could not begin" in said[1]
    assert not any("Traceback" in text for text in said)


def test_processes_that_do_not_come_are_reported(free_port):
    with pytest.raises(distributed.DistributedError, match="did not find each other within 1 s"):
        distributed.initialize(f"localhost:{free_port}", 2, 1, timeout_seconds=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), "go together"),
        (("localhost:1", None, None), "go together"),
        (("localhost:1", 2, 2), "must be in 0..num_processes-1, got 2 of 2"),
    ],
)
def test_incomplete_process_flags_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(*given)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_several_processes_are_recognised(environment, expected):
    assert distributed.wanted(environment) is expected
