"""A scene as one mesh with one texture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import topology
from .bake import Texels, paint
from .colours import to_display, to_linear
from .gltf_materials import REPEAT, Material, Texture
from .mesh import Floats, Mesh
from .scene import Part, Scene
from .unwrap import unwrap_at

NORMAL_MAP = "normal map"
SQUARES = "texels as squares"
# Without normals glTF's faces are flat.
FLAT_FACES = "flat faces, as it has no normals"
SOME_NORMALS = "normals, as some parts have none"

_SIZES = (512, 1024, 2048, 4096)
"""Sides of an atlas into which several textures are baked, unless one is asked for."""
_VERTEX_TEXELS = 4
"""So many texels for each vertex keep its colour."""
_LEAST_DENSITY = 1 / 4
"""Of the texels of a part without a texture, to those per scene unit in the mean, so that it can be painted."""


def one_mesh(scene: Scene, atlas_size: int | None = None) -> tuple[Mesh, list[str], list[str]]:
    """All parts of a scene as one mesh; what there is to say of it, a sentence each; and what of the scene it has no
    place for, a few words each.

    The base colour is factor times texture times COLOR_0, as glTF 2.0 multiplies them (3.9.2). UVs stay as they are
    where one texture covers all and they lie in it; several textures, tiled ones, and those under vertex
    colours are baked into a new atlas. Without a texture, factors and COLOR_0 become vertex colours.

    Args:
        atlas_size: side of the new atlas, in texels; None takes the smallest of `_SIZES` in which nothing is lost.
    """
    materials = list(scene.materials.values())
    mesh = Mesh(
        np.concatenate([part.positions for part in scene.parts]),
        _joined([part.faces for part in scene.parts], [len(part.positions) for part in scene.parts]),
        normals=_all([part.normals for part in scene.parts]),
        unlit=all(material.unlit for material in materials),
        double_sided=any(material.double_sided for material in materials),
    )
    said = [*scene.warnings]
    if not any(_texture(scene, part) for part in scene.parts):
        mesh = replace(mesh, uvs=_plain_uvs(scene), colours=_vertex_colours(scene))
        if mesh.uvs is None and any(part.uvs for part in scene.parts):
            said.append("its UVs reach outside a texture or are all alike, so it is painted on a new atlas")
    elif (kept := _kept(scene)) is not None:
        mesh = replace(mesh, **kept)
    else:
        mesh, sentence = _baked(scene, mesh, [atlas_size] if atlas_size else _SIZES)
        said.append(sentence)
    return mesh, said, _unseen(scene, mesh)


def _texture(scene: Scene, part: Part) -> Texture | None:
    """The picture of a part's base colour that its UVs show."""
    texture = scene.materials[part.material].base_texture
    return texture if texture is not None and texture.tex_coord in part.uvs else None


def _joined(faces: Sequence[np.ndarray], counts: Sequence[int]) -> np.ndarray:
    starts = np.cumsum([0, *counts[:-1]])
    return np.concatenate([of_part + start for of_part, start in zip(faces, starts)])


def _all(arrays: Sequence[Floats | None]) -> Floats | None:
    given = [array for array in arrays if array is not None]
    return np.concatenate(given) if len(given) == len(arrays) else None


def _in_unit_square(uvs: Floats | None) -> Floats | None:
    """UVs that a texture can be painted on: in it, and not all alike."""
    return uvs if uvs is not None and uvs.min() >= 0 and uvs.max() <= 1 and not _alike(uvs) else None


def _alike(uvs: Floats) -> bool:
    return bool((uvs == uvs[0]).all())


def _plain_uvs(scene: Scene) -> Floats | None:
    """The first set of UVs of all parts, if a texture can be painted on it."""
    return _in_unit_square(_all([part.uvs.get(0) for part in scene.parts]))


def _vertex_colours(scene: Scene) -> Floats | None:
    """Factor times COLOR_0; None where nothing in the file has a colour."""
    if all(part.material is None and part.colours is None for part in scene.parts):
        return None
    colours = []
    for part in scene.parts:
        factor = np.array(scene.materials[part.material].base_colour[:3])
        vertices = np.ones((len(part.positions), 3)) if part.colours is None else part.colours[:, :3]
        colours.append(to_display(factor * vertices))
    return np.concatenate(colours)


def _kept(scene: Scene) -> dict[str, Any] | None:
    """UVs, texture and normal map of a `Mesh` as the file has them, where that is all there is to its colours."""
    (material, *others) = scene.materials.values()
    texture = material.base_texture
    white = all(part.colours is None or (part.colours[:, :3] == 1).all() for part in scene.parts)
    alike = all(_shown_alike(material, other) for other in others)
    if not alike or texture is None or not white:
        return None
    uvs = _all([part.uvs.get(texture.tex_coord) for part in scene.parts])
    if uvs is None:
        return None
    placed = _in_unit_square(texture.transform(uvs) if _is_moved(texture) else uvs)
    if placed is None:
        return None
    colours = _colours(texture)
    if material.base_colour[:3] != (1.0, 1.0, 1.0):
        colours = to_display(to_linear(colours) * material.base_colour[:3])
    bumps = material.normal_texture
    bent_alike = all(_is_same(other.normal_texture, bumps) for other in others)
    kept = bumps is not None and bent_alike and bumps.strength == 1 and _seen_alike(bumps, texture)
    return {
        "uvs": placed,
        "texture": colours,
        "repeats": tuple(mode == REPEAT for mode in texture.wrap),
        "normal_map": _colours(bumps) if bumps is not None and kept else None,
    }


def _colours(texture: Texture) -> Floats:
    pixels = texture.picture.pixels
    return pixels[..., :3].astype(np.float32) / np.iinfo(pixels.dtype).max


def _is_moved(texture: Texture) -> bool:
    return (texture.offset, texture.rotation, texture.scale) != ((0.0, 0.0), 0.0, (1.0, 1.0))


def _shown_alike(material: Material, other: Material) -> bool:
    """Whether two materials show the same base colours."""
    return material.base_colour[:3] == other.base_colour[:3] and _is_same(material.base_texture, other.base_texture)


def _is_same(texture: Texture | None, other: Texture | None) -> bool:
    if texture is None or other is None:
        return texture is other
    return texture.picture is other.picture and texture.wrap == other.wrap and _seen_alike(texture, other)


def _seen_alike(texture: Texture, other: Texture) -> bool:
    """Whether two textures lie on each other."""
    names = ("tex_coord", "offset", "rotation", "scale")
    return all(getattr(texture, name) == getattr(other, name) for name in names)


def _baked(scene: Scene, mesh: Mesh, sizes: Sequence[int]) -> tuple[Mesh, str]:
    """The mesh with an atlas of its own, into which all parts are baked, and a sentence about it."""
    flat, _, size, share = unwrap_at(mesh, _density(scene), sizes)
    detail = "" if share >= 1 else f", at {share:.0%} of its textures' resolution"
    # What nothing is painted on keeps its own textures and UVs in the file.
    made = f"its colours are baked into a new atlas of {size} x {size}{detail}, to be drawn and painted"
    sentence = f"{_why_baked(scene)}, so {made}"
    texture = paint(flat, size, lambda texels: to_display(baked(scene, texels)[:, :3]))
    return replace(flat, texture=texture), sentence


def baked(scene: Scene, texels: Texels) -> Floats:
    """Linear RGBA (T, 4) in [0, 1] of the surface of all parts, whose faces are counted one after the other."""
    colours = np.empty((len(texels.face), 4), np.float32)
    counts = [len(part.faces) for part in scene.parts]
    ends = np.cumsum(counts)
    part = np.searchsorted(ends, texels.face, side="right")
    for number in np.unique(part):
        of_part = np.flatnonzero(part == number)
        faces = texels.face[of_part] - (ends[number] - counts[number])
        colours[of_part] = scene.base_colours(scene.parts[number], faces, texels.weights[of_part])
    # Weights, and so colours, can be a rounding error beyond.
    return np.clip(colours, 0, 1)


def _why_baked(scene: Scene) -> str:
    if len(scene.materials) > 1:
        return "it has several materials"
    if any(part.colours is not None and (part.colours[:, :3] != 1).any() for part in scene.parts):
        return "its vertex colours multiply its texture"
    if not all(_texture(scene, part) for part in scene.parts):
        return "parts of it lack the UVs of its texture"
    return "its UVs reach outside its texture or are all alike"


def _density(scene: Scene) -> Floats:
    """Texels per scene unit that an atlas needs so that nothing is lost, (F,), the same for all faces of a part.

    A part has as many texels in all as its UVs cover in its texture. Where UVs are stretched, some of its faces had
    more. Without a texture it has a few for the colour of each vertex.
    """
    texels, areas = [], []
    for part in scene.parts:
        needed = float(_VERTEX_TEXELS * len(part.positions))
        if (texture := _texture(scene, part)) is not None:
            height, width = texture.picture.pixels.shape[:2]
            uvs = part.uvs[texture.tex_coord] * texture.scale * (width, height)
            needed = max(needed, topology.face_areas(np.pad(uvs, ((0, 0), (0, 1))), part.faces).sum())
        texels.append(needed)
        areas.append(topology.face_areas(part.positions, part.faces).sum())
    least = _LEAST_DENSITY * math.sqrt(sum(texels) / (sum(areas) or 1))
    of_parts = [max(math.sqrt(needed / area), least) if area else least for needed, area in zip(texels, areas)]
    return np.repeat(of_parts, [len(part.faces) for part in scene.parts])


def _unseen(scene: Scene, mesh: Mesh) -> list[str]:
    """What of a scene the mesh has no place for."""
    materials = scene.materials.values()
    unseen = []
    if any(material.alpha_mode != "OPAQUE" for material in materials):
        unseen.append("transparency")
    if any(material.base_texture and material.base_texture.nearest for material in materials):
        unseen.append(SQUARES)
    if any(material.normal_texture for material in materials) and mesh.normal_map is None:
        unseen.append(NORMAL_MAP)
    for name in ("metallic_roughness", "occlusion"):
        if any(getattr(material, f"{name}_texture") for material in materials):
            unseen.append(f"{name.replace('_', '-')} map")
    if any(any(material.emissive) for material in materials):
        unseen.append("emission")
    if not mesh.unlit and any(material.unlit for material in materials):
        unseen.append("unlit materials among lit ones")
    if mesh.normals is None and not mesh.unlit:
        unseen.append(SOME_NORMALS if any(part.normals is not None for part in scene.parts) else FLAT_FACES)
    return unseen
