"""View-dependent CONDITIONING: entries that hold only for some viewpoints.

An entry of a CONDITIONING is [embedding, options]. One that DreamFlow tagged has under `VIEW` the azimuths
and elevations, in degrees as in `cameras`, where it holds:

    {"azimuth": [low, high], "elevation": [low, high]}

Ranges contain their lower end, not their upper one, so neighbours never both hold. An entry without a tag
holds everywhere. Nodes that know nothing of the tag carry it along, and samplers do not look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ...dreamflow_core.settings.cameras import ViewRange

VIEW = "dreamflow_view"

Conditioning = list[list[Any]]


def tag_view(
    conditioning: Conditioning, azimuth_range: tuple[float, float], elevation_range: tuple[float, float]
) -> Conditioning:
    """A copy whose entries hold in these ranges of degrees only, whatever tag they had.

    Raises:
        ValueError: a range is empty.
    """
    for low, high in (azimuth_range, elevation_range):
        if low >= high:
            raise ValueError(f"the view range {low:g} to {high:g} is empty; its lower end comes first")
    tag = {"azimuth": list(azimuth_range), "elevation": list(elevation_range)}
    return [[embedding, {**options, VIEW: tag}] for embedding, options in conditioning]


def entries_for(conditioning: Conditioning, azimuth: float, elevation: float) -> tuple[int, ...]:
    """Places of the entries that hold for a view from this direction (degrees)."""
    return tuple(i for i, (_, options) in enumerate(conditioning) if _holds(options.get(VIEW), azimuth, elevation))


def entries_anywhere(conditioning: Conditioning) -> tuple[int, ...]:
    """Places of the entries that hold without a view: those that have no tag."""
    return tuple(i for i, (_, options) in enumerate(conditioning) if VIEW not in options)


def check_covered(conditioning: Conditioning, views: ViewRange, name: str) -> None:
    """Raise ValueError, saying where, if no entry holds for some view that `views` can sample."""
    tags = [options[VIEW] for _, options in conditioning if VIEW in options]
    azimuths = _cuts(views.azimuth, [edge for tag in tags for edge in _turns(tag["azimuth"])])
    elevations = _cuts(views.elevation, [edge for tag in tags for edge in tag["elevation"]])
    for left, right in azimuths:
        for low, high in elevations:
            if not entries_for(conditioning, (left + right) / 2, (low + high) / 2):
                raise ValueError(
                    f"no entry of {name} holds for views from azimuth {left:g} to {right:g} and elevation {low:g} to"
                    f" {high:g}; tag one for them, or combine with one that has no view range"
                )


def _holds(tag: dict[str, Any] | None, azimuth: float, elevation: float) -> bool:
    if tag is None:
        return True
    (left, right), (low, high) = tag["azimuth"], tag["elevation"]
    return low <= elevation < high and (azimuth - left) % 360 < right - left


def _turns(edges: Sequence[float]) -> list[float]:
    """The edges and the same ones a few turns away, for ranges that pass 180 degrees."""
    return [edge + 360 * turn for edge in edges for turn in (-2, -1, 0, 1, 2)]


def _cuts(span: tuple[float, float], edges: Sequence[float]) -> list[tuple[float, float]]:
    """The parts of a span between the edges that lie in it; no tag starts or ends within a part."""
    low, high = span
    places = [low, *sorted({edge for edge in edges if low < edge < high}), high]
    return list(pairwise(places))
