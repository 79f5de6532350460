"""Bounding boxes of triangles in pictures, and the tiles that they consist of: what rasterisers walk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """The N triangles that may cover a pixel's centre, of all pictures, and the pixels they may cover.

    Attributes:
        corners: (N, 3, 4) clip space.
        triangle: (N,) index into the faces.
        view: (N,) the picture.
        left, top: (N,) the box's first column and row.
        columns, rows: (N,) size of the box, at least 1.
    """

    corners: Tensor
    triangle: Tensor
    view: Tensor
    left: Tensor
    top: Tensor
    columns: Tensor
    rows: Tensor


def tiles(boxes: Boxes, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The box, first column and first row of every square tile that the boxes consist of."""
    across, down = (boxes.columns + side - 1) // side, (boxes.rows + side - 1) // side
    count = across * down
    box = torch.arange(len(count), device=count.device).repeat_interleave(count)
    within = torch.arange(len(box), device=count.device) - (count.cumsum(0) - count)[box]
    return box, boxes.left[box] + within % across[box] * side, boxes.top[box] + within // across[box] * side
