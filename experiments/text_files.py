"""What is drawn of models of sequences, as text."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from edm_jax import generate, requests
from edm_jax.ardm.request import Decoding
from edm_jax.data.sources.text import as_text
from edm_jax.evaluation.reporting import weights_digest
from edm_jax.figures.decodings import shown_steps
from edm_jax.model import Model
from experiments.workdir import prepare, write_atomically

UNKNOWN = "_"


def alphabet_of(model: Model) -> str | None:
    """The characters of the tokens; None for bytes."""
    return (model.description.get("data") or {}).get("alphabet")


def texts(model: Model, tokens: np.ndarray) -> list[str]:
    """``(n, L)`` tokens as strings."""
    return [as_text(row, alphabet_of(model)) for row in tokens]


def partial_text(model: Model, tokens: np.ndarray, known: np.ndarray) -> str:
    """``(L,)`` tokens, of which those unknown are shown as ``_``."""
    alphabet = alphabet_of(model)  # which lacks the symbol of an unknown one
    return "".join(
        as_text(token[None], alphabet) if k else UNKNOWN
        for token, k in zip(tokens, known, strict=True)
    )


def write(
    model: Model,
    seeds: Sequence[int],
    decoding: Decoding,
    outdir: pathlib.Path,
    *,
    name: str,
    steps: bool,
    batch_size: int,
) -> None:
    """Write one ``<name>.jsonl``: a line about all, then one for each seed.

    Args:
      model: of sequences.
      seeds: a text each.
      decoding: the request.
      outdir: created if need be.
      name: of the file, without ending.
      steps: also write the texts in progress.
      batch_size: texts at a time.
    """
    requests.check_request(model, decoding)
    prepare(outdir, "outdir")
    head: dict[str, Any] = {
        "sampling": decoding.to_json(),
        "weights": model.variant,
        "weights_sha256": weights_digest(model),
        "progress": model.description.get("progress"),
    }
    lines = [head]
    for some, drawn in generate.batches(
        model, seeds, None, decoding, batch_size=batch_size, trajectory=steps
    ):
        if not steps:
            pairs = zip(some, texts(model, drawn), strict=True)
            lines += [{"seed": int(seed), "text": text} for seed, text in pairs]
            continue
        shown = shown_steps(len(drawn.x) - 1)
        for i, seed in enumerate(some):
            states = [partial_text(model, drawn.x[k, i], drawn.known[k, i]) for k in shown]
            lines.append({"seed": int(seed), "text": states[-1], "steps": states})
    path = outdir / f"{name}.jsonl"
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(f"{len(seeds)} texts: {path}")
