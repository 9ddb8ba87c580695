"""Whether a space of settings can work at all, found out before the first trial."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edm_jax.studies.space import Choice, Range, Space

# Combinations that are looked at; of a space with more of them nothing is known before.
LIMIT = 500


def check(space: Space, refused: Callable[[Mapping[str, Any]], str]) -> None:
    """Raise ValueError for a space, or a part of one, with which no trial can work.

    A value can work if it does alone, on the default, or with some combination of the choices of
    the other settings, the ranges among these being near their lower ends, in the middle or near
    their upper ends; a range can if one of its own three places does.  A space can if one of the
    combinations does: a trial sets every setting.

    Args:
      space: what is searched.
      refused: why a point of it cannot work; empty text if it can.

    Raises:
      ValueError: names the setting, with the reason.
    """

    @functools.cache
    def cached(text: str) -> str:
        return refused(json.loads(text))

    def reason(point: Mapping[str, Any]) -> str:
        return cached(json.dumps(point, sort_keys=True))

    for name in space:
        _check_setting(space, name, reason)
    points = _some(_points(space))
    if points and all(reason(point) for point in points):
        raise ValueError(
            f"no combination of {', '.join(space)} can work; the first: {reason(points[0])}"
        )


def _check_setting(space: Space, name: str, reason: Callable[[Mapping[str, Any]], str]) -> None:
    """Raise ValueError for a choice with a value, or a range, that cannot work."""
    one = space[name]
    around = [{}, *_some(_points({key: space[key] for key in space if key != name}))]
    if len(around) == 1 < len(space):
        return
    failing = []
    for value in places(one):
        reasons = [reason({name: value, **others}) for others in around]
        if all(reasons):
            # What the others make of it says more than what it is on the default.
            failing.append((value, next((r for r in reasons if r != reasons[0]), reasons[0])))
    if not failing or (isinstance(one, Range) and len(failing) < len(places(one))):
        return
    value, told = failing[0]
    shown = f"{one.low:g}..{one.high:g}" if isinstance(one, Range) else value
    raise ValueError(f"{name}={shown} cannot work: {told}")


def _some(points: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points; none of too many."""
    found = list(itertools.islice(points, LIMIT + 1))
    return found if len(found) <= LIMIT else []


def places(one: Range | Choice) -> list[Any]:
    """The values of a choice; of a range those near its ends and in the middle.

    Not the ends themselves, which a search of real numbers does not meet: they may be the only
    values that work, as no churn is.
    """
    if isinstance(one, Choice):
        return list(one.values)
    if one.whole:
        return [int(one.low), (int(one.low) + int(one.high)) // 2, int(one.high)]
    low, high = (math.log(one.low), math.log(one.high)) if one.log else (one.low, one.high)
    found = [low + part * (high - low) for part in (0.01, 0.5, 0.99)]
    return [math.exp(v) for v in found] if one.log else found


def _points(space: Space) -> Iterator[dict[str, Any]]:
    """All combinations of the choices of a space, the ranges moved together."""
    choices = {key: places(one) for key, one in space.items() if isinstance(one, Choice)}
    ranges = {key: places(one) for key, one in space.items() if isinstance(one, Range)}
    for chosen in itertools.product(*choices.values()):
        point = dict(zip(choices, chosen, strict=True))
        for i in (1, 0, 2) if ranges else (0,):
            yield point | {key: values[i] for key, values in ranges.items()}
