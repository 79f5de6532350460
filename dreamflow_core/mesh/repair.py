"""Pulling apart the places where a simplified surface touches itself.

Collapsing edges without looking at their surroundings can bring two sheets together along an edge: four
faces then share it. The sheets still close (as many faces run along the edge one way as the other), so
it is enough to decide which face continues into which, and to give every sheet vertices of its own.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from . import topology
from .mesh import Floats, Ints

_MOST_PASSES = 16
_NUDGE = 0.02
"""Share of the way to its own faces' middle that a vertex pulled off another one moves."""


def pull_apart(vertices: Floats, faces: Ints) -> tuple[Floats, Ints]:
    """The same surface with every edge between exactly two faces; a few faces may be added.

    Args:
        vertices, faces: as many faces run along each edge one way as the other. If they do not, the
            surface is returned unclosed.
    """
    faces = _without_flat_pairs(faces)
    for _ in range(_MOST_PASSES):
        if len(faces) == 0 or topology.is_closed(faces):
            break
        partner = _pair_half_edges(vertices, faces)
        if partner is None:
            break
        vertices, faces = _split_fans(vertices, faces, partner)
        vertices, faces = _split_doubled_edges(vertices, faces, partner)
    return vertices, faces


def _without_flat_pairs(faces: Ints) -> Ints:
    """Without faces of repeated corners, and without pairs of one triangle facing both ways."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    # The smallest index first, the order kept; facing the other way swaps the other two.
    first = faces.argmin(axis=1)
    turned = np.take_along_axis(faces, (first[:, None] + np.arange(3)) % 3, axis=1)
    upward = turned[:, 1] < turned[:, 2]
    triangles, which = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True)
    net = np.bincount(which.reshape(-1), np.where(upward, 1, -1), len(triangles)).astype(int)
    return np.concatenate([triangles[net > 0], triangles[net < 0][:, [0, 2, 1]]])


def _pair_half_edges(vertices: Floats, faces: Ints) -> Ints | None:
    """The half-edge (3 * face + corner it starts at) across each half-edge, (3F,); None if one has none."""
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    key = np.minimum(start, end) * (int(faces.max()) + 1) + np.maximum(start, end)
    order = np.argsort(key, kind="stable")
    first = np.flatnonzero(np.diff(key[order], prepend=-1))
    size = np.diff(first, append=len(order))
    partner = np.full(len(start), -1)
    one, other = order[first[size == 2]], order[first[size == 2] + 1]
    partner[one], partner[other] = other, one
    for begin, count in zip(first[size > 2], size[size > 2]):
        for one, other in _wedges(vertices, faces, order[begin : begin + count]):
            partner[one], partner[other] = other, one
    if (partner < 0).any() or (start[partner] != end).any():
        return None
    return partner


def _wedges(vertices: Floats, faces: Ints, group: Ints) -> list[tuple[int, int]]:
    """Pairs of half-edges around one edge such that each pair bounds one wedge of the outside.

    So the inside stays connected across the edge, and the surface keeps to one component.
    """
    face, corner = np.divmod(group, 3)
    start, end, across = (faces[face, (corner + step) % 3] for step in range(3))
    forward = start < end
    low, high = vertices[start[forward][0]], vertices[end[forward][0]]
    axis = (high - low).astype(np.float64)
    side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    away = vertices[across] - low
    length = max(float(np.linalg.norm(axis)), np.finfo(float).tiny)
    angle = np.arctan2(away @ np.cross(axis, side) / length, away @ side)
    pairs, waiting, paired = [], [], set()
    # Turning around the edge, a forward face leaves the inside and the next backward one enters it.
    for index in np.tile(np.argsort(angle, kind="stable"), 2):
        if index in paired or index in waiting:
            continue
        if forward[index]:
            waiting.append(index)
        elif waiting:
            other = waiting.pop()
            paired |= {index, other}
            pairs.append((int(group[index]), int(group[other])))
    return pairs


def _split_fans(vertices: Floats, faces: Ints, partner: Ints) -> tuple[Floats, Ints]:
    """Give every fan of faces around an end of a shared edge a vertex of its own.

    Vertices at which fans meet in nothing but the vertex stay: they are closed, and hold the surface together.
    """
    half_edge = np.arange(len(partner))
    after = half_edge - half_edge % 3 + (half_edge + 1) % 3
    # A half-edge and its partner start at each other's end: corners that meet are one vertex.
    one, other = np.concatenate([half_edge, after]), np.concatenate([after[partner], partner])
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(partner),) * 2)
    _, fan = connected_components(graph, directed=False)
    corner_of = faces.reshape(-1)
    fan = np.where(topology.shared_vertices(faces)[corner_of], fan + len(vertices), corner_of)
    _, first, new = np.unique(fan, return_index=True, return_inverse=True)
    old, new_faces = corner_of[first], new.reshape(-1, 3)
    shared = np.bincount(old, minlength=len(vertices))[old] > 1
    return _nudge(vertices[old], new_faces, np.flatnonzero(shared)), new_faces


def _nudge(vertices: Floats, faces: Ints, which: Ints) -> Floats:
    """Move some vertices a little towards the middle of their own faces, off what they were split from."""
    moved = vertices.copy()
    centres = vertices[faces].mean(axis=1)
    for vertex in which:
        around = centres[(faces == vertex).any(axis=1)].mean(axis=0)
        moved[vertex] += _NUDGE * (around - vertices[vertex])
    return moved


def _split_doubled_edges(vertices: Floats, faces: Ints, partner: Ints) -> tuple[Floats, Ints]:
    """Where two pairs of faces still share both ends of an edge, cut one pair at a middle of its own."""
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    key = start * len(vertices) + end
    _, first = np.unique(key, return_index=True)
    doubled = np.setdiff1d(np.arange(len(key)), first)
    kept = np.ones(len(faces), bool)
    added: list[tuple[int, int, int]] = []
    middles: list[Floats] = []
    for one in doubled:
        other = partner[one]
        if not (kept[one // 3] and kept[other // 3]):
            continue
        kept[[one // 3, other // 3]] = False
        middle = len(vertices) + len(middles)
        middles.append((vertices[start[one]] + vertices[end[one]]) / 2)
        for half_edge in (one, other):
            a, b, c = np.roll(faces[half_edge // 3], -(half_edge % 3))
            added += [(a, middle, c), (middle, b, c)]
    if not middles:
        return vertices, faces
    faces = np.concatenate([faces[kept], np.array(added, np.int64)])
    count = len(vertices)
    vertices = np.concatenate([vertices, np.array(middles, vertices.dtype)])
    return _nudge(vertices, faces, np.arange(count, len(vertices))), faces
