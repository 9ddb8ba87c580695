"""`edm_jax.load` of run directories: which step is taken, and what is refused."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest

import edm_jax
from edm_jax.store import checkpoints
from edm_jax.store.checkpoints import CheckpointError
from edm_jax.store.errors import NewerFormatError
from edm_jax.train.checkpoint import CheckpointStore
from experiments.commands.import_ import import_model
from tests.support import weights_golden as wg


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    source = folder / "small_torch1.pkl"
    source.write_bytes(wg.content(source.name))
    import_model(source, folder / "run", report=lambda line: None)
    return folder / "run"


@pytest.fixture
def run(imported, tmp_path):
    """A run directory to change."""
    return shutil.copytree(imported, tmp_path / "run")


def step_of(run, number=0):
    return run / "checkpoints" / f"{number:08d}"


def describe(step_dir, **changes):
    """Changes the description and the checksums with it, as another program would write them."""
    path = step_dir / "description" / "metadata"
    description = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in description.items() if v != "remove"}))
    checkpoints.write_checksums(step_dir)


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def test_a_newer_step_is_refused_not_passed_over(run):
    shutil.copytree(step_of(run), step_of(run, 5))
    describe(step_of(run, 5), format_version=2, network={"name": "FutureNet"})
    (step_of(run, 5) / "checksums.json").unlink()  # the newer format need not have it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (run, run / "checkpoints", step_of(run, 5)):
            with pytest.raises(NewerFormatError) as error:
                edm_jax.load(path)
            text = one_line(error)
            assert text.startswith(str(step_of(run, 5))) and "update edm_jax" in text
        assert edm_jax.load(step_of(run)).variant == "ema"


def test_training_refuses_a_newer_step_and_changes_nothing(run):
    shutil.copytree(step_of(run), step_of(run, 5))
    describe(step_of(run, 5), format_version=2)
    before = sorted((run / "checkpoints").iterdir())
    store = CheckpointStore(run / "checkpoints")
    with pytest.raises(NewerFormatError, match="00000005: format_version 2 is newer"):
        store.restore_latest(None)
    store.close()
    assert sorted((run / "checkpoints").iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": "remove"}, "variants must be a list of names, got None"),
        ({"variants": []}, "variants must be a list of names, got a list of 0"),
        ({"variants": [["ema"]]}, "variants must be a list of names, got a list of 1"),
        ({"variants": "ema"}, "variants must be a list of names, got 'ema'"),
        ({"variants": ["other"]}, "ema: weights 'other' are not there"),
        ({"variants": ["raw"]}, "weights 'raw': .* need more than the 1 tensors"),
        ({"format_version": "remove"}, "format_version None, expected"),
        ({"format_version": "1"}, "format_version '1', expected"),
        ({"network": 7}, "the description has no network"),
        ({"network": {"name": "FutureNet"}}, "image_shape|FutureNet"),
        ({"precond": {"name": "edm", "sigma_data": -1}}, "sigma_data must be positive"),
        ({"image_shape": "8x8"}, "image_shape must be"),
        ({"label_names": ["a"]}, "1 label_names for 3 classes"),
    ],
)
def test_descriptions_that_make_no_sense(changes, message, run):
    describe(step_of(run), **changes)
    for path in (run, step_of(run)):
        with pytest.raises(CheckpointError, match=message) as error:
            edm_jax.load(path)
        assert one_line(error).startswith(str(step_of(run)))


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, "{"])
def test_damaged_descriptions(text, run):
    (step_of(run) / "description" / "metadata").write_text(text)
    checkpoints.write_checksums(step_of(run))
    with pytest.raises(CheckpointError) as error:
        edm_jax.load(run)
    assert one_line(error).startswith(str(step_of(run)))


def test_a_step_that_makes_no_sense_is_passed_over_like_a_damaged_one(run):
    shutil.copytree(step_of(run), step_of(run, 5))
    describe(step_of(run, 5), variants=["other"])
    with pytest.warns(UserWarning, match="skipping damaged checkpoint: .*00000005.*'other'"):
        model = edm_jax.load(run)
    want = edm_jax.load(step_of(run))
    jax.tree.map(np.testing.assert_array_equal, model.params, want.params)
