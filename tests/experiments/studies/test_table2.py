"""The training table at its smallest, a failed run, and what the verdicts say."""

import json

import pytest

from experiments.studies import table2

TINY = {
    "train.total_kimg": 0.256, "train.batch_size": 32, "train.checkpoint_kimg": 0.256,
    "train.log_kimg": 0.128, "evaluation.num_images": 70, "evaluation.trajectory_seeds": 1,
    "sampler.num_steps": 2, "model.SongUNet.model_channels": 8,
}  # fmt: skip


@pytest.mark.slow
def test_cells_are_trained_once_and_a_failure_is_marked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table2, "ROWS", ("A", "F"))
    monkeypatch.setattr(table2, "COLUMNS", ("vp",))
    table2.run(tmp_path, seeds=1, options=TINY)
    rows = json.loads((tmp_path / "table2.json").read_text())
    assert [(row["column"], row["row"]) for row in rows] == [("vp", "A"), ("vp", "F")]
    assert all(0 <= row["class_accuracy"] <= 1 and row["nfe"] == 3 for row in rows)
    assert not (tmp_path / "runs" / "vp-A-0" / "checkpoints").exists()
    assert (tmp_path / "table2.png").stat().st_size > 1000
    trained, train = [], table2.loop.train

    def faulty(experiment, path):
        trained.append(path.name)
        raise RuntimeError("the loss is not finite")

    monkeypatch.setattr(table2.loop, "train", faulty)
    (tmp_path / "results" / "vp-F-0.json").unlink()
    table2.run(tmp_path, seeds=1, options=TINY)
    assert trained == ["vp-F-0"]
    assert "failed" in (tmp_path / "table2.txt").read_text()
    assert json.loads((tmp_path / "table2.json").read_text())[1]["failed"]
    monkeypatch.setattr(table2.loop, "train", train)


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
