"""Triangles of polygons, concave ones too."""

from __future__ import annotations

import numpy as np

from .mesh import Floats, Ints


def triangulate(points: Floats, sizes: Ints) -> tuple[Ints, Ints]:
    """Cut polygons into triangles, each polygon into two fewer than it has corners.

    Convex polygons become fans about their first corner. Others lose one ear after the other; of those that cross
    themselves the inside is not known, and the triangles are some that use all corners.

    Args:
        points: (C, 3) the corners of all polygons, one polygon after the other.
        sizes: (N,) corners of each polygon, three or more.

    Returns:
        The triangles (T, 3), indices into the corners, wound as their polygons are, in the order of the polygons; and
        the polygon (T,) of each.
    """
    starts = np.cumsum(sizes) - sizes
    triangles, owners = [], []
    for size in np.unique(sizes):
        polygons = np.flatnonzero(sizes == size)
        corners = starts[polygons, None] + np.arange(size)
        step = np.arange(1, size - 1)
        fans = np.stack(
            [np.broadcast_to(corners[:, :1], (len(corners), size - 2)), corners[:, step], corners[:, step + 1]], -1
        )
        if size > 3:
            flat = _flattened(points[corners])
            for k in np.flatnonzero((_turns(flat) <= 0).any(axis=1)):
                fans[k] = corners[k][_ears(flat[k])]
        triangles.append(fans.reshape(-1, 3))
        owners.append(np.repeat(polygons, size - 2))
    owner = np.concatenate([np.zeros(0, np.int64), *owners])
    order = np.argsort(owner, kind="stable")
    return np.concatenate([np.zeros((0, 3), np.int64), *triangles])[order], owner[order]


def _flattened(polygons: Floats) -> Floats:
    """Polygons (N, K, 3) seen along their normals' largest axis, (N, K, 2), counter-clockwise."""
    # Relative to a corner: far from the origin the products would lose the area.
    polygons = polygons - polygons[:, :1]
    normals = np.cross(polygons, np.roll(polygons, -1, axis=1)).sum(axis=1)
    axis = np.abs(normals).argmax(axis=1)
    plane = np.stack([(axis + 1) % 3, (axis + 2) % 3], axis=-1)
    flat = np.take_along_axis(polygons, plane[:, None], axis=2)
    flat[np.take_along_axis(normals, axis[:, None], axis=1)[:, 0] < 0, :, 0] *= -1
    return flat


def _cross(a: Floats, b: Floats) -> Floats:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _turns(flat: Floats) -> Floats:
    """How far polygons (..., K, 2) turn left at each corner, (..., K)."""
    return _cross(flat - np.roll(flat, 1, axis=-2), np.roll(flat, -1, axis=-2) - flat)


def _ears(flat: Floats) -> Ints:
    """The triangles (K - 2, 3) of one polygon (K, 2)."""
    left = np.arange(len(flat))
    ears = []
    while len(left) > 3:
        turns = _turns(flat[left])
        # Sharp corners first; where nothing is an ear, the polygon crosses itself.
        order = np.argsort(-turns, kind="stable")
        tip = next((k for k in order if turns[k] > 0 and _is_ear(flat[left], turns, k)), order[0])
        ears.append(left[[tip - 1, tip, (tip + 1) % len(left)]])
        left = np.delete(left, tip)
    return np.array([*ears, left])


def _is_ear(flat: Floats, turns: Floats, tip: int) -> bool:
    """Whether no other corner lies in the triangle at a corner. Those on its corners, as bridges to holes have, may."""
    triangle = flat[[tip - 1, tip, (tip + 1) % len(flat)]]
    others = flat[turns <= 0]
    inside = np.all([_cross(b - a, others - a) >= 0 for a, b in zip(triangle, np.roll(triangle, -1, axis=0))], axis=0)
    apart = (others[:, None] != triangle).any(axis=-1).all(axis=1)
    return not (inside & apart).any()
