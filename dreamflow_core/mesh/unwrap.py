"""UV atlases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import xatlas

from . import topology
from .mesh import BadMesh, Ints, Mesh

LEAST_TEXTURE = 16
MOST_TEXTURE = 8192

_PIECE_FACES = 500
"""xatlas takes much more than linear time in the faces of one mesh, so it gets pieces of at most this many."""
_OVERSIZE = 1.3
"""xatlas misses the resolution it is asked for by up to about this factor; UVs are scaled to fit after."""


def unwrap(mesh: Mesh, size: int, padding: int = 2) -> tuple[Mesh, Ints]:
    """Cut the surface into charts that lie side by side, without overlap, in one square atlas.

    The faces keep their order and their places; vertices are split where charts end. Charts may be
    mirrored. Normals and colours come along, a texture does not.

    Args:
        size: side in texels of the texture that the atlas is meant for.
        padding: about this many texels of it, or more, lie between charts and around the border.

    Returns:
        The mesh with UVs, and for each of its vertices the one of `mesh` that it was, (V,).

    Raises:
        BadMesh: the size is out of range.
    """
    check_texture_size(size)
    gap = math.ceil(padding * _OVERSIZE)
    positions = mesh.vertices.astype(np.float64)
    pieces = _pieces(positions[mesh.faces].mean(axis=1))
    # xatlas leaves out faces of less than a fixed area, and those far from the origin: they are made about 1 large,
    # each piece around it.
    unit = np.sqrt(topology.face_areas(mesh.vertices, mesh.faces).mean()) or 1.0
    atlas = xatlas.Atlas()
    used = []
    for piece in pieces:
        vertices, faces = np.unique(mesh.faces[piece], return_inverse=True)
        places = (positions[vertices] - positions[vertices].mean(axis=0)) / unit
        atlas.add_mesh(places.astype(np.float32), faces.reshape(-1, 3).astype(np.uint32))
        used.append(vertices)
    packing = xatlas.PackOptions()
    # Without texels per unit it chooses a scale at which one atlas is enough.
    packing.resolution, packing.padding = size, gap
    atlas.generate(pack_options=packing)
    source, uvs, faces = [], [], np.empty_like(mesh.faces)
    count = 0
    for index, piece in enumerate(pieces):
        of_piece, corners, uv = atlas.get_mesh(index)
        source.append(used[index][of_piece])
        uvs.append(uv)
        faces[piece] = corners + count
        count += len(of_piece)
    split_from = np.concatenate(source)
    # The same scale both ways, and a border as wide as the gaps.
    texels = np.concatenate(uvs) * (atlas.width, atlas.height) + gap
    normals, colours = (None if values is None else values[split_from] for values in (mesh.normals, mesh.colours))
    flat = replace(
        mesh,
        vertices=mesh.vertices[split_from],
        faces=faces,
        uvs=texels / (max(atlas.width, atlas.height) + 2 * gap),
        texture=None,
        normals=normals,
        normal_map=None,
        colours=colours,
    )
    return flat, split_from


def check_texture_size(size: int) -> None:
    """Raises BadMesh for a size that is out of range."""
    if not LEAST_TEXTURE <= size <= MOST_TEXTURE:
        raise BadMesh(f"the texture size is {size}; it must be from {LEAST_TEXTURE} to {MOST_TEXTURE}")


def _pieces(centres: np.ndarray) -> list[Ints]:
    """Faces in compact groups of at most `_PIECE_FACES`: halved across their longest side until small enough."""
    waiting: list[Ints] = [np.arange(len(centres))]
    pieces: list[Ints] = []
    while waiting:
        group = waiting.pop()
        if len(group) <= _PIECE_FACES:
            pieces.append(group)
            continue
        longest = np.ptp(centres[group], axis=0).argmax()
        order = group[np.argsort(centres[group, longest], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]
    return pieces
