"""What a mesh file of any format shows: parts, and the materials that colour them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .gltf_materials import Material
from .mesh import Floats, Ints


@dataclass(frozen=True, eq=False)
class Part:
    """Triangles of one material.

    Attributes:
        material: key of `Scene.materials`.
        faces: (F, 3) indices into the vertices, counter-clockwise seen from outside.
        positions: (V, 3) float64, in the scene.
        normals: (V, 3) float64, unit length, in the scene. None if the file has none.
        uvs: the UV sets by their numbers, each (V, 2), origin at the texture's top left.
        colours: (V, 4) linear in [0, 1]; None without.
    """

    material: int | None
    faces: Ints
    positions: Floats
    normals: Floats | None
    uvs: dict[int, Floats]
    colours: Floats | None


@dataclass(frozen=True, eq=False)
class Scene:
    """What a file shows.

    Attributes:
        parts: its triangles.
        materials: those that the parts have, by their numbers; None is the default one.
        warnings: what the file has that is not read, a sentence each.
    """

    parts: Sequence[Part]
    materials: dict[int | None, Material]
    warnings: list[str]

    def base_colours(self, part: Part, faces: Ints, weights: Floats) -> Floats:
        """Linear RGBA at P points of a part, (P, 4): factor times texture times vertex colour.

        Args:
            part: one of this scene's.
            faces: (P,) the faces that the points lie in.
            weights: (P, 3) barycentric weights of the faces' corners.

        Raises:
            BadFile: the texture cannot be read.
        """
        material = self.materials[part.material]
        corners = part.faces[faces]
        colours = np.tile(material.base_colour, (len(corners), 1))
        texture = material.base_texture
        if texture is not None and texture.tex_coord in part.uvs:
            colours *= texture.sample(_at(part.uvs[texture.tex_coord], corners, weights))
        if part.colours is not None:
            colours *= _at(part.colours, corners, weights)
        return colours


def _at(values: Floats, corners: Ints, weights: Floats) -> Floats:
    """Values (V, C) of vertices at points given by their faces' corners (P, 3) and weights (P, 3), (P, C)."""
    return np.einsum("pk,pkc->pc", weights, values[corners], dtype=np.float64)
