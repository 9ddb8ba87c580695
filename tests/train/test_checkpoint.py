"""Checkpoints: whole, verified, and passed over when damaged."""

import dataclasses
import errno
import json
import os
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from edm_jax.store import checkpoints
from edm_jax.store.checkpoints import CheckpointError
from edm_jax.train import metrics
from edm_jax.train.checkpoint import CheckpointStore, SaveError
from edm_jax.train.state import TrainState


def make_state(step):
    value = jnp.full((3, 4), float(step))
    params = {"layer": {"kernel": value, "bias": jnp.arange(4.0)}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        buffers={},
        ema={"ema_1kimg": jax.tree.map(lambda a: a + 1, params)},
        opt_state=({"mu": params}, {"count": jnp.int32(step)}),
        metrics=metrics.zeros(),
        bad_streak=jnp.int32(0),
        failed_step=jnp.int32(-1),
    )


def fill(directory, steps=(1, 2, 3), **options):
    store = CheckpointStore(directory, **options)
    for step in steps:
        store.save(make_state(step), step, {"format_version": 1, "step": step})
    store.close()


def restore(directory):
    said = []
    store = CheckpointStore(directory)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), make_state(0)
    )
    state = store.restore_latest(abstract, report=said.append)
    store.close()
    return state, said


def data_files(step_dir):
    """Files that hold arrays or what is needed to read them."""
    return [step_dir / name for name in json.loads((step_dir / checkpoints.CHECKSUMS).read_text())]


def test_round_trip_is_bit_exact(tmp_path):
    fill(tmp_path)
    state, said = restore(tmp_path)
    assert not said
    jax.tree.map(np.testing.assert_array_equal, state, make_state(3))
    assert checkpoints.read_description(tmp_path / "00000003")["step"] == 3
    tree = checkpoints.read_arrays(tmp_path / "00000003", "ema")
    np.testing.assert_array_equal(tree["ema_1kimg"]["layer"]["bias"], np.arange(4.0) + 1)


def test_checksums_are_there_when_the_step_has_its_name(tmp_path):
    fill(tmp_path, steps=(1,))
    digests = json.loads((tmp_path / "00000001" / checkpoints.CHECKSUMS).read_text())
    listed = {name.split("/")[0] for name in digests}
    assert {"params", "ema", "train", "description"} <= listed


def test_keep_last_and_keep_every(tmp_path):
    fill(tmp_path, steps=range(1, 10), keep_last=2, keep_every=4)
    assert [int(p.name) for p in checkpoints.checkpoint_steps(tmp_path)] == [4, 8, 9]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "no checksums"])
def test_damaged_newest_is_passed_over(tmp_path, damage):
    fill(tmp_path)
    newest = tmp_path / "00000003"
    victim = max(data_files(newest), key=lambda p: p.stat().st_size)
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "flip":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "delete":
        victim.unlink()
    else:
        (newest / checkpoints.CHECKSUMS).unlink()
    state, said = restore(tmp_path)
    assert int(state.step) == 2
    assert len(said) == 1 and "00000003" in said[0]
    assert (tmp_path / "damaged-00000003").is_dir()
    fill(tmp_path, steps=(3,))  # the step can be written again
    assert int(restore(tmp_path)[0].step) == 3


@pytest.mark.parametrize(
    "manifest",
    [
        "[" * 100_000,
        '{"": "x"}',
        '{".": "x"}',
        '{"%s": "x"}' % ("a" * 300),
        '{"a\\u0000b": "x"}',
        '{"/dev/zero": "x"}',
        '{"params/../../../secret": "x"}',
        "{}",
        '{"description/metadata": "x"}',
        "[]",
        "null",
    ],
    ids=lambda text: text[:30],
)
def test_checksums_that_prove_nothing_are_damage(manifest, tmp_path):
    fill(tmp_path)
    (tmp_path / "00000003" / checkpoints.CHECKSUMS).write_text(manifest)
    with pytest.raises(CheckpointError):
        checkpoints.verify_checksums(tmp_path / "00000003")
    state, said = restore(tmp_path)
    assert int(state.step) == 2 and len(said) == 1 and "00000003" in said[0]


def test_a_file_more_is_damage(tmp_path):
    """Orbax may read it in place of one that is listed."""
    fill(tmp_path)
    (tmp_path / "00000003" / "params" / "zarr.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"zarr\.json: not listed in checksums\.json"):
        checkpoints.verify_checksums(tmp_path / "00000003")


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "params/.DS_Store", "params/.nfs0001", "notes.txt", "@eaDir/x", "params/.x/y"],
)
def test_what_others_leave_is_no_damage(name, tmp_path):
    fill(tmp_path)
    stray = tmp_path / "00000003" / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("x")
    state, said = restore(tmp_path)
    assert int(state.step) == 3 and not said


def test_saving_does_not_make_damaged_steps_look_whole(tmp_path):
    fill(tmp_path, steps=(1, 2))
    (tmp_path / "00000001" / checkpoints.CHECKSUMS).unlink()
    fill(tmp_path, steps=(3,))
    checkpoints.verify_checksums(tmp_path / "00000003")
    with pytest.raises(CheckpointError, match=r"checksums\.json is missing"):
        checkpoints.verify_checksums(tmp_path / "00000001")


def test_a_step_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch):
    fill(tmp_path)
    digest = checkpoints.file_digest

    def broken_disk(path):
        if "00000003" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(path)

    monkeypatch.setattr(checkpoints, "file_digest", broken_disk)
    state, said = restore(tmp_path)
    assert int(state.step) == 2
    assert "unreadable (Input/output error)" in said[0]


def test_every_step_damaged_is_an_error_that_changes_nothing(tmp_path):
    fill(tmp_path, steps=(1, 2))
    for step_dir in checkpoints.checkpoint_steps(tmp_path):
        data_files(step_dir)[0].unlink()
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints"):
        restore(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_whole_step_that_does_not_fit_is_not_called_damaged(tmp_path):
    """Renamed, it would be lost to the command that it does fit."""
    fill(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    other = dataclasses.replace(make_state(0), opt_state=({"momentum": jnp.zeros(3)},))
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), other
    )
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match="step 3 is whole but could not be restored"):
        store.restore_latest(abstract)
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_saving_asks_nobody_whether_to_stop(tmp_path, monkeypatch):
    """The answer would be lost to training, which asks with other numbers."""
    asked = []
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step)
    )
    fill(tmp_path, steps=(1, 2))
    restore(tmp_path)
    assert not asked


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path)[0] is None


def test_unfinished_save_is_removed(tmp_path):
    fill(tmp_path, steps=(1,))
    leftover = tmp_path / "00000002.orbax-checkpoint-tmp"
    leftover.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert int(restore(tmp_path)[0].step) == 1
    assert not leftover.exists()


def test_keep_last_needs_two(tmp_path):
    with pytest.raises(ValueError, match="at least 2, got 1"):
        CheckpointStore(tmp_path, keep_last=1)


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    fill(tmp_path, steps=(1,))
    store = CheckpointStore(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SaveError, match=r"step 2 could not be written .*0.00 are free"):
        store.save(make_state(2), 2, {"format_version": 1})
    store.close()
    assert [path.name for path in checkpoints.checkpoint_steps(tmp_path)] == ["00000001"]
