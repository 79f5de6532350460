"""The density at which a radiance field has its surface.

Densities of trained fields differ in scale by orders of magnitude, and nothing supervises their values
behind the first surface: interiors are hollow or rough. What training does fix is where light stops. So
lines of sight are followed along the three axes from both sides, and the threshold is half of the
density that they typically meet where most of their light is gone: half-way up the step of a sharp
surface, and close to what cameras see of a soft one. A soft neck can be less dense than that and still
hold an object together, so the threshold is lowered where it would cut a large part off.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

from .mesh import BadMesh, Floats

_MOST_CELLS = 128
"""Finer grids are averaged down to at most this many cells a side."""
_LEAST_OPACITY = 0.02
"""A field whose densest line of sight is less opaque than this is empty."""
_GONE = 0.75
"""Share of the light that a line of sight stops in all, at which its density is read. More would reach
into rough interiors, less would put the surface of a soft and dense field too far out."""

_WHOLE = 0.95
"""Share of what is denser than the threshold that has to hang together; the rest counts as crumbs."""
_LOWERED = tuple(0.7**n for n in range(7))
"""Shares of the threshold that are tried for that."""


def automatic_threshold(density: Floats, extent: float) -> float:
    """The density whose iso-surface is the surface of the field.

    It is lowered, to an eighth at the least, until the surface holds the object together.

    Args:
        density: (R, R, R) per scene unit, at the nodes of a grid over [-extent, extent]^3.

    Raises:
        BadMesh: the field is empty: nothing in it would be seen.
    """
    density = _coarse(density)
    optical = density * (2 * extent / (len(density) - 1))
    # Six stacks of lines of sight, (R^2, R): along each axis from both ends, the last axis is depth.
    along = [np.moveaxis(optical, axis, -1).reshape(-1, len(optical)) for axis in range(3)]
    lines = [line[:, ::step] for line in along for step in (1, -1)]
    opacity = 1 - np.exp(-max(float(line.sum(-1).max()) for line in along))
    if opacity < _LEAST_OPACITY:
        raise BadMesh(
            f"the scene is empty: its densest line of sight is {100 * opacity:.1f} % opaque; "
            "train it for longer, or set a threshold by hand"
        )
    met = np.concatenate([_density_where_gone(line, opacity / 2) for line in lines])
    surface = float(np.median(met)) / 2 * (len(density) - 1) / (2 * extent)
    return next((s * surface for s in _LOWERED if _largest_share(density > s * surface) >= _WHOLE), surface)


def _largest_share(solid: np.ndarray) -> float:
    """Share of the nodes of a mask that its largest component has; 0 if it is empty."""
    sizes = np.bincount(label(solid)[0].ravel())[1:]
    return float(sizes.max() / sizes.sum()) if len(sizes) else 0.0


def _coarse(density: Floats) -> Floats:
    """The field averaged over blocks, so that a side has at most `_MOST_CELLS` nodes."""
    block = -(-len(density) // _MOST_CELLS)
    size = len(density) // block
    density = density[: size * block, : size * block, : size * block]
    return density.reshape(size, block, size, block, size, block).mean(axis=(1, 3, 5))


def _density_where_gone(lines: Floats, least: float) -> Floats:
    """The optical depth per cell at which `_GONE` of the light has stopped, for lines (N, R) that stop `least`."""
    stopped = 1 - np.exp(-np.cumsum((lines[:, 1:] + lines[:, :-1]) / 2, axis=-1))
    stopped = np.pad(stopped, ((0, 0), (1, 0)))
    opaque = stopped[:, -1] > least
    lines, stopped = lines[opaque], stopped[opaque]
    wanted = _GONE * stopped[:, -1]
    row, after = np.arange(len(lines)), (stopped >= wanted[:, None]).argmax(-1)
    before = after - 1
    part = (wanted - stopped[row, before]) / (stopped[row, after] - stopped[row, before])
    return lines[row, before] + part * (lines[row, after] - lines[row, before])
