"""--mode=validate: its table, its files, its exit codes."""

import json

from edm_jax.exact import subjects


def broken(denoise, x, sigmas):
    """A user's sampler that ignores its grid."""
    return denoise(x, sigmas[0])


def test_it_writes_its_files_and_tells_by_its_code(tmp_path, call, monkeypatch):
    monkeypatch.setattr(subjects, "FINE_STEPS", (32, 64))
    shown = call("--mode=validate", f"--workdir={tmp_path}", "--sampler=dpmpp_2m").stdout
    assert "dpmpp_2m" in shown and "pass" in shown and "1 of 1 samplers" in shown
    (entry,) = json.loads((tmp_path / "validate.json").read_text())["samplers"]
    assert entry["passed"] and entry["nfe"] == [32, 64]
    assert (tmp_path / "validate.png").stat().st_size > 1000
    call("--mode=validate", f"--workdir={tmp_path / 'v'}", "--sampler=ddim", "--figure_format=svg")
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == ["validate.json", "validate.svg"]
    assert "<svg" in (tmp_path / "v" / "validate.svg").read_text()
    assert "FAIL" in call("--mode=validate", f"--sampler={__name__}:broken", code=1).stdout


def test_bad_input_is_one_line(call):
    for sampler, message in (
        ("heunn", "did you mean 'heun'"),
        ("nothing:here", "cannot load the sampler"),
    ):
        refused = call("--mode=validate", f"--sampler={sampler}", code=2).stderr
        assert message in refused and refused.count("\n") == 1
