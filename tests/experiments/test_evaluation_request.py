"""Which models `--mode=evaluate` is asked about."""

import json
import types

import pytest

from experiments.config.flag import UsageError
from experiments.evaluation_request import chosen_models, class_of
from tests.experiments.test_image_files import named
from tests.test_generate import tiny_model


@pytest.fixture
def run(tmp_path):
    """A run directory with three checkpoints, as far as their names tell."""
    for step in (100, 9, 10):
        folder = tmp_path / "checkpoints" / f"{step:08d}" / "description"
        folder.mkdir(parents=True)
        (folder / "metadata").write_text(
            json.dumps({"format_version": 1, "variants": ["ema_a", "raw"]})
        )
    return tmp_path


def asked(run, checkpoints=None, variant=None):
    values = types.SimpleNamespace(workdir=run, checkpoints=checkpoints, variant=variant)
    return [(int(path.name) if path != run else None, name) for path, name in chosen_models(values)]


def test_models(run):
    assert asked(run) == [(None, None)]
    assert asked(run, "all") == [(9, None), (10, None), (100, None)]
    assert asked(run, "last:2") == [(10, None), (100, None)]
    assert asked(run, "last:7", "raw") == [(9, "raw"), (10, "raw"), (100, "raw")]
    assert asked(run, None, "all") == [(None, "ema_a"), (None, "raw")]
    assert asked(run, "last:1", "all") == [(100, "ema_a"), (100, "raw")]


@pytest.mark.parametrize("word", ["last:0", "last", "last:-1", "all:2", "100", ""])
def test_words_that_name_none(run, word):
    with pytest.raises(UsageError, match="write all, or the number of the last ones as last:5"):
        asked(run, word)


def test_names_of_classes():
    model = named("ant", "cat", "7")
    for given, expected in (("cat", 1), (2, 2), (7, 7), ("random", "random"), ("7", 2)):
        assert class_of(given, model) == expected
    with pytest.raises(ValueError, match="random or a class index or name, got 'cta'; did you m"):
        class_of("cta", model)
    with pytest.raises(ValueError, match="labels must be balanced, random or a class index, got"):
        class_of("cat", tiny_model())
