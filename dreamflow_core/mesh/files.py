"""Meshes in and out of GLB, OBJ and PLY files, and in from .gltf ones.

GLB keeps all that a `Mesh` has. OBJ writes its material and texture beside itself. In PLY a texture becomes vertex
colours. Neither keeps a normal map.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply
from trimesh.visual.material import PBRMaterial

from ..state import BadFile, reading, write_bytes
from . import topology
from .bake import sample_texture
from .colours import to_linear
from .from_gltf import one_mesh
from .gltf import SUFFIXES as GLTF_SUFFIXES
from .gltf import read_gltf
from .mesh import Floats, Mesh
from .normal_map import vertex_tangents
from .obj import read_obj
from .ply import read_ply
from .scene import Scene

SUFFIXES = (".glb", ".obj", ".ply")
"""Of files that are written."""
_READERS: dict[str, Callable[[Path], Scene]] = {
    **dict.fromkeys(GLTF_SUFFIXES, read_gltf),
    ".obj": read_obj,
    ".ply": read_ply,
}
READ_SUFFIXES = tuple(_READERS)
"""Of files that are read."""

_UNLIT = "KHR_materials_unlit"
_CLAMP_TO_EDGE = 33071
_LINEAR = 9729
_LINEAR_MIPMAP_LINEAR = 9987
_ROUGHNESS = 0.9


def save_mesh(path: Path, mesh: Mesh) -> None:
    """Write a mesh; the file's suffix, one of `SUFFIXES`, is its format. Each file is written whole or not at all.

    Normals that the mesh lacks are computed, smooth across UV seams.

    Raises:
        BadFile: the suffix is another, or the file cannot be written.
    """
    suffix = _suffix(path, SUFFIXES)
    if mesh.normals is None:
        mesh = replace(mesh, normals=topology.vertex_normals(mesh.vertices, mesh.faces))
    try:
        # The file that refers to the others comes last.
        for name, data in {".glb": _glb, ".obj": _obj, ".ply": _ply}[suffix](mesh, path.stem).items():
            write_bytes(path.with_name(name), data)
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror}") from error


def load_mesh(path: Path) -> Mesh:
    """Read a mesh; several in one file become one (`from_gltf`). What is left out is one line of the log.

    Raises:
        BadFile: the file is missing, broken, of another format, or holds no usable mesh.
    """
    read = _READERS[_suffix(path, READ_SUFFIXES)]
    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    with reading(path):
        mesh, lost = one_mesh(read(path))
    if lost:
        logging.warning("%s: %s", path, "; ".join(lost))
    return mesh


def tangents(mesh: Mesh) -> Floats:
    """glTF's TANGENT of each vertex of a mesh with UVs and normals, (V, 4)."""
    assert mesh.uvs is not None and mesh.normals is not None
    vertices, faces, uvs, normals = (torch.from_numpy(a) for a in (mesh.vertices, mesh.faces, mesh.uvs, mesh.normals))
    return vertex_tangents(vertices, faces, uvs, faces, normals).numpy()


def _suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    if path.suffix.lower() not in suffixes:
        raise BadFile(f"{path} is not a mesh file that can be used: its name must end in {', '.join(suffixes)}")
    return path.suffix.lower()


def _glb(mesh: Mesh, stem: str) -> dict[str, bytes]:
    surface = _trimesh(mesh, stem)
    if mesh.texture is None and mesh.colours is not None:
        # glTF's vertex colours are linear. As a custom attribute they keep their precision.
        surface.vertex_attributes["COLOR_0"] = to_linear(np.clip(mesh.colours, 0, 1)).astype(np.float32)
    if mesh.normal_map is not None:
        # Viewers would make their own, which may differ from those that the map was made for.
        surface.vertex_attributes["TANGENT"] = tangents(mesh)

    def finish(tree: dict[str, Any]) -> None:
        attributes = tree["meshes"][0]["primitives"][0]["attributes"]
        for name in ("COLOR_0", "TANGENT"):
            if f"_{name}" in attributes:
                attributes[name] = attributes.pop(f"_{name}")
        if mesh.unlit:
            tree["materials"][0]["extensions"] = {_UNLIT: {}}
            tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), _UNLIT]
        if tree.get("textures"):
            sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR}
            tree["samplers"] = [{**sampler, "wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}]
            for texture in tree["textures"]:
                texture["sampler"] = 0

    scene = trimesh.Scene()
    scene.add_geometry(surface, geom_name=stem)
    return {f"{stem}.glb": export_glb(scene, include_normals=True, unitize_normals=True, tree_postprocessor=finish)}


def _obj(mesh: Mesh, stem: str) -> dict[str, bytes]:
    surface = _trimesh(mesh, stem)
    if mesh.texture is None and mesh.colours is not None:
        surface.visual = trimesh.visual.ColorVisuals(surface, vertex_colors=_bytes(mesh.colours))
    text, beside = export_obj(
        surface,
        include_normals=True,
        digits=_decimals(mesh),
        include_texture=mesh.texture is not None,
        return_texture=True,
        mtl_name=f"{stem}.mtl",
        header="DreamFlow for ComfyUI",
    )
    return {**beside, f"{stem}.obj": text.encode()}


def _decimals(mesh: Mesh) -> int:
    """After the point, so that all float32 positions and UVs are read back to the bit."""
    values = np.abs(np.concatenate([np.ravel(a) for a in (mesh.vertices, mesh.uvs) if a is not None]))
    return 8 - math.floor(math.log10(values[values > 0].min(initial=1)))


def _ply(mesh: Mesh, stem: str) -> dict[str, bytes]:
    colours = mesh.colours
    if mesh.texture is not None and mesh.uvs is not None:
        colours = sample_texture(mesh.texture, mesh.uvs)
    surface = _trimesh(mesh, stem)
    surface.visual = trimesh.visual.ColorVisuals(surface)
    if colours is not None:
        surface.visual.vertex_colors = _bytes(colours)
    return {f"{stem}.ply": export_ply(surface, vertex_normal=True)}


def _trimesh(mesh: Mesh, stem: str) -> trimesh.Trimesh:
    """With a material, and with the texture if there is one."""
    texture, normal_map = (
        None if image is None else Image.fromarray(_bytes(image)) for image in (mesh.texture, mesh.normal_map)
    )
    material = PBRMaterial(
        name=f"{stem}_texture",
        baseColorTexture=texture,
        normalTexture=normal_map,
        baseColorFactor=[255, 255, 255, 255],
        metallicFactor=0.0,
        roughnessFactor=_ROUGHNESS,
        doubleSided=mesh.double_sided,
    )
    # trimesh puts the origin of UVs at the bottom left.
    uv = None if mesh.uvs is None else np.stack([mesh.uvs[:, 0], 1 - mesh.uvs[:, 1]], axis=-1)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, visual=visual, process=False)


def _bytes(colours: Floats) -> np.ndarray:
    return (np.clip(colours, 0, 1) * 255).round().astype(np.uint8)
