"""UV atlases."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import xatlas
from scipy.optimize import brentq

from ..preparing import track
from . import topology
from .mesh import BadMesh, Floats, Ints, Mesh

LEAST_TEXTURE = 16
MOST_TEXTURE = 8192

_PIECE_FACES = 500
"""xatlas takes much more than linear time in the faces of one mesh, so it gets pieces of at most this many."""
_PIECES = 64
"""That xatlas gets at a time."""
_MANY_FACES, _FACES_A_MINUTE = 100_000, 400_000
"""From so many on it is said how long they take. On two cores smooth surfaces took half of that, rough ones up to a
third more."""
_FACE_TEXELS, _ALL_TEXELS = 16, 1 << 18
"""xatlas stretches charts to whole texels. Where they are made they have so many a face, or so many in all, which
keeps their shape."""
_LONG = 1.25
"""Charts longer than this, to the side of a square of the whole surface's area, are cut or lie across the atlas."""
_SHORTER, _STRAIGHT = 0.8, 1e-3
"""Both parts of a chart that is cut are at most this long, to the whole; if faces are too long for that it stays. Faces
that reach over the cut by less than this do not count."""
_ACROSS = 1 << 23
"""Where charts lie across an atlas xatlas goes through all of it for each. Above so many texels that takes too long."""
_CLOSE, _STEP = 1.05, 1.024
"""Charts are packed until they fit at a scale that is within this factor of one at which they do not. From the scale
that is guessed the first step is so large, and others grow."""
_LEAST_SCALE = 1 / 32
"""Of charts, to the scale at which they would fill the atlas without gaps. Those that do not fit then are too many."""
_FILLED, _MARGIN = 0.6, 2
"""How full an atlas gets, about, if each chart has its padding and so many texels more around it."""
_UNIT = 256
"""xatlas leaves out faces of less than a fixed area in UVs too."""
_SMALL = 1e-9
"""Texels; charts without an extent are taken as having this."""
_NOWHERE = np.iinfo(np.uint32).max


def unwrap(mesh: Mesh, size: int, padding: int = 2) -> tuple[Mesh, Ints]:
    """Cut the surface into charts that lie side by side in one square atlas.

    xatlas folds a sliver over its neighbours now and then: of a million texels about one is covered twice, on rough
    meshes some tens.

    The faces keep their order and their places; vertices are split where charts end. Charts may be mirrored. Those
    that are long for the atlas are cut across, or lie along its diagonal. One that is still longer than the atlas,
    because its faces are, is made smaller than the others. Normals and colours come along, a texture does not.

    Args:
        size: side in texels of the texture that the atlas is meant for.
        padding: at least this many texels of it lie between charts and around the border.

    Returns:
        The mesh with UVs, and for each of its vertices the one of `mesh` that it was, (V,).

    Raises:
        BadMesh: the size is out of range, the charts are too many for it, or no face has an area.
    """
    return unwrap_at(mesh, np.ones(len(mesh.faces)), [size], padding)[:2]


def unwrap_at(mesh: Mesh, density: Floats, sizes: Sequence[int], padding: int = 2) -> tuple[Mesh, Ints, int, float]:
    """`unwrap` into the smallest atlas that has as many texels for each face as are asked for.

    Room that is left goes to the faces that have the fewest. If no atlas has enough, all faces get less alike.

    Args:
        density: (F,) above 0, texels per scene unit. Charts end where it changes.
        sizes: sides of atlases that may be made, in texels, ascending.

    Returns:
        The mesh and where its vertices are from, as of `unwrap`; the atlas's side; and the least of the charts' shares
        of the texels per unit asked for: 1 or more if all have them. Single faces can have less than their chart,
        which is stretched where the surface is rough.

    Raises:
        BadMesh: a size is out of range, the charts are too many for the last one, or no face has an area.
    """
    for size in sizes:
        check_texture_size(size)
    if (count := len(mesh.faces)) >= _MANY_FACES:
        logging.warning("unwrapping %d faces, which takes about %d min", count, math.ceil(count / _FACES_A_MINUTE))
    charts = _charts(mesh, density)
    size = next((size for size in sizes[:-1] if _holds(charts, size - 2 * padding, padding)), sizes[-1])
    packed = _packed(_laid_across(charts, size - 2 * padding), size - 2 * padding, padding)
    if packed is None:
        raise BadMesh(
            f"the mesh's surface is cut into {len(charts.density)} charts, too many for a texture of {size} x {size}"
        )
    places, share = packed
    split_from = charts.split_from
    normals, colours = (None if values is None else values[split_from] for values in (mesh.normals, mesh.colours))
    flat = replace(
        mesh,
        vertices=mesh.vertices[split_from],
        faces=charts.faces,
        uvs=(places + padding) / size,
        texture=None,
        repeats=(False, False),
        normals=normals,
        normal_map=None,
        colours=colours,
        origin=split_from if mesh.origin is None else mesh.origin[split_from],
    )
    return flat, split_from, size, share


def check_texture_size(size: int) -> None:
    """Raises BadMesh for a size that is out of range."""
    if not LEAST_TEXTURE <= size <= MOST_TEXTURE:
        raise BadMesh(f"the texture size is {size}; it must be from {LEAST_TEXTURE} to {MOST_TEXTURE}")


@dataclass(frozen=True, eq=False)
class _Charts:
    """A surface cut into C charts, each flat by itself.

    Attributes:
        split_from: (V,) the mesh's vertices that theirs were; no vertex is in two charts.
        faces: (F, 3) indices into these vertices.
        chart: (F,) of each face.
        places: (V, 2) in texels, if the faces have as many as are asked for.
        density: (C,) asked for.
    """

    split_from: Ints
    faces: Ints
    chart: Ints
    places: Floats
    density: Floats

    @cached_property
    def areas(self) -> Floats:
        """(C,) in texels."""
        areas = np.zeros(len(self.density))
        np.add.at(areas, self.chart, _areas(self.places[self.faces]))
        return areas

    @cached_property
    def of_vertex(self) -> Ints:
        """(V,) the chart of each vertex."""
        chart = np.empty(len(self.places), np.int64)
        chart[self.faces] = self.chart[:, None]
        return chart

    @cached_property
    def extents(self) -> Floats:
        """(C, 2) in texels."""
        low, high = (np.full((len(self.density), 2), sign * np.inf) for sign in (1, -1))
        np.minimum.at(low, self.of_vertex, self.places)
        np.maximum.at(high, self.of_vertex, self.places)
        return high - low

    def shares(self, scale: float) -> Floats:
        """(C,) the texels per unit that charts have at a scale, to those asked for.

        Up to 1, that many of what was asked for. Above, the charts with the fewest grow first.
        """
        return np.maximum(min(scale, 1), scale * self.density.min() / self.density)


def _charts(mesh: Mesh, density: Floats) -> _Charts:
    """The mesh's charts as xatlas makes them, the long ones cut."""
    positions, areas = mesh.vertices.astype(np.float64), topology.face_areas(mesh.vertices, mesh.faces)
    if not areas.any():
        raise BadMesh("no face of the mesh has an area")
    pieces = list(_pieces(positions[mesh.faces].mean(axis=1), density))
    packing = xatlas.PackOptions()
    packing.texels_per_unit = texels = math.sqrt(max(_FACE_TEXELS, _ALL_TEXELS / len(mesh.faces)))
    split_from, places, faces = [], [], np.empty_like(mesh.faces)
    count = 0
    for start in track("cutting the surface into charts", range(0, len(pieces), _PIECES)):
        atlas = xatlas.Atlas()
        used, units = [], []
        for piece in pieces[start : start + _PIECES]:
            vertices, corners = np.unique(mesh.faces[piece], return_inverse=True)
            # xatlas leaves out faces of less than a fixed area, and those far from the origin: they are made about 1
            # large, each piece around it.
            units.append(math.sqrt(areas[piece].mean()) or 1.0)
            centred = (positions[vertices] - positions[vertices].mean(axis=0)) / units[-1]
            atlas.add_mesh(centred.astype(np.float32), corners.reshape(-1, 3).astype(np.uint32))
            used.append(vertices)
        atlas.generate(pack_options=packing)
        for index, piece in enumerate(pieces[start : start + _PIECES]):
            of_piece, corners, uvs = atlas.get_mesh(index)
            split_from.append(used[index][of_piece])
            places.append(uvs * (atlas.width, atlas.height) * (units[index] / texels * density[piece[0]]))
            faces[piece] = corners + count
            count += len(of_piece)
    return _fitted(np.concatenate(split_from), faces, np.concatenate(places), density)


def _pieces(centres: Floats, density: Floats) -> Iterator[Ints]:
    """Faces of one density in compact groups of at most `_PIECE_FACES`: halved across their longest side until small
    enough."""
    order = np.argsort(density, kind="stable")
    waiting = np.split(order, np.flatnonzero(np.diff(density[order])) + 1)
    while waiting:
        group = waiting.pop()
        if len(group) <= _PIECE_FACES:
            yield group
            continue
        longest = np.ptp(centres[group], axis=0).argmax()
        order = group[np.argsort(centres[group, longest], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]


def _fitted(split_from: Ints, faces: Ints, places: Floats, density: Floats) -> _Charts:
    """Charts with those cut that are too long for a square atlas of about their area."""
    corners = places[faces]
    longest = _LONG * math.sqrt(_areas(corners).sum())
    chart = topology.components(faces)
    count = chart.max() + 1
    low, high = (np.full((count, 2), sign * np.inf) for sign in (1, -1))
    np.minimum.at(low, chart, corners.min(axis=1))
    np.maximum.at(high, chart, corners.max(axis=1))
    for number in np.flatnonzero((high - low).max(axis=1) > longest):
        for part in _cut(np.flatnonzero(chart == number), corners, longest):
            chart[part], count = count, count + 1
    numbers, first, chart = np.unique(chart, return_index=True, return_inverse=True)
    corner, faces = np.unique(faces * len(numbers) + chart[:, None], return_inverse=True)
    vertex = corner // len(numbers)
    return _Charts(split_from[vertex], faces.reshape(-1, 3), chart, places[vertex], density[first])


def _laid_across(charts: _Charts, side: int) -> _Charts:
    """Charts with those along the diagonal that are too long for a square atlas, if that makes them fit better."""
    longest, across = charts.extents.max(axis=1), charts.extents.sum(axis=1) / math.sqrt(2)
    turned = (longest > _LONG * math.sqrt(charts.areas.sum())) & (across < longest)
    if turned.sum() * side**2 > _ACROSS:
        return charts
    turn = np.where(turned, math.pi / 4, 0)[charts.of_vertex]
    x, y = charts.places.T
    places = np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], axis=-1)
    return replace(charts, places=places)


def _cut(group: Ints, corners: Floats, longest: float) -> Iterator[Ints]:
    """Faces of a chart with corners (F, 3, 2) in parts that are no longer than asked for, if the faces allow it."""
    extent, axis = _extent(corners[group])
    if extent <= longest:
        yield group
        return
    along = corners[group, :, axis]
    left = along.mean(axis=1) < _where_to_cut(along)
    halves = [half for half in (group[left], group[~left]) if len(half)]
    if max(_extent(corners[half])[0] for half in halves) > _SHORTER * extent:
        yield group
        return
    for half in halves:
        yield from _cut(half, corners, longest)


def _where_to_cut(along: Floats) -> float:
    """The place in the middle half where the fewest faces are in the way, of faces from here to there (F, 3)."""
    start, length = along.min(), np.ptp(along)
    middle = start + length / 2
    places = np.append(middle, along[np.abs(along - middle) <= length / 4])
    # xatlas makes no edges that are quite straight.
    begin, end = np.sort(along.min(axis=1) + _STRAIGHT * length), np.sort(along.max(axis=1) - _STRAIGHT * length)
    in_the_way = np.searchsorted(begin, places) - np.searchsorted(end, places)
    return float(places[np.argmin(in_the_way + np.abs(places - middle) / length)])


def _extent(corners: Floats) -> tuple[float, int]:
    """The longest side of a box around corners (F, 3, 2), and its axis."""
    sides = np.ptp(corners.reshape(-1, 2), axis=0)
    return float(sides.max()), int(sides.argmax())


def _areas(corners: Floats) -> Floats:
    """Of faces with corners (F, 3, 2) in the plane, (F,)."""
    a, b, c = np.moveaxis(corners, 1, 0)
    return np.abs(np.linalg.det(np.stack([b - a, c - a], axis=-1))) / 2


def _guess(charts: _Charts, side: int, padding: int) -> float:
    """About the scale at which charts fill a square."""
    areas, around = charts.areas, charts.extents.sum(axis=1)
    margin = padding + _MARGIN

    def room(scale: float) -> float:
        shares = charts.shares(scale)
        return _FILLED * side**2 - (areas * shares**2 + margin * around * shares + margin**2).sum()

    least, most = _bounds(charts, side)
    if room(least) <= 0 or room(most) >= 0:
        return least if room(least) <= 0 else most
    return min(float(brentq(room, least, most, rtol=1e-3)), _longest_fit(charts, side))


def _longest_fit(charts: _Charts, side: int) -> float:
    """The scale at which charts with half of the area are as long as a square: above, they would not grow."""
    share = (side - 1) / np.maximum(charts.extents.max(axis=1), _SMALL)
    scale = np.where(share <= 1, share, share * charts.density / charts.density.min())
    order = np.argsort(scale)
    area = np.cumsum(charts.areas[order])
    return float(scale[order][np.searchsorted(area, area[-1] / 2)])


def _bounds(charts: _Charts, side: int) -> tuple[float, float]:
    """A scale at which charts fit into a square if they are not too many, and one at which their area does not."""
    least_shares = charts.density.min() / charts.density
    filled, more = (math.sqrt(area.sum()) or 1.0 for area in (charts.areas, charts.areas * least_shares**2))
    return _LEAST_SCALE * side / filled, side / more


def _holds(charts: _Charts, side: int, padding: int) -> bool:
    """Whether a square has room for all texels that are asked for."""
    if charts.areas.sum() > side**2 or charts.extents.max() > side - 1:
        return False
    return bool(_pack(charts, 1.0, side, padding).atlas_count <= 1)


def _packed(charts: _Charts, side: int, padding: int) -> tuple[Floats, float] | None:
    """Charts at about the largest scale at which they fit into a square.

    Asked for a side alone, xatlas makes something larger: by a little, or by a lot where charts are long. Asked for a
    scale as well it keeps the side, and what does not fit comes into a second square. So the scale is searched for.

    Returns:
        Places (V, 2) in a square of `side` texels, and the least of the charts' shares; None if there are too many
        charts.
    """
    fits, (least, too_large) = 0.0, _bounds(charts, side)
    scale, step, failed = _guess(charts, side, padding), _STEP, False
    # At 1 nothing is lost, so that has to be known.
    while too_large > _CLOSE * fits or fits < 1 < too_large:
        atlas = _pack(charts, scale, side, padding)
        if atlas.atlas_count <= 1:
            fits, best = scale, atlas
        elif scale > least:
            too_large, failed = scale, True
        else:
            return None
        between = 1.0 if fits < 1 < too_large else math.sqrt(fits * too_large)
        scale = max(scale / step, least) if not fits else between if failed else min(scale * step, between)
        step **= 2
    vertices, _, uvs = best.get_mesh(0)
    places = np.empty_like(charts.places)
    places[vertices] = uvs * (best.width, best.height)
    # Faces without an area are left where they were.
    places[vertices[best.get_mesh_vertex_assignment(0)[0] == _NOWHERE]] = 0
    # xatlas makes those smaller that are longer than the square.
    shares = np.minimum(charts.shares(fits), (side - 1) / np.maximum(charts.extents.max(axis=1), _SMALL))
    return places, float(shares.min())


def _pack(charts: _Charts, scale: float, side: int, padding: int) -> xatlas.Atlas:
    atlas = xatlas.Atlas()
    places = _UNIT * charts.shares(scale)[charts.of_vertex, None] * charts.places
    faces, chart = (numbers.astype(np.uint32) for numbers in (charts.faces, charts.chart[:, None]))
    # Charts of different materials stay apart, wherever they lie.
    atlas.add_uv_mesh(places.astype(np.float32), faces, chart)
    packing = xatlas.PackOptions()
    # Every chart gets its padding on both sides.
    packing.resolution, packing.padding, packing.texels_per_unit = side, math.ceil(padding / 2), 1 / _UNIT
    packing.rotate_charts_to_axis = False
    atlas.generate(pack_options=packing)
    return atlas
