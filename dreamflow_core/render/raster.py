"""Differentiable rasterisation: the interface, and visibility in plain torch.

Conventions: vertices are in clip space (see `cameras`), images are (B, H, W, C) with the first row at
the top, and what is computed per pixel is computed only for the P covered pixels, as (P, C) rows in
the order of `Fragments.pixel`. From vertices to a picture:

    edges = find_edges(faces)                                       # once per mesh; see silhouette
    clip = to_clip(vertices, cameras.world_to_clip())
    fragments = rasterize(clip, faces, (512, 512))
    colour = interpolate(vertex_colours, faces, fragments)          # or texture.sample; premultiplied
    image = fragments.image(torch.cat([colour, torch.ones_like(fragments.depth)], dim=1))
    image = antialias(image, fragments, clip, edges)                # colour, alpha; blend with any background

Which triangle a pixel sees is not differentiable and is left to a backend; everything else is torch
and differentiable. The gradient of `rasterize` and `interpolate` is that of a fixed visibility: how
the silhouette moves is the gradient of `antialias`. Surfaces that cut through each other
have no edge at the cut, so the cut's movement has no gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .backends import warp_works
from .boxes import Boxes, tiles

BACKENDS = ("auto", "warp", "nvdiffrast", "torch")

CHUNK = 1 << 17
"""Pixels of bounding boxes that the torch backend tests at once: some 10 MB at float32."""
_MARGIN = 0.01
"""Pixels by which a bounding box is widened: more than the rounding of a projected corner."""
_NONE = torch.iinfo(torch.int64).max


class BackendUnavailable(RuntimeError):
    """The backend asked for by name cannot be used here; the message says what to do."""


@dataclass(frozen=True)
class Fragments:
    """The P covered pixels of B pictures.

    Attributes:
        size: (B, H, W).
        pixel: (P,) indices into the B * H * W pixels, ascending.
        triangle: (P,) the triangle that each one sees, an index into the faces.
        corners: (P, 3, 4) its corners in clip space; differentiable.
        barycentric: (P, 3) perspective-correct weights of its corners at the pixel's centre, with sum 1;
            differentiable.
        depth: (P, 1) z / w in [-1, 1], smaller is nearer; differentiable.
    """

    size: tuple[int, int, int]
    pixel: Tensor
    triangle: Tensor
    corners: Tensor
    barycentric: Tensor
    depth: Tensor

    @property
    def view(self) -> Tensor:
        """The picture that each covered pixel is in, (P,) in [0, B)."""
        return self.pixel // (self.size[1] * self.size[2])

    def image(self, values: Tensor, background: float = 0.0) -> Tensor:
        """Pictures of (P, C) values, (B, H, W, C); pixels that are not covered get `background`."""
        views, height, width = self.size
        image = values.new_full((views * height * width, values.shape[1]), background)
        return image.index_copy(0, self.pixel, values).view(views, height, width, -1)


def to_clip(vertices: Tensor, world_to_clip: Tensor) -> Tensor:
    """Clip-space positions, (B, V, 4), of (V, 3) or (B, V, 3) vertices under (B, 4, 4) projections."""
    return vertices @ world_to_clip[:, :, :3].mT + world_to_clip[:, None, :, 3]


def to_pixels(clip: Tensor, height: int, width: int) -> Tensor:
    """Column, row and depth (z / w) of (..., 4) clip-space points, (..., 3). Pixel centres are integers."""
    x, y, z = (clip[..., :3] / clip[..., 3:]).unbind(-1)
    return torch.stack([(x + 1) * (width / 2) - 0.5, (1 - y) * (height / 2) - 0.5, z], dim=-1)


@torch.no_grad()
def visible(clip: Tensor, faces: Tensor, size: tuple[int, int], backend: str = "auto") -> Tensor:
    """The nearest triangle at each pixel's centre, (B, H, W) int64, -1 where there is none.

    Both sides of a triangle are drawn. A triangle with a corner that is not finite or not in front of the
    camera (w <= 0) is dropped whole, not clipped; of two triangles at the same depth the one with the
    smaller index is seen.

    "auto" uses Warp where it works, else nvdiffrast if it is installed (CUDA only; its licence allows
    research and evaluation only, so it is never required), else torch. Warp and torch find the same
    triangles in float32. Each is tried once per process, and one log message says why Warp is not used.

    Args:
        clip: (B, V, 4) vertices in clip space, float32 or float64. Warp and nvdiffrast see them as float32.
        faces: (F, 3) int64 vertex indices.
        size: height and width of the pictures.
        backend: one of `BACKENDS`.

    Raises:
        ValueError: a shape, a type or the backend's name is wrong.
        BackendUnavailable: a backend asked for by name cannot be used.
    """
    if clip.ndim != 3 or clip.shape[2] != 4 or clip.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"clip is {clip.dtype} {tuple(clip.shape)}; it must be float32 or float64, (B, V, 4)")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype != torch.int64:
        raise ValueError(f"faces are {faces.dtype} {tuple(faces.shape)}; they must be int64 (F, 3)")
    backend = _choose(backend, clip.device)
    if backend == "nvdiffrast":
        from . import raster_nvdiffrast

        return raster_nvdiffrast.visible(clip, faces, size)
    if backend == "warp":
        from . import raster_warp

        boxes = _boxes(clip.float(), faces, *size)
        return raster_warp.visible(boxes, *_centres(*size, boxes.corners), len(clip))
    return _visible_torch(_boxes(clip, faces, *size), *_centres(*size, clip), len(clip))


def rasterize(clip: Tensor, faces: Tensor, size: tuple[int, int], backend: str = "auto") -> Fragments:
    """What the covered pixels see, differentiable in `clip`. Arguments, rules and errors as of `visible`.

    Memory grows with the covered pixels: 150 bytes each are kept at float32 if gradients are wanted.
    """
    ids = visible(clip.detach(), faces, size, backend).view(-1)
    pixel = (ids >= 0).nonzero().squeeze(1)
    triangle = ids[pixel]
    height, width = size
    vertex = faces[triangle] + (pixel // (height * width) * clip.shape[1])[:, None]
    corners = clip.reshape(-1, 4).index_select(0, vertex.view(-1)).view(-1, 3, 4)
    x, y = _centres(height, width, corners)
    edges = _edge_functions(corners, x[pixel % width], y[pixel // width % height])
    barycentric = edges / edges.sum(1, keepdim=True)
    z, w = ((barycentric * corners[..., axis]).sum(1, keepdim=True) for axis in (2, 3))
    return Fragments((len(clip), height, width), pixel, triangle, corners, barycentric, z / w)


def interpolate(attributes: Tensor, faces: Tensor, fragments: Fragments) -> Tensor:
    """Vertex attributes at the covered pixels, perspective-correct, (P, C).

    Args:
        attributes: (N, C), or (B, N, C) for values of their own in each picture.
        faces: (F, 3) int64 indices of attributes. They may differ from the faces that were rasterised, as
            texture coordinates do, as long as triangles and corners are in the same order.
        fragments: of those triangles.
    """
    row = faces[fragments.triangle]
    if attributes.ndim == 3:
        row = row + (fragments.view * attributes.shape[1])[:, None]
    channels = attributes.shape[-1]
    values = attributes.reshape(-1, channels).index_select(0, row.T.reshape(-1)).view(3, -1, channels)
    return (values * fragments.barycentric.T[:, :, None]).sum(0)


@torch.no_grad()
def footprint(attributes: Tensor, faces: Tensor, fragments: Fragments) -> Tensor:
    """How an interpolated attribute changes over one pixel to the right and one down, (P, C, 2).

    Not differentiable. Arguments as of `interpolate`.
    """
    _, height, width = fragments.size
    x, y, w = fragments.corners[..., 0], fragments.corners[..., 1], fragments.corners[..., 3]
    column, row = _centres(height, width, fragments.corners)
    column, row = column[fragments.pixel % width], row[fragments.pixel // width % height]
    total = _edge_functions(fragments.corners, column, row).sum(1, keepdim=True)
    slopes = []
    for edges, step in ((_wedge(y, w), 2 / width), (_wedge(w, x), -2 / height)):
        slope = torch.stack(edges, dim=1) * step
        change = (slope - fragments.barycentric * slope.sum(1, keepdim=True)) / total
        slopes.append(interpolate(attributes, faces, replace(fragments, barycentric=change)))
    return torch.stack(slopes, dim=2)


def _centres(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """x of the columns' centres, (W,), and y of the rows', (H,), in [-1, 1]."""
    x = (torch.arange(width, device=like.device) + 0.5).to(like) * (2 / width) - 1
    y = 1 - (torch.arange(height, device=like.device) + 0.5).to(like) * (2 / height)
    return x, y


def _wedge(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a_j b_k - a_k b_j for each corner i of (N, 3, ...) triangles, j and k being the next two.

    Swapping j and k changes exactly the sign, also in floating point. So two triangles agree on which
    side of their common edge a pixel is, and no pixel falls between them.
    """
    a0, a1, a2 = a.unbind(1)
    b0, b1, b2 = b.unbind(1)
    return a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0


def _edge_functions(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Barycentric coordinates up to a factor, (N, 3), of (N,) points in (N, 3, 4) triangles.

    A point with weights b_i of the corners projects to (x, y) where sum b_i (x_i - x w_i) = 0 and the same
    in y: so b is the cross product of these two rows, perspective included. All are of one sign inside.
    """
    w = corners[..., 3]
    return torch.stack(_wedge(corners[..., 0] - x[:, None] * w, corners[..., 1] - y[:, None] * w), dim=1)


def _boxes(clip: Tensor, faces: Tensor, height: int, width: int) -> Boxes:
    """Bounding boxes of the triangles, without those that are dropped or miss every pixel's centre."""
    views, vertices = clip.shape[:2]
    corner = faces.view(1, -1).expand(views, -1)
    # Per vertex first: there are half as many of them as of triangles.
    drawn = clip.isfinite().all(-1) & (clip[..., 3] > 0)
    column, row, _ = to_pixels(clip, height, width).unbind(-1)
    drawn, column, row = (values.gather(1, corner).view(-1, 3) for values in (drawn, column, row))
    left = (column.amin(1) - _MARGIN).ceil().clamp(0, width).nan_to_num().long()
    top = (row.amin(1) - _MARGIN).ceil().clamp(0, height).nan_to_num().long()
    columns = (column.amax(1) + _MARGIN).floor().clamp(-1, width - 1).nan_to_num().long() + 1 - left
    rows = (row.amax(1) + _MARGIN).floor().clamp(-1, height - 1).nan_to_num().long() + 1 - top
    kept = (drawn.all(1) & (columns > 0) & (rows > 0)).nonzero().squeeze(1)
    triangle, view = kept % len(faces), kept // len(faces)
    vertex = faces.index_select(0, triangle) + (view * vertices)[:, None]
    corners = clip.reshape(-1, 4).index_select(0, vertex.view(-1)).view(-1, 3, 4)
    return Boxes(corners, triangle, view, left[kept], top[kept], columns[kept], rows[kept])


def _visible_torch(boxes: Boxes, x: Tensor, y: Tensor, views: int) -> Tensor:
    """`visible` in torch: tests every pixel of every box, `CHUNK` at a time.

    Memory grows with the triangles and the pixels, not with how many triangles cover a pixel.
    """
    height, width = len(y), len(x)
    nearest = x.new_full((views * height * width,), torch.inf)
    winner = torch.full_like(nearest, _NONE, dtype=torch.int64)
    side = _tile_side(boxes)
    for box, left, top in zip(*(indices.split(CHUNK // side**2) for indices in tiles(boxes, side))):
        steps = torch.arange(side, device=x.device)
        # Tiles at the right and the bottom draw the last column and row again where they overhang.
        column, row = (left[:, None] + steps).clamp(max=width - 1), (top[:, None] + steps).clamp(max=height - 1)
        corners = boxes.corners[box]
        w = corners[..., 3:]
        across, down = corners[..., 0:1] - x[column][:, None] * w, corners[..., 1:2] - y[row][:, None] * w
        a, b, c = _wedge(across[:, :, None, :], down[:, :, :, None])
        low, high = torch.minimum(torch.minimum(a, b), c), torch.maximum(torch.maximum(a, b), c)
        inside = ((low >= 0) & (high > 0)) | ((high <= 0) & (low < 0))
        hit = inside.view(-1).nonzero().squeeze(1)
        edges = [values.view(-1)[hit] for values in (a, b, c)]
        tile = hit // side**2
        z, w = corners[..., 2:].unbind(-1)
        depth = _weighted(edges, z[tile]) / _weighted(edges, w[tile])
        first = (boxes.view[box] * height)[:, None] + row
        pixel = first.view(-1)[hit // side] * width + column.view(-1)[tile * side + hit % side]
        _keep_nearest(nearest, winner, pixel, depth, boxes.triangle[box][tile])
    return torch.where(winner == _NONE, -1, winner).view(views, height, width)


def _tile_side(boxes: Boxes) -> int:
    """A power of two near the typical box's side: larger tiles test in vain, smaller ones are too many."""
    area = float((boxes.columns * boxes.rows).float().mean()) if len(boxes.rows) else 1.0
    return 1 << min(max(round(math.log2(area) / 2), 2), 6)


def _keep_nearest(nearest: Tensor, winner: Tensor, pixel: Tensor, depth: Tensor, triangle: Tensor) -> None:
    """Draw candidates into the depths and triangles of all pixels, in place."""
    shown = (depth.abs() <= 1).nonzero().squeeze(1)
    pixel, depth, triangle = pixel[shown], depth[shown], triangle[shown]
    nearer = depth < nearest[pixel]
    winner[pixel[nearer]] = _NONE
    nearest.scatter_reduce_(0, pixel, depth, "amin")
    wins = depth == nearest[pixel]
    winner.scatter_reduce_(0, pixel[wins], triangle[wins], "amin")


def _weighted(weights: Sequence[Tensor], values: Tensor) -> Tensor:
    """Weighted sums of (N, 3) values from left to right, which is the order of the Warp kernel's sums."""
    return weights[0] * values[:, 0] + weights[1] * values[:, 1] + weights[2] * values[:, 2]


def _choose(backend: str, device: torch.device) -> str:
    """The backend to use on a device: the one asked for, or for "auto" the first that works."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown rasteriser {backend!r}; there are {', '.join(BACKENDS)}")
    if backend == "auto":
        return "warp" if warp_works(device) else "nvdiffrast" if _why_not_nvdiffrast(device) == "" else "torch"
    if backend == "warp" and not warp_works(device):
        raise BackendUnavailable(
            f"Warp does not work on {device}; the log says why. Try pip install warp-lang, or another rasteriser."
        )
    if backend == "nvdiffrast" and _why_not_nvdiffrast(device):
        raise BackendUnavailable(f"nvdiffrast does not work on {device}: {_why_not_nvdiffrast(device)}")
    return backend


@functools.cache
def _why_not_nvdiffrast(device: torch.device) -> str:
    """Why nvdiffrast cannot be used on a device, found by drawing a triangle; "" if it can."""
    if device.type != "cuda":
        return "it needs CUDA"
    try:
        from . import raster_nvdiffrast
    except ImportError as error:
        return f"{error}. Its licence allows research and evaluation only; Warp needs no such licence"
    clip = torch.tensor([[[-0.9, -0.8, 0.0, 1.0], [0.7, -0.6, 0.0, 1.0], [-0.4, 0.9, 0.0, 1.0]]], device=device)
    faces = torch.tensor([[0, 1, 2]], device=device)
    try:
        drawn = raster_nvdiffrast.visible(clip, faces, (8, 8))
    except Exception as error:  # it may have to compile itself first, which can fail in any way
        return f"{type(error).__name__}: {error}"
    return "" if torch.equal(drawn, visible(clip, faces, (8, 8), "torch")) else "it draws a test triangle differently"
