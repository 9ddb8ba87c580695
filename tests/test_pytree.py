"""Values of different classes never share a compiled program."""

import dataclasses

import jax
import numpy as np
import pytest

from edm_jax import noise, schedules
from edm_jax.pytree import pytree_dataclass
from edm_jax.samplers import Churn


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (schedules.VPScaling(), schedules.NoScaling()),
        (schedules.VESchedule(), schedules.LinearSchedule()),
        (schedules.VPSchedule(), noise.LogNormal()),
    ],
)
def test_structures_of_different_classes_differ(a, b):
    assert jax.tree.structure(a) != jax.tree.structure(b)
    assert jax.tree.structure(a) == jax.tree.structure(type(a)())


def test_frozen_with_named_paths():
    churn = Churn(1.0, 2.0, 3.0, 4.0)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(churn)]
    assert paths == [".s_churn", ".s_tmin", ".s_tmax", ".s_noise"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        churn.s_churn = 0.0
    doubled = jax.jit(lambda c: jax.tree.map(lambda v: 2 * v, c))(churn)
    np.testing.assert_array_equal([doubled.s_churn, doubled.s_noise], [2.0, 8.0])


def test_unflattening_does_not_check():
    @pytree_dataclass
    class Positive:
        value: float

        def __post_init__(self):
            if self.value <= 0:
                raise ValueError("not positive")

    with pytest.raises(ValueError, match="not positive"):
        Positive(-1.0)
    assert jax.tree.map(lambda v: -v, Positive(1.0)).value == -1.0


def test_static_fields_belong_to_the_structure():
    @pytree_dataclass
    class Grid:
        values: float
        size: int = dataclasses.field(default=3, metadata={"static": True})

    assert jax.tree.leaves(Grid(1.0, 5)) == [1.0]
    assert jax.tree.map(lambda v: v + 1, Grid(1.0, 5)) == Grid(2.0, 5)
    assert jax.tree.structure(Grid(1.0, 5)) != jax.tree.structure(Grid(1.0, 4))
