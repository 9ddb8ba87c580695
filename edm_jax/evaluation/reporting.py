"""Results as JSON values and as tables."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax.evaluation.planning import Plan
from edm_jax.evaluation.references import reference_digest
from edm_jax.metrics.registry import Asked, Column, columns, flat_key, parse
from edm_jax.metrics.result import Result
from edm_jax.model import Model

Block = Mapping[str, Result]
_PACKAGES = ("edm_jax", "jax", "jaxlib", "flax", "numpy", "scipy")
_COUNTS = (
    Column("num_images", "images", "{:d}"),
    Column("nfe", "network calls per image", "{:d}"),
    Column("bits_per_dim", "bits per dimension (bound)", "{:.4f}"),
)


def weights_digest(model: Model) -> str:
    """SHA-256 of the weights, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model.variables):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def of_blocks(asked: Asked, key: str, blocks: Sequence[Block]) -> dict[str, Any]:
    """One number of all blocks: what is quoted, and what it is made of."""
    values = [block[key].value for block in blocks]
    quoted = min(values) if asked.metric.over_blocks == "minimum" else float(np.mean(values))
    out = blocks[0][key].to_json() | {"value": quoted}
    if len(blocks) > 1:
        remarks = dict.fromkeys(remark for block in blocks for remark in block[key].remarks)
        out |= {"remarks": list(remarks)} if remarks else {}
        if out.pop("uncertainty", None) is not None:  # of one block, not of what is quoted
            out["uncertainties"] = [block[key].uncertainty for block in blocks]
        out |= {
            "blocks": values,
            "quoted": asked.metric.over_blocks,
            "minimum": min(values),
            "mean": float(np.mean(values)),
            "deviation_of_blocks": float(np.std(values, ddof=1)),
        }
    return out


def measured(plan: Plan, blocks: Sequence[Block], failed: Mapping[str, str]) -> dict[str, Any]:
    """The numbers: flat ones, and ``results`` with uncertainties and remarks.

    Args:
      plan: what was to be measured.
      blocks: results of each block.
      failed: metrics that gave no number, and why.
    """
    flat: dict[str, Any] = {}
    detailed: dict[str, Any] = {}
    for one in plan.asked:
        if one.text in failed:
            continue
        for part in one.metric.parts:
            key = f"{one.text}/{part}" if part else one.text
            detailed[key] = of_blocks(one, key, blocks)
            flat[flat_key(one, part)] = detailed[key]["value"]
        if one.metric.unseen in plan.unseen and "@" not in one.text:
            flat[one.metric.unseen] = plan.unseen[one.metric.unseen]
    left_out = {**plan.left_out, **failed}
    return flat | {"results": detailed} | ({"left_out": left_out} if left_out else {})


def made_with(plan: Plan) -> dict[str, Any]:
    """Extractors, references, programs and devices of a result."""
    compared = {}
    for name, reference in plan.references.items():
        told = dataclasses.replace(reference, features=None)
        compared[name] = {
            "source": told.source,
            "count": told.count,
            "digest": reference_digest(reference),
            "floor": told.floor,
            "floor_count": told.floor_count,
        }
    return {
        "extractors": {name: one.digest for name, one in plan.extractors.items()},
        "references": compared,
        "versions": versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def versions() -> dict[str, str]:
    """Of Python and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ---------------------------------------------------------------- tables


def _columns(*results: Mapping[str, Any]) -> list[Column]:
    """The columns that any of the results has."""
    texts = [text for result in results for text in result.get("metrics") or ()]
    return [
        column
        for column in [*columns(texts), *_COUNTS]
        if any(result.get(column.key) is not None for result in results)
    ]


def describe_rows(rows: Mapping[str, int]) -> str:
    """Images through each network for one image, ``51 denoiser + 35 classifier``."""
    return " + ".join(f"{count} {name}" for name, count in rows.items())


def result_table(result: Mapping[str, Any]) -> str:
    """The result as a short table: numbers, their uncertainty, and what belongs beside them."""
    rows, details = [], {}
    for key, detail in (result.get("results") or {}).items():
        text, _, part = key.partition("/")
        details[flat_key(parse(text), part)] = detail
    for column in _columns(result):
        detail = details.get(column.key, {})
        beside = ""
        if "blocks" in detail:
            blocks = ", ".join(column.form.format(value) for value in detail["blocks"])
            mean = column.form.format(detail["mean"])
            beside = f"  {detail['quoted']} of {blocks} (mean {mean})"
        elif error := detail.get("uncertainty") or result.get(f"{column.key}_error"):
            beside = f"  +- {column.form.format(error)}"
        rows.append((column.label, column.form.format(result[column.key]), beside))
    if result.get("network_rows"):
        # Beside the calls of the guided model, which cost one or several of these.
        rows.append(("network rows per image", describe_rows(result["network_rows"]), ""))
    width = max(len(label) for label, _, _ in rows)
    lines = [f"  {label:<{width}}  {value:>10}{beside}" for label, value, beside in rows]
    lines += [f"  {text} is left out: {why}" for text, why in result.get("left_out", {}).items()]
    return "\n".join(lines)


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What belongs beside the numbers, each remark once."""
    found: dict[str, list[str]] = {}
    for key, detail in (result.get("results") or {}).items():
        for remark in detail.get("remarks", ()):
            found.setdefault(remark, []).append(key)
    return [f"{', '.join(keys)}: {remark}" for remark, keys in found.items()]


def comparison_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Several results under each other, a line each, with the columns that any has."""
    shown = _columns(*results.values())
    cells = [["", *(f"[{i}]" for i in range(1, len(shown) + 1))]]
    for name, result in results.items():
        values = ["-" if result.get(c.key) is None else c.form.format(result[c.key]) for c in shown]
        cells.append([name, *values])
    # Names of columns are long: one line for each, beneath the numbers.
    legend = [f"  [{i}] {column.label}" for i, column in enumerate(shown, 1)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([*(f"  {line}" for line in lines), *legend])
