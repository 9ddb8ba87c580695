"""A guidance from JSON values, as flags and studies ask for one."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from edm_jax import guidance, names
from edm_jax.classifier import load_classifier
from edm_jax.evaluation.reporting import weights_digest
from edm_jax.loading import load
from edm_jax.model import Model
from edm_jax.requests import check_request
from edm_jax.sampling import Sampling

ALIASES = {"cfg": "classifier_free"}
THRESHOLDS = ("static", "dynamic")


def _second(kind: str, path: str) -> tuple[Any, str]:
    """The second network of a guidance, and the argument that takes it."""
    argument = {"classifier": "classifier", "autoguidance": "weaker"}.get(kind, "unconditional")
    return _read(kind, path, _state(path)), argument


@functools.lru_cache(maxsize=4)
def _read(kind: str, path: str, state: Any) -> Any:
    """A second network, read once as long as its files stay as they are."""
    return load_classifier(path) if kind == "classifier" else load(path)


@functools.lru_cache(maxsize=64)
def _digest(kind: str, path: str, state: Any) -> str:
    return weights_digest(_read(kind, path, state))


def _state(path: str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files that weights are read from; empty if there are none."""
    root = pathlib.Path(path).expanduser()
    # A run that goes on writes more than weights.
    root = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    found = []
    for file in [root] if root.is_file() else sorted(root.rglob("*")):
        with contextlib.suppress(OSError):  # gone in between
            status = file.stat()
            found.append((str(file), status.st_mtime_ns, status.st_size))
    return tuple(found)


def _kind(name: Any) -> str:
    kinds = {n: n for n in guidance.GUIDANCES if "threshold" not in n} | ALIASES
    return names.lookup(kinds, name, "guidance")


def identity(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a result depends on: the JSON values, with the weights of a second network for its path.

    Raises:
      ValueError, FileNotFoundError: as `build`.
    """
    if told is None or told.get("name") is None or told.get("model") is None:
        return None if told is None else dict(told)
    path = str(told["model"])
    return {**told, "model": _digest(_kind(told["name"]), path, _state(path))}


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
        kind = _kind(told["name"])
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
