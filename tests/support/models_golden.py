"""Networks of the golden files 04_net_* and their arrays, turned to NHWC."""

import json

import numpy as np

from edm_jax import models
from tests.support.paths import GOLDEN

# The references are float32 and lie within 5e-6 of a float64 evaluation of themselves
# (outputs have size 1); ten times that leaves room for another order of summation.
ATOL = 5e-5
# The same for gradients, whose norms lie within 7e-6 relative.
GRAD_RTOL = 1e-4


def nhwc(array):
    """(B, C, H, W) -> (B, H, W, C)."""
    return np.asarray(array).transpose(0, 2, 3, 1)


def load_network(name, **changes):
    """Archive, network, variables of tests/golden/04_net_<name>.npz."""
    archive = np.load(GOLDEN / f"04_net_{name}.npz")
    config = json.loads(str(archive["config"]))
    net = models.build(config.pop("model_type"), **{**config, **changes})
    state_dict = {k[7:]: archive[k] for k in archive.files if k.startswith("params/")}
    return archive, net, models.from_state_dict(state_dict)


def parameter_names(net):
    """Published names of the parameters, in the order in which optimizer states number them."""
    buffers = ("resample_filter", "freqs")
    return [name for name in models.state_dict_shapes(net) if not name.endswith(buffers)]


def labels(archive):
    """The label arguments the network of an archive takes."""
    return {k: archive[k] for k in ("class_labels", "augment_labels") if k in archive.files}


def assert_close(actual, desired, atol=ATOL, rtol=0.0, err_msg=""):
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), desired, atol=atol, rtol=rtol, err_msg=err_msg
    )
