"""The same run on other numbers of devices and processes.

The real program, as a user starts it, on the tiny configuration.
"""

import importlib.util
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import edm_jax
from edm_jax.store import checkpoints
from edm_jax.train import distributed
from tests.support import command_line
from tests.support.command_line import metric_rows, start, wait_until
from tests.support.compiler import with_devices

TINY = "--config=configs/tiny.py"


def assert_close_run(a, b):
    """The same run but for the order of sums over devices.

    Adam moves a weight by up to lr = 3e-3 a step in the direction of its gradient's sign, so
    a gradient that is nearly 0 moves its weight by rounding: after 30 steps by up to 1e-3.
    The losses average that out.
    """
    rows = metric_rows(a), metric_rows(b)
    assert [row["images_per_sigma_bin"] for row in rows[0]] == [
        row["images_per_sigma_bin"] for row in rows[1]
    ]  # the same noise levels, so the same random numbers
    losses = [[row["loss"] for row in part] for part in rows]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)
    trees = (with_a_gradient(command_line.final_arrays(path)[1][1]) for path in (a, b))
    for one, other in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


def with_a_gradient(tree):
    """Weights without the biases of attention keys.

    The same vector added to every key adds the same number to all logits of a query, which
    the softmax takes away: their gradient is 0, and what they hold is rounding alone.
    """

    def kept(path, array):
        names = [getattr(entry, "key", None) for entry in path]
        # Outputs are in the order (head, channel, q/k/v), the last fastest.
        return np.delete(array, np.s_[1::3]) if names[-2:] == ["qkv", "bias"] else array

    return jax.tree_util.tree_map_with_path(kept, tree)


def assert_close_pictures(a, b, name):
    """Equal up to rounding to bytes, which differs where rounding of the numbers does."""
    one, other = (np.asarray(Image.open(path / "samples" / name), np.int16) for path in (a, b))
    np.testing.assert_allclose(one, other, atol=1)


LAYOUTS = [pytest.param("data", marks=pytest.mark.soak), "fsdp"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_on_other_numbers_of_devices(layout, run_dir, environment, tmp_path):
    """Begun on one device; gone on with on eight, killed; ended on two."""
    path = tmp_path / "moved"
    begun_only(run_dir, path, step=20)
    arguments = [TINY, f"--workdir={path}", f"--config.train.sharding={layout}"]
    saved = path / "checkpoints"
    for count, step in ((8, 25), (2, 30)):
        process = start(environment | {"XLA_FLAGS": with_devices(count)}, *arguments)
        assert wait_until((saved / f"{step:08d}").exists, process)
        process.kill()
        process.wait()
    assert_close_run(run_dir, path)


def begun_only(run, path, step):
    """A copy of a run as if it had been killed right after the checkpoint of a step."""
    shutil.copytree(run, path)
    for later in checkpoints.checkpoint_steps(path / "checkpoints"):
        if int(later.name) > step:
            shutil.rmtree(later)
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[: step // 5]))
    (path / "evaluation.json").unlink()


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
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_stop_resume_and_train_as_one(
    layout, run_dir, environment, tmp_path, free_port
):
    """SIGTERM to one of them; then both pass over a damaged checkpoint and go on to the end."""
    path = tmp_path / "two"
    arguments = (
        environment, path, free_port, f"--config.train.sharding={layout}",
        "--config.train.sample_kimg=0.48", "--config.evaluation.trajectory_seeds=0",
    )  # fmt: skip
    both = start_both(*arguments)
    assert wait_until(lambda: len(metric_rows(path)) >= 2, both[0])
    both[1].terminate()
    said = [process.communicate(timeout=300) for process in both]
    assert {process.returncode for process in both} == {75}, said
    newest = checkpoints.checkpoint_steps(path / "checkpoints")[-1]
    (newest / checkpoints.CHECKSUMS).unlink()

    both = start_both(*arguments)
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "passed over" in said[0][0] and "passed over" not in said[1][0]
    assert newest.with_name(f"damaged-{newest.name}").exists()
    assert "2 cpu device(s)" in said[0][0]
    assert "kimg" not in said[1][0]  # one process speaks
    assert_close_run(run_dir, path)
    assert_close_pictures(run_dir, path, "kimg-000000.0.png")  # each drew its half
    assert edm_jax.load(path).description["progress"]["step"] == 30


@pytest.mark.soak
def test_two_processes_cut_an_evaluation_short(environment, tmp_path, free_port):
    path = tmp_path / "two"
    both = start_both(environment, path, free_port, "--config.evaluation.num_images=100000")
    assert wait_until((path / "figures" / "loss.png").exists, both[0])
    both[1].terminate()
    said = [process.communicate(timeout=300) for process in both]
    assert {process.returncode for process in both} == {75}, said
    assert "saved at step 30" in said[0][1]
    assert not (path / "evaluation.json").exists()


@pytest.mark.slow
def test_no_process_waits_for_one_that_was_refused(environment, tmp_path, free_port):
    (tmp_path / "file").write_text("not a directory")
    both = start_both(environment, tmp_path / "file", free_port)
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 1], said
    assert "cannot be written" in said[0]
    assert "process 0 could not go on" in said[1]
    assert not any("Traceback" in text for text in said)


@pytest.mark.slow
def test_no_process_waits_for_one_that_failed(environment, tmp_path, free_port):
    """Process 0 alone writes pictures; without it the other would wait for minutes."""
    path = tmp_path / "two"
    path.mkdir()
    (path / "samples").write_text("not a directory")
    both = start_both(environment, path, free_port)
    said = [process.communicate(timeout=200) for process in both]
    assert both[0].returncode == 1, said
    assert both[1].returncode != 0  # it is ended by JAX
    assert "File exists" in said[0][1] and "Traceback" not in said[0][1]


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
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_several_processes_are_recognised(environment, expected):
    assert distributed.wanted(environment) is expected


@pytest.mark.parametrize("file", ["accel0", "vfio/0"])
def test_tpu_machines_are_recognised_by_their_chips(file, tmp_path, monkeypatch):
    found = distributed.on_tpu_machine
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert not found({}, tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert found({}, tmp_path) and found({"JAX_PLATFORMS": "tpu,cpu"}, tmp_path)
    assert not found({"JAX_PLATFORMS": "cpu"}, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not found({}, tmp_path)


def test_a_lone_machine_with_chips_starts_as_usual(monkeypatch):
    def no_metadata_server(*arguments, **options):
        raise RuntimeError("no metadata")

    monkeypatch.setattr(distributed, "on_tpu_machine", lambda environment: True)
    monkeypatch.setattr(jax.distributed, "initialize", no_metadata_server)
    distributed.initialize()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(distributed.DistributedError, match="no metadata"):
        distributed.initialize()
