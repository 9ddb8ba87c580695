"""Labels as the command line gives them."""

import numpy as np
import pytest

from edm_jax.model import from_description
from experiments.image_files import are_names, labels_of
from tests.test_generate import tiny_model


def named(*names):
    model = tiny_model()
    return from_description({**model.description, "label_names": list(names)}, model.variables)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("cat", [1, 1]), ("dog,cat", [2, 1]), (" dog , dog ", [2, 2]), ("a, b", [0, 0]),
     ("2", [2, 2]), ("0-1", [0, 1])],
)  # fmt: skip
def test_names_and_numbers_of_classes(text, expected):
    np.testing.assert_array_equal(labels_of(text, named("a, b", "cat", "dog"), [5, 6]), expected)


def test_numbers_are_indices_whatever_classes_are_called():
    model = named("1", "2", "10")
    assert labels_of("1", model, [0]).tolist() == [1]
    with pytest.raises(ValueError, match="10 is out of range"):
        labels_of("10", model, [0])
    assert are_names("cat") and are_names("1,cat") and not are_names("0-3, 5")


def test_unknown_names():
    with pytest.raises(ValueError, match="'cta'; did you mean 'cat'"):
        labels_of("cta", named("ant", "cat", "dog"), [0])
    with pytest.raises(ValueError, match="'cat' is not a number or a range"):
        labels_of("cat", tiny_model(), [0])
    with pytest.raises(ValueError, match="3 labels for 2 seeds"):
        labels_of("cat,cat,dog", named("ant", "cat", "dog"), [0, 1])
