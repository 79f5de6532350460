"""ComfyUI's MESH and 3D files, and `dreamflow_core`'s Mesh."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import Types, io
from torch import Tensor

from ...dreamflow_core.prior import Look

if TYPE_CHECKING:
    from ...dreamflow_core.mesh.mesh import Mesh

FILES = [io.File3DGLB, io.File3DGLTF, io.File3DOBJ, io.File3DPLY, io.File3DAny]
"""The kinds of 3D file that are taken in a mesh's place."""


def mesh_input(tooltip: str) -> io.MultiType.Input:
    """An input "mesh" for a MESH or a 3D file."""
    return io.MultiType.Input(io.Mesh.Input("mesh"), types=FILES, tooltip=tooltip)


def read(mesh: Any, atlas_size: int | None = None) -> Mesh:
    """A MESH or a FILE_3D as a `Mesh`.

    Args:
        atlas_size: of a file, as `load_mesh` takes it.

    Raises:
        BadMesh: there is no mesh or more than one, or it cannot be used.
        BadFile: the file cannot be read.
    """
    from ...dreamflow_core.mesh.mesh import BadMesh

    if mesh is None:
        raise BadMesh("there is no mesh: choose a file in the node that loads it")
    return _from_file(mesh, atlas_size) if isinstance(mesh, Types.File3D) else _from_comfy(mesh)


def to_file(made: Mesh, result: Any) -> Any:
    """What a stage made as a GLB file: the file that it was given with what changed, or else as ComfyUI saves a MESH.

    Args:
        made: of what `read` read.
        result: `changed` of it.
    """
    if made.source is None:
        from comfy_extras.nodes_save_3d import MeshToFile3D

        return MeshToFile3D.execute(result)[0]
    return Types.File3D(BytesIO(made.source.glb(made)), file_format="glb")


def _from_file(file: Any, atlas_size: int | None) -> Mesh:
    from ...dreamflow_core.mesh.files import load_mesh

    load = partial(load_mesh, kept_in="model_3d", atlas_size=atlas_size)
    if file.is_disk_backed:
        return load(Path(file.get_source()))
    with tempfile.TemporaryDirectory() as folder:
        return load(Path(file.save_to(str(Path(folder) / f"mesh.{file.format}"))))


def _from_comfy(mesh: Any) -> Mesh:
    from ...dreamflow_core.mesh.colours import to_display
    from ...dreamflow_core.mesh.mesh import BadMesh, Mesh

    if len(mesh.vertices) != 1:
        raise BadMesh(f"there are {len(mesh.vertices)} meshes in the batch; this node takes one")
    vertices = slice(None) if mesh.vertex_counts is None else slice(int(mesh.vertex_counts[0]))
    faces = slice(None) if mesh.face_counts is None else slice(int(mesh.face_counts[0]))

    def values(attribute: Tensor | None, kept: slice, channels: int | None = None) -> Any:
        return None if attribute is None else attribute[0, kept].detach().cpu().float().numpy()[..., :channels]

    colours = values(mesh.vertex_colors, vertices, 3)
    return Mesh(
        vertices=values(mesh.vertices, vertices),
        faces=mesh.faces[0, faces].cpu().numpy(),
        uvs=values(mesh.uvs, vertices),
        texture=None if mesh.uvs is None else values(mesh.texture, slice(None), 3),
        normals=values(mesh.normals, vertices),
        normal_map=None if mesh.uvs is None else values(mesh.normal_map, slice(None), 3),
        # As in glTF, a MESH holds linear colours.
        colours=None if colours is None else to_display(colours),
        unlit=mesh.unlit,
    )


def look(mesh: Mesh) -> Look:
    """What cameras see of a mesh, moved to where they see it."""
    from ...dreamflow_core.mesh.prepare import framed
    from ...dreamflow_core.scenes.mesh import look_at

    placed, _ = framed(mesh)
    return look_at(placed, comfy.model_management.get_torch_device())


def to_comfy(mesh: Mesh) -> Any:
    """A `Mesh` as a MESH, a batch of one on the CPU."""
    from ...dreamflow_core.mesh.colours import to_linear
    from ...dreamflow_core.mesh.normal_map import tangents
    from ...dreamflow_core.mesh.topology import vertex_normals

    colours = None if mesh.colours is None else to_linear(mesh.colours)
    attributes = {"uvs": mesh.uvs, "vertex_colors": colours, "texture": mesh.texture, "normals": mesh.normals}
    if mesh.normal_map is not None:
        normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
        of_map = {"normals": normals, "tangents": tangents(replace(mesh, normals=normals))}
        attributes |= {"normal_map": mesh.normal_map, **of_map}
    batches = {name: None if values is None else torch.tensor(values)[None] for name, values in attributes.items()}
    return Types.MESH(torch.tensor(mesh.vertices)[None], torch.tensor(mesh.faces)[None], unlit=mesh.unlit, **batches)


def changed(source: Any, before: Mesh, after: Mesh, moved: bool) -> Any:
    """A MESH with what a stage changed of it; maps and materials that the stage knows nothing of stay.

    Args:
        source: the MESH or FILE_3D that the stage was given.
        before: what `read` made of it.
        after: what the stage made of that.
        moved: whether the stage moves vertices.
    """
    made = to_comfy(after)
    new_uvs = after.uvs is not None and (before.uvs is None or not np.array_equal(before.uvs, after.uvs))
    if isinstance(source, Types.File3D) or new_uvs or not np.array_equal(before.faces, after.faces):
        # With new UVs, maps that were drawn for others would not fit.
        return made
    kept = copy.copy(source)
    kept.uvs, kept.texture = made.uvs, made.texture
    if moved or after.normal_map is not before.normal_map:
        kept.normals, kept.normal_map, kept.tangents = made.normals, made.normal_map, made.tangents
    if moved:
        kept.vertices, kept.faces = made.vertices, made.faces
        kept.vertex_colors = made.vertex_colors
        kept.vertex_counts = kept.face_counts = None
    return kept
