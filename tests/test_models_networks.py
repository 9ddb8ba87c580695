"""Whole networks against arrays of an independent implementation (tests/golden, 04_net_*)."""

import jax
import numpy as np
import pytest

from edm_jax import models

FILES = ["ddpmpp_cond", "ddpmpp_uncond", "ncsnpp_cond", "adm_cond"]
# The reference is float32 and lies within 4e-6 of a float64 evaluation of itself; ten
# times that leaves room for another order of summation.
ATOL = 5e-5


def nhwc(array):
    return np.asarray(array).transpose(0, 2, 3, 1)


@pytest.fixture(params=FILES)
def case(request, golden, golden_json):
    archive = golden(f"04_net_{request.param}")
    config = golden_json(archive, "config")
    net = models.build(config.pop("model_type"), **config)
    state_dict = {k[7:]: archive[k] for k in archive.files if k.startswith("params/")}
    return archive, net, models.from_state_dict(state_dict)


def labels(archive):
    names = ("class_labels", "augment_labels")
    return {name: archive[name] for name in names if name in archive.files}


def test_output(case):
    archive, net, variables = case
    out = jax.jit(net.apply)(
        variables, nhwc(archive["x"]), archive["noise_labels"], **labels(archive)
    )
    np.testing.assert_allclose(out, nhwc(archive["out"]), rtol=0, atol=ATOL)
