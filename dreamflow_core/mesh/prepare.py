"""Any mesh made ready to be optimised: a texture to paint on, and a place where cameras see it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from . import topology
from .bake import Texels, fill, paint, resized, sample_texture, surface_texels
from .colours import to_display, to_linear
from .mesh import BadMesh, Floats, Ints, Mesh
from .normal_map import bend, slopes_of, tangents, to_normal_map, to_slopes
from .unwrap import LEAST_TEXTURE, MOST_TEXTURE, unwrap

TEXTURE_SIZE = 512
"""Side of the texture of a mesh that brings none."""
BARE = 0.8
"""The grey of a mesh that has no colours."""
_REACH = 0.9
"""How far from the origin a mesh that was moved reaches."""
_LEAST_REACH = 0.5
"""A smaller mesh is enlarged."""
_SURVEY = 720
"""Side in texels of the square on which it is found how UVs overlap."""
_SHARED = 0.01
"""Less than this share of UVs that overlap, or of a surface without UVs of its own, is not worth a word."""

_SEVERAL = "so texels there are painted from several places; unwrap (--unwrap) makes new UVs"


def paintable(mesh: Mesh, size: int | None = None, new_uvs: bool = False) -> Mesh:
    """The mesh with UVs and a texture.

    UVs are made where there are none or none with an area; vertex colours become the texture of a mesh without one,
    and a bare mesh becomes grey. A smaller texture is enlarged to `size`. A mesh that has UVs keeps them to the bit,
    unless new ones are asked for: then its texture and normal map are baked into a new atlas.

    Args:
        size: side of the texture; None keeps the mesh's own, or makes one of `TEXTURE_SIZE`. New atlases are at
            least that large without it.
        new_uvs: make them also where there are some.

    Raises:
        BadMesh: the size is out of range, or an atlas cannot be made (`unwrap`).
    """
    if mesh.uvs is None or new_uvs or _without_area(mesh):
        mesh = _unwrapped(mesh, size or _side(mesh))
    if mesh.texture is None:
        side = size or TEXTURE_SIZE
        colours = np.full_like(mesh.vertices, BARE) if mesh.colours is None else mesh.colours
        # Viewers interpolate vertex colours as light.
        light = to_linear(colours)
        texture = paint(mesh, side, lambda texels: to_display(texels.interpolate(light, mesh.faces)))
        return replace(mesh, texture=texture)
    if size is None and max(mesh.texture.shape[:2]) < LEAST_TEXTURE:
        # A single colour is often a texture of one texel.
        size = TEXTURE_SIZE
    if size is not None and max(mesh.texture.shape[:2]) < size:
        scale = size / max(mesh.texture.shape[:2])
        height, width = (round(side * scale) for side in mesh.texture.shape[:2])
        return replace(mesh, texture=resized(mesh.texture, height, width, mesh.repeats))
    return mesh


def uv_warning(mesh: Mesh) -> str | None:
    """What painting on the UVs of a mesh leads to, if they are not the usual ones, a sentence; None if they are.

    Usual UVs lie in the unit square, each face beside the others.
    """
    if mesh.uvs is None:
        return None
    if _without_area(mesh):
        return "its UVs have no area, so a new atlas is made"
    if mesh.uvs.min() < 0 or mesh.uvs.max() > 1:
        return f"its UVs reach outside the texture, which repeats there, {_SEVERAL}"
    if (shared := _shared(mesh)) > _SHARED:
        return f"{shared:.0%} of its UVs lie on others, {_SEVERAL}"
    surface = topology.face_areas(mesh.vertices, mesh.faces)
    without = surface[_uv_areas(mesh) == 0].sum() / (surface.sum() or 1)
    if without > _SHARED:
        return f"the UVs of {without:.0%} of its surface have no area, {_SEVERAL}"
    return None


def _uv_areas(mesh: Mesh) -> Floats:
    """Of the faces in the unit square, (F,)."""
    assert mesh.uvs is not None
    return topology.face_areas(np.pad(mesh.uvs, ((0, 0), (0, 1))), mesh.faces)


def _shared(mesh: Mesh) -> float:
    """About the share of the area of UVs in the unit square that lies under other faces."""
    assert mesh.uvs is not None
    # At an odd angle, so that charts do not end on lines of texels.
    cos, sin = math.cos(1), math.sin(1)
    turned = replace(mesh, uvs=(mesh.uvs - 0.5) @ np.array([[cos, sin], [-sin, cos]]) / (cos + sin) + 0.5)
    # A texel counts once, however many faces cover it.
    covered = surface_texels(turned, _SURVEY).inside.sum() / _SURVEY**2
    return float(1 - covered / _uv_areas(turned).sum())


def _without_area(mesh: Mesh) -> bool:
    """Whether UVs all lie at a few points: together they are smaller than a texel."""
    return bool(_uv_areas(mesh).sum() * TEXTURE_SIZE**2 < 1)


def _side(mesh: Mesh) -> int:
    """Of a new atlas, from the pictures that it is to hold."""
    sides = (max(image.shape[:2]) for image in (mesh.texture, mesh.normal_map) if image is not None)
    return min(max(TEXTURE_SIZE, *sides, 0), MOST_TEXTURE)


def _unwrapped(mesh: Mesh, size: int) -> Mesh:
    """The mesh with a new atlas, and with its texture and normal map, if it has them, in it."""
    flat, split_from = unwrap(mesh, size)
    if mesh.texture is None and mesh.normal_map is None:
        return flat
    assert mesh.uvs is not None
    texels = surface_texels(flat, size)
    uvs = texels.interpolate(mesh.uvs[split_from], flat.faces)
    texture = None if mesh.texture is None else fill(texels, sample_texture(mesh.texture, uvs, mesh.repeats))
    if mesh.normal_map is None:
        return replace(flat, texture=texture)
    slopes = _turned_slopes(mesh, flat, split_from, texels, sample_texture(mesh.normal_map, uvs, mesh.repeats))
    return replace(flat, texture=texture, normal_map=fill(texels, to_normal_map(slopes).numpy()))


def _turned_slopes(mesh: Mesh, flat: Mesh, split_from: Ints, texels: Texels, normals: Floats) -> torch.Tensor:
    """Slopes (T, 2) in the tangent space of the new UVs, of texels (T, 3) of a normal map that was drawn in the old."""
    smooth = topology.vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals

    def at_texels(values: Floats) -> torch.Tensor:
        return torch.from_numpy(texels.interpolate(values, flat.faces))

    before = tangents(replace(mesh, normals=smooth))[split_from]
    after = tangents(replace(flat, normals=smooth[split_from]))
    normal = torch.nn.functional.normalize(at_texels(smooth[split_from]), dim=1)
    bent = bend(normal, at_texels(before), to_slopes(torch.from_numpy(normals)))
    return slopes_of(bent, normal, at_texels(after))


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
    given, placed = mesh.vertices, np.zeros_like(mesh.vertices)
    placed[used] = (places - centre) * scale

    def back(changed: Mesh) -> Mesh:
        moved = used[(changed.vertices[used] != placed[used]).any(axis=1)]
        vertices = given.copy()
        vertices[moved] = changed.vertices[moved].astype(np.float64) / scale + centre
        return replace(changed, vertices=vertices)

    return replace(mesh, vertices=placed), back


def _frame(places: np.ndarray) -> tuple[np.ndarray, float]:
    """The point that goes to the origin, and the scale after that."""
    if _LEAST_REACH <= np.linalg.norm(places, axis=1).max() <= 1:
        return np.zeros(3), 1.0
    centre = (places.min(axis=0) + places.max(axis=0)) / 2
    size = float(np.linalg.norm(places - centre, axis=1).max())
    if size == 0:
        raise BadMesh("all vertices of the mesh lie at one point")
    return centre, _REACH / size
