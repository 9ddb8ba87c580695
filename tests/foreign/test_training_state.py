"""What a training state says of its progress (golden values: test_importer)."""

import math

import pytest

from edm_jax.foreign import importer, training_state
from edm_jax.store.errors import WeightsError
from tests.support import weights_payloads as wp
from tests.support import weights_writer as ww


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        ({"state": {0: {"step": 7}}, "param_groups": []}, 7),
        ({"state": {0: {"step": 7.0}}}, 7),
        ({"state": {}}, None),
        ({"state": {0: 1}}, None),
        ({"state": [7]}, None),
        (None, None),
    ],
)
def test_steps(optimizer, step):
    assert training_state.optimizer_step(optimizer) == step


@pytest.mark.parametrize("step", [-1, 0.5, math.nan, 2**60, "7", None])
def test_a_step_that_is_no_count_is_refused(step, tmp_path):
    net = ww.network(wp.ARRAYS, wp.CLASS_NAME, dict(wp.ARGUMENTS))
    path = tmp_path / "training-state-000001.pt"
    path.write_bytes(ww.dumps({"net": net, "optimizer_state": {"state": {0: {"step": step}}}}))
    with pytest.raises(WeightsError, match=r"step is .*, expected a count"):
        importer.read_model_file(path)
