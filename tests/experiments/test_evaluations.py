"""Evaluations beside each other: none erases another."""

import json

import pytest

from experiments import evaluations
from experiments.workdir import WorkdirError

RESULT = {
    "sampling": {"sampler": "dpmpp_2m", "num_steps": 20, "sigma_max": 80.0},
    "num_images": 100,
    "first_seed": 0,
    "metrics": ["classifier"],
    "weights": "ema",
    "progress": {"step": 10},
    "class_accuracy": 0.5,
}


def test_a_name_says_the_sampler_and_differs_with_the_request():
    name = evaluations.default_name(RESULT)
    assert name.startswith("dpmpp_2m-20-")
    assert evaluations.default_name(RESULT | {"class_accuracy": 0.7}) == name
    for other in ({"num_images": 10}, {"weights": "raw"}, {"progress": {"step": 20}}):
        assert evaluations.default_name(RESULT | other) != name
    levels = RESULT | {"sampling": {"sampler": "heun", "sigmas": [80, 1, 0]}}
    assert evaluations.default_name(levels).startswith("heun-2-")


def test_another_result_moves_aside(tmp_path):
    evaluations.write(tmp_path, RESULT)
    evaluations.write(tmp_path, RESULT | {"class_accuracy": 0.6})
    assert not (tmp_path / evaluations.FOLDER).exists()  # the same request, measured again
    newer = RESULT | {"progress": {"step": 20}}
    assert evaluations.write(tmp_path, newer) == tmp_path / "evaluation.json"
    found = evaluations.found(tmp_path, tmp_path / evaluations.FOLDER)
    assert list(found) == ["(headline)", evaluations.default_name(RESULT)]
    assert found["(headline)"] == newer
    assert found[evaluations.default_name(RESULT)]["class_accuracy"] == 0.6


def test_a_name_is_one_request(tmp_path):
    evaluations.write(tmp_path, RESULT)
    evaluations.check_free(tmp_path, RESULT)
    evaluations.check_free(tmp_path / "nothing", RESULT)
    with pytest.raises(WorkdirError, match=r"\(num_images differ\); choose another --name"):
        evaluations.check_free(tmp_path, RESULT | {"num_images": 7})
    for name in ("", "../up", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="--name="):
            evaluations.check_name(name)
    assert evaluations.check_name("dpmpp_2m-20") == "dpmpp_2m-20"


def test_what_cannot_be_read_is_nothing(tmp_path):
    for text in ("", "[1]", "{"):
        (tmp_path / "evaluation.json").write_text(text)
        assert evaluations.read(tmp_path) is None
    (tmp_path / "evaluation.json").write_text(json.dumps({"class_accuracy": 0.5}))
    evaluations.write(tmp_path, RESULT)  # one of an older program moves aside too
    assert len(evaluations.found(tmp_path, tmp_path / evaluations.FOLDER)) == 2


def test_what_is_unfinished_leaves_no_empty_folder(tmp_path):
    with evaluations.unfinished(tmp_path / "evaluations") as kept:
        kept.mkdir(parents=True)
    assert not (tmp_path / "evaluations").exists()
    with evaluations.unfinished(tmp_path / "evaluations") as kept:
        kept.mkdir(parents=True)
        (kept / "of another").mkdir()
        (tmp_path / "evaluations" / "result").mkdir()
    assert (kept / "of another").exists() and (tmp_path / "evaluations" / "result").exists()
