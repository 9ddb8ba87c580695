"""A model as an argument of programs: a pytree of its variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.model import from_description
from tests.test_generate import tiny_model

X = jnp.linspace(-1, 1, 2 * 4 * 4 * 2).reshape(2, 4, 4, 2)


def at(model, kimg, change=0.0):
    """The model as another checkpoint of its run would hold it."""
    progress = {"kimg": kimg, "step": int(kimg * 10)}
    variables = jax.tree.map(lambda a: a + change, model.variables)
    return from_description(dict(model.description) | {"progress": progress}, variables, "other")


def test_a_jitted_function_takes_it_and_a_second_checkpoint_retraces_nothing():
    traces = []

    @jax.jit
    def denoise(model, x):
        traces.append(1)
        return model.denoise(x, 1.0, 1)

    first = tiny_model()
    expected = jax.jit(lambda x: first.denoise(x, 1.0, 1))(X)  # weights as constants
    np.testing.assert_allclose(denoise(first, X), expected, atol=1e-5)
    second = at(first, 2.5, change=0.1)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert not np.allclose(denoise(second, X), denoise(first, X), atol=1e-3)
    assert len(traces) == 1
    denoise(tiny_model(2), X)
    assert len(traces) == 2  # of other classes: another program


def test_two_models_in_one_program_and_arithmetic_on_their_weights():
    first = tiny_model()
    second = at(first, 2.5, change=0.1)
    difference = jax.jit(lambda a, b: a.denoise(X, 1.0, 0) - b.denoise(X, 1.0, 0))(first, second)
    of_one = jax.jit(lambda model: model.denoise(X, 1.0, 0))
    expected = of_one(first) - of_one(second)
    np.testing.assert_allclose(difference, expected, atol=1e-5)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    for a, m in zip(jax.tree.leaves(first), jax.tree.leaves(middle), strict=True):
        np.testing.assert_allclose(m, a + 0.05, atol=1e-6)
    assert middle.image_shape == first.image_shape


def test_progress_and_variant_stay_with_each_model():
    later = at(tiny_model(), 2.5)
    assert later.variant == "other" and later.description["progress"]["kimg"] == 2.5
    assert jax.tree.map(lambda a: a, later).description["progress"]["kimg"] == 2.5


def test_it_prints_in_one_line():
    text = repr(at(tiny_model(), 2.5))
    assert "\n" not in text and len(text) < 120
    for part in ("SongUNet", "parameters", "4x4x2", "3 classes", "other", "2.5 kimg"):
        assert part in text
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tiny_model())]
    assert all(path.startswith(".variables['params']") for path in paths)


def test_names_of_classes_are_those_of_the_model_that_is_given():
    """They are looked up while tracing, so another model's are another program."""
    model = tiny_model()

    def named(*names):
        return from_description(
            dict(model.description) | {"label_names": list(names)}, model.variables
        )

    denoise = jax.jit(lambda model, x: model.denoise(x, 1.0, "cat"))
    for given, index in ((named("cat", "dog", "eel"), 0), (named("dog", "eel", "cat"), 2)):
        np.testing.assert_allclose(denoise(given, X), model.denoise(X, 1.0, index), atol=1e-5)


def test_labels_by_name():
    model = tiny_model()
    named = from_description(
        dict(model.description) | {"label_names": ["cat", "dog", "eel"]}, model.variables
    )
    np.testing.assert_array_equal(named.label_rows("dog", 2), named.label_rows(1, 2))
    np.testing.assert_array_equal(named.label_rows(["eel", "cat"], 2), named.label_rows([2, 0], 2))
    with pytest.raises(ValueError, match="unknown class 'dgo'; did you mean 'dog'"):
        named.label_rows("dgo", 2)
    with pytest.raises(ValueError, match="class indices or rows of numbers"):
        model.label_rows("dog", 2)
