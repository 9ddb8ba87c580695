"""The commands of likelihoods and codes on a model whose density is known."""

import numpy as np
import pytest

import edm_jax
from experiments import flow_flags
from tests.support.exact_model import exact_model, images

LABELS = np.array([0, 1, 0, 1, 1])


@pytest.fixture
def exact(call, monkeypatch, tmp_path):
    """Runs a mode on the exact model of two classes and a file of five images of it."""
    model = exact_model(num_classes=2)
    monkeypatch.setattr(edm_jax, "load", lambda path, variant=None: model)
    monkeypatch.setattr(flow_flags, "sharding", lambda: None)  # one device compiles faster
    (tmp_path / "run").mkdir()
    np.savez(tmp_path / "data.npz", images=images(5), labels=LABELS)

    def run(mode, *arguments, code=0):
        flags = [f"--mode={mode}", "--workdir=run", *arguments]
        return call(*flags, code=code, cwd=tmp_path)

    run.model, run.path = model, tmp_path
    return run


def one_line(done):
    """The error of a call that was refused: a single line."""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr
