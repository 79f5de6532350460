"""Antialiased silhouettes, and with them the gradient of visibility by the vertices.

An edge is on the silhouette of a view if all its triangles lie on one side of it in projection: a fold,
or the boundary of an open mesh. Between the centres of two neighbouring pixels that such an edge
separates, the surface ends where the edge crosses; so the pixel that this point is in gets a share of
its neighbour's colour, in proportion to how far the crossing is from the pixels' common border. The
image then changes continuously as the edge moves, and what it covers is right to first order.

The edges are walked, not the visible triangles' own edges: where triangles are of a pixel's size or
smaller, the triangle at a pixel's centre is seldom the one that ends at the silhouette.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .raster import Fragments, to_pixels


@dataclass(frozen=True)
class Edges:
    """The E edges of a mesh.

    Attributes:
        ends: (E, 2) vertex indices.
        corners: (3, F) those of the triangles.
        edge: (3, F) the edge across from each corner.
        turned: (3, F) whether that starts at the later of the triangle's two others: the next but one.
    """

    ends: Tensor
    corners: Tensor
    edge: Tensor
    turned: Tensor


def find_edges(faces: Tensor, vertices: Tensor | None = None) -> Edges:
    """The edges between (F, 3) faces, to be found once and again when the faces change.

    Args:
        faces: int64 vertex indices. Triangles with a repeated vertex are left out.
        vertices: (V, 3) positions; if given, vertices at exactly the same place count as one. Needed for
            meshes whose vertices are split along texture seams, which would all look like boundaries. The
            silhouette's gradient then goes to the one with the smallest index.
    """
    if vertices is not None:
        faces = _weld(vertices)[faces]
    a, b, c = faces.unbind(1)
    count = faces.max() + 1
    faces = faces[(a != b) & (b != c) & (c != a)]
    corners = faces.T.contiguous()
    next_, last = corners[[1, 2, 0]], corners[[2, 0, 1]]
    # As one number each, which is many times as fast as as pairs.
    ends, edge = (torch.minimum(next_, last) * count + torch.maximum(next_, last)).unique(return_inverse=True)
    return Edges(torch.stack([ends // count, ends % count], dim=1), corners, edge, last < next_)


def _weld(vertices: Tensor) -> Tensor:
    """For each vertex the smallest index of a vertex at the same place, (V,)."""
    places, place = vertices.detach().unique(dim=0, return_inverse=True)
    index = torch.arange(len(vertices), device=vertices.device)
    return index.new_full((len(places),), len(vertices)).scatter_reduce(0, place, index, "amin")[place]


def antialias(image: Tensor, fragments: Fragments, clip: Tensor, edges: Edges) -> Tensor:
    """Blend the pixels along silhouettes, (B, H, W, C). Differentiable in `image` and `clip`.

    Every result is a convex combination of neighbouring pixels, so ranges are kept.

    Args:
        image: (B, H, W, C) what the pixels' centres see; premultiplied if it has an alpha channel.
        fragments: the covered pixels, as `rasterize` gave them.
        clip: (B, V, 4) vertices in clip space, those that were rasterised.
        edges: of the faces that were rasterised.
    """
    views, height, width = fragments.size
    outline = _outline(clip, edges, height, width)
    depth = fragments.image(fragments.depth.detach(), torch.inf).view(-1)
    inside, outside, reach = (
        torch.cat(parts) for parts in zip(*(_separated(outline, depth, fragments.size, axis) for axis in (0, 1)))
    )
    grows = reach > 0.5
    target, source = torch.where(grows, outside, inside), torch.where(grows, inside, outside)
    share = (reach - 0.5).abs()
    flat = image.reshape(views * height * width, -1)
    total = flat.new_zeros(len(flat)).index_add(0, target, share)
    share = share / total.clamp(min=1)[target]
    change = share[:, None] * (flat.index_select(0, source) - flat.index_select(0, target))
    return flat.index_add(0, target, change).view(image.shape)


@dataclass(frozen=True)
class _Outline:
    """The K edges on the silhouettes of all views.

    Attributes:
        start, end: (K, 3) column, row and depth of the ends; differentiable.
        view: (K,) the picture.
        side: (K,) the side of the line from start to end on which the triangles lie: the sign of the
            cross product of (column, row).
    """

    start: Tensor
    end: Tensor
    view: Tensor
    side: Tensor

    def __getitem__(self, index: Tensor) -> _Outline:
        return _Outline(self.start[index], self.end[index], self.view[index], self.side[index])


def _outline(clip: Tensor, edges: Edges, height: int, width: int) -> _Outline:
    """The silhouettes of (B, V, 4) vertices."""
    with torch.no_grad():
        # A triangle that `rasterize` drops lies on neither side, and an edge without a place is on no silhouette.
        drawn = clip.isfinite().all(-1, keepdim=True) & (clip[..., 3:] > 0)
        place = torch.where(drawn, to_pixels(clip, height, width), torch.nan)
        (x, across), (y, down) = (_steps(place[..., axis], edges) for axis in (0, 1))
        side = (x * down - y * across).flatten(1)
        here, there = (
            side.new_zeros(len(clip), len(edges.ends)).index_add_(1, edges.edge.view(-1), on.to(side)) > 0
            for on in (side > 0, side < 0)
        )
        view, edge = (here != there).nonzero(as_tuple=True)
        side = torch.where(here[view, edge], 1, -1)
    vertices = edges.ends[edge] + (view * clip.shape[1])[:, None]
    start, end = (to_pixels(clip.reshape(-1, 4).index_select(0, v), height, width) for v in vertices.unbind(1))
    return _Outline(start, end, view, side)


def _steps(values: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """How values (B, V) change along the edges across from all corners, and from their starts to these, (B, 3, F)."""
    # Picking single numbers is several times as fast as picking rows.
    corner = values.gather(1, edges.corners.view(1, -1).expand(len(values), -1)).view(-1, *edges.corners.shape)
    next_, last = corner[:, [1, 2, 0]], corner[:, [2, 0, 1]]
    start = torch.where(edges.turned, last, next_)
    return torch.where(edges.turned, next_, last) - start, corner - start


def _separated(
    outline: _Outline, depth: Tensor, size: tuple[int, int, int], axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of neighbouring pixels that a silhouette separates, each pair once.

    Args:
        outline: the silhouettes.
        depth: (B * H * W,) of the pixels, infinite where they are not covered.
        size: (B, H, W).
        axis: 0 for neighbours in a row, 1 for neighbours in a column. An edge separates only pairs along
            the axis that it crosses more steeply: either axis alone accounts for the area it moves over.

    Returns:
        The pixel on the surface's side and the other one, each (N,), and where between their centres the
        surface ends, (N,) in [0, 1], differentiable in the outline.
    """
    _, height, width = size
    length, lines, stride = (width, height, 1) if axis == 0 else (height, width, width)
    steps = (outline.end - outline.start).detach().abs()
    outline = outline[steps[:, 1] >= steps[:, 0] if axis == 0 else steps[:, 1] < steps[:, 0]]
    edge, line = _lines(outline.start[:, 1 - axis].detach(), outline.end[:, 1 - axis].detach(), lines)
    outline = outline[edge]
    start, step = outline.start, outline.end - outline.start
    crossing = start + ((line - start[:, 1 - axis]) / step[:, 1 - axis])[:, None] * step
    place, before = crossing[:, axis], crossing[:, axis].detach().floor()
    # The cross product of the edge's step and a step to the next pixel.
    turn = -step[:, 1] if axis == 0 else step[:, 0]
    surface_after = turn.detach() * outline.side > 0
    reach = torch.where(surface_after, before + 1 - place, place - before)

    on_image = ((before >= 0) & (before < length - 1)).nonzero().squeeze(1)
    before, line, reach, surface_after = (
        before[on_image].long(),
        line[on_image],
        reach[on_image],
        surface_after[on_image],
    )
    row, column = (line, before) if axis == 0 else (before, line)
    first = (outline.view[on_image] * height + row) * width + column
    inside, outside = first + stride * surface_after, first + stride * ~surface_after
    # What lies behind the pixel on the other side is hidden there; where nothing is inside, there is no colour.
    seen = (depth[inside] < torch.inf) & (crossing[on_image, 2].detach() < depth[outside])
    keep = seen.nonzero().squeeze(1)
    keep = keep[_outermost(first[keep], reach[keep].detach())]
    return inside[keep], outside[keep], reach[keep]


def _lines(start: Tensor, end: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The integers in [0, count) that each interval from `start` to `end` contains, its larger end excluded.

    Returns:
        The interval and the integer, each (N,) int64.
    """
    first = torch.minimum(start, end).ceil().clamp(0, count).long()
    counts = torch.maximum(start, end).ceil().clamp(0, count).long() - first
    interval = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    within = torch.arange(len(interval), device=counts.device) - (counts.cumsum(0) - counts)[interval]
    return interval, first[interval] + within


def _outermost(pair: Tensor, reach: Tensor) -> Tensor:
    """The index of the farthest crossing of each pair, (N,): the silhouette of a fine mesh zigzags."""
    pairs, group = pair.unique(return_inverse=True)
    farthest = reach.new_zeros(len(pairs)).scatter_reduce(0, group, reach, "amax")
    candidate = (reach == farthest[group]).nonzero().squeeze(1)
    return candidate.new_full((len(pairs),), len(pair)).scatter_reduce(0, group[candidate], candidate, "amin")
