"""Textures from colours in space.

Texel centres lie at half-integers: texel (row, column) of a size x size texture is at
u = (column + 0.5) / size, v = (row + 0.5) / size, v growing downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.ndimage import distance_transform_edt

from ..preparing import track
from . import topology
from .mesh import BadMesh, Floats, Ints, Mesh
from .unwrap import check_texture_size

_REACH = 1.5
"""Texels up to this far from a chart belong to it: bilinear sampling anywhere in the chart reads texels
whose centres are less than sqrt(2) away."""
_CHUNK = 1 << 16
"""Texels for which colours are asked at a time."""
_TOGETHER = 1 << 19
"""Texels that are looked at at a time."""
_ROUNDING = 1e-6
"""In texels or weights: a centre this close to an edge is in the face, so that rounding leaves no gaps."""
_NOTHING = -1
"""Shown by a texel that shows no surface."""


@dataclass(frozen=True)
class Texels:
    """T texels of a size x size texture that show a surface.

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
        # `take` is several times as fast as an index.
        corners = values.take(faces.take(self.face, axis=0), axis=0)
        return np.einsum("tk,tkc->tc", self.weights, corners)


def surface_texels(mesh: Mesh, size: int) -> Texels:
    """All texels that show the mesh's surface: those in faces, then the others, each by index.

    Raises:
        BadMesh: the mesh has no UVs, they cover no texel, or the size is out of range.
    """
    parts = list(_Atlas(mesh, size).parts())
    names = [field.name for field in fields(Texels)[1:]]
    return Texels(size, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def surface_indices(mesh: Mesh, size: int) -> Ints:
    """Just the `index` of `surface_texels`; errors likewise."""
    return _Atlas(mesh, size).surface()


def paint(mesh: Mesh, size: int, colour: Callable[[Texels], Floats]) -> Floats:
    """A whole texture (size, size, 3) in [0, 1] of the mesh's surface.

    Args:
        mesh: with UVs.
        colour: of T texels, at most 65536, that show the surface, (T, 3). All others take the colour of the nearest of
            these, so that seams do not show in smaller mipmaps.

    Raises:
        BadMesh: the mesh has no UVs, they cover no texel, or the size is out of range.
    """
    atlas = _Atlas(mesh, size)
    texture = np.zeros((size * size, 3), np.float32)
    for texels in atlas.parts():
        texture[texels.index] = np.clip(colour(texels), 0, 1)
    shows = atlas.shown != _NOTHING
    del atlas, texels
    return _spread(texture, shows)


def bake(mesh: Mesh, size: int, colour: Callable[[Floats, Floats], Floats]) -> Mesh:
    """The mesh with a size x size texture of the colours at its surface.

    Args:
        mesh: with UVs.
        colour: maps points (P, 3) and the unit normals (P, 3) there, P at most 65536, to colours (P, 3) in [0, 1].

    Raises:
        BadMesh: the mesh has no UVs, they cover no texel, the size is out of range, or a colour is not finite.
    """
    vertex_normals = topology.vertex_normals(mesh.vertices, mesh.faces)

    def shown(texels: Texels) -> Floats:
        normals = texels.interpolate(vertex_normals, mesh.faces)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return colour(texels.interpolate(mesh.vertices, mesh.faces), normals)

    return replace(mesh, texture=paint(mesh, size, shown))


def fill(texels: Texels, colours: Floats) -> Floats:
    """What `paint` makes of the colours (T, 3) of `surface_texels`."""
    texture, shows = np.zeros((texels.size**2, 3), np.float32), np.zeros(texels.size**2, bool)
    texture[texels.index], shows[texels.index] = np.clip(colours, 0, 1), True
    return _spread(texture, shows)


def _spread(texture: Floats, shows: np.ndarray) -> Floats:
    """The square texture of texels (N, 3), in place: those that do not show the surface, (N,), copy the nearest."""
    size = math.isqrt(len(texture))
    source = nearest(shows.reshape(size, size))
    for start in range(0, len(texture), _TOGETHER):
        gaps = start + np.flatnonzero(~shows[start : start + _TOGETHER])
        texture[gaps] = texture.take(source[gaps], axis=0)
    return texture.reshape(size, size, 3)


def nearest(chosen: np.ndarray) -> Ints:
    """For every texel the nearest that is chosen, (H * W,) int32 of row * W + column, of (H, W) bool."""
    rows, columns = distance_transform_edt(~chosen, return_distances=False, return_indices=True)
    rows *= chosen.shape[1]
    return (rows + columns).reshape(-1)


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


def resized(texture: Floats, height: int, width: int, repeats: tuple[bool, bool]) -> Floats:
    """The texture with so many rows and columns, (height, width, 3), by `sample_texture` at their texels' centres."""
    u, v = ((np.arange(side, dtype=np.float64) + 0.5) / side for side in (width, height))
    result = np.empty((height, width, 3), np.float32)
    # A row at a time: what is between takes many times the memory of the result.
    for row in track("resizing the texture", range(height)):
        place = np.stack([u, np.full(width, v[row])], axis=-1).astype(np.float32)
        result[row] = sample_texture(texture, place, repeats)
    return result


class _Atlas:
    """What each texel of a mesh's size x size texture shows.

    Memory: 8 bytes a texel while it is made and 4 then, beside what grows with the faces.

    Raises:
        BadMesh: the mesh has no UVs, they cover no texel, or the size is out of range.
    """

    def __init__(self, mesh: Mesh, size: int):
        if mesh.uvs is None:
            raise BadMesh("the mesh has no UVs: unwrap it first")
        check_texture_size(size)
        self.size = size
        # Columns and rows of the faces' corners, (2, 3, F), and of the ends of the outlines' edges, (2, 2, E).
        self.corners = (mesh.uvs.T.astype(np.float64) * size - 0.5).take(mesh.faces.T, axis=1)
        self.edge_face, self.edge_corner = self._outline(mesh.faces)
        self.ends = self.corners[:, [self.edge_corner, (self.edge_corner + 1) % 3], self.edge_face]
        # A face, or an edge of the outlines counted downwards from below `_NOTHING`.
        self.shown = np.full(size * size, _NOTHING, np.int32)
        self._cover()
        self._surround()
        if (self.shown == _NOTHING).all():
            raise BadMesh("the mesh's UVs cover nothing of its texture: unwrap it again, then bake a texture")

    def surface(self) -> Ints:
        """The texels (T,) that show the surface: those in faces, then the others, each by index."""
        found = (np.flatnonzero(part).astype(np.int32) for part in (self.shown > _NOTHING, self.shown < _NOTHING))
        return np.concatenate(list(found))

    def parts(self) -> Iterator[Texels]:
        """The texels of `surface`, at most `_CHUNK` at a time."""
        surface = self.surface()
        for start in track("painting the texture", range(0, len(surface), _CHUNK)):
            yield self._texels(surface[start : start + _CHUNK])

    def _texels(self, index: Ints) -> Texels:
        face, (y, x) = self.shown[index], np.divmod(index, self.size)
        inside = face > _NOTHING
        weights = np.zeros((len(index), 3), np.float32)
        weights[inside] = _weights(self.corners.take(face[inside], axis=2), x[inside], y[inside]).T
        rim = np.flatnonzero(~inside)
        edge = _NOTHING - 1 - face[rim]
        part, _ = _closest(self.ends.take(edge, axis=2), x[rim], y[rim])
        corner = self.edge_corner[edge]
        face[rim], weights[rim, corner], weights[rim, (corner + 1) % 3] = self.edge_face[edge], 1 - part, part
        return Texels(self.size, index, face, weights, inside)

    def _cover(self) -> None:
        """Give the texels whose centres lie in faces the first of these."""
        _, y = self.corners
        first, rows = _between(y.min(axis=0) - _ROUNDING, y.max(axis=0) + _ROUNDING, self.size)
        rows[_areas(self.corners) == 0] = 0
        # What is written last stays.
        for part in track("finding what each texel shows", _parts(rows[::-1])):
            number, down = _counted(rows[::-1], part)
            face = len(rows) - 1 - number
            row = first[face] + down
            left, columns = _columns(self.corners.take(face, axis=2), row, self.size)
            start = row * self.size + left
            for line, right in (_counted(columns, part) for part in _parts(columns)):
                self.shown[start[line] + right] = face[line]

    def _surround(self) -> None:
        """Give other texels within `_REACH` of the outlines the closest edge of these."""
        low, high = self.ends.min(axis=1) - _REACH, self.ends.max(axis=1) + _REACH
        (left, top), (columns, rows) = _between(low, high, self.size)
        least = np.full(len(self.shown), _REACH, np.float32)
        for edge, number in (_counted(columns * rows, part) for part in _parts(columns * rows)):
            down, right = np.divmod(number, columns[edge])
            x, y = left[edge] + right, top[edge] + down
            index, (_, distance) = y * self.size + x, _closest(self.ends.take(edge, axis=2), x, y)
            closer = np.flatnonzero((self.shown[index] <= _NOTHING) & (distance < least[index]))
            edge, index, distance = edge[closer], index[closer], distance[closer]
            np.minimum.at(least, index, distance)
            # What is written last stays: the first edge of several that are as close.
            closest = np.flatnonzero(distance == least[index])[::-1]
            self.shown[index[closest]] = _NOTHING - 1 - edge[closest]

    def _outline(self, faces: Ints) -> tuple[Ints, Ints]:
        """The faces, and the corners at which their edges start, of the edges that only one face has."""
        start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
        key = np.minimum(start, end) * (int(faces.max()) + 1) + np.maximum(start, end)
        _, first, uses = np.unique(key, return_index=True, return_counts=True)
        face, corner = np.divmod(first[uses == 1], 3)
        # Faces without an area in the atlas lie somewhere in it as a point.
        real = (self.corners[:, corner, face] != self.corners[:, (corner + 1) % 3, face]).any(axis=0)
        return face[real], corner[real]


def _columns(corners: np.ndarray, row: Ints, size: int) -> tuple[Ints, Ints]:
    """The first texel in a row (N,) of triangles (2, 3, N), and how many there are."""
    x, (ay, by, cy) = corners
    # How the weights change from one texel to the next, and where each falls to 0.
    change = np.stack([by - cy, cy - ay, ay - by]) / _areas(corners)
    weights = _weights(corners, np.zeros_like(row), row) + _ROUNDING
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = -weights / change
    low, high = np.where(change > 0, zero, -np.inf).max(axis=0), np.where(change < 0, zero, np.inf).min(axis=0)
    low, high = np.maximum(low, x.min(axis=0) - _ROUNDING), np.minimum(high, x.max(axis=0) + _ROUNDING)
    left, columns = _between(low, high, size)
    columns[((change == 0) & (weights < 0)).any(axis=0)] = 0
    return left, columns


def _weights(corners: np.ndarray, x: Ints, y: Ints) -> Floats:
    """Barycentric weights (3, N) of triangles (2, 3, N) at points (N,)."""
    (ax, bx, cx), (ay, by, cy) = corners
    # The area across from a corner, as a share of the whole, is that corner's weight.
    of_b = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / _areas(corners)
    of_c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / _areas(corners)
    return np.stack([1 - of_b - of_c, of_b, of_c])


def _areas(corners: np.ndarray) -> Floats:
    """Of triangles (2, 3, N), twice and signed, (N,)."""
    (ax, bx, cx), (ay, by, cy) = corners
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)


def _closest(ends: np.ndarray, x: Ints, y: Ints) -> tuple[Floats, Floats]:
    """Where on edges (2, 2, N), from 0 to 1, they are closest to points (N,), and how far from them, (N,) each."""
    (ax, bx), (ay, by) = ends
    right, down = bx - ax, by - ay
    length = np.maximum(right**2 + down**2, np.finfo(float).tiny)
    part = np.clip(((x - ax) * right + (y - ay) * down) / length, 0, 1)
    return part, np.sqrt((x - ax - part * right) ** 2 + (y - ay - part * down) ** 2).astype(np.float32)


def _between(low: Floats, high: Floats, size: int) -> tuple[Ints, Ints]:
    """The first of the integers of [0, size) from `low` to `high`, and how many there are."""
    first = np.clip(np.ceil(low), 0, size).astype(np.int64)
    return first, np.maximum(np.clip(np.floor(high), -1, size - 1).astype(np.int64) - first + 1, 0)


def _parts(counts: Ints) -> list[Ints]:
    """The indices of the counts, in parts of about `_TOGETHER` in sum."""
    return np.split(np.arange(len(counts)), np.flatnonzero(np.diff(np.cumsum(counts) // _TOGETHER)) + 1)


def _counted(counts: Ints, part: Ints) -> tuple[Ints, Ints]:
    """Each index (I,) of a part of the counts as often as it counts, and with it 0, 1... up to its count, both (N,)."""
    own = counts[part]
    item = np.repeat(part, own)
    return item, np.arange(len(item)) - np.repeat(np.cumsum(own) - own, own)
