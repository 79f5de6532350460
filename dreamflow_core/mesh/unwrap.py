"""UV atlases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import xatlas

from . import topology
from .mesh import BadMesh, Floats, Ints, Mesh

LEAST_TEXTURE = 16
MOST_TEXTURE = 8192

_PIECE_FACES = 500
"""xatlas takes much more than linear time in the faces of one mesh, so it gets pieces of at most this many."""
_CLOSE = 1.1
"""Charts are packed until they fit at a scale that is within this factor of one at which they do not."""
_LEAST_SCALE = 1 / 32
"""Of charts, to the scale at which they would fill the atlas without gaps. What does not fit then has too many."""
_UNIT = 256
"""xatlas leaves out faces of less than a fixed area in UVs too."""
_NOWHERE = np.iinfo(np.uint32).max


def unwrap(mesh: Mesh, size: int, padding: int = 2) -> tuple[Mesh, Ints]:
    """Cut the surface into charts that lie side by side, without overlap, in one square atlas.

    The faces keep their order and their places; vertices are split where charts end. Charts may be
    mirrored, and one that is longer than the atlas is made smaller than the others. Normals and colours come along,
    a texture does not.

    Args:
        size: side in texels of the texture that the atlas is meant for.
        padding: at least this many texels of it lie between charts and around the border.

    Returns:
        The mesh with UVs, and for each of its vertices the one of `mesh` that it was, (V,).

    Raises:
        BadMesh: the size is out of range, or the charts are too many for it.
    """
    check_texture_size(size)
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
    packing.resolution = size
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
    texels = _packed(np.concatenate(uvs) * (atlas.width, atlas.height), faces, size, padding)
    normals, colours = (None if values is None else values[split_from] for values in (mesh.normals, mesh.colours))
    flat = replace(
        mesh,
        vertices=mesh.vertices[split_from],
        faces=faces,
        uvs=texels / size,
        texture=None,
        repeats=(False, False),
        normals=normals,
        normal_map=None,
        colours=colours,
        origin=split_from if mesh.origin is None else mesh.origin[split_from],
    )
    return flat, split_from


def _packed(charts: Floats, faces: Ints, size: int, padding: int) -> Floats:
    """Places (V, 2) in a square of `size` texels for charts with corners (V, 2), at about the largest scale that fits.

    Asked for a side alone, xatlas makes something larger: by a little, or by a lot where charts are long. Asked for a
    scale as well it keeps the side, and what does not fit comes into a second square. So the scale is searched for.

    Raises:
        BadMesh: there is none.
    """
    a, b, c = np.moveaxis(charts[faces], 1, 0)
    area = np.abs(np.linalg.det(np.stack([b - a, c - a], axis=-1))).sum() / 2
    side = size - 2 * padding
    filling = side / (np.sqrt(area) or 1.0)
    fits, too_large, scale = 0.0, filling, 0.8 * filling
    while too_large > _CLOSE * fits:
        atlas = xatlas.Atlas()
        atlas.add_uv_mesh((_UNIT * charts).astype(np.float32), faces.astype(np.uint32))
        packing = xatlas.PackOptions()
        # Every chart gets its padding on both sides.
        packing.resolution, packing.padding, packing.texels_per_unit = side, math.ceil(padding / 2), scale / _UNIT
        atlas.generate(pack_options=packing)
        if atlas.atlas_count <= 1:
            fits, best = scale, atlas
        elif scale > _LEAST_SCALE * filling:
            too_large = scale
        else:
            raise BadMesh(
                f"the mesh's surface is cut into {atlas.chart_count} charts, too many for a texture of {size} x {size}"
            )
        scale = (fits + too_large) / 2
    source, _, uvs = best.get_mesh(0)
    places = np.empty_like(charts)
    places[source] = uvs * (best.width, best.height)
    # Faces without an area are left where they were.
    places[source[best.get_mesh_vertex_assignment(0)[0] == _NOWHERE]] = 0
    return places + padding


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
