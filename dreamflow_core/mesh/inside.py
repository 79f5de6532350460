"""What is inside a radiance field: where light from outside hardly gets.

A wall of one colour looks the same from every side however deep behind it light stops, so nothing supervises its
density: parts of it stay a haze, thin enough for an iso-surface to lose them and show pits and tunnels that no
picture shows. What most light never reaches belongs to the object whatever its density (ours; in the spirit of the
photo hull, Kutulakos and Seitz 2000: the largest shape that the pictures allow).
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from scipy.ndimage import grey_closing

from .mesh import Floats

_HALF = math.log(2)
"""Optical depth at which half of the light is gone: where cameras see the surface of a soft wall, and, where density
falls off exponentially, where it falls below the automatic threshold. So outlines stay, to within a node if the grid
is too coarse for the fall-off."""
_NARROW = 1 / 8
"""Scene units: light in narrower beams does not count. It falls through the gaps that a haze has, or through a bottom
that no camera sees into a hollow behind a thin wall."""


def with_solid_inside(density: Floats, extent: float, threshold: float) -> Floats:
    """The density, raised to the threshold and above wherever less than half of the light gets, (R, R, R).

    Pits and tunnels that are left with less than three nodes across are more than the grid can tell, and filled too.

    Args:
        density: (R, R, R) per scene unit, at the nodes of a grid over [-extent, extent]^3.
        threshold: the density at the surface.
    """
    solid = np.maximum(density, threshold / _HALF * least_optical_depth(density, extent, _NARROW))
    return grey_closing(solid, size=(3, 3, 3))


def least_optical_depth(density: Floats, extent: float, narrow: float) -> Floats:
    """What lies between each node of a grid and the outside, (R, R, R): the integral of density on the clearest way.

    Ways are straight and go along the axes and the diagonals of faces and cells, 26 in all: what is open to other
    directions only counts as covered, and so does what is open to less than a square of `narrow` scene units a side,
    in slices across the axis that a way is nearest to. Takes a few more arrays of the density's size,
    and time by its nodes (3 seconds for 128^3 of them on one core).
    """
    spacing = 2 * extent / (len(density) - 1)
    width = 1 + 2 * round(narrow / 2 / spacing)
    least = np.full_like(density, np.inf)
    for direction in product((-1, 0, 1), repeat=3):
        if any(direction):
            np.minimum(least, _optical_depth(density, direction, spacing, width), out=least)
    return least


def _optical_depth(density: Floats, direction: tuple[int, ...], spacing: float, width: int) -> Floats:
    """The integral of density along lines that enter the grid in a direction, up to each node.

    What is less deep over fewer than `width` nodes is filled up to what is around.
    """
    axis = next(i for i, step in enumerate(direction) if step)
    forward = direction[axis]
    sideways = [step for i, step in enumerate(direction) if i != axis]
    half_step = spacing * math.sqrt(sum(map(abs, direction))) / 2
    slices = half_step * np.moveaxis(density, axis, 0)[::forward]
    depth = np.zeros_like(slices)
    for k in range(1, len(slices)):
        depth[k] = _shifted(depth[k - 1] + slices[k - 1], sideways) + slices[k]
    depth = grey_closing(depth, size=(1, width, width))
    return np.moveaxis(depth[::forward], 0, axis)


def _shifted(image: Floats, steps: list[int]) -> Floats:
    """An image (R, R) moved by -1, 0 or 1 along each axis, zero where it moved away from."""
    rows, columns = (slice(1 - step, 1 - step + size) for step, size in zip(steps, image.shape))
    return np.pad(image, 1)[rows, columns]
