"""From the scene back into the space in which a glTF primitive is stored: the inverse of `gltf_nodes.placed`.

Linear maps lead from that space to the scene: (1, 3, 3), or (V, 3, 3) with one for each vertex. A map that flattens has
no inverse: nothing moves along the axis that it scales to 0, and directions keep unit length all the same.
"""

from __future__ import annotations

import numpy as np

from .gltf_nodes import unit
from .mesh import Floats

_FLAT = 1e-6
"""A smaller share of a map's largest scale is 0: single precision could not hold what it takes to move there."""


def rank(linear: Floats) -> np.ndarray:
    """Along how many axes things can move under each map, (1,) or (V,)."""
    scales = np.linalg.svd(linear, compute_uv=False)
    return ((scales > _FLAT * scales[:, :1]) & (scales > 0)).sum(axis=1)


def to_local(linear: Floats, shifts: Floats) -> Floats:
    """The shortest displacements (V, 3) that come closest to those in the scene (V, 3)."""
    return _each(np.linalg.pinv(linear, rcond=_FLAT), shifts)


def reached(linear: Floats, shifts: Floats) -> Floats:
    """The displacements in the scene (V, 3) that come closest to those asked for (V, 3)."""
    flat = rank(linear) < 3
    if not flat.any():
        return shifts
    near = _each(linear, to_local(linear, shifts))
    small = _FLAT * np.linalg.norm(shifts, axis=1, keepdims=True)
    near = np.where(np.linalg.norm(near, axis=1, keepdims=True) > small, near, 0)
    return np.where(flat[:, None], near, shifts)


def local_normals(linear: Floats, normals: Floats) -> Floats:
    """Unit normals (V, 3) that lead to those in the scene (V, 3)."""
    return _directions(np.swapaxes(linear, 1, 2), linear, normals)


def local_tangents(linear: Floats, tangents: Floats) -> Floats:
    """Unit tangents (V, 3), perpendicular to `local_normals`, that lead to those in the scene (V, 3)."""
    return _directions(np.linalg.pinv(linear, rcond=_FLAT), linear, tangents)


def _directions(inverse: Floats, linear: Floats, directions: Floats) -> Floats:
    """Unit vectors: what the inverse makes of directions, or the nearest rotation where that is nothing."""
    along = _each(inverse, directions)
    gone = np.linalg.norm(along, axis=1) <= _FLAT * np.linalg.norm(inverse, axis=(1, 2))
    if gone.any():
        rotations = _rotations(np.broadcast_to(linear, (len(along), 3, 3))[gone])
        along[gone] = _each(np.swapaxes(rotations, 1, 2), directions[gone])
    return unit(along)


def _rotations(linear: Floats) -> Floats:
    """The nearest rotation of each map."""
    left, _, right = np.linalg.svd(linear)
    left[:, :, 2] *= np.linalg.det(left @ right)[:, None]
    return left @ right


def _each(matrices: Floats, vectors: Floats) -> Floats:
    """Products of matrices (1 or V, 3, 3) and vectors (V, 3)."""
    return np.einsum("vij,vj->vi", matrices, vectors)


def before_displacement(wanted: Floats, given: Floats, displacement: Floats) -> tuple[Floats, Floats]:
    """Unit normals that point as wanted once they are displaced.

    Args:
        wanted: (V, 3) unit length.
        given: (V, 3) the normals so far, which stay where none other of unit length does.
        displacement: (V, 3).

    Returns:
        The normals (V, 3), and what the displacement lacks (V, 3), zero for most.
    """
    # |s wanted - displacement| = 1 for the length s of the sum; of two the one that changes less.
    along = (wanted * displacement).sum(axis=1)
    left = along**2 - (displacement**2).sum(axis=1) + 1
    before = np.linalg.norm(given + displacement, axis=1)
    lengths = along + np.sqrt(np.maximum(left, 0)) * np.array([[1], [-1]])
    change = np.where(lengths > _FLAT, np.abs(lengths - before), np.inf)
    length = np.where(change[0] <= change[1], *lengths)
    possible = ((left >= 0) & np.isfinite(change).any(axis=0))[:, None]
    kept = unit(np.where((given != 0).any(axis=1, keepdims=True), given, wanted))
    lacks = wanted * np.where(before > _FLAT, before, 1)[:, None] - kept - displacement
    return np.where(possible, unit(length[:, None] * wanted - displacement), kept), np.where(possible, 0, lacks)
