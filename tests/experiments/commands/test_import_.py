"""--mode=import and --mode=export: files of other programs to run directories and back."""

import functools
import json
import os
import warnings

import jax
import numpy as np
import pytest

import edm_jax
from edm_jax import models
from edm_jax.foreign import published, state_dict
from edm_jax.store.safetensors import read_safetensors
from edm_jax.train.checkpoint import CheckpointStore, SaveError
from experiments.commands import export, import_
from experiments.workdir import WorkdirError
from tests.support import weights_golden as wg

GUIDED = "10_adm_guided.pt"
FILES = {**wg.SNAPSHOTS, **wg.STATE_DICTS, "training_state.pt": "training_state", GUIDED: None}
# Suggested with the golden arrays (see test_weights_importer).
D_ATOL = {"edm": 5e-5, "ve": 5e-4, "iddpm": 5e-4, "vp": 2e-3}


def write_golden(folder, name):
    path = folder / name
    path.write_bytes(wg.content(name))
    return path


def run_import(source, workdir, **arguments):
    """Imports; returns what was reported."""
    said = []
    import_.import_model(source, workdir, report=said.append, **arguments)
    return "\n".join(said)


def golden_case(name):
    """What a golden file is imported with, and expected: x, sigma, labels, D."""
    if name != GUIDED:
        golden = wg.expected(FILES[name])
        labels = [golden.get(k) for k in ("class_labels", "augment_labels")]
        return {}, golden["x"], golden["sigma"], labels, golden["D"]
    with np.load(wg.GOLDEN / "10_adm_guided.npz") as golden:
        options = wg.json_of(golden["small/config"]) | {"narrow_norms": True}
        labels = [np.eye(7, dtype=np.float32)[golden["small/y"]], None]
        x, sigma, d = (golden[f"small/{k}"] for k in ("denoise_x", "denoise_sigma", "D"))
    return {"options": options}, x, sigma, labels, d


@functools.cache
def _denoise(key):
    """One compiled program for all files of the same network; variables are arguments."""
    build = _models[key].denoiser
    return jax.jit(lambda variables, *args: build(variables)(*args))


_models = {}


def denoise(model, x, sigma, labels):
    network = {k: v for k, v in model.description["network"].items() if "drop" not in k}
    key = json.dumps([network, model.description["precond"]])
    _models.setdefault(key, model)
    d = _denoise(key)(model.variables, x.transpose(0, 2, 3, 1), sigma, *labels)
    return np.asarray(d).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("name", FILES)
def test_every_golden_file_through_a_run_directory(name, tmp_path):
    """File -> --mode=import -> load -> D(x; sigma); also files of raw weights alone."""
    arguments, x, sigma, labels, want = golden_case(name)
    said = run_import(write_golden(tmp_path, name), tmp_path / "run", **arguments)
    variant = "raw" if name == "training_state.pt" else "ema"
    assert f"weights {variant}" in said
    model = edm_jax.load(tmp_path / "run")
    assert model.variant == variant and model.description["variants"] == [variant]
    atol = D_ATOL[model.description["precond"]["name"]] * np.ones_like(sigma)
    if name == GUIDED:
        atol = 5e-5 * (1 + sigma)
    d = denoise(model, x, sigma, labels)
    assert np.all(np.abs(d - want) < atol.reshape(-1, 1, 1, 1))


def test_raw_weights_alone_keep_their_bits(tmp_path):
    """Import, load, export and load again; no other weights are claimed."""
    golden = wg.expected("training_state")
    run = tmp_path / "run"
    run_import(write_golden(tmp_path, "training_state.pt"), run)
    single = tmp_path / "raw.safetensors"
    export.export_model(run, single, report=lambda line: None)
    for path in (run, run / "checkpoints" / "00000000", single):
        model = edm_jax.load(path, variant="raw")
        arrays = state_dict.from_variables(model.variables, model.description["network"])
        for name in golden["names"]:
            want = golden[f"params/{name}"].astype(np.float32)
            assert arrays[name.removeprefix("model.")].tobytes() == want.tobytes(), name
        with pytest.raises(ValueError, match=r"no weights 'ema' in .*there are: raw"):
            edm_jax.load(path, variant="ema")


def test_published_names(tmp_path):
    """An import exported under the names it came with is what came, and loads."""
    golden, dest = wg.expected("small"), tmp_path / "state.safetensors"
    source = write_golden(tmp_path, "small_torch1.pkl")
    export.export_model(source, dest, naming="published", report=lambda line: None)
    _, arrays = read_safetensors(memoryview(dest.read_bytes()))
    assert set(arrays) == set(golden["names"])
    for name, array in arrays.items():
        assert array.tobytes() == golden[f"params/{name}"].tobytes(), name
    model = edm_jax.load(dest)
    jax.tree.map(np.testing.assert_array_equal, model.params, edm_jax.load(source).params)
    with pytest.raises(ValueError, match=r"names are those of denoisers .*NoisyClassifier"):
        published.check_network(models.NoisyClassifier(32, 3, 2), "classifier")
    with pytest.raises(ValueError, match="of kind 'reflected'"):
        published.check_network(model.net, "reflected")


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_import_can_be_given_again(existing, tmp_path, monkeypatch):
    source = write_golden(tmp_path, "small_torch1.pkl")
    run = tmp_path / "run"
    if existing:
        run.mkdir()
        (run / "notes.txt").write_text("mine")

    def break_off(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_seal", break_off)
        with pytest.raises(SaveError, match=r"--workdir=.*nothing of it is left there"):
            run_import(source, run)
    assert run.exists() == existing
    if existing:
        assert set(os.listdir(run)) <= {"notes.txt", ".lock"}
    run_import(source, run)
    assert edm_jax.load(run).variant == "ema"
    with pytest.raises(WorkdirError, match="holds a run already"):
        run_import(source, run)


def test_what_a_killed_import_left_is_removed(tmp_path):
    source = write_golden(tmp_path, "small_torch1.pkl")
    leftover = tmp_path / "run" / "checkpoints" / "00000000.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("")
    run_import(source, tmp_path / "run")
    assert edm_jax.load(tmp_path / "run").variant == "ema" and not leftover.exists()


def test_a_destination_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    source = write_golden(tmp_path, "small_torch1.pkl")
    (tmp_path / "file").write_text("")
    dest = tmp_path / "file" / "x" / "o.safetensors"
    with pytest.raises(WorkdirError, match=r"^--dest=.*file/x.* cannot be written: Not a dir"):
        export.export_model(source, dest)

    def full(*args):
        raise OSError(28, "No space left on device")

    dest = tmp_path / "o.safetensors"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkdirError, match=r"^--dest=.*o.safetensors cannot be written: No space"):
        export.export_model(source, dest)
    assert sorted(os.listdir(tmp_path)) == ["file", source.name]


def test_what_was_assumed_is_printed(tmp_path):
    """A state dictionary does not say its preconditioning; load warns, import reports."""
    source = write_golden(tmp_path, "small_state_dict.pt")
    said = run_import(source, tmp_path / "a")
    line = next(row for row in said.splitlines() if row.startswith("assumed, as the file"))
    assumed = json.loads(line[line.index("{") : line.rindex("}") + 1])
    assert assumed == {
        "network": {"dropout": 0.1, "label_dropout": 0},
        "precond": {"name": "edm", "sigma_data": 0.5},
    }
    assert "--source_options" in line
    with pytest.warns(UserWarning, match=r"small_state_dict.pt: assumed, .*\"precond\"") as seen:
        edm_jax.load(source)
    assert "dropout" not in str(seen[0].message)
    # Given back, nothing is assumed; another choice is taken.
    assert "assumed, as" not in run_import(source, tmp_path / "b", options=assumed)
    said = run_import(source, tmp_path / "c", options={"precond": {"name": "ve"}})
    assert "ve preconditioning" in said and '"precond"' not in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in "abc":
            edm_jax.load(tmp_path / name)
        edm_jax.load(write_golden(tmp_path, "small_torch1.pkl"))
