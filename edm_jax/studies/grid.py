"""From a grid of settings to the cells of a study: what each of them samples with."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edm_jax import names, samplers
from edm_jax.requests import CHURN
from edm_jax.sampling import Sampling

REQUEST = tuple(field.name for field in dataclasses.fields(Sampling) if field.name != "options")
GUIDANCE = (
    "guidance",
    "guidance_scale",
    "guidance_interval",
    "guidance_model",
    "guidance_form",
    "threshold",
    "threshold_percentile",
)
# "nfe" in place of num_steps: the most steps that cost no more network calls.
OTHERS = ("model", "nfe", "options")
# Settings whose one value is a list of numbers.
_LISTS = ("sigmas", "guidance_interval", "segments")


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One setting of a study.

    Attributes:
      settings: as declared, ``model`` included.
      model: name of the model.
      sampling: the request; None if none can be made of the settings.
      guidance: JSON values for `guidances.build`; None without.
      reason: why there is no request.
    """

    settings: Mapping[str, Any]
    model: str
    sampling: Sampling | None
    guidance: Mapping[str, Any] | None = None
    reason: str = ""


def known_settings() -> list[str]:
    """Every setting that a grid may have: fields of a request, options of samplers, guidance."""
    options = {name for info in samplers.SAMPLERS.values() for name in samplers.accepted(info)}
    return sorted({*REQUEST, *OTHERS, *GUIDANCE, *options})


def expand(grid: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All combinations of the values of a grid; of several grids one after the other.

    Args:
      grid: setting -> value, or list of values.  ``sigmas``, ``guidance_interval`` and
        ``segments``, whose one value is a list, take a list of lists for several.

    Raises:
      ValueError: an unknown setting, a setting without values, or no grid.
    """
    grids = [grid] if isinstance(grid, Mapping) else grid
    if not isinstance(grids, list | tuple) or not grids or not all(grids):
        raise ValueError(
            "the grid is empty: give settings with their values, such as "
            '{"sampler": ["heun"], "num_steps": [9, 18]}'
        )
    known, found = known_settings(), []
    for one in grids:
        if not isinstance(one, Mapping):
            raise ValueError(f"a grid must map settings to values, got {one!r}")
        axes = []
        for name, values in one.items():
            if name not in known:
                raise names.unknown("setting", name, known)
            axes.append(_values(name, values))
        found += [dict(zip(one, point, strict=True)) for point in itertools.product(*axes)]
    return list({json.dumps(point, sort_keys=True): point for point in found}.values())


def _values(name: str, values: Any) -> list[Any]:
    """The values of one setting."""
    if not isinstance(values, list | tuple):
        return [values]
    if not len(values):
        raise ValueError(f"the grid is empty: {name} has no values")
    nested = any(isinstance(value, list | tuple | None) for value in values)
    if name == "segments":
        nested = all(isinstance(v, list | tuple) and isinstance(v[0], list | tuple) for v in values)
    return [list(values)] if name in _LISTS and not nested else list(values)


def cell(settings: Mapping[str, Any], models: Sequence[str]) -> Cell:
    """The cell of some settings; one that cannot be is a cell with a reason.

    Args:
      settings: a point of a grid.
      models: names of the models; the first is that of settings without.
    """
    settings = dict(settings)
    model = settings.setdefault("model", models[0])
    if model not in models:
        raise names.unknown("model", model, models)
    try:
        return Cell(settings, model, sampling_of(settings), guidance_of(settings))
    except ValueError as error:
        return Cell(settings, model, None, reason=" ".join(str(error).split()))


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """The request that settings make.

    As on the command line, churn without a named sampler makes Heun's method the EDM sampler.

    Raises:
      ValueError: for a request that no sampler can carry out.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    fields = {name: given[name] for name in REQUEST if name in given}
    options = {
        name: value for name, value in given.items() if name not in (*REQUEST, *OTHERS, *GUIDANCE)
    }
    options = {**given.get("options", {}), **options}
    if "sampler" not in fields and "s_churn" in options:
        fields["sampler"] = "edm" if options["s_churn"] else "heun"
        if not options["s_churn"]:
            options = {name: value for name, value in options.items() if name not in CHURN}
    if "nfe" in given:
        if "num_steps" in given or "sigmas" in given:
            raise ValueError("nfe chooses the number of steps: leave num_steps and sigmas out")
        info = samplers.get(fields.get("sampler", "heun"))
        fields["num_steps"] = info.steps_within(int(given["nfe"]), **options)
    sampling = Sampling(**fields, options=options)
    sampling.check()
    return sampling


def guidance_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The guidance that settings ask for, as `guidances.build` takes it; None without.

    Raises:
      ValueError: a constant of a guidance that is not named.
    """
    given = {name: settings[name] for name in GUIDANCE if settings.get(name) is not None}
    for name in given:
        if name.startswith("guidance_") and "guidance" not in given:
            raise ValueError(f"{name} says nothing without guidance; set guidance to cfg, say")
    if "threshold_percentile" in given and given.get("threshold") != "dynamic":
        raise ValueError("threshold_percentile belongs to the threshold dynamic")
    told = {
        "name": given.get("guidance"),
        **{key: given.get(f"guidance_{key}") for key in ("scale", "interval", "model", "form")},
        "threshold": given.get("threshold"),
        "percentile": given.get("threshold_percentile"),
    }
    told = {key: value for key, value in told.items() if value is not None}
    return told or None


def varying(cells: Sequence[Cell]) -> list[str]:
    """The settings that differ between cells, in the order in which they are declared."""
    keys = list(dict.fromkeys(key for one in cells for key in one.settings))

    def values(key: str) -> set[str]:
        return {json.dumps(one.settings.get(key), sort_keys=True) for one in cells}

    return [key for key in keys if len(values(key)) > 1]


def label(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Some settings in a few words: ``heun, num_steps 9``."""
    parts = []
    for key in keys:
        value = settings.get(key)
        if value is None:
            continue
        shown = f"{value:g}" if isinstance(value, float) else value
        if isinstance(value, list | tuple):
            shown = (
                "(" + " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) + ")"
            )
        bare = key in ("sampler", "model", "guidance", "discretization")
        parts.append(str(shown) if bare else f"{key} {shown}")
    return ", ".join(parts) or "default"
