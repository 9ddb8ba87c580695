"""The command line end to end on the tiny configuration, and each bad input.

Where starting Python adds nothing the program runs in this process (`call`); `command` starts
it as a user would.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import edm_jax
from edm_jax import samplers
from edm_jax.figures import sheets
from edm_jax.store import checkpoints
from experiments import commands, main
from tests.support import weights_golden
from tests.support.command_line import MAIN, ROOT
from tests.support.paths import GOLDEN


@pytest.mark.slow
def test_train_leaves_what_it_says(run_dir):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    config = json.loads((run_dir / "config.json").read_text(), parse_constant=refuse)
    assert config["train"]["batch_size"] == 16
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert rows[-1]["kimg"] == 0.48
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert all(sum(row["images_per_sigma_bin"]) == 80 for row in rows)
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["num_images"] == 40 and evaluation["nfe"] == 5
    assert 0 <= evaluation["class_accuracy"] <= 1
    assert evaluation["frechet_distance_floor"] == pytest.approx(0.5624, abs=1e-4)
    grids = sorted(p.name for p in (run_dir / "samples").iterdir())
    assert grids == ["kimg-000000.0.png", "kimg-000000.2.png", "kimg-000000.5.png"]
    for name in ("loss.png", "loss_per_noise_level.png", "trajectories.png"):
        with Image.open(run_dir / "figures" / name) as picture:
            assert min(picture.size) > 200
    said = (run_dir / "stdout.txt").read_text()
    assert "class accuracy" in said and str(run_dir / "samples") in said
    status = [line for line in said.splitlines() if line.startswith("kimg")]
    assert len(status) == 6
    for part in ("%", "img/s", "loss", "lr", "GiB", "left"):
        assert part in status[0]


@pytest.mark.slow
def test_the_run_loads_without_flags(run_dir):
    model = edm_jax.load(run_dir)
    assert model.image_shape == (8, 8, 1) and model.num_classes == 10
    assert model.variant == "ema_0.1kimg"
    assert model.label_names == tuple("0123456789")
    images = edm_jax.sample(model, seeds=range(3), labels=3, num_steps=2)
    assert images.shape == (3, 8, 8, 1) and np.isfinite(images).all()
    for variant in ("ema_0.05kimg", "raw"):
        other = edm_jax.load(run_dir, variant=variant)
        assert not np.array_equal(
            other.params["map_layer0"]["kernel"], model.params["map_layer0"]["kernel"]
        )
    with pytest.raises(ValueError, match=r"no weights 'ema'.*ema_0.1kimg, ema_0.05kimg, raw"):
        edm_jax.load(run_dir, variant="ema")
    step = checkpoints.checkpoint_steps(run_dir / "checkpoints")[-2]
    assert edm_jax.load(step).description["progress"]["step"] == int(step.name)


@pytest.mark.slow
def test_again_says_finished(run_dir, call):
    said = call("--config=configs/tiny.py", f"--workdir={run_dir}").stdout
    assert "(finished)" in said and "compiling" not in said


@pytest.mark.slow
def test_another_configuration_is_refused(run_dir, call):
    done = call("--config=configs/tiny.py", f"--workdir={run_dir}", "--config.train.lr=0.5", code=2)
    assert "train.lr: 0.003 there, 0.5 now" in done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.slow
def test_sample_mode(run_dir, call, tmp_path):
    out = tmp_path / "out"
    flags = ["--mode=sample", f"--workdir={run_dir}", f"--outdir={out}", "--num_steps=2"]
    said = call(*flags, "--seeds=0-2,7", "--labels=3").stdout
    assert str(out) in said
    names = sorted(p.name for p in out.glob("*.png"))
    assert names == ["000000.png", "000001.png", "000002.png", "000007.png"]
    expected = edm_jax.sample(edm_jax.load(run_dir), [7], 3, num_steps=2)
    with Image.open(out / "000007.png") as picture:
        assert picture.mode == "L" and picture.size == (8, 8)
        # another batch size moves a pixel by a rounding of float32 at most
        difference = np.asarray(picture, int) - edm_jax.to_uint8(expected)[0, ..., 0].astype(int)
        assert np.abs(difference).max() <= 1
    written = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
    again = call(*flags, "--seeds=0-3", "--labels=3").stdout
    assert "3 of 4 images are there already" in again
    for name, when in written.items():
        assert (out / name).stat().st_mtime_ns == when
    refused = call(*flags, "--seeds=0-3", "--labels=4", code=2).stderr
    assert "holds samples of other settings (labels differ)" in refused
    # Labels are remembered by seed.
    call(*flags, "--seeds=8,9", "--labels=4,5")
    call(*flags, "--seeds=9,7,10", "--labels=5,3,1")
    refused = call(*flags, "--seeds=8-9", "--labels=4,6", code=2).stderr
    assert "(labels differ)" in refused
    # Drawn by the seed, a label is remembered all the same.
    call(*flags, "--seeds=20-24")
    labels = json.loads((out / "settings.json").read_text())["labels"]
    drawn = edm_jax.generate.drawn_labels(edm_jax.load(run_dir), range(20, 25))
    assert [labels[str(seed)] for seed in range(20, 25)] == drawn.tolist()
    assert labels["9"] == 5 and labels["0"] == 3
    # Another model of the same progress is another model.
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    variant = edm_jax.load(run_dir).description["variants"][1]
    call(*flags[:1], *flags[2:], f"--workdir={other}", "--seeds=8", "--labels=4")
    refused = call(*flags, f"--variant={variant}", "--seeds=8", "--labels=4", code=2).stderr
    assert "(weights, weights_sha256 differ)" in refused


@pytest.mark.slow
def test_grids_of_other_seeds_stay_and_say_what_they_show(run_dir, call, tmp_path):
    flags = ["--mode=sample", f"--workdir={run_dir}", f"--outdir={tmp_path}", "--num_steps=2"]
    call(*flags, "--grid", "--seeds=0-8", "--labels=0-8")
    call(*flags, "--grid", "--seeds=20,30")
    with Image.open(tmp_path / "grid-0-8.png") as picture:
        assert min(picture.size) > 100
    told = sheets.read_told(tmp_path / "grid-0-8.png")
    assert told["seeds"] == told["labels"] == list(range(9))
    assert told["sampling"]["num_steps"] == 2 and told["weights"] == "ema_0.1kimg"
    assert sheets.read_told(tmp_path / "grid-20,30.png")["seeds"] == [20, 30]
    call(*flags, "--grid", "--seeds=40,41", "--figure_format=pdf")
    assert (tmp_path / "grid-40,41.pdf").read_bytes().startswith(b"%PDF")


REQUESTS = {
    "dpmpp_2m": (["--sampler=dpmpp_2m", "--num_steps=4"], {"sampler": "dpmpp_2m", "num_steps": 4}),
    "levels": (["--sigmas=80,5,0.2,0"], {"sampler": "heun", "sigmas": (80, 5, 0.2, 0)}),
    "options": (
        ["--sampler=ddim", "--sampler_options=eta=0.5", "--num_steps=3", "--discretization=ve"],
        {
            "sampler": "ddim",
            "num_steps": 3,
            "discretization": "ve",
            "sigma_min": None,
            "sigma_max": None,
            "rho": None,
            "options": {"eta": 0.5},
        },
    ),
    "table 1": (
        [
            "--sampler=general",
            "--sampler_options=solver=euler,schedule=vp,scaling=vp",
            "--num_steps=3",
        ],
        {
            "sampler": "general",
            "num_steps": 3,
            "options": {"solver": "euler", "schedule": "vp", "scaling": "vp"},
        },
    ),
    "churn": (
        ["--s_churn=4", "--s_tmin=0.05", "--num_steps=3"],
        {"sampler": "edm", "num_steps": 3, "options": {"s_churn": 4.0, "s_tmin": 0.05}},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_of_the_command_line_is_that_of_the_library(case, run_dir, call, tmp_path):
    """Flags over the run's own settings; the images are those of `edm_jax.sample`."""
    flags, changes = REQUESTS[case]
    outdir = f"--outdir={tmp_path}"
    call("--mode=sample", f"--workdir={run_dir}", outdir, "--seeds=0-1", "--labels=3", *flags)
    group = json.loads((run_dir / "config.json").read_text())["sampler"]
    own = {key: group[key] for key in ("num_steps", "sigma_min", "sigma_max", "rho")}
    request = edm_jax.generate.Sampling(**own | changes)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["sampling"] == json.loads(json.dumps(request.to_json()))
    images = edm_jax.sample(edm_jax.load(run_dir), [0, 1], 3, sampling=request)
    expected = edm_jax.to_uint8(images)[..., 0].astype(int)
    for seed in (0, 1):
        with Image.open(tmp_path / f"{seed:06d}.png") as picture:
            # another number of devices moves a pixel by a rounding of float32 at most
            assert np.abs(np.asarray(picture, int) - expected[seed]).max() <= 1


@pytest.mark.slow
def test_evaluate_mode_repeats_the_evaluation(run_dir, command):
    before = json.loads((run_dir / "evaluation.json").read_text())
    said = command("--mode=evaluate", f"--workdir={run_dir}").stdout
    after = json.loads((run_dir / "evaluation.json").read_text())
    assert "class accuracy" in said
    for key in ("class_accuracy", "frechet_distance", "num_images", "nfe"):
        assert after[key] == pytest.approx(before[key], rel=1e-6)


def test_help_lists_the_modes(call):
    text = call("--help").stdout
    assert "experiments/main.py --config=configs/digits.py --workdir=runs/digits" in text
    for mode in commands.names():
        (line,) = [x for x in text.splitlines() if x.strip().startswith(f"--mode={mode} ")]
        assert line.split(maxsplit=1)[1] in commands.load(mode).__doc__


@pytest.mark.parametrize("mode", commands.names())
def test_help_of_a_mode_has_its_flags_and_no_more(mode, call):
    text = call(f"--mode={mode}", "--help").stdout
    assert text.startswith(commands.load(mode).__doc__.splitlines()[0])
    listed = re.findall(r"^  --(\w+)", text.split("\nFlags:\n")[1].split("\n\n")[0], re.MULTILINE)
    assert listed == [flag.name for flag in commands.load(mode).FLAGS if not flag.refused]
    assert ("--seeds" in text) == (mode in ("sample", "interpolate"))
    if mode in ("sample", "evaluate"):
        for name, info in samplers.SAMPLERS.items():
            assert re.search(rf"^  {name}\b", text, re.MULTILINE)
            for option in set(info.options) & {"eta", "order", "solver"} - set(info.presets):
                assert re.search(rf"^  {name} .*\b{option}=", text, re.MULTILINE)


def test_help_and_mistakes_load_no_jax(environment):
    """They are answered at once."""
    code = (
        "import sys; from experiments import main\n"
        "assert main.main(['main.py', '--help']) == 0\n"
        "assert main.main(['main.py', '--seeds=3', '--workdir=w']) == 2\n"
        "assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, capture_output=True
    )


def test_stopped_by_hand_is_one_line_that_is_true_of_every_mode(monkeypatch, capsys):
    def stopped(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "load", stopped)
    for mode in ("train", "preflight"):
        assert main.main(["main.py", f"--mode={mode}"]) == 130
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: interrupted; ") and "or starts anew" in line


def test_the_real_program_ends_with_one_line(command, tmp_path):
    done = command("--mode=sample", "--workdir=nowhere", code=2, cwd=tmp_path)
    assert done.stderr == "error: no such file or directory: nowhere\n"


TINY = "--config=configs/tiny.py"
BAD = {
    "no config": ([], "--config is missing"),
    "missing config": (["--config=configs/digit.py"], "did you mean configs/digits.py?"),
    "no workdir": ([TINY], "--workdir is missing"),
    "unknown key": (
        [TINY, "--workdir=w", "--config.train.lrr=1"],
        "config.train.lrr; did you mean config.train.lr?",
    ),
    "key without its section": (
        [TINY, "--config.lr=1"],
        "config.lr; did you mean config.train.lr?",
    ),
    "wrong type": (
        [TINY, "--workdir=w", "--config.train.lr=abc"],
        "--config.train.lr=abc: must be a number",
    ),
    "fraction of a step": (
        [TINY, "--workdir=w", "--config.sampler.num_steps=2.5"],
        "--config.sampler.num_steps=2.5: must be a whole number",
    ),
    "neither true nor false": (
        [TINY, "--workdir=w", "--config.data.mirror=maybe"],
        "--config.data.mirror=maybe: must be true or false",
    ),
    "switch with a value": (
        ["--mode=sample", "--workdir=w", "--grid=maybe"],
        "--grid=maybe: is given without a value, or true or false",
    ),
    "steps that are no number": (
        ["--mode=sample", "--workdir=w", "--num_steps=abc"],
        "--num_steps=abc: must be a whole number of at least 1",
    ),
    "flag without its value": (["--mode=sample", "--workdir"], "--workdir needs a value"),
    "option without --config": (
        ["--workdir=w", "--config.train.lr=1"],
        "--config.train.lr sets an option of a configuration, but --config is missing",
    ),
    "option for a mode without": (
        ["--mode=sample", "--workdir=w", "--config.train.lr=1"],
        "--config.train.lr belongs to --mode=train or --mode=diagnose or --mode=evaluate or "
        "--mode=likelihood or --mode=preflight",
    ),
    "flagfile": ([TINY, "--flagfile=nowhere.txt"], "--flagfile: "),
    "flagfile that is no text": (
        [TINY, f"--flagfile={GOLDEN / '02_losses.npz'}"],
        "--flagfile: the file is no text",
    ),
    "study": (
        ["--mode=study", "--workdir=w", "--study=flow1d"],
        "; did you mean flow_1d?",
    ),
    "levels and steps": (
        ["--mode=sample", "--workdir=w", "--sigmas=80,1,0", "--num_steps=3"],
        "--sigmas are the noise levels themselves: leave --num_steps out",
    ),
    "levels that rise": (["--mode=sample", "--workdir=w", "--sigmas=1,80,0"], "strictly decr"),
    "levels that are none": (["--mode=sample", "--workdir=w", "--sigmas=a"], "must be numbers"),
    "sampler": (
        ["--mode=sample", "--workdir=w", "--sampler=dpmpp2m"],
        "unknown sampler 'dpmpp2m'; did you mean 'dpmpp_2m'?",
    ),
    "discretization": (
        ["--mode=sample", "--workdir=w", "--discretization=emd"],
        "unknown grid of time steps 'emd'; did you mean 'edm'?",
    ),
    "option of another sampler": (
        ["--mode=sample", "--workdir=w", "--sampler=heun", "--sampler_options=eta=0.5"],
        "sampler 'heun' has no option 'eta'; samplers with it: ",
    ),
    "option that is none": (
        ["--mode=sample", "--workdir=w", "--sampler=ddim", "--sampler_options=eta"],
        "--sampler_options: options 'eta': 'eta' is not name=value",
    ),
    "churn for a sampler without": (
        ["--mode=sample", "--workdir=w", "--sampler=ddim", "--s_churn=3"],
        "--s_churn=3: the sampler 'ddim' has no churn",
    ),
    "range of no churn": (
        ["--mode=sample", "--workdir=w", "--s_tmin=0.1"],
        "--s_tmin=0.1: without churn it means nothing; give --s_churn too",
    ),
    "range of no churn, with its sampler": (
        ["--mode=sample", "--workdir=w", "--s_tmin=0.1", "--sampler=edm"],
        "--s_tmin=0.1: without churn it means nothing; give --s_churn too",
    ),
    "unknown flag": ([TINY, "--wrkdir=w"], "unknown option --wrkdir; did you mean --workdir?"),
    "no such flag": ([TINY, "--workdir=w", "--zzz"], "unknown option --zzz; --help lists what"),
    "unknown mode": ([TINY, "--mode=trian"], "did you mean train?"),
    "stray word": ([TINY, "--workdir=w", "now"], "unexpected argument 'now'"),
    "zero steps": (
        [TINY, "--workdir=w", "--config.sampler.num_steps=0"],
        "num_steps must be an integer >= 1",
    ),
    "range": (
        [TINY, "--workdir=w", "--config.sampler.sigma_min=90."],
        "config.sampler: need 0 < sigma_min < sigma_max",
    ),
    "nan": ([TINY, "--workdir=w", "--config.train.lr=nan"], "config.train.lr: lr must be positive"),
    "choice": (
        [TINY, "--workdir=w", "--config.precond.name=edn"],
        "config.precond.name: unknown precond 'edn'; did you mean 'edm'?",
    ),
    "network": (
        [TINY, "--workdir=w", "--config.model.SongUNet.encoder_type=residul"],
        "config.model.SongUNet.encoder_type: encoder_type must be one of",
    ),
    "evaluation seed": (
        [TINY, "--workdir=w", "--config.evaluation.first_seed=-5"],
        "config.evaluation.first_seed: first_seed must be at least 0 and finite, got -5",
    ),
    "more images than can be": (
        [TINY, "--workdir=w", "--config.evaluation.num_images=1000000000"],
        "config.evaluation.num_images: num_images must be at most 1e+08 and finite",
    ),
    "feature network that is not there": (
        ["--mode=evaluate", "--images=x", "--inception=nowhere"],
        "--inception=nowhere: there is no such file or folder",
    ),
    "noise spread": (
        [TINY, "--workdir=w", "--config.noise.lognormal.p_std=-1.0"],
        "config.noise.lognormal.p_std: p_std must be positive and finite, got -1.0",
    ),
    "threads": (
        [TINY, "--workdir=w", "--config.data.num_threads=-1"],
        "config.data.num_threads: num_threads must be at least 1 and finite, got -1",
    ),
    "workdir is a file": ([TINY, f"--workdir={__file__}"], "cannot be written"),
    "sample flag": (
        [TINY, "--workdir=w", "--seeds=3"],
        "--seeds belongs to --mode=interpolate or --mode=sample",
    ),
    "one of several processes": (
        ["--mode=export", "--workdir=w", "--num_processes=2"],
        "--num_processes belongs to --mode=train",
    ),
    "huge batch": (
        [TINY, "--workdir=w", "--config.train.batch_size=100000000000"],
        "config.train.batch_size: batch_size must be at least 1 and at most 1.04858e+06",
    ),
    "no run": (["--mode=sample", "--workdir=nowhere"], "no such file or directory: nowhere"),
    "seeds": (["--mode=sample", "--workdir=w", "--seeds=3-x"], "'3-x' is not a number or a range"),
    "backwards": (["--mode=sample", "--workdir=w", "--seeds=9-3"], "runs backwards"),
    "sheet as archive": (
        ["--mode=sample", "--workdir=w", "--grid", "--outdir=a.npz"],
        "--outdir=a.npz must be a folder: --grid is one sheet",
    ),
    "sheet in folders": (
        ["--mode=sample", "--workdir=w", "--grid", "--subdirs"],
        "--subdirs says nothing with --grid",
    ),
    "format of no sheet": (
        ["--mode=sample", "--workdir=w", "--figure_format=pdf"],
        "--figure_format is of the sheet of --grid",
    ),
    "format of no figure": (
        ["--mode=validate", "--figure_format=svg"],
        "--figure_format is of the figure in --workdir",
    ),
    "sampler of pictures": (
        ["--mode=evaluate", "--images=x", "--num_steps=3"],
        "--num_steps is about the images of a model, and --images are there",
    ),
    "text that is none": (
        ["--mode=sample", "--workdir=w", "--sampler="],
        "--sampler=: must not be empty",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, call, tmp_path):
    arguments, message = BAD[case]
    done = call(*arguments, code=2, cwd=tmp_path)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert message in line
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_other_evaluations_leave_the_headline_alone(run_dir, call, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    headline = (path / "evaluation.json").read_bytes()
    flags = ["--mode=evaluate", f"--workdir={path}", "--num_images=10"]
    call(*flags, "--sampler=dpmpp_2m", "--num_steps=4", "--name=dpmpp")
    said = call(*flags, "--sampler=ddim", "--num_steps=3").stdout
    assert (path / "evaluation.json").read_bytes() == headline
    assert "(headline)" in said and "dpmpp " in said and "ddim-3-" in said
    result = json.loads((path / "evaluations" / "dpmpp" / "evaluation.json").read_text())
    assert result["nfe"] == 4 and result["num_images"] == 10
    assert result["sampling"]["sampler"] == "dpmpp_2m"
    refused = call(*flags, "--sampler=ddim", "--num_steps=3", "--name=dpmpp", code=2).stderr
    assert "evaluation of other settings (sampling differ); choose another --name" in refused
    # A result of other weights moves aside.
    old = json.loads(headline) | {"progress": {"step": 10, "nimg": 160, "kimg": 0.16}}
    (path / "evaluation.json").write_text(json.dumps(old))
    call("--mode=evaluate", f"--workdir={path}")
    kept = [json.loads(f.read_text()) for f in (path / "evaluations").rglob("evaluation.json")]
    assert old in kept and len(kept) == 3
    assert json.loads((path / "evaluation.json").read_text())["progress"]["step"] == 30


@pytest.mark.slow
def test_several_checkpoints_and_averages_make_a_curve(run_dir, call, tmp_path):
    flags = ["--mode=evaluate", f"--workdir={run_dir}", "--num_images=10", "--checkpoints=last:2",
             "--variant=all", f"--outdir={tmp_path}", "--name=c"]  # fmt: skip
    said = call(*flags).stdout
    names = {f.parent.name for f in tmp_path.rglob("evaluation.json")}
    variants = edm_jax.load(run_dir).description["variants"]
    steps = [int(path.name) for path in sorted((run_dir / "checkpoints").iterdir())[-2:]]
    assert names == {f"c-{variant}-{step}" for variant in variants for step in steps}
    assert (tmp_path / "curve.png").exists() and all(name in said for name in names)
    again = call(*flags).stdout
    assert again.count("is there already") == len(names) and "drawing" not in again
    # One of other weights of the extractor is no result of this evaluation.
    file = tmp_path / f"c-{next(iter(variants))}-{steps[0]}" / "evaluation.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"extractors": {"pixels": "other"}}))
    again = call(*flags).stdout
    assert again.count("is there already") == len(names) - 1 and again.count("drawing") == 1
    assert json.loads(file.read_text()) == result


@pytest.mark.slow
def test_where_nothing_can_be_written_nothing_is_drawn(run_dir, call, tmp_path, monkeypatch):
    model = tmp_path / "model.safetensors"
    call("--mode=export", f"--workdir={run_dir}", f"--dest={model}")
    config = "--config=configs/tiny.py"
    for mode in (["--mode=evaluate", config], ["--mode=sample"]):
        refused = call(*mode, f"--workdir={model}", code=2)
        assert "is a file: say where" in refused.stderr and "drawing" not in refused.stdout
    blocked = tmp_path / "file"
    blocked.write_text("")
    flags = [f"--workdir={model}", f"--outdir={blocked / 'x'}"]
    refused = call("--mode=evaluate", config, *flags, code=2)
    assert "--outdir=" in refused.stderr and "cannot be written" in refused.stderr
    assert "drawing" not in refused.stdout
    refused = call("--mode=validate", f"--workdir={blocked / 'x'}", code=2)
    assert "cannot be written" in refused.stderr and not refused.stdout
    # The same model from a file, results elsewhere; ~ is the home of the user.
    monkeypatch.setenv("HOME", str(tmp_path))
    call("--mode=evaluate", config, "--workdir=~/model.safetensors", "--outdir=~/results",
         "--name=mine", "--num_images=10")  # fmt: skip
    result = json.loads((tmp_path / "results" / "mine" / "evaluation.json").read_text())
    assert result["num_images"] == 10


@pytest.mark.slow
def test_bad_samples_are_refused_before_work(run_dir, call, tmp_path):
    flags = ["--mode=sample", f"--workdir={run_dir}", f"--outdir={tmp_path / 'o'}", "--seeds=0-1"]
    for extra, message in (
        ("--labels=10", "label 10 is out of range; the classes are 0..9"),
        ("--labels=1,2,3", "3 labels for 2 seeds"),
        ("--sigma_min=90", "got sigma_min=90.0, sigma_max=80.0"),
        ("--variant=best", "no weights 'best'"),
    ):
        done = call(*flags, extra, code=2)
        assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_batch_must_divide_over_devices(command, environment, tmp_path):
    environment = environment | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = subprocess.run(
        [sys.executable, str(MAIN), TINY, f"--workdir={tmp_path / 'w'}"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "batch size 16 must be a positive multiple of the number of devices (3)" in done.stderr


@pytest.mark.slow
def test_import_sample_export_load(call, tmp_path):
    """Published weights to a run directory to one file, the same network all the way."""
    source = tmp_path / "edm_ddpmpp_cond.pkl"
    source.write_bytes(weights_golden.content(source.name))
    run = tmp_path / "imported"
    said = call("--mode=import", f"--source={source}", f"--workdir={run}").stdout
    assert "CC BY-NC-SA 4.0" in said and "SHA-256" in said
    again = call("--mode=import", f"--source={source}", f"--workdir={run}", code=2)
    assert "holds a run already" in again.stderr
    single = tmp_path / "model.safetensors"
    call("--mode=export", f"--workdir={run}", f"--dest={single}")
    again = call("--mode=export", f"--workdir={run}", f"--dest={single}", code=2)
    assert "exists" in again.stderr
    models = [edm_jax.load(path) for path in (source, run, single)]
    for model in models[1:]:
        assert model.description["source"] == models[0].description["source"]
        for a, b in zip(
            jax.tree.leaves(model.params), jax.tree.leaves(models[0].params), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    digits = ["--config=configs/digits.py", f"--workdir={run}"]
    said = call("--mode=evaluate", *digits, code=2)
    assert "the model makes images of shape" in said.stderr and "drawing" not in said.stdout
    assert "give the --config" in call("--mode=evaluate", f"--workdir={run}", code=2).stderr
    assert "holds a model but no run" in call(*digits, code=2).stderr
    assert not (run / "config.json").exists()
    flags = ["--mode=sample", f"--workdir={single}", f"--outdir={tmp_path / 'o'}"]
    call(*flags, "--seeds=0-1", "--num_steps=2")
    with Image.open(tmp_path / "o" / "000001.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.slow
def test_bad_model_files_are_one_line(call, tmp_path):
    run = tmp_path / "run"
    images = tmp_path / "images.zip"
    with zipfile.ZipFile(images, "w") as archive:
        archive.writestr("dataset.json", "{}")
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "owned") + b"'\ntR.")
    for source, message, extra in (
        (hostile, "os", ()),
        (tmp_path / "none.pkl", "none.pkl", ()),
        (images, "is an archive of images, not of weights; train on it with", ()),
        (hostile, "--source_options must be a JSON object", ("--source_options=[1]",)),
        (hostile, "it has an entry twice", ('--source_options={"licence": "a", "licence": "b"}',)),
    ):
        done = call("--mode=import", f"--source={source}", f"--workdir={run}", *extra, code=2)
        assert message in done.stderr and "Traceback" not in done.stderr
    assert not run.exists() and not (tmp_path / "owned").exists()


def test_newer_description_is_refused():
    from edm_jax.model import build
    from edm_jax.store.errors import WeightsError

    with pytest.raises(WeightsError, match="format_version 99 is newer than 1"):
        build({"format_version": 99})


@pytest.mark.slow
def test_dataset_then_training_on_it(one_device, call, tmp_path):
    """A folder of images to the EDM zip to a (short) training run."""
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    data = tmp_path / "data.zip"
    call(
        "--mode=dataset",
        f"--source={tmp_path / 'images'}",
        f"--dest={data}",
        "--resolution=8x8",
        "--transform=center-crop",
    )
    run = tmp_path / "run"
    options = [
        "--config=configs/tiny.py",
        "--config.data.source=images",
        f"--config.data.path={data}",
        "--config.augment.probability=0.5",
        "--config.train.micro_batch=8",
        "--config.train.total_kimg=0.032",
        "--config.train.sample_kimg=0",
        "--config.evaluation.num_images=12",
        "--config.evaluation.trajectory_seeds=0",
    ]
    call("--mode=preflight", *options)
    call(*options, f"--workdir={run}")
    model = edm_jax.load(run)
    assert model.image_shape == (8, 8, 3) and model.num_classes == 2
    result = json.loads((run / "evaluation.json").read_text())
    assert np.isfinite(result["frechet_distance"]) and "frechet_distance_floor" not in result
    assert "map_augment" in model.params


@pytest.mark.soak
def test_watched_run(one_device, call, tmp_path):
    """Evaluations and a profile during training, Weights & Biases that is not there."""
    run = tmp_path / "watched"
    watch = ["--profile_steps=12-13", "--wandb=edm"]
    arguments = ["--config=configs/tiny.py", f"--workdir={run}"]
    arguments += ["--config.evaluation.every_kimg=0.16", "--config.evaluation.num_images=10"]
    said = call(*arguments, *watch).stdout
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]  # the end is in evaluation.json
    assert all(np.isfinite(row["frechet_distance"]) and row["num_images"] == 10 for row in rows)
    with Image.open(run / "figures" / "evaluations.png") as picture:
        assert min(picture.size) > 200
    assert any((run / "profile").rglob("*.xplane.pb"))
    assert said.count("Weights & Biases is off: wandb is not installed") == 1
    assert "(finished)" in call(*arguments, "--config.train.max_bad_steps=5").stdout
    refused = call(*arguments, "--profile_steps=29-31", code=2).stderr
    assert "--profile_steps ends at 31, the run at 30" in refused


@pytest.mark.slow
def test_flags_from_a_file_and_figures_as_pdf(run_dir, call, tmp_path):
    """A configuration by its short name from anywhere, also through --flagfile."""
    words = tmp_path / "flags.txt"
    words.write_text("--config=configs/tiny.py\n--config.train.max_bad_steps=7\n")
    flags = [f"--flagfile={words}", f"--workdir={tmp_path / 'run'}", "--figure_format=pdf"]
    # A finished run, whose figures of this format are to be made.
    shutil.copytree(run_dir, tmp_path / "run")
    call(*flags, cwd=tmp_path)
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["max_bad_steps"] == 7
    for name in ("loss", "loss_per_noise_level", "trajectories"):
        assert (tmp_path / "run" / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    words.write_text("--config=configs/tiny.py\n--config.train.lrr=1\n")
    refused = call(*flags, code=2, cwd=tmp_path).stderr
    assert refused.count("\n") == 1 and "did you mean config.train.lr?" in refused
