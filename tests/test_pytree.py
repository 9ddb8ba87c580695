"""Values of different classes never share a compiled program."""

import dataclasses
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
from edm_jax import noise, pytree, schedules
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


def test_many_numbers_are_shown_by_their_shape_and_range():
    visited = edm_jax.Trajectory(jnp.linspace(-1, 2, 192).reshape(3, 1, 8, 8, 1), np.zeros((2, 9)))
    assert repr(visited) == (
        "Trajectory(x=float32[3x1x8x8x1] in [-1, 2], denoised=float64[2x9] in [0, 0])"
    )
    levels = repr(edm_jax.Sampling(sigmas=[*np.linspace(80, 1, 400), 0]))
    assert "num_steps=400" in levels and "tuple of 401, 80.0 .. 0.0" in levels
    assert repr(edm_jax.LogNormal()) == "LogNormal(p_mean=-1.2, p_std=1.2)"  # as it was


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.arange(3), "int64[0, 1, 2]"),
        (np.float32(0.25), "0.25"),
        (np.array([[1.0, np.nan, -3.0]]), "float64[1x3] in [-3, 1], 1 not finite"),
        (np.full((2, 2), np.inf), "float64[2x2], 4 not finite"),
        (np.zeros((0, 3)), "float64[0x3]"),
        (jnp.ones((3, 9), jnp.bfloat16), "bfloat16[3x9] in [1, 1]"),
        (np.ones(20, bool), "bool[20]"),
        ({"a": [np.ones(2)] * 9}, "dict of 9 leaves, 18 values"),
        ({"a": (1,), "b": [None, "c"]}, "{'a': (1,), 'b': [None, 'c']}"),
    ],
)
def test_short(value, shown):
    assert pytree.short(value) == shown


def test_keys_traced_and_deleted_arrays_have_no_range():
    assert "[3]" in pytree.short(jax.random.split(jax.random.key(0), 3))
    gone = jnp.ones(20)
    gone.delete()
    assert pytree.short(gone) == "float32[20]"
    seen = []
    jax.jit(lambda x: seen.append(pytree.short(x)) or x)(gone := jnp.ones((2, 9)))
    assert seen == ["float32[2x9]"]


def test_all_public_objects_that_hold_arrays_are_short():
    long = []
    for found in pkgutil.walk_packages(edm_jax.__path__, "edm_jax."):
        for name, kind in vars(importlib.import_module(found.name)).items():
            if not isinstance(kind, type) or kind.__module__ != found.name or name[0] == "_":
                continue
            if not dataclasses.is_dataclass(kind) and not hasattr(kind, "_fields"):
                continue
            own = [str(kind.__annotations__[field]) for field in kind.__annotations__]
            if not any("Array" in text or "ndarray" in text for text in own):
                continue
            if not kind.__repr__.__code__.co_filename.startswith(edm_jax.__path__[0]):
                long.append(f"{found.name}.{name}")
    assert not long
