"""A guidance from JSON values, as flags and studies ask for one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from edm_jax import guidance, names
from edm_jax.classifier import load_classifier
from edm_jax.loading import load
from edm_jax.model import Model
from edm_jax.requests import check_request
from edm_jax.sampling import Sampling

ALIASES = {"cfg": "classifier_free"}
THRESHOLDS = ("static", "dynamic")


@functools.lru_cache(maxsize=4)
def _second(kind: str, path: str) -> tuple[Any, str]:
    """The second network of a guidance, read once, and the argument that takes it."""
    if kind == "classifier":
        return load_classifier(path), "classifier"
    return load(path), "weaker" if kind == "autoguidance" else "unconditional"


def build(
    told: Mapping[str, Any] | None, model: Model, sampling: Sampling
) -> guidance.Guidance | None:
    """The guidance that JSON values say, checked for a model; None for None.

    Args:
      told: ``name`` (of `guidance.GUIDANCES`, or cfg), ``scale``, ``interval`` (two noise
        levels), ``form`` (of a classifier's), ``model`` (path of the second network), and
        ``threshold`` (static or dynamic) with its ``percentile``; all optional, but a name
        needs a scale.
      model, sampling: for which it is checked.

    Raises:
      ValueError: it cannot guide the model, or not under this sampler, or says too little.
    """
    if told is None:
        return None
    parts = []
    if told.get("name") is not None:
        kinds = {n: n for n in guidance.GUIDANCES if "threshold" not in n} | ALIASES
        kind = names.lookup(kinds, told["name"], "guidance")
        if told.get("scale") is None:
            raise ValueError(f"the guidance {told['name']} needs a scale")
        arguments: dict[str, Any] = {"scale": told["scale"]}
        if told.get("interval") is not None:
            arguments["interval"] = tuple(told["interval"])
        if told.get("form") is not None:
            if kind != "classifier":
                raise ValueError(f"the form belongs to the guidance classifier, not to {kind}")
            arguments["form"] = told["form"]
        if told.get("model") is not None:
            second, name = _second(kind, str(told["model"]))
            arguments[name] = second
        elif kind in ("autoguidance", "classifier"):
            what = "the weaker model" if kind == "autoguidance" else "the classifier"
            raise ValueError(f"{kind} needs {what}: give its path")
        parts.append(guidance.GUIDANCES[kind](**arguments))
    if told.get("threshold") is not None:
        kind = names.lookup({n: n for n in THRESHOLDS}, told["threshold"], "threshold")
        given = told.get("percentile")
        arguments = {} if given is None else {"percentile": given}
        parts.append(guidance.GUIDANCES[f"{kind}_threshold"](**arguments))
    made = parts[0] if len(parts) == 1 else guidance.chain(*parts)
    check_request(model, sampling, made)
    return made
