"""Facts about triangles: how they connect, how they face, what they enclose.

All functions take vertices (V, 3) and faces (F, 3) as `Mesh` holds them.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .mesh import Floats, Ints

_ALIKE = 3
"""Normals that agree to so many decimals are one."""


def weld(vertices: Floats) -> tuple[Ints, Ints]:
    """Unite vertices at exactly the same place.

    Returns:
        The index of one vertex of each place, (W,), and the place of each vertex, (V,) in 0..W-1:
        `faces` on the welded vertices are `place[faces]`.
    """
    # Adding zero turns -0.0 into 0.0, which are one place but not the same bytes.
    _, first, place = np.unique(vertices + np.float32(0), axis=0, return_index=True, return_inverse=True)
    return first, place.reshape(-1)


def edges(faces: Ints) -> Ints:
    """The undirected edges, (E, 2), each once, smaller index first."""
    ends = np.sort(_directed_edges(faces), axis=1)
    count = int(faces.max()) + 1
    return np.stack(np.divmod(np.unique(ends[:, 0] * count + ends[:, 1]), count), axis=1)


def shared_vertices(faces: Ints) -> np.ndarray:
    """Whether each vertex ends an edge of more than two faces, (V,) bool."""
    start, end = np.sort(_directed_edges(faces), axis=1).T
    count = int(faces.max()) + 1
    edge, uses = np.unique(start * count + end, return_counts=True)
    shared = np.zeros(count, bool)
    shared[np.stack(np.divmod(edge[uses > 2], count))] = True
    return shared


def is_closed(faces: Ints) -> bool:
    """Whether every edge lies between exactly two faces that agree on the side that is out."""
    start, end = _directed_edges(faces).T
    count = int(faces.max()) + 1
    there, back = np.sort(start * count + end), np.sort(end * count + start)
    return bool((start != end).all() and (there[1:] != there[:-1]).all() and (there == back).all())


def components(faces: Ints) -> Ints:
    """The number of the connected component of each face, (F,), from 0."""
    count = int(faces.max()) + 1
    start, end = _directed_edges(faces).T
    graph = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(count, count))
    _, of_vertex = connected_components(graph, directed=False)
    # Vertices without faces are components too: number only those that have faces.
    return np.unique(of_vertex[faces[:, 0]], return_inverse=True)[1].reshape(-1)


def euler_characteristic(faces: Ints) -> int:
    """Vertices - edges + faces: 2 for a sphere, 0 for a torus. The faces must be welded."""
    return len(np.unique(faces)) - len(edges(faces)) + len(faces)


def face_areas(vertices: Floats, faces: Ints) -> Floats:
    """(F,) scene units squared."""
    return np.linalg.norm(_face_crosses(vertices, faces), axis=1) / 2


def face_volumes(vertices: Floats, faces: Ints) -> np.ndarray:
    """Signed volumes (F,) between each face and the centre of the vertices.

    They add up to the volume that a closed mesh encloses, positive where its faces look outward.
    """
    corners = (vertices.astype(np.float64) - vertices.mean(axis=0))[faces]
    return np.einsum("fi,fi->f", np.cross(corners[:, 0], corners[:, 1]), corners[:, 2]) / 6


def bent_alike(vertices: Floats, normals: Floats | None) -> Ints:
    """The number of each vertex's place, (V,) from 0, where those with normals (V, 3) of their own have their own."""
    return weld(vertices if normals is None else np.concatenate([vertices, normals.round(_ALIKE)], axis=1))[1]


def vertex_normals(vertices: Floats, faces: Ints, apart: Floats | None = None) -> Floats:
    """Unit normals (V, 3), the mean of the faces around each place, weighted by area.

    Vertices that were split at the same place share their normal, so that UV seams do not show.

    Args:
        apart: normals (V, 3) from before; vertices at the same place share theirs only if they did before, so that
            hard edges stay.
    """
    place = bent_alike(vertices, apart)
    crosses = _face_crosses(vertices, faces)
    total = np.zeros((place.max() + 1, 3))
    for corner in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(place[faces[:, corner]], crosses[:, axis], len(total))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    # A vertex without faces, or between faces that cancel, still needs a direction of unit length.
    unit = np.where(length > 0, total / np.maximum(length, np.finfo(float).tiny), (0.0, 1.0, 0.0))
    return unit[place].astype(np.float32)


def without_unused(vertices: Floats, faces: Ints) -> tuple[Floats, Ints]:
    """The same faces on only the vertices that they use."""
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def _directed_edges(faces: Ints) -> Ints:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)


def _face_crosses(vertices: Floats, faces: Ints) -> np.ndarray:
    """(F, 3), along the face's normal, twice its area long."""
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    return np.cross(b - a, c - a)
