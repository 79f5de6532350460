"""Any mesh made ready to be optimised: a texture to paint on, and a place where cameras see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .bake import paint, resized
from .mesh import BadMesh, Mesh
from .unwrap import unwrap

TEXTURE_SIZE = 512
"""Side of the texture of a mesh that brings none."""
BARE = 0.8
"""The grey of a mesh that has no colours."""
_REACH = 0.9
"""How far from the origin a mesh that was moved reaches."""
_LEAST_REACH = 0.5
"""A smaller mesh is enlarged."""


def paintable(mesh: Mesh, size: int | None = None) -> Mesh:
    """The mesh with UVs and a texture.

    UVs are made where there are none; vertex colours become the texture of a mesh without one, and a bare
    mesh becomes grey. A smaller texture is enlarged to `size`.

    Args:
        size: side of the texture; None keeps the mesh's own, or makes one of `TEXTURE_SIZE`.

    Raises:
        BadMesh: the size is out of range.
    """
    if mesh.texture is None:
        side = size or TEXTURE_SIZE
        flat = mesh if mesh.uvs is not None else unwrap(mesh, side)[0]
        colours = np.full_like(flat.vertices, BARE) if flat.colours is None else flat.colours
        return replace(flat, texture=paint(flat, side, lambda texels: texels.interpolate(colours, flat.faces)))
    if size is not None and max(mesh.texture.shape[:2]) < size:
        scale = size / max(mesh.texture.shape[:2])
        return replace(mesh, texture=resized(mesh.texture, *(round(side * scale) for side in mesh.texture.shape[:2])))
    return mesh


def framed(mesh: Mesh) -> tuple[Mesh, Callable[[Mesh], Mesh]]:
    """The mesh where cameras see it, and the way back to its own place for what became of it.

    A mesh that lies in the unit sphere and is not tiny stays where it is. Only vertices that faces use count. The way
    back leaves every vertex that did not move as it was, to the bit.

    Raises:
        BadMesh: the mesh has no extent.
    """
    used = np.unique(mesh.faces)
    # Far from the origin, single precision would lose more than the vertices have lost already.
    places = mesh.vertices[used].astype(np.float64)
    centre, scale = _frame(places)
    vertices = np.zeros_like(mesh.vertices)
    vertices[used] = (places - centre) * scale
    placed = replace(mesh, vertices=vertices)

    def back(changed: Mesh) -> Mesh:
        moved = used[(changed.vertices[used] != placed.vertices[used]).any(axis=1)]
        vertices = mesh.vertices.copy()
        vertices[moved] = changed.vertices[moved].astype(np.float64) / scale + centre
        return replace(changed, vertices=vertices)

    return placed, back


def _frame(places: np.ndarray) -> tuple[np.ndarray, float]:
    """The point that goes to the origin, and the scale after that."""
    if _LEAST_REACH <= np.linalg.norm(places, axis=1).max() <= 1:
        return np.zeros(3), 1.0
    centre = (places.min(axis=0) + places.max(axis=0)) / 2
    size = float(np.linalg.norm(places - centre, axis=1).max())
    if size == 0:
        raise BadMesh("all vertices of the mesh lie at one point")
    return centre, _REACH / size
