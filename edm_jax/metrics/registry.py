"""All metrics by name; a new one is its own file and a line of `METRICS`.

A metric is a function ``measure(accumulated, reference) -> {part: Result}`` that says which
accumulators it needs; metrics that need the same share one:

    moments    mean and covariance of the features, `moments.Moments`
    halves     the same of even and odd images, for references, `moments.Halves`
    features   all features, `rows.Rows`
    logits     all logits, `rows.Rows`
    labels     the classes that were asked for, `rows.Rows`

No metric ever sees images.  ``kid@dinov2`` is a metric on the features of another extractor
than its usual one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from edm_jax.metrics import classifier as classifier_lib
from edm_jax.metrics import fid_infinity, frechet, inception_score, kid, precision_recall
from edm_jax.metrics.extractors import MAX_PIXEL_NUMBERS
from edm_jax.metrics.reference import Reference
from edm_jax.metrics.result import Accumulated, Result
from edm_jax.names import lookup

# Extractors of raw pixels, which tiny images have.
OF_PIXELS = ("pixels", classifier_lib.NAME)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric as the table below knows it.

    Attributes:
      title: for tables.
      needs: names among `feature_metrics.NEEDS`.
      measure: the accumulated and the reference -> results by part of the metric; the part
        "" is the metric itself.
      reference: what it needs of a reference: "" for nothing, "statistics" or "features".
      extractor: whose features it is defined on; None for any.
      usual: the extractor where none is named.
      better: "lower" or "higher".
      parts: what ``measure`` returns.
      least: images it needs.
      over_blocks: what is quoted of several blocks of images: "minimum" or "mean".
      form: how its numbers are written.
      key, unseen: names of its number, and of that of real images that were not trained on,
        in the flat part of a result; by default its own name, and none.
      unseen_title: of the latter.
    """

    title: str
    needs: tuple[str, ...]
    measure: Callable[[Accumulated, Reference | None], dict[str, Result]]
    reference: str = "statistics"
    extractor: str | None = None
    usual: str | None = "inception"
    better: str = "lower"
    parts: tuple[str, ...] = ("",)
    least: int = 2
    over_blocks: str = "mean"
    form: str = "{:.4f}"
    key: str = ""
    unseen: str = ""
    unseen_title: str = ""


def _frechet(title: str, extractor: str | None = None, usual: str | None = None) -> Metric:
    return Metric(
        title, ("moments",), frechet.measure, extractor=extractor, usual=usual or extractor,
        over_blocks="minimum",
    )  # fmt: skip


METRICS: dict[str, Metric] = {
    "classifier": Metric(
        "class accuracy of samples", ("features", "labels"), classifier_lib.measure, "",
        classifier_lib.NAME, classifier_lib.NAME, "higher", form="{:.2%}", key="class_accuracy",
        unseen="class_accuracy_real_test", unseen_title="class accuracy of real test images",
    ),
    "frechet_pixels": dataclasses.replace(
        _frechet("Frechet distance, samples to train", "pixels"), key="frechet_distance",
        unseen="frechet_distance_floor", unseen_title="Frechet distance, real test to train",
    ),
    "fid": _frechet("FID", "inception"),
    "fd_dinov2": _frechet("FD-DINOv2", "dinov2"),
    "frechet": _frechet("Frechet distance"),
    "fid_infinity": Metric(
        "FID-infinity", ("features",), fid_infinity.measure, least=10 * fid_infinity.NUM_POINTS
    ),
    "kid": Metric("KID", ("features",), kid.measure, "features", form="{:.3e}"),
    "is": Metric(
        "Inception score", ("logits",), inception_score.measure, "", "inception", better="higher",
        least=inception_score.NUM_SPLITS,
    ),
    "pr": Metric(
        "precision and recall", ("features",), precision_recall.measure, "features",
        better="higher", parts=("precision", "recall", "density", "coverage"),
        least=precision_recall.NEIGHBOURS + 1,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """A metric that is asked for: as it was written, its name, and on whose features."""

    text: str
    name: str
    extractor: str

    @property
    def metric(self) -> Metric:
        """The entry of the table."""
        return METRICS[self.name]


def parse(text: str) -> Asked:
    """``kid`` or ``kid@dinov2``.

    Raises:
      ValueError: an unknown metric, or one that is not defined on that extractor.
    """
    name, _, extractor = str(text).partition("@")
    metric = lookup(METRICS, name, "metric")
    extractor = extractor or metric.usual or ""
    if not extractor:
        raise ValueError(f"{name} is of any features: say of which, such as {name}@pixels")
    check_metrics([name], extractor)
    usual = extractor == metric.usual
    return Asked(name if usual else f"{name}@{extractor}", name, extractor)


def parse_all(texts: Iterable[str]) -> tuple[Asked, ...]:
    """Several, each once, in their order; see `parse`."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ValueError(f"metrics must be a list of names, got {texts!r}")
    return tuple({asked.text: asked for asked in map(parse, texts)}.values())


def check_metrics(names: Iterable[str], extractor: str) -> None:
    """Raise ValueError for an unknown metric, or one that is not defined on an extractor."""
    for name in names:
        metric = lookup(METRICS, name, "metric")
        if metric.extractor not in (None, extractor):
            raise ValueError(
                f"{name} is defined on the extractor {metric.extractor!r}, got {extractor!r}; "
                "use frechet for a Frechet distance of other features"
            )


def impossible(
    asked: Asked, *, num_images: int, image_shape: Sequence[int], no_classes: str
) -> str:
    """Why a metric cannot be given of some images, known before there are any; "" if it can.

    Args:
      asked: the metric.
      num_images: how many there will be.
      image_shape: ``(H, W, C)``.
      no_classes: why there are no classes to tell, such as "the labels are vectors"; "" if
        there are.
    """
    metric, numbers = asked.metric, math.prod(image_shape)
    if num_images < metric.least:
        return f"needs at least {metric.least} images, got {num_images}"
    if asked.extractor == "pixels" and numbers > MAX_PIXEL_NUMBERS:
        shape = "x".join(map(str, image_shape))
        return f"is for images of at most {MAX_PIXEL_NUMBERS} numbers, got {shape} = {numbers}"
    if "labels" in metric.needs and no_classes:
        return f"needs classes, and {no_classes}"
    return ""


# ---------------------------------------------------------------- in tables


@dataclasses.dataclass(frozen=True)
class Column:
    """A number of a result: where it stands, what it is called, how it is written."""

    key: str
    label: str
    form: str


def flat_key(asked: Asked, part: str) -> str:
    """Name of a number in the flat part of a result."""
    usual = asked.text == asked.name
    key = asked.metric.key if usual and asked.metric.key else asked.text
    return f"{key}_{part}" if part else key


def columns(texts: Iterable[str] = ()) -> list[Column]:
    """Of all metrics of the table, and of further ones such as ``kid@dinov2``."""
    usual = [name for name, metric in METRICS.items() if metric.usual]
    found = {}
    for text in [*usual, *texts]:
        try:
            asked = parse(text)
        except ValueError:
            continue  # a result of another program
        metric, beside = asked.metric, f" ({asked.extractor})" if "@" in asked.text else ""
        for part in metric.parts:
            label = (part or metric.title) + beside
            found[asked.text, part] = Column(flat_key(asked, part), label, metric.form)
        if metric.unseen and not beside:
            found[asked.text, "unseen"] = Column(metric.unseen, metric.unseen_title, metric.form)
    return list(found.values())
