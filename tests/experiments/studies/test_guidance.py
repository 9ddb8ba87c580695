"""Guidance on the digits: what is asked of each cell, what is kept, how it is told."""

import csv
import io

import numpy as np
import pytest

from experiments.studies import guidance
from experiments.studies._cells import kept
from experiments.studies.guidance import METHODS, NONE, SHOWN, Networks, Size

NETWORKS = Networks("model", lambda x, sigma, rows: x, None)


def row(method, scale, shift, rows):
    return {
        "method": method,
        "scale": scale,
        "values": {key: [shift, shift + 0.5] for key in SHOWN},
        "rows": rows,
    }


@pytest.fixture
def table():
    found = [row(NONE, 1.0, 1.0, {"denoiser": 16})]
    found += [row(method, 2.0, 2.0, {"denoiser": 16, "weaker": 7}) for method in METHODS]
    real = row("real test digits", None, 3.0, {})
    return [*found, real | {"values": {key: [3.0] for key in SHOWN}}]


def test_cells_are_the_guidances_at_their_scales():
    cells = guidance.cells(Size(scales=(1.5, 2.0)))
    assert cells[0] == (NONE, 1.0) and len(cells) == 1 + 2 * len(METHODS)
    assert guidance.guidance_of(NETWORKS, NONE, 1.0) is None
    cfg = guidance.guidance_of(NETWORKS, "classifier-free, interval", 2.0)
    assert cfg.scale == 2.0 and (cfg.interval.low, cfg.interval.high) == guidance.INTERVAL
    auto = guidance.guidance_of(NETWORKS, "autoguidance", 3.0)
    assert auto.scale == 3.0 and auto.interval is None
    classifier = NETWORKS.__class__("model", None, _Logits())
    # gamma = w - 1: what Bayes' rule makes of it.
    assert guidance.guidance_of(classifier, "classifier", 3.0).scale == 2.0


class _Logits:
    def logits(self, x, sigma):
        return x


def test_what_is_trained():
    found = guidance.configurations(Size(kimg=40.0))
    assert {name: config.train.total_kimg for name, config in found.items()} == {
        "model": 40.0, "weaker": 10.0, "classifier": 20.0,
    }  # fmt: skip
    # Smaller and shorter, of the same data, and the model knows images without labels.
    networks = [found[name].model.SongUNet for name in ("model", "weaker")]
    assert networks[0].model_channels == 2 * networks[1].model_channels
    assert networks[0].label_dropout > 0


def test_a_result_is_kept_until_something_else_is_asked(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"value": len(calls)}

    file = tmp_path / "cells" / "one.json"
    assert kept(file, [1, "a"], make) == {"value": 1}
    assert kept(file, [1, "a"], make) == {"value": 1}
    assert kept(file, [2, "a"], make) == {"value": 2}
    file.write_text(file.read_text()[:20])  # killed half-way by another program
    assert kept(file, [2, "a"], make) == {"value": 3}


def test_the_table(table, tmp_path):
    rows = list(csv.DictReader(io.StringIO(guidance.to_csv(table))))
    assert len(rows) == len(table)
    # Of the blocks 1 and 1.5: mean 1.25, deviation sqrt(2) / 4.
    assert float(rows[0]["precision"]) == 1.25
    assert float(rows[0]["precision_deviation"]) == pytest.approx(2**0.5 / 4, abs=1e-4)
    assert (rows[1]["denoiser_rows"], rows[1]["weaker_rows"], rows[1]["w"]) == ("16", "7", "2")
    text = guidance.to_markdown(table)
    assert "16 + 7 weaker" in text and "1.250 +- 0.354" in text
    assert "| real test digits |  | 3.000 | 3.00 |" in text
    guidance.draw(tmp_path / "figure.png", table)
    assert (tmp_path / "figure.png").stat().st_size > 20_000


@pytest.mark.soak
def test_run_and_run_again(tmp_path, monkeypatch):
    whole = guidance.configurations

    def small(size):
        found = whole(size)
        for config in found.values():
            config.model.SongUNet.update(model_channels=8, channel_mult=(1,), attn_resolutions=())
            config.model.NoisyClassifier.update(channel_mult=(1,), attn_resolutions=())
            config.train.batch_size = 32
            config.evaluation.num_images = min(config.evaluation.num_images, 8)
        return found

    monkeypatch.setattr(guidance, "configurations", small)
    monkeypatch.setattr(
        guidance, "METHODS", {name: METHODS[name] for name in ("autoguidance", "classifier")}
    )
    size = Size(kimg=0.128, scales=(2.0,), num_images=8, blocks=2, num_steps=3)
    table = guidance.run(tmp_path, size)
    assert [r["method"] for r in table] == [
        NONE, "autoguidance", "classifier", "real test digits",
    ]  # fmt: skip
    assert table[0]["rows"] == {"denoiser": 3}
    assert table[1]["rows"] == {"denoiser": 3, "weaker": 3}
    assert table[2]["rows"] == {"denoiser": 3, "classifier": 3}
    for one in table[:-1]:
        assert np.shape(list(one["values"].values())) == (len(SHOWN), 2)
    # Nothing is drawn again; that a finished run trains no more has tests of its own.
    asked = []
    monkeypatch.setattr(guidance.loop, "train", lambda experiment, path: asked.append(path.name))
    monkeypatch.setattr(guidance, "evaluate", None)
    monkeypatch.setattr(guidance, "evaluate_images", None)
    assert guidance.run(tmp_path, size, figure_format="pdf") == table
    assert (tmp_path / "guidance_digits.pdf").read_bytes().startswith(b"%PDF")
    assert asked == ["model", "weaker", "classifier"]
