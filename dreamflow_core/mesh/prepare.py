"""Any mesh made ready to be optimised: a texture to paint on, and a place where cameras see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .bake import fill, sample_texture, surface_texels
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
        texels = surface_texels(flat, side)
        return replace(flat, texture=fill(texels, texels.interpolate(colours, flat.faces)))
    if size is not None and max(mesh.texture.shape[:2]) < size:
        return replace(mesh, texture=_enlarged(mesh.texture, size))
    return mesh


def _enlarged(texture: np.ndarray, size: int) -> np.ndarray:
    scale = size / max(texture.shape[:2])
    rows, columns = (round(side * scale) for side in texture.shape[:2])
    v, u = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return sample_texture(texture, np.stack([u, v], axis=-1).astype(np.float32))


def framed(mesh: Mesh) -> tuple[Mesh, Callable[[Mesh], Mesh]]:
    """The mesh where cameras see it, and the way back to its own place for what became of it.

    A mesh that lies in the unit sphere and is not tiny stays as it is.

    Raises:
        BadMesh: the mesh has no extent.
    """
    reach = np.linalg.norm(mesh.vertices, axis=1).max()
    if _LEAST_REACH <= reach <= 1:
        return mesh, lambda changed: changed
    centre = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    size = float(np.linalg.norm(mesh.vertices - centre, axis=1).max())
    if size == 0:
        raise BadMesh("all vertices of the mesh lie at one point")
    scale = _REACH / size
    moved = replace(mesh, vertices=(mesh.vertices - centre) * scale)
    return moved, lambda changed: replace(changed, vertices=changed.vertices / scale + centre)
