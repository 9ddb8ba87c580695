"""Reading step directories: their order, and a list of checksums that points elsewhere."""

import json

import pytest

from edm_jax.store import checkpoints
from edm_jax.store.checkpoints import CheckpointError


def _step(directory):
    """A step of two files, with checksums."""
    for name in ("params/data", "description/metadata"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"format_version": 1, "file": "{name}"}}')
    checkpoints.write_checksums(directory)
    return directory


def _digests(step_dir):
    return json.loads((step_dir / checkpoints.CHECKSUMS).read_text())


def _write(step_dir, digests):
    (step_dir / checkpoints.CHECKSUMS).write_text(json.dumps(digests))


def test_steps_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "9", "00000100", "000002", "123456789", "damaged-00000003", "1x", "-4"):
        (tmp_path / name).mkdir()
    (tmp_path / "77").write_text("a file")
    found = [path.name for path in checkpoints.checkpoint_steps(tmp_path)]
    assert found == ["000002", "9", "10", "00000100", "123456789"]
    assert checkpoints.checkpoint_steps(tmp_path / "none") == []


@pytest.mark.parametrize(
    "name",
    ["params/../params/data", "../outside", "params/..", "params/../../outside", "/dev/null", ""],
)
def test_paths_that_leave_the_step_are_refused_though_they_exist(name, tmp_path):
    """Whatever lies there, with the right checksum."""
    step_dir = _step(tmp_path / "00000001")
    (tmp_path / "outside").write_text("x")
    there = step_dir / name
    digest = checkpoints.file_digest(there) if there.is_file() else "x"
    _write(step_dir, _digests(step_dir) | {name: digest})
    with pytest.raises(CheckpointError, match="is no file of a step"):
        checkpoints.verify_checksums(step_dir)


def test_what_is_whole_and_what_is_not(tmp_path):
    step_dir = _step(tmp_path / "00000001")
    checkpoints.verify_checksums(step_dir)
    assert set(_digests(step_dir)) == {"params/data", "description/metadata"}
    # A name that merely begins with dots is a name.
    (step_dir / "params" / "..data").write_text("x")
    checkpoints.write_checksums(step_dir)
    checkpoints.verify_checksums(step_dir)
    (step_dir / "params" / "..data").write_text("y")
    with pytest.raises(CheckpointError, match=r"\.\.data: contents do not match"):
        checkpoints.verify_checksums(step_dir)
    checkpoints.verify_checksums(step_dir, items=("description",))
    with pytest.raises(CheckpointError, match="contents do not match"):
        checkpoints.verify_checksums(step_dir, items=("description", "params"))
    (step_dir / "params" / "..data").unlink()
    with pytest.raises(CheckpointError, match=r"\.\.data: missing"):
        checkpoints.verify_checksums(step_dir)


@pytest.mark.parametrize("name", ["params/more", "ema/zarr.json", "running_metrics/x"])
def test_files_more_in_an_item_are_damage(name, tmp_path):
    step_dir = _step(tmp_path / "00000001")
    (step_dir / name).parent.mkdir(exist_ok=True)
    (step_dir / name).write_text("x")
    with pytest.raises(CheckpointError, match=r"not listed in checksums\.json"):
        checkpoints.verify_checksums(step_dir)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt", "params/.hidden"])
def test_what_changes_after_the_checksums_is_no_damage(name, tmp_path):
    step_dir = _step(tmp_path / "00000001")
    (step_dir / name).write_text("x")
    checkpoints.verify_checksums(step_dir)
    checkpoints.write_checksums(step_dir)
    assert ("params/.hidden" in _digests(step_dir)) == (name == "params/.hidden")
