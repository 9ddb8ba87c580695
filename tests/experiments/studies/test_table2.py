"""The training table: what is trained, what is kept, a failed run, and what the verdicts say."""

import json

import pytest

from experiments.studies import table2

TINY = {
    "train.total_kimg": 0.256, "train.batch_size": 32, "train.checkpoint_kimg": 0.256,
    "train.log_kimg": 0.128, "evaluation.num_images": 70, "evaluation.trajectory_seeds": 0,
    "sampler.num_steps": 2, "model.SongUNet.model_channels": 8,
}  # fmt: skip


@pytest.mark.soak
def test_a_cell_is_trained_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(table2, "ROWS", ("F",))
    monkeypatch.setattr(table2, "COLUMNS", ("vp",))
    table2.run(tmp_path, seeds=1, options=TINY)
    (row,) = json.loads((tmp_path / "table2.json").read_text())
    assert (row["column"], row["row"], row["seed"], row["nfe"]) == ("vp", "F", 0, 3)
    assert 0 <= row["class_accuracy"] <= 1 and row["frechet_distance"] > 0
    assert not (tmp_path / "runs" / "vp-F-0" / "checkpoints").exists()
    assert (tmp_path / "table2.png").stat().st_size > 1000


def test_cells_are_trained_once_and_a_failure_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(table2, "ROWS", ("A", "F"))
    monkeypatch.setattr(table2, "COLUMNS", ("vp",))
    trained, failing = [], {"vp-F-1"}

    def train(experiment, path):
        trained.append(path.name)
        if path.name in failing:
            raise RuntimeError("the loss is not finite")
        path.mkdir(parents=True, exist_ok=True)
        told = {"frechet_distance": 1.0 + experiment.seed, "class_accuracy": 0.5, "nfe": 35}
        (path / "evaluation.json").write_text(json.dumps(told))

    monkeypatch.setattr(table2.loop, "train", train)
    tmp_path = tmp_path / "made" / "on the way"
    table2.run(tmp_path, seeds=2)
    assert trained == ["vp-A-0", "vp-F-0", "vp-A-1", "vp-F-1"]
    rows = json.loads((tmp_path / "table2.json").read_text())
    assert [row.get("frechet_distance") for row in rows] == [1.0, 2.0, 1.0, None]
    assert rows[3]["failed"] == "the loss is not finite"
    # The same again: what failed, and that alone.
    trained.clear(), failing.clear()
    table2.run(tmp_path, seeds=2)
    assert trained == ["vp-F-1"]
    # mean of 1 and 2, standard error 1/2
    assert "1.5 +- 0.5" in (tmp_path / "table2.txt").read_text()
    # Trained otherwise, they are other runs.
    trained.clear()
    table2.run(tmp_path, seeds=1, options={"train.lr": 2e-3})
    assert trained == ["vp-A-0", "vp-F-0"]


def test_options_that_cannot_work_are_said_before_the_first_run(tmp_path):
    with pytest.raises(ValueError, match="keep_last must be at least 2"):
        table2.run(tmp_path / "out", seeds=1, options={"train.keep_last": 1})
    assert not (tmp_path / "out").exists()


def test_verdicts_are_about_two_standard_errors():
    def runs(*values):
        return [{"frechet_distance": v, "class_accuracy": 0.5} for v in values]

    found = {("vp", row): runs(1.0, 1.1, 0.9) for row in table2.ROWS}
    found |= {("ve", row): runs(1.0, 1.0) for row in table2.ROWS}
    found["vp", "C"] = runs(0.5, 0.6, 0.4)
    found["ve", "F"] = [{"failed": "why"}]
    lines = table2.verdicts(found)
    assert len(lines) == 10
    assert lines[0].startswith("VP, A to B (hyper-parameters): does not show")
    # 1.0 +- 0.1 to 0.5 +- 0.1 of three runs each: 0.5 +- sqrt(2 * 0.01 / 3) = 0.082
    assert lines[1].endswith("helps (+0.5 +- 0.082)")
    assert "VP, C to D (EDM preconditioning): hurts" in lines[2]
    assert lines[-1] == "VE, E to F (non-leaking augmentation): not known, for want of runs"
    text = table2.table(found)
    assert "1 +- 0.058" in text and text.splitlines()[-1].split()[4] == "failed"
