"""Visibility as a Warp z-buffer: the fast twin of `raster._visible_torch`, on CPU and CUDA.

One thread per tile of a triangle's bounding box, and one 64-bit atomic minimum per covered pixel: depth
in the upper half, triangle in the lower. Compiled without fused multiply-add, the edge functions are
those of torch to the last bit, and of opposite sign on the two sides of an edge (no cracks).
"""

# mypy: disable-error-code="valid-type, operator"
# Kernels are typed and compiled by Warp, in a language of its own.

import torch
import warp as wp
from torch import Tensor

from ..quiet import quiet_warp
from .boxes import Boxes, tiles

TILE = 32
"""Most columns and rows that one thread walks, so that a huge triangle does not fall to a single one."""

_EMPTY = torch.iinfo(torch.int64).max
_MODULE = "dreamflow_raster"  # inside ComfyUI this file's module name is a path, which Warp cannot use
wp.set_module_options({"fuse_fp": False, "enable_backward": False}, module=_MODULE)


@wp.func
def _side(ax: float, ay: float, bx: float, by: float):
    return ax * by - bx * ay


@wp.kernel(module=_MODULE)
def _draw(
    corners: wp.array2d(dtype=wp.vec4),
    triangle: wp.array(dtype=wp.int64),
    view: wp.array(dtype=wp.int64),
    tile_box: wp.array(dtype=wp.int64),
    tile_left: wp.array(dtype=wp.int64),
    tile_top: wp.array(dtype=wp.int64),
    right: wp.array(dtype=wp.int64),
    bottom: wp.array(dtype=wp.int64),
    x: wp.array(dtype=float),
    y: wp.array(dtype=float),
    buffer: wp.array3d(dtype=wp.int64),
):
    """Draw one tile. The box of a tile ends before the column `right` and the row `bottom`."""
    tile = wp.tid()
    box = int(tile_box[tile])
    left = int(tile_left[tile])
    top = int(tile_top[tile])
    a = corners[box, 0]
    b = corners[box, 1]
    c = corners[box, 2]
    for row in range(top, wp.min(top + TILE, int(bottom[box]))):
        ay = a[1] - y[row] * a[3]
        by = b[1] - y[row] * b[3]
        cy = c[1] - y[row] * c[3]
        for column in range(left, wp.min(left + TILE, int(right[box]))):
            ax = a[0] - x[column] * a[3]
            bx = b[0] - x[column] * b[3]
            cx = c[0] - x[column] * c[3]
            ea = _side(bx, by, cx, cy)
            eb = _side(cx, cy, ax, ay)
            ec = _side(ax, ay, bx, by)
            low = wp.min(wp.min(ea, eb), ec)
            high = wp.max(wp.max(ea, eb), ec)
            if (low >= 0.0 or high <= 0.0) and (low != 0.0 or high != 0.0):
                depth = (ea * a[2] + eb * b[2] + ec * c[2]) / (ea * a[3] + eb * b[3] + ec * c[3])
                if wp.abs(depth) <= 1.0:
                    order = wp.cast(depth, wp.int32)
                    if order < 0:  # the bits of negative floats grow as they fall
                        order = order ^ 0x7FFFFFFF
                    key = (wp.int64(order) << wp.int64(32)) | triangle[box]
                    wp.atomic_min(buffer, int(view[box]), row, column, key)


@quiet_warp()
def visible(boxes: Boxes, x: Tensor, y: Tensor, views: int) -> Tensor:
    """`raster._visible_torch` for float32 boxes, on a device where `backends.warp_works`."""
    buffer = torch.full((views, len(y), len(x)), _EMPTY, dtype=torch.int64, device=x.device)
    box, left, top = tiles(boxes, TILE)
    tensors = (boxes.triangle, boxes.view, box, left, top, boxes.left + boxes.columns, boxes.top + boxes.rows)
    arrays = [wp.from_torch(boxes.corners, dtype=wp.vec4), *map(wp.from_torch, (*tensors, x, y, buffer))]
    if x.is_cuda:
        with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(x.device))):
            wp.launch(_draw, dim=len(box), inputs=arrays, device=str(x.device))
    else:
        wp.launch(_draw, dim=len(box), inputs=arrays, device="cpu")
    return torch.where(buffer == _EMPTY, -1, buffer & 0xFFFFFFFF)
