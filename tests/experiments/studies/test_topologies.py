"""The table of published configurations: what is compiled, what is kept, what is written."""

import json

import pytest
from flax.traverse_util import flatten_dict

from experiments.preflight import topologies as names
from experiments.preflight import tpu
from experiments.studies import topologies


def test_every_configuration_reads_and_is_in_bfloat16():
    for name, where in topologies.rows():
        experiment = topologies.experiment_of(name, where)
        assert experiment.network.shared["dtype"] == "bfloat16"
        assert topologies.CONFIGS[name].image_shape[0] == experiment.data.resolution
        training = experiment.training  # every one divides its batch, and that its rounds
        assert training.together % topologies.devices(where) == 0
        assert training.batch_size % training.together == 0


def test_one_row_stands_for_another_whose_program_differs_by_a_constant():
    for name, other in topologies.SAME_PROGRAM.items():
        found = [flatten_dict(topologies.experiment_of(n, "v5e-16").config) for n in (name, other)]
        different = {key for key in found[0] if found[0][key] != found[1][key]}
        assert different == {("data", "path"), ("model", "SongUNet", "dropout")}
        assert found[0].keys() == found[1].keys()
        assert all(config["model", "SongUNet", "dropout"] > 0 for config in found)
        assert topologies.CONFIGS[name] == topologies.CONFIGS[other]


def test_a_line_in_closed_form():
    topology = names.parse("v5e-16")
    # 16 chips, 512 images of 100 GFLOP in a second: 1.6 % of the peak of 197 TFLOP/s each.
    values = {
        "seconds": 1.0, "arguments": 2**30, "temporary": 2**30,
        "cycles": {"convolutions": round(topology.chip.hertz)}, "flops_per_image": 10**11,
        "uncounted": 0,
    }  # fmt: skip
    line = topologies.table({"cifar10 v5e-16": values}).splitlines()[-1]
    days = 200e6 / 512 / 86400
    share = round(100 * 512 * 0.1 / (16 * 197))
    assert line == f"| cifar10 | v5e-16 | 512 | 2.0 | 1000.0 | 32 | {share} % | {days:.2f} |"
    small = values | {"available": 2**34, "temporary": 2**35}
    assert "does not fit: 32 GiB" in topologies.table({"cifar10 v5e-16": small})
    gpu = {"arguments": 2**30, "temporary": 2**31}
    assert topologies.table({"ffhq64 gpu": gpu}).count("| 256 | 3.0 |") == 2  # AFHQv2 as well


def test_rows_of_slower_programs_are_marked():
    old = {"seconds": 1.0, "cycles": {"norms": 10**9}, "flops_per_image": 1}
    now = old | {"uncounted": 0}
    gpu = {"arguments": 2**30, "temporary": 2**31}
    page = topologies.page({"cifar10 v5e-16": old, "imagenet64 v5e-16": now, "cifar10 gpu": gpu})
    assert "| cifar10 * | v5e-16 |" in page and "| imagenet64 | v5e-16 |" in page
    assert "`*`: compiled before" in page and "| cifar10 | 8 GPUs" in page
    assert "`*`" not in topologies.page({"imagenet64 v5e-16": now, "cifar10 gpu": gpu})


@pytest.fixture
def installed(monkeypatch):
    """As if TPU's compiler were there; JAX's platforms stay those of the tests."""
    monkeypatch.setattr(topologies, "require_compiler", lambda: None)
    monkeypatch.setattr(topologies, "leave_chips_alone", lambda: None)


@pytest.mark.usefixtures("installed")
def test_what_is_there_is_not_compiled_again(monkeypatch, tmp_path):
    asked = []

    def measure(name, where):
        asked.append((name, where))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"seconds": 1.0, "cycles": {"norms": 10**9}, "flops_per_image": 1}

    monkeypatch.setattr(topologies, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        topologies.run(tmp_path)
    record = json.loads((tmp_path / "topologies.json").read_text())
    assert list(record) == [f"{name} {where}" for name, where in asked[:2]]
    asked.clear()
    with pytest.raises(KeyboardInterrupt):  # it goes on with the third
        topologies.run(tmp_path)
    assert len(json.loads((tmp_path / "topologies.json").read_text())) == 4
    assert f"{asked[0][0]} {asked[0][1]}" not in record
    page = (tmp_path / "topologies.md").read_text()
    assert page.count("| v5e-16 |") == 5
    assert "Not compiled yet: imagenet64 on v5e-16, " in page


@pytest.mark.usefixtures("installed")
def test_a_record_that_is_whole_is_written_as_a_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(topologies, "rows", lambda: iter([("cifar10", "v5e-16")]))
    row = {"seconds": 1.0, "cycles": {"norms": 10**9}, "flops_per_image": 1, "uncounted": 0}
    text = json.dumps({"cifar10 v5e-16": row})
    (tmp_path / "topologies.json").write_text(text)
    (tmp_path / "topologies.md").write_text("an older form")
    topologies.run(tmp_path)
    assert capsys.readouterr().out == f"  {tmp_path / 'topologies.md'}\n"
    assert (tmp_path / "topologies.md").read_text().count("| cifar10 | v5e-16 |") == 1
    assert (tmp_path / "topologies.json").read_text() == text


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("text", ["{", "[]", '{"cifar10 v5e-16": {"seconds": 1.0}}'])
def test_a_record_of_something_else(text, tmp_path):
    (tmp_path / "topologies.json").write_text(text)
    with pytest.raises(ValueError, match=r"topologies\.json is not what this study writes"):
        topologies.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["topologies.json"]


def test_without_the_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        topologies.run(tmp_path)
    assert tpu.Program(1.0).fits and not list(tmp_path.iterdir())
