"""Tuning where the best answer is known, and what it promises of the default."""

import itertools
import json
import math

import numpy as np
import pytest

from edm_jax.studies import Study, blocks, space, tuning
from tests.support import exact_model as toy

MODEL = toy.exact_model()


def study_of(**more):
    told = {"grid": {"num_steps": 4}, "num_images": 8, "blocks": 3, "first_seed": 1, **more}
    return Study.from_json(told, models=("toy",))


def tuned(told, budget, directory=None, base=None, lines=None, **more):
    study = study_of(**more)
    base = {"sampler": "euler", "num_steps": 4, "rho": 1.5} if base is None else base
    report = (lambda line: None) if lines is None else lines.append
    return tuning.tune(study, base, space.read(told), budget, {"toy": MODEL}, directory,
                       report=report)  # fmt: skip


def test_the_best_rho_is_found_and_proved(tmp_path):
    """The exact best of Euler's four steps on Gaussian data, from NumPy, is found to a part."""
    lines = []
    found = tuned({"rho": [1.5, 20.0]}, 14, tmp_path, lines=lines)
    assert not found.is_default and found.trials == 14
    assert found.value < found.default_value and found.gain > 0
    from edm_jax import grids

    def error(rho):
        sigmas = grids.make_sigmas("edm", 4, rho=rho)
        ratio, flow = 1.0, math.hypot(toy.STD, sigmas[-2]) / math.hypot(toy.STD, sigmas[0])
        for sigma, after in itertools.pairwise(sigmas[:-1]):
            ratio *= 1 + (after - sigma) * sigma / (sigma**2 + toy.STD**2)
        return abs(ratio - flow) * sigmas[0]

    best = min(error(rho) for rho in np.linspace(1.5, 20, 400))
    # a search of fourteen points in one dimension comes within a third of the way
    assert error(found.settings["rho"]) < best + (error(1.5) - best) / 3
    assert "[1/14] the default: distance" in lines[0]
    told = json.loads((tmp_path / tuning.RESULT).read_text())
    assert told["settings"] == dict(found.settings)
    # Done: the same call tries nothing more and says the same.
    lines.clear()
    before = (tmp_path / tuning.RESULT).read_text()
    again = tuned({"rho": [1.5, 20.0]}, 14, tmp_path, lines=lines)
    assert lines == ["all 14 trials are there already"]
    assert again == found and (tmp_path / tuning.RESULT).read_text() == before
    with pytest.raises(ValueError, match=r"holds a tuning of something else .space differ"):
        tuned({"rho": [2.0, 20.0]}, 14, tmp_path)


def test_the_default_stays_where_nothing_is_better():
    base = {"sampler": "heun", "num_steps": 12, "rho": 7.0}
    found = tuned({"rho": [0.9, 1.1]}, 5, base=base)
    assert found.is_default and found.settings == base and found.gain == 0
    assert found.value == found.default_value
    assert "the default stays" in found.report()


def test_a_budget_of_one_is_the_default_alone():
    found = tuned({"rho": [1.0, 9.0]}, 1)
    assert found.is_default and found.trials == 1


def test_what_falls_behind_is_given_up_early():
    found = tuned({"rho": [1.5, 20.0]}, 14)
    assert found.pruned > 0
    # Every trial that is given up saves a block or two of the three.
    full = 14 * 3 * 8 + (4 + 1) * 4 * 8
    assert found.images < full


def test_a_trial_that_was_stopped_is_no_trial(tmp_path):
    def stop():
        raise KeyboardInterrupt

    study, base = study_of(), {"sampler": "euler", "num_steps": 4, "rho": 1.5}
    given = (study, base, space.read({"rho": [1.5, 20.0]}), 3, {"toy": MODEL}, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(*given, report=lambda line: None, poll=stop)
    lines = []
    found = tuning.tune(*given, report=lines.append)
    assert [line.split()[0] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "the default" in lines[0] and found.trials == 3 and math.isfinite(found.default_value)


def test_costs_are_those_of_all_calls(tmp_path, monkeypatch):
    """A tuning stopped and gone on with draws, and counts, what one in a go would."""
    asked, measure = [], blocks.measure

    def stopping(*given, **more):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(given[4])
        return measure(*given, **more)

    # The default and the second trial, which is stopped after its first block of three.
    monkeypatch.setattr("edm_jax.studies.blocks.measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        tuned({"rho": [1.0, 9.0]}, 2, tmp_path)
    monkeypatch.setattr("edm_jax.studies.blocks.measure", measure)
    asked.clear()
    found = tuned({"rho": [1.0, 9.0]}, 2, tmp_path)
    kept = json.loads((tmp_path / tuning.BLOCKS).read_text())
    drawn = [one for each in kept.values() for one in each.values()]
    assert found.images == 8 * len(drawn) and found.network_calls == 4 * found.images
    assert len(kept) == 3  # the default, the one that was stopped, and the one in its place
    assert found.trials == 2 and found.images >= 8 * (3 + 1 + 1 + 4 + 4)
    (tmp_path / tuning.RESULT).unlink()
    monkeypatch.setattr("edm_jax.studies.blocks.measure", None)  # nothing is drawn
    assert tuned({"rho": [1.0, 9.0]}, 2, tmp_path) == found
    assert json.loads((tmp_path / tuning.RESULT).read_text())["images"] == found.images


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_request_that_cannot_be_read_is_left_alone(text, tmp_path):
    (tmp_path / "tuning.json").write_text(text)
    with pytest.raises(ValueError, match=r"tuning.json, which says .* cannot be read \(") as caught:
        tuned({"rho": None}, 2, tmp_path)
    assert "\n" not in str(caught.value) and (tmp_path / "tuning.json").read_text() == text


@pytest.mark.parametrize("text", ["{", "3", '{"a": 3}', '{"a": {"0": {"value": "x"}}}'])
def test_blocks_that_cannot_be_read_are_measured_anew(text, tmp_path):
    from edm_jax.studies.files import BlockFile, Drawn

    path = tmp_path / "blocks.json"
    path.write_text(text)
    kept = BlockFile(path)
    assert kept.found == {}
    kept.put("a", 3, Drawn(0.5, 8, 32, 1.5))
    kept.put("b", 0, Drawn(None, 8, 32, 1.0))
    again = BlockFile(path)
    assert again.found == kept.found and again.total("images") == 16


IMPOSSIBLE = {
    "option": ({"eta": [0.0, 1.0]}, r"eta=0\.\.1 cannot work: sampler 'euler' has no option 'eta'"),
    "no churn": ({"s_noise": None, "rho": None}, "s_noise=0.995..1.015 cannot work: s_noise says"),
    "misspelt": ({"sampler": ["euler", "huen"]}, "sampler=huen cannot work: unknown sampler"),
    "measure": ({"sampler": ["euler", "dpmpp_2m_sde"]}, "_sde cannot work: .*noise of its own"),
    # Churn is stochastic at all values but the end of its range.
    "within": ({"sampler": ["edm", "heun"], "s_churn": [0.0, 9.0]}, "s_churn=0..9 cannot work"),
    "together": (
        {"sampler": ["heun", "dpmpp_2m"], "alpha": [0.5, 1.0]},
        "no combination of sampler, alpha can work; the first: sampler 'heun' has no option",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_work_is_said_before_the_first_trial(case, tmp_path):
    told, message = IMPOSSIBLE[case]
    lines = []
    with pytest.raises(ValueError, match=message) as caught:
        tuned(told, 5, tmp_path, lines=lines)
    assert "\n" not in str(caught.value) and lines == [] and not any(tmp_path.iterdir())


def test_settings_that_need_each_other_are_a_space():
    """A dimension alone may be refused; what counts is that some point of the space works."""
    lines = []
    base = {"sampler": "heun", "num_steps": 4}
    found = tuned({"sampler": ["general", "heun"], "solver": ["euler", "heun"]}, 8, base=base,
                  lines=lines)  # fmt: skip
    assert found.trials == 8 and found.impossible > 0
    assert found.impossible + found.pruned < 8
    assert f", {found.impossible} impossible; " in found.report()
    assert any("has no option 'solver'" in line for line in lines)
    assert "impossible" not in tuned({"rho": [1.0, 9.0]}, 1).report()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "there is nothing to search"),
        ({"s_chrn": None}, "unknown setting 's_chrn'; did you mean 's_churn'"),
        ({"eta": None}, "eta: has no usual range"),
        ({"rho": [7, 7]}, "rho: a range needs low < high, got 7 and 7"),
        ({"rho": {"low": 0, "high": 1, "log": True}}, "rho: a range of factors"),
        ({"solver": {"choices": ["heun"]}}, "solver: a choice needs two values"),
        ({"guidance_interval": None}, "searched by its ends: guidance_low, guidance_high"),
    ],
)
def test_spaces_that_are_none(told, message):
    with pytest.raises(ValueError, match=r".") as caught:
        space.read(told)
    assert message in str(caught.value)


def test_a_budget_and_a_measure():
    with pytest.raises(ValueError, match="budget must be at least 1 trial, got 0"):
        tuned({"rho": None}, 0)
    with pytest.raises(ValueError, match="one number better, and the study measures pr_pre"):
        tuned({"rho": None}, 3, quality="pr")


def test_ends_are_one_interval_and_a_range_has_its_order():
    settings = space.settings_of({"guidance_scale": 2.0}, {"guidance_low": 0.3})
    assert settings["guidance_interval"] == [0.3, math.inf]
    settings = space.settings_of({}, {"guidance_low": 2.0, "guidance_high": 0.5})
    assert settings["guidance_interval"] == [0.5, 2.0]
    settings = space.settings_of({"s_tmin": 0.1}, {"s_tmax": 0.05})
    assert (settings["s_tmin"], settings["s_tmax"]) == (0.05, 0.1)
