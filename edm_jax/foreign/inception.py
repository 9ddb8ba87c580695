"""Weights of the Inception-v3 of FID, from the files in circulation.

Three files hold the constants of the TensorFlow graph of 2015-12-05.  Two are the same flat
state dictionary under two names; the third is a pickled module with other names in it.
The names of the third come from descriptions of it, not from the file itself: a reader that
does not find them says what it found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from edm_jax.foreign.feature_files import checked_arrays, read_tensors, shown_names
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import Tensor, shape_of

# Name, and what is inside.
FILES = (
    ("pt_inception-2015-12-05-6726825d.pth", "a state dictionary, about 96 MB, of pytorch-fid"),
    ("weights-inception-2015-12-05-6726825d.pth", "the same file, of torch-fidelity"),
    (
        "inception-2015-12-05.pkl",
        "a pickled module, about 96 MB, of StyleGAN3's metrics, which EDM used",
    ),
)
_COUNTER = ".bn.num_batches_tracked"  # without influence; not in every file
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_STATISTICS = {"beta": "bias", "mean": "running_mean", "var": "running_var"}

# Within a block: name in the graph -> branch.
_BLOCK35 = {
    "conv": "branch1x1",
    "tower.conv": "branch5x5_1",
    "tower.conv_1": "branch5x5_2",
    "tower_1.conv": "branch3x3dbl_1",
    "tower_1.conv_1": "branch3x3dbl_2",
    "tower_1.conv_2": "branch3x3dbl_3",
    "tower_2.conv": "branch_pool",
}
_REDUCTION35 = {
    "conv": "branch3x3",
    "tower.conv": "branch3x3dbl_1",
    "tower.conv_1": "branch3x3dbl_2",
    "tower.conv_2": "branch3x3dbl_3",
}
_BLOCK17 = {
    "conv": "branch1x1",
    "tower.conv": "branch7x7_1",
    "tower.conv_1": "branch7x7_2",
    "tower.conv_2": "branch7x7_3",
    "tower_1.conv": "branch7x7dbl_1",
    "tower_1.conv_1": "branch7x7dbl_2",
    "tower_1.conv_2": "branch7x7dbl_3",
    "tower_1.conv_3": "branch7x7dbl_4",
    "tower_1.conv_4": "branch7x7dbl_5",
    "tower_2.conv": "branch_pool",
}
_REDUCTION17 = {
    "tower.conv": "branch3x3_1",
    "tower.conv_1": "branch3x3_2",
    "tower_1.conv": "branch7x7x3_1",
    "tower_1.conv_1": "branch7x7x3_2",
    "tower_1.conv_2": "branch7x7x3_3",
    "tower_1.conv_3": "branch7x7x3_4",
}
_BLOCK8 = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
_BLOCKS = (
    *((f"Mixed_5{letter}", _BLOCK35) for letter in "bcd"),
    ("Mixed_6a", _REDUCTION35),
    *((f"Mixed_6{letter}", _BLOCK17) for letter in "bcde"),
    ("Mixed_7a", _REDUCTION17),
    *((f"Mixed_7{letter}", _BLOCK8) for letter in "bc"),
)


def graph_names() -> dict[str, str]:
    """Layer of the graph (``mixed_4.tower_1.conv``) -> published name (``Mixed_6b.branch..``)."""
    names = {f"conv_{i}" if i else "conv": stem for i, stem in enumerate(_STEM)}
    for i, (stage, branches) in enumerate(_BLOCKS):
        block = f"mixed_{i}" if i else "mixed"
        names |= {f"{block}.{graph}": f"{stage}.{ours}" for graph, ours in branches.items()}
    return names


def read_inception(
    path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The weights in a file under their published names.

    Args:
      path: of one of `FILES`.
      shapes: name -> shape of every tensor, `inception_weights.published_shapes()`.

    Returns:
      float32 arrays by published name (``Mixed_5b.branch1x1.conv.weight``), convolutions
      (out, in, kh, kw).

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it is another network's, damaged, or asks for something refused.
    """
    try:
        tensors = read_tensors(path)
        prefix = _graph_prefix(tensors)
        if prefix is not None:
            return _from_graph_names(tensors, prefix, shapes)
        tensors = {k: v for k, v in tensors.items() if not k.endswith(_COUNTER)}
        _refuse_torchvision(tensors)
        return checked_arrays(tensors, shapes, "the Inception-v3 of FID")
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(path)}: {error}") from None


def _refuse_torchvision(tensors: Mapping[str, Tensor]) -> None:
    """The network of the same name that is found more easily."""
    auxiliary = next((name for name in tensors if name.startswith("AuxLogits.")), None)
    rows = shape_of(tensors["fc.weight"])[:1] if "fc.weight" in tensors else ()
    if auxiliary or rows == (1000,):
        sign = show(auxiliary) if auxiliary else "1000 classes"
        raise WeightsError(
            f"torchvision's Inception-v3 ({sign}), whose features are others; FID needs "
            f"{FILES[0][0]}"
        )


def _graph_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """What precedes ``layers.`` where a file names its layers as the graph does."""
    for name in tensors:
        if match := re.fullmatch(r"(.*?)layers\.conv\.weight", name):
            return match[1]
    return None


def _from_graph_names(
    tensors: Mapping[str, Tensor], prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Published names for those of the graph; its normalisation has no scale."""
    layers = graph_names()
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(prefix)
        layer, _, leaf = inner.removeprefix("layers.").rpartition(".")
        if inner in ("output.weight", "output.bias"):
            renamed["fc." + leaf] = tensor
        elif inner.startswith("layers.") and layer in layers and leaf == "weight":
            renamed[layers[layer] + ".conv.weight"] = tensor
        elif inner.startswith("layers.") and layer in layers and leaf in _STATISTICS:
            renamed[f"{layers[layer]}.bn.{_STATISTICS[leaf]}"] = tensor
        else:
            raise WeightsError(
                f"tensor {show(name)} is not known in a module with the names of the graph; use "
                f"{FILES[0][0]}, or report these names: {shown_names(tensors)}"
            )
    scales = {name: shape for name, shape in shapes.items() if name.endswith(".bn.weight")}
    others = {name: shape for name, shape in shapes.items() if name not in scales}
    arrays = checked_arrays(renamed, others, "the Inception-v3 of FID")
    return arrays | {name: np.ones(shape, np.float32) for name, shape in scales.items()}
