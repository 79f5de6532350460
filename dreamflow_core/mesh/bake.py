"""Textures from colours in space.

Texel centres lie at half-integers: texel (row, column) of a size x size texture is at
u = (column + 0.5) / size, v = (row + 0.5) / size, v growing downwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import distance_transform_edt

from . import topology
from .mesh import BadMesh, Floats, Ints, Mesh
from .unwrap import check_texture_size

_REACH = 1.5
"""Texels up to this far from a chart belong to it: bilinear sampling anywhere in the chart reads texels
whose centres are less than sqrt(2) away."""
_CHUNK = 1 << 16
"""Points for which colours are asked at a time."""
_CANDIDATES = 1 << 19
"""Pairs of a face and a texel that are looked at at a time."""
_ROUNDING = 1e-6
"""In texels or weights: a centre this close to an edge is in the face, so that rounding leaves no gaps."""


@dataclass(frozen=True)
class Texels:
    """The T texels of a size x size texture that show a surface.

    Attributes:
        size: side of the texture.
        index: (T,) row * size + column.
        face: (T,) the face that the texel shows.
        weights: (T, 3) barycentric weights of the face's corners at the point shown.
        inside: (T,) whether the texel's centre lies in a face. The others lie within `_REACH` of a chart,
            and show the point of it that is closest.
    """

    size: int
    index: Ints
    face: Ints
    weights: Floats
    inside: np.ndarray

    def interpolate(self, values: Floats, faces: Ints) -> Floats:
        """Values (V, C) of vertices at the points shown, (T, C)."""
        return np.einsum("tk,tkc->tc", self.weights, values[faces[self.face]])


def surface_texels(mesh: Mesh, size: int) -> Texels:
    """The texels that show the mesh's surface.

    Raises:
        BadMesh: the mesh has no UVs, or the size is out of range.
    """
    if mesh.uvs is None:
        raise BadMesh("the mesh has no UVs: unwrap it first")
    check_texture_size(size)
    places = mesh.uvs.astype(np.float64) * size - 0.5
    face, index, weights = _covered(places[mesh.faces], size)
    texels = Texels(size, index, face, weights, np.ones(len(index), bool))
    taken = np.zeros(size * size, bool)
    taken[index] = True
    face, index, weights = _around(places, mesh.faces, taken, size)
    rim = Texels(size, index, face, weights, np.zeros(len(index), bool))
    joined = ((getattr(texels, name), getattr(rim, name)) for name in ("index", "face", "weights", "inside"))
    return Texels(size, *(np.concatenate(pair) for pair in joined))


def bake(mesh: Mesh, size: int, colour: Callable[[Floats, Floats], Floats]) -> Mesh:
    """The mesh with a size x size texture of the colours at its surface.

    Args:
        mesh: with UVs.
        colour: maps points (P, 3) and the unit normals (P, 3) there, P at most 65536, to colours (P, 3) in [0, 1].

    Raises:
        BadMesh: the mesh has no UVs, the size is out of range, or a colour is not finite.
    """
    texels = surface_texels(mesh, size)
    points = texels.interpolate(mesh.vertices, mesh.faces)
    normals = texels.interpolate(topology.vertex_normals(mesh.vertices, mesh.faces), mesh.faces)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    parts = (slice(start, start + _CHUNK) for start in range(0, len(points), _CHUNK))
    chunks = [colour(points[part], normals[part]) for part in parts]
    return replace(mesh, texture=fill(texels, np.concatenate(chunks)))


def fill(texels: Texels, colours: Floats) -> Floats:
    """A whole texture (size, size, 3) in [0, 1] from the colours (T, 3) of its surface texels.

    Every other texel takes the colour of the nearest one, so that seams do not show in smaller mipmaps.
    """
    texture = np.zeros((texels.size**2, 3), np.float32)
    texture[texels.index] = np.clip(colours, 0, 1)
    empty = np.ones(texels.size**2, bool)
    empty[texels.index] = False
    shape = (texels.size, texels.size)
    rows, columns = distance_transform_edt(empty.reshape(shape), return_distances=False, return_indices=True)
    return texture.reshape(*shape, 3)[rows, columns]


def sample_texture(texture: Floats, uvs: Floats, repeats: tuple[bool, bool] = (False, False)) -> Floats:
    """Bilinear colours (..., 3) at UVs (..., 2); the texture repeats, or its border goes on, as `Mesh.repeats` says."""
    height, width = texture.shape[:2]
    place = uvs * np.array([width, height], np.float32) - 0.5
    low = np.floor(place)
    part = place - low
    x, y = (low[..., axis].astype(np.int64) for axis in (0, 1))
    total = np.zeros((*uvs.shape[:-1], 3), np.float32)
    for right in (0, 1):
        for down in (0, 1):
            weight = np.abs(1 - right - part[..., 0]) * np.abs(1 - down - part[..., 1])
            row, column = (
                texel % count if repeated else np.clip(texel, 0, count - 1)
                for texel, count, repeated in ((y + down, height, repeats[1]), (x + right, width, repeats[0]))
            )
            total += weight[..., None] * texture[row, column]
    return total


def _covered(corners: np.ndarray, size: int) -> tuple[Ints, Ints, Floats]:
    """Faces (N,), texel indices (N,) and weights (N, 3) of the texels whose centres lie in faces (F, 3, 2).

    Each texel once; which face it has on the line between two is not defined.
    """
    found: list[tuple[np.ndarray, ...]] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3)))]
    a, b, c = (corners[:, corner] for corner in range(3))
    whole = _cross(b - a, c - a)
    for face, x, y in _texels_near(corners.min(axis=1), corners.max(axis=1), size):
        point = np.stack([x, y], axis=-1).astype(np.float64)
        # The area across from a corner, as a share of the whole, is that corner's weight.
        with np.errstate(divide="ignore", invalid="ignore"):
            of_b = _cross(point - a[face], (c - a)[face]) / whole[face]
            of_c = _cross((b - a)[face], point - a[face]) / whole[face]
            weights = np.stack([1 - of_b - of_c, of_b, of_c], axis=-1)
            inside = (weights >= -_ROUNDING).all(axis=1)
        found.append((face[inside], (y * size + x)[inside], weights[inside]))
    face, index, weights = (np.concatenate(part) for part in zip(*found))
    index, first = np.unique(index, return_index=True)
    return face[first], index, weights[first].astype(np.float32)


def _around(places: np.ndarray, faces: Ints, taken: np.ndarray, size: int) -> tuple[Ints, Ints, Floats]:
    """Like `_covered`, for the texels within `_REACH` of the charts' outlines that are not taken."""
    face_of, corner = _outline(faces)
    begin = places[faces[face_of, corner]]
    along = places[faces[face_of, (corner + 1) % 3]] - begin
    # Faces without an area in the atlas lie somewhere in it as a point.
    real = (along != 0).any(axis=1)
    face_of, corner, begin, along = face_of[real], corner[real], begin[real], along[real]
    low, high = np.minimum(begin, begin + along) - _REACH, np.maximum(begin, begin + along) + _REACH
    found: list[tuple[np.ndarray, ...]] = []
    for edge, x, y in _texels_near(low, high, size):
        free = ~taken[y * size + x]
        edge, x, y = edge[free], x[free], y[free]
        offset = np.stack([x, y], axis=-1) - begin[edge]
        length = np.maximum((along[edge] ** 2).sum(-1), np.finfo(float).tiny)
        part = np.clip((offset * along[edge]).sum(-1) / length, 0, 1)
        distance = np.linalg.norm(offset - part[:, None] * along[edge], axis=-1)
        near = distance < _REACH
        found.append((edge[near], (y * size + x)[near], part[near], distance[near]))
    edge, index, part, distance = (np.concatenate(columns) for columns in zip(*found))
    order = np.lexsort((distance, index))
    index, first = np.unique(index[order], return_index=True)
    edge, part = edge[order[first]], part[order[first]]
    weights = np.zeros((len(edge), 3), np.float32)
    row = np.arange(len(edge))
    weights[row, corner[edge]], weights[row, (corner[edge] + 1) % 3] = 1 - part, part
    return face_of[edge], index, weights


def _outline(faces: Ints) -> tuple[Ints, Ints]:
    """The faces, and the corners at which their edges start, of the edges that only one face has."""
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    key = np.minimum(start, end) * (int(faces.max()) + 1) + np.maximum(start, end)
    _, first, uses = np.unique(key, return_index=True, return_counts=True)
    face, corner = np.divmod(first[uses == 1], 3)
    return face, corner


def _texels_near(low: np.ndarray, high: np.ndarray, size: int):
    """Yields, in chunks, the number of a box (N,) and columns and rows (N,) of the texel centres in it.

    `low` and `high` (B, 2) are the boxes' corners in texels.
    """
    low = np.clip(np.ceil(low - _ROUNDING), 0, size).astype(np.int64)
    high = np.clip(np.floor(high + _ROUNDING), -1, size - 1).astype(np.int64)
    span = np.maximum(high - low + 1, 0)
    count = span.prod(axis=1)
    chunk = np.cumsum(count) // _CANDIDATES
    for boxes in np.split(np.arange(len(low)), np.flatnonzero(np.diff(chunk)) + 1):
        box = np.repeat(boxes, count[boxes])
        number = np.arange(len(box)) - np.repeat(np.cumsum(count[boxes]) - count[boxes], count[boxes])
        down, right = np.divmod(number, span[box, 0])
        yield box, low[box, 0] + right, low[box, 1] + down


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
