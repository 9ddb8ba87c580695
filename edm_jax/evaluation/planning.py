"""What an evaluation measures and with what, all of it checked before an image is drawn."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.arguments import check_by_name, check_path
from edm_jax.data.sources.base import ImageSource, class_indices
from edm_jax.evaluation import measuring, references
from edm_jax.metrics import classifier, extractors, registry
from edm_jax.metrics.extractors import Extractor
from edm_jax.metrics.reference import Reference
from edm_jax.metrics.registry import Asked
from edm_jax.names import brief

Weights = Mapping[str, str | os.PathLike[str] | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Metrics with all that they need.

    Attributes:
      asked: the metrics that can be given.
      left_out: those that cannot, and why.
      extractors: by name.
      references: by the name of their extractor.
      image_shape: ``(H, W, C)`` of the images.
      num_images: of a block.
      unseen: numbers of real images that were not trained on, by their flat keys.
      real: the real images, if they are at hand.
    """

    asked: tuple[Asked, ...]
    left_out: Mapping[str, str]
    extractors: Mapping[str, Extractor]
    references: Mapping[str, Reference]
    image_shape: tuple[int, int, int]
    num_images: int
    unseen: Mapping[str, float]
    real: ImageSource | None = None

    def measurement(self) -> measuring.Measurement:
        """An empty one."""
        return measuring.Measurement(self.asked, self.extractors, tuple(self.image_shape[:2]))


def as_list(given: Any) -> list[Any]:
    """What is given as reference, one or several of them."""
    several = given if isinstance(given, list | tuple) else [given]
    return [one for one in several if one is not None]


def real_images(given: Any) -> ImageSource | None:
    """The data set among what is given as reference."""
    for one in as_list(given):
        if not isinstance(one, Reference | str | os.PathLike):
            return references.unmirrored(one)
    return None


def classes_of(source: ImageSource) -> np.ndarray | None:
    """``(n,)`` class of every image, of one-hot vectors too; None where labels are no classes."""
    if not source.num_classes:
        return None
    labels = getattr(source, "labels", None)
    if labels is None:
        labels = np.stack([source[i]["label"] for i in range(len(source))])
    return class_indices(labels)


def label_problem(source: ImageSource) -> str:
    """Why the images of a source have no classes to tell apart; "" if they have."""
    if not source.num_classes:
        return "the real images have no labels"
    if getattr(source, "labels", None) is None and np.ndim(source[0]["label"]) == 0:
        return "" if source.num_classes > 1 else "all real images are of one class"
    classes = classes_of(source)
    if classes is None:
        return "the labels of the real images are vectors that are no classes"
    return "" if len(np.unique(classes)) > 1 else "all real images are of one class"


def possible(
    metrics: Sequence[str],
    *,
    num_images: int,
    image_shape: Sequence[int],
    real: ImageSource | None,
    classes: int,
) -> tuple[tuple[Asked, ...], dict[str, str]]:
    """The metrics that can be given, and why the others cannot.

    Args:
      metrics: as they are asked for.
      num_images: of a block.
      image_shape: of the images that are measured.
      real: the real images, if they are at hand.
      classes: how many the measured images are of; 0 if none was asked of them.

    Raises:
      ValueError: an unknown metric.
    """
    real = None if real is None else references.unmirrored(real)
    if real is None:
        no_classes = "the labelled real images are not at hand"
    elif not classes:
        no_classes = "no classes were asked of the images"
    else:
        no_classes = label_problem(real)
    kept, left_out = [], {}
    for one in registry.parse_all(metrics):
        reason = registry.impossible(
            one, num_images=num_images, image_shape=image_shape, no_classes=no_classes
        )
        if not reason and one.metric.reference and real is not None and len(real) < 2:
            reason = f"compares with at least 2 real images, and there is {len(real)}"
        if reason:
            left_out[one.text] = reason
        else:
            kept.append(one)
    return tuple(kept), left_out


def make_plan(
    metrics: Sequence[str],
    reference: Any,
    test: ImageSource | None = None,
    *,
    num_images: int,
    image_shape: Sequence[int],
    classes: int,
    weights: Weights | None = None,
    extractors_given: Mapping[str, Extractor] | None = None,
    options: Mapping[str, str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = print,
    poll: Callable[[], None] | None = None,
    strict: bool = True,
) -> Plan:
    """Check everything, read the networks, find or make the references.

    Args:
      metrics: names of `registry.METRICS`, ``kid@dinov2`` on other features.
      reference: real images (a source), a `Reference`, the path of one, or several.
      test: real images that were not trained on, for metrics of pixels.
      num_images: of a block.
      image_shape: ``(H, W, C)``.
      classes: of the images that are measured; 0 without.
      weights: files of feature networks by the name of the extractor.
      extractors_given: extractors of one's own, or ones that are at hand.
      options: how the user names the files of ``weights``, for messages.
      cache: where references are kept.
      report: told what is left out and what takes long.
      poll: called for each batch of real images.
      strict: whether it is an error that nothing is left to measure.

    Raises:
      ValueError: nothing is left to measure, weights are missing, or no reference fits.
    """
    check_path("cache", cache)
    real = real_images(reference)
    _check_kinds(real, test, weights=weights, extractors=extractors_given, options=options)
    kept, left_out = possible(
        metrics, num_images=num_images, image_shape=image_shape, real=real, classes=classes
    )
    found = _extractors(kept, real, weights or {}, extractors_given or {}, options or {})
    making = dict(cache=cache, report=report, poll=poll, name=repr(real) if real else "")
    compared, without = _compared(as_list(reference), kept, found, image_shape, making)
    left_out |= without
    kept = tuple(one for one in kept if one.text not in left_out)
    for text, reason in left_out.items():
        report(f"warning: {text} is left out: it {reason}")
    if not kept and strict:
        reasons = "; ".join(f"{text} {reason}" for text, reason in left_out.items())
        raise ValueError(f"there is nothing to measure: {reasons or 'no metric is named'}")
    if test is not None and (problem := no_floor(test, image_shape)):
        report(f"warning: {problem}")
    left_out = {text: f"it {reason}" for text, reason in left_out.items()}
    plan = Plan(
        kept, left_out, {one.extractor: found[one.extractor] for one in kept}, compared,
        tuple(image_shape), num_images, {}, real,
    )  # fmt: skip
    return dataclasses.replace(plan, unseen=_unseen(plan, test, poll))


def _check_kinds(real: Any, test: Any, **tables: Any) -> None:
    """Raise ValueError for what are no images, or no dictionaries."""
    for name, table in tables.items():
        check_by_name(name, table)
    for name, source in (("reference", real), ("test", test)):
        if source is not None and not isinstance(source, ImageSource):
            raise ValueError(
                f"{name} must be images, such as `data.sources.registry.open_source` gives, or a "
                f"Reference, or the path of one, got {brief(source)}"
            )


def _compared(
    given: Sequence[Any],
    kept: Sequence[Asked],
    found: Mapping[str, Extractor],
    image_shape: Sequence[int],
    making: Mapping[str, Any],
) -> tuple[dict[str, Reference], dict[str, str]]:
    """The reference of every extractor, and what is left out for want of single features.

    Args:
      given: references, paths of them, or real images.
      kept: the metrics.
      found: extractors by name.
      image_shape: ``(H, W, C)``.
      making: how a reference is made, see `references.find_reference`.

    Raises:
      ValueError: none fits an extractor, or one of them fits no extractor.
    """
    compared: dict[str, Reference] = {}
    left_out, used = {}, set()
    for name, extractor in found.items():
        mine = [one for one in kept if one.extractor == name and one.metric.reference]
        if not mine:
            continue
        if not given:
            raise ValueError(f"{mine[0].text} needs a reference: give one, or the data set")
        features = any(one.metric.reference == "features" for one in mine)
        which, compared[name] = references.find_reference(
            given, extractor, features=features, image_shape=image_shape, **making
        )
        used.add(which)
        if compared[name].features is None:
            for one in mine:
                if one.metric.reference == "features":
                    source = compared[name].source or "the reference"
                    left_out[one.text] = f"needs single features, and {source} has statistics only"
    for i, one in enumerate(given):
        if isinstance(one, Reference | str | os.PathLike) and compared and i not in used:
            raise ValueError(
                f"the reference {getattr(one, 'source', one)} is of another extractor than those "
                f"of the metrics: {', '.join(found)}"
            )
    return compared, left_out


def _extractors(
    asked: Sequence[Asked],
    real: ImageSource | None,
    weights: Weights,
    given: Mapping[str, Extractor],
    options: Mapping[str, str],
) -> dict[str, Extractor]:
    """Those that the metrics need; all that is missing is said at once."""
    found: dict[str, Extractor] = {}
    problems = []
    for name in dict.fromkeys(one.extractor for one in asked):
        if name in given:
            found[name] = given[name]
        elif name == classifier.NAME:
            assert real is not None
            images = np.concatenate([images for _, images in references.read_batches(real)])
            labels = classes_of(real)
            found[name] = classifier.extractor(images, labels)
        else:
            try:
                found[name] = extractors.build(
                    name,
                    weights=weights.get(name),
                    option=options.get(name, f"weights={{{name!r}: FILE}}"),
                    sharding=references.default_sharding(),
                )
            except ValueError as error:
                problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ValueError("; and ".join(map(str, problems)))
    return found


def no_floor(test: ImageSource | None, image_shape: Sequence[int]) -> str:
    """Why real images that were not trained on cannot be measured too; "" if they can."""
    if test is None:
        return "the data set has no test images: the evaluation is without its floor"
    test, shape = references.unmirrored(test), tuple(test.image_shape)
    if shape != tuple(image_shape):
        return f"the test images are {shape}, not {tuple(image_shape)}: no floor of them"
    if len(test) < 2:
        return f"a floor takes 2 test images, and there is {len(test)}: the evaluation is without"
    return ""


def _unseen(
    plan: Plan, test: ImageSource | None, poll: Callable[[], None] | None
) -> dict[str, float]:
    """The metrics of pixels of real images that were not trained on: where a model would be."""
    asked = [one for one in plan.asked if one.metric.unseen and "@" not in one.text]
    if not asked or no_floor(test, plan.image_shape):
        return {}
    test = references.unmirrored(test)
    labels = classes_of(test)
    if labels is None:
        asked = [one for one in asked if "labels" not in one.metric.needs]
    if not asked:
        return {}
    measurement = measuring.Measurement(asked, plan.extractors, tuple(plan.image_shape[:2]))
    measuring.measure(
        measurement,
        lambda done: references.read_batches(test, start=done),
        len(test),
        labels,
        name="test images",
        poll=poll,
    )
    if not measurement.count:
        return {}  # another process than the first
    found, _ = measurement.results(plan.references)
    return {one.metric.unseen: found[one.text].value for one in asked if one.text in found}
