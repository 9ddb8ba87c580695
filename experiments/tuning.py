"""What ``--mode=tune`` does: the default of a run, the space of a flag, the flags to paste."""

from __future__ import annotations

import json
import pathlib
import shlex
import types
from collections.abc import Mapping
from typing import Any

from edm_jax.generate import Sampling
from edm_jax.studies import space as spaces
from edm_jax.studies.declaration import Study
from edm_jax.studies.grid import GUIDANCE
from edm_jax.studies.quality import measures
from edm_jax.studies.tuning import tune
from experiments import (
    compilation_cache,
    evaluations,
    guidance_flags,
    sampling_flags,
    studying,
)
from experiments.config import build
from experiments.config.flag import UsageError
from experiments.words import format_duration
from experiments.workdir import CONFIG, locked, prepare, read_config

VARIANT = "variant"


def parse_space(text: str) -> dict[str, Any]:
    """``s_churn,rho=3..12,s_tmax=1..80:log,solver=heun|euler`` as `space.read` takes it.

    Raises:
      ValueError: for anything else.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        found[name.strip()] = _range(part, value.strip()) if equals else None
    if not found:
        raise ValueError("is empty; name settings, such as s_churn,rho=3..12")
    return found


def _range(part: str, text: str) -> Any:
    if "|" in text or ".." not in text:
        return {"choices": [_value(word) for word in text.split("|")]}
    ends, _, kind = text.partition(":")
    low, _, high = ends.partition("..")
    try:
        told = {"low": json.loads(low), "high": json.loads(high)}
    except ValueError:
        raise ValueError(f"{part!r} is no range; write it like rho=3..12") from None
    if kind not in ("", "log"):
        raise ValueError(f"{part!r}: after a range stands :log or nothing")
    told["whole"] = all(isinstance(v, int) for v in told.values()) and "num_steps" in part
    return {**told, "log": kind == "log"}


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def settings_of(sampling: Sampling, guidance: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request and a guidance as the settings of a cell."""
    told = sampling.to_json()
    settings = {**told, **told.pop("options", {})}
    settings.pop("options", None)
    if settings["sampler"] == "heun":
        del settings["sampler"]  # churn makes it the EDM sampler
    names = {"name": "guidance", "threshold": "threshold", "percentile": "threshold_percentile"}
    for key, value in (guidance or {}).items():
        settings[names.get(key, f"guidance_{key}")] = value
    return settings


def flags_of(settings: Mapping[str, Any], workdir: pathlib.Path) -> list[str]:
    """The flags of ``--mode=sample`` that ask for some settings."""
    words = [f"--workdir={workdir}"]
    options = []
    own = {flag.name for flag in (*sampling_flags.FLAGS, *guidance_flags.FLAGS)}
    for name, value in settings.items():
        if value is None:
            continue
        if name == "model":
            words.append(f"--variant={value}")
        elif name in own:
            shown = ",".join(map(_number, value)) if isinstance(value, list | tuple) else value
            words.append(f"--{name}={_number(shown)}")
        else:
            options.append(f"{name}={_number(value)}")
    if options:
        words.append(f"--sampler_options={','.join(options)}")
    return words


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def carry_out(values: types.SimpleNamespace) -> None:
    """Search, compare, and say the flags."""
    from edm_jax.evaluation.references import default_sharding

    _check_quality(values.quality)
    experiment = None
    if (values.workdir / CONFIG).exists():
        experiment = build.experiment(read_config(values.workdir))
    sampling = sampling_flags.request(values, experiment.sampling if experiment else Sampling())
    told = dict(values.tune)
    models = _models(values, told)
    space = spaces.read(told)
    base = settings_of(sampling, guidance_flags.asked(values))
    _check_guidance(space, base)
    study = Study.from_json({
        "models": models, "grid": {"num_steps": sampling.num_steps}, "quality": [values.quality],
        "num_images": values.num_images, "blocks": values.blocks,
        "batch_size": values.batch_size or min(values.num_images, 256),
        "first_seed": values.first_seed, "labels": values.labels,
        **({} if values.reference is None else {"reference": values.reference.split(",")}),
    })  # fmt: skip
    if values.outdir is None and values.workdir.is_file():
        raise UsageError(
            f"--workdir={values.workdir} is a file: say where trials go, for example "
            "--outdir=tuning"
        )
    for name, path in models.items():
        studying.check_there(name, path)
    outdir = values.outdir or values.workdir / "tuning"
    data = studying.data_of(values, study) if study.metrics else None
    prepare(outdir, "outdir")
    compilation_cache.enable(values.compilation_cache)
    with locked(outdir):
        found = tune(
            study, base, space, values.budget, directory=outdir, seed=values.search_seed,
            fresh_blocks=values.fresh_blocks, reference=data, sharding=default_sharding(),
            weights={name: getattr(values, name) for name in ("inception", "dinov2")},
            options={name: f"--{name}" for name in ("inception", "dinov2")},
            cache=values.reference_cache or evaluations.references_directory(),
        )  # fmt: skip
    print(f"\n{found.report()}\n{format_duration(found.seconds)}; {outdir}\n")
    words = ["--mode=sample", *flags_of(found.settings, values.workdir)]
    if "model" not in found.settings and values.variant is not None:
        words.append(f"--variant={values.variant}")
    print(f"python experiments/main.py {shlex.join(words)}")


def _models(values: types.SimpleNamespace, told: dict[str, Any]) -> dict[str, str]:
    """The weights to choose from: variant -> PATH:VARIANT; "variant" becomes "model"."""
    if VARIANT not in told:
        suffix = "" if values.variant is None else f":{values.variant}"
        return {"model": f"{values.workdir}{suffix}"}
    choices = (told.pop(VARIANT) or {"choices": ["all"]})["choices"]
    if choices == ["all"]:
        from edm_jax import load

        choices = load(values.workdir).description.get("variants") or []
    if len(choices) < 2:
        raise UsageError(f"--tune: variant needs two and more to choose from, got {choices}")
    told["model"] = {"choices": list(choices)}
    return {str(name): f"{values.workdir}:{name}" for name in choices}


def _check_quality(text: str) -> None:
    """Raise UsageError unless ``--quality`` names one number."""
    studying.check_quality(text)
    found = [measure.key for measure in measures(tuple(text.split(",")))]
    if len(found) != 1:
        raise UsageError(
            f"--quality={text}: tuning makes one number better, and this is {', '.join(found)}"
        )


def _check_guidance(space: spaces.Space, base: Mapping[str, Any]) -> None:
    for name in space:
        if (name in GUIDANCE or name in spaces.ENDS) and name.startswith("guidance_"):
            if base.get("guidance") is None:
                raise UsageError(
                    f"--tune: {name} says nothing without --guidance; give --guidance=cfg "
                    "--guidance_scale=1"
                )
