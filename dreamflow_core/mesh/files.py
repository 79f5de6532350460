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

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply
from trimesh.visual.material import PBRMaterial

from ..state import BadFile, reading, write_bytes
from . import topology
from .bake import sample_texture
from .colours import to_linear
from .from_gltf import one_mesh
from .gltf import SUFFIXES as GLTF_SUFFIXES
from .gltf import GltfScene, read_document, read_gltf
from .gltf_draft import Draft
from .gltf_materials import Material
from .mesh import Mesh
from .obj import read_obj
from .ply import read_ply
from .scene import Part, Scene
from .to_gltf import ROUGHNESS, to_bytes, to_gltf
from .unwrap import check_texture_size
from .write_back import GltfSource

SUFFIXES = (".glb", ".obj", ".ply")
"""Of files that are written."""
_READERS: dict[str, Callable[[Path], Scene]] = {
    **dict.fromkeys(GLTF_SUFFIXES, read_gltf),
    ".obj": read_obj,
    ".ply": read_ply,
}
READ_SUFFIXES = tuple(_READERS)
"""Of files that are read."""

_SEEN = 1e-4
"""Errors of places, as a share of a mesh's size, that are worth a word."""


def save_mesh(path: Path, mesh: Mesh) -> None:
    """Write a mesh; the file's suffix, one of `SUFFIXES`, is its format. Each file is written whole or not at all.

    A mesh that remembers its file (`load_mesh`) is written back into it as GLB. In other files normals that the mesh
    lacks are computed, smooth across UV seams.

    Raises:
        BadFile: the suffix is another, or the file cannot be written.
    """
    suffix = _suffix(path, SUFFIXES)
    try:
        # The file that refers to the others comes last.
        for name, data in {".glb": _glb, ".obj": _obj, ".ply": _ply}[suffix](mesh, path.stem).items():
            write_bytes(path.with_name(name), data)
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror}") from error


def load_mesh(path: Path, kept_in: str = "", atlas_size: int | None = None) -> Mesh:
    """Read a mesh; several in one file become one (`from_gltf`). What is left out is one line of the log.

    Args:
        kept_in: what the mesh will be written to with `save_mesh` as GLB, or `Mesh.source`, for the log. Then it
            remembers its file (`Mesh.source`), which keeps what a stage does not replace. Empty if it will not.
        atlas_size: side in texels of the atlas that several textures, or tiled ones, are baked into; None takes the
            one of 512 to 4096 that they need.

    Raises:
        BadMesh: the atlas's size is out of range.
        BadFile: the file is missing, broken, of another format, or holds no usable mesh.
    """
    if atlas_size is not None:
        check_texture_size(atlas_size)
    read = _READERS[_suffix(path, READ_SUFFIXES)]
    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    with reading(path):
        scene = read(path)
        mesh, said, unseen = one_mesh(scene, atlas_size)
        if kept_in:
            source = replace(_as_source(scene, mesh, path), unseen=tuple(unseen), kept_in=kept_in)
            mesh = replace(mesh, source=source)
    said += _far_away(scene)
    if unseen:
        said.append(f"{'not shown' if kept_in else 'left out'}: {', '.join(unseen)}")
    if said:
        logging.warning("%s: %s", path, "; ".join(said))
    return mesh


def _far_away(scene: Scene) -> list[str]:
    """What to say where a mesh lies so far from the origin that single precision shows."""
    places = np.concatenate([part.positions for part in scene.parts])
    error, size = np.abs(places - places.astype(np.float32)).max(), np.ptp(places, axis=0).max()
    if error <= _SEEN * size:
        return []
    return [f"it lies so far from the origin that single precision moves its vertices by up to {error:.2g}"]


def _suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    if path.suffix.lower() not in suffixes:
        raise BadFile(f"{path} is not a mesh file that can be used: its name must end in {', '.join(suffixes)}")
    return path.suffix.lower()


def _glb(mesh: Mesh, stem: str) -> dict[str, bytes]:
    return {f"{stem}.glb": mesh.source.glb(mesh) if mesh.source else _new_glb(mesh, Path(stem))}


def _new_glb(mesh: Mesh, path: Path) -> bytes:
    """The file of a mesh that comes from none."""
    mesh = replace(_with_normals(mesh), origin=None)
    colours = None
    if mesh.colours is not None and mesh.texture is None:
        colours = np.pad(to_linear(np.clip(mesh.colours, 0, 1)), ((0, 0), (0, 1)), constant_values=1)
    uvs = {} if mesh.uvs is None else {0: mesh.uvs}
    material = Material(name=f"{path.name}_texture", unlit=mesh.unlit, double_sided=mesh.double_sided)
    part = Part(None, mesh.faces, mesh.vertices, mesh.normals, uvs, colours)
    bare = replace(mesh, texture=None, normal_map=None)
    return _as_source(Scene([part], {None: material}, []), bare, path).glb(mesh)


def _with_normals(mesh: Mesh) -> Mesh:
    if mesh.normals is not None:
        return mesh
    return replace(mesh, normals=topology.vertex_normals(mesh.vertices, mesh.faces))


def _as_source(scene: Scene, mesh: Mesh, path: Path) -> GltfSource:
    """What a mesh that was read of a file is written back into."""
    if not isinstance(scene, GltfScene):
        scene = read_document(to_gltf(scene, path))
    return GltfSource(scene, mesh, Draft(scene.document))


def _obj(mesh: Mesh, stem: str) -> dict[str, bytes]:
    surface = _trimesh(mesh, stem)
    if mesh.texture is None and mesh.colours is not None:
        surface.visual = trimesh.visual.ColorVisuals(surface, vertex_colors=to_bytes(mesh.colours))
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
        colours = sample_texture(mesh.texture, mesh.uvs, mesh.repeats)
    surface = _trimesh(mesh, stem)
    surface.visual = trimesh.visual.ColorVisuals(surface)
    if colours is not None:
        surface.visual.vertex_colors = to_bytes(colours)
    return {f"{stem}.ply": export_ply(surface, vertex_normal=True)}


def _trimesh(mesh: Mesh, stem: str) -> trimesh.Trimesh:
    """With normals and a material, and with the texture if there is one."""
    mesh = _with_normals(mesh)
    material = PBRMaterial(
        name=f"{stem}_texture",
        baseColorTexture=None if mesh.texture is None else Image.fromarray(to_bytes(mesh.texture)),
        baseColorFactor=[255, 255, 255, 255],
        metallicFactor=0.0,
        roughnessFactor=ROUGHNESS,
    )
    # trimesh puts the origin of UVs at the bottom left.
    uv = None if mesh.uvs is None else np.stack([mesh.uvs[:, 0], 1 - mesh.uvs[:, 1]], axis=-1)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, visual=visual, process=False)
