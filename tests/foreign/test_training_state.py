"""The optimizer of a training state: sizes that the file makes up (golden values elsewhere)."""

import time

import pytest

from edm_jax.foreign import training_state
from edm_jax.store.errors import WeightsError
from tests.support import weights_payloads as wp
from tests.support import weights_writer as ww


def repeated(count, item=b"N"):
    """Opcodes of a list that holds one object ``count`` times."""
    return ww.Raw(b"](" + item + b"r\0\0\0\x7f" + b"j\0\0\0\x7f" * (count - 1) + b"e")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        # 20,000 groups that share a list of 20,000 parameters: 4e8 indices in a small file.
        (
            {
                "state": {},
                "param_groups": repeated(20_000, b"}" + ww._encode("params", 4)
                + b"](" + b"K\0" * 20_000 + b"es"),
            },
            "too large or too deeply nested",
        ),
        # ... and as many settings.
        (
            {
                "state": {},
                "param_groups": repeated(20_000, ww._encode(
                    {"params": []} | {f"{i}": 0 for i in range(10_000)}, 4)),
            },
            "too large or too deeply nested",
        ),
        ({"state": {}, "param_groups": [{"params": [0, 0]}]}, "list 2 parameters, the network has"),
        # 147 is the number of parameters of the network.
        (
            {"state": {0: 1, "a": 2}, "param_groups": [{"params": list(range(147))}]},
            "optimizer states of 2 parameters",
        ),
    ],
)  # fmt: skip
def test_optimizer_of_absurd_size(optimizer, message, tmp_path):
    net = ww.network(wp.ARRAYS, wp.CLASS_NAME, dict(wp.ARGUMENTS))
    root = {"net": net, "optimizer_state": optimizer}
    path = tmp_path / "training-state-000001.pt"
    path.write_bytes(ww.dumps(root))
    start = time.process_time()
    with pytest.raises(WeightsError, match=message):
        training_state.read_optimizer_state(path)
    assert time.process_time() - start < 5  # 0.3 s; the first two took half a minute
