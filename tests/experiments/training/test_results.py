"""What a run leaves: a figure that fails costs nothing else."""

import json
import pathlib
import types

import pytest

from experiments import evaluations
from experiments.training import results


def test_a_figure_that_fails_costs_nothing_else(monkeypatch, tmp_path):
    def fails(*unused):
        raise TypeError("a library\nsaid this")

    drawn = []
    monkeypatch.setattr(results, "_draw_losses", fails)
    monkeypatch.setattr(results, "_draw_trajectories", lambda run, path, model: drawn.append(path))
    monkeypatch.setattr(results, "_evaluate", lambda *unused: {"fid": 3.0})
    monkeypatch.setattr(results, "_table", lambda result: "")
    monkeypatch.setattr(results, "_draw_evaluations", lambda *unused: drawn.append("evaluations"))
    run = types.SimpleNamespace(
        path=tmp_path,
        leads=True,
        figure_format="png",
        batch_size=1,
        experiment=types.SimpleNamespace(
            kind="denoiser", draws_images=True, evaluation=types.SimpleNamespace(num_images=2)
        ),
        intervals=types.SimpleNamespace(evaluation=1),
        store=types.SimpleNamespace(wait=lambda: None),
        status=types.SimpleNamespace(say=lambda text: None),
        make_state=lambda: None,
        model=lambda state, step: None,
    )
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kimg": 1.0, "loss": 2.0, "step": 1}))
    with pytest.warns(UserWarning, match=r"loss_per_noise_level\.png could not .*: a library said"):
        results.finish(run, types.SimpleNamespace(step=1), 0.0, lambda: None)
    assert drawn == [pathlib.Path(tmp_path / "figures" / "trajectories.png"), "evaluations"]
    assert (tmp_path / "figures" / "loss.png").exists()
    assert evaluations.read(tmp_path)["fid"] == 3.0
