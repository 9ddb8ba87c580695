"""The study of autoregressive diffusion, on runs of a few steps."""

import json
import math

import numpy as np
import pytest

from experiments.studies import _cells, ardm


def test_independent_pixels():
    """On the first 1400 digits and the last 397 the specification has 2.398 bits; on the split of
    this project's data nearly that."""
    assert ardm.independent_bits() == pytest.approx(2.398, abs=0.03)


def test_cells_are_kept(tmp_path):
    path, made = tmp_path / "cells" / "a.json", []

    def make():
        made.append(1)
        return {"value": len(made)}

    assert _cells.kept(path, ("a", 1), make) == {"value": 1}
    assert _cells.kept(path, ["a", 1], make) == {"value": 1}
    assert _cells.kept(path, ["a", 2], make) == {"value": 2}
    path.write_text('{"asked": ["a"')  # cut short
    assert _cells.kept(path, ["a", 2], make) == {"value": 3}


ROWS = [
    {"model": name, "schedule": schedule, "calls": calls, "bits": bits, "bits_error": 0.01,
     "bits_promised": bits, "accuracy": 0.9}
    for name in (ardm.ANY, ardm.UPSCALE)
    for schedule, calls, bits in (
        *(("uniform", 10, 1.9), ("optimal", 10, 1.8), ("sequential", 64, 1.7)),
    )
]  # fmt: skip


def test_tables_and_figure(tmp_path):
    text = ardm.to_markdown(ROWS, 2.398)
    # log2 10 bits for the class over 64 pixels.
    assert f"| any order | 1.700 +- 0.010 | {1.7 + math.log2(10) / 64:.3f} |" in text
    assert "| independent pixels | | 2.398 |" in text
    assert "| coarse to fine | optimal | 10 | 1.800 | 1.800 | 90.0 % |" in text
    ardm.draw(tmp_path / "ardm.png", ROWS, 2.398)
    assert (tmp_path / "ardm.png").stat().st_size > 1000


@pytest.mark.soak
def test_the_whole_study_in_little(tmp_path, capsys):
    size = ardm.Size(kimg=0.256, calls=(4,), num_images=20, passes=1, rows=1)
    table = ardm.run(tmp_path, size)
    # Two schedules and the sequential one of three models, the latter alone of one order.
    assert len(table) == 3 * 3 + 1
    assert {row["model"] for row in table} == set(ardm.COLOURS)
    calls = [row["calls"] for row in table if row["model"] == ardm.UPSCALE]
    assert calls == [4, 4, 128]
    for row in table:
        # Two steps from the uniform distribution; direct outputs, two digits of five, count 25.
        values = 25 if row["model"] == ardm.DIRECT else 17
        assert row["bits"] == pytest.approx(np.log2(values), abs=0.5) and 0 <= row["accuracy"] <= 1
    assert json.loads((tmp_path / "ardm.json").read_text())["rows"] == table
    assert (tmp_path / "ardm_decoding.png").stat().st_size > 1000
    capsys.readouterr()
    cells = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()}
    assert ardm.run(tmp_path, size) == table
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()} == cells
