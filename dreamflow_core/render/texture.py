"""Mip-mapped texture lookup, differentiable in the texture and in the coordinates.

Texture coordinates are glTF's: (0, 0) is the upper left corner of the image, u grows to the right and v down. Williams
1983, "Pyramidal parametrics": a lookup averages the texels under a pixel, approximately, by interpolating between ever
smaller copies of the texture. A pixel's footprint is taken as a square as wide as its longer side, so surfaces seen at
a grazing angle are smoothed in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mipmaps(texture: Tensor) -> list[Tensor]:
    """A texture and its halved copies, each the mean of the one before. Differentiable.

    The chain ends at one texel, or where a side is odd: halving it would not keep the mean. Sizes with a
    large power of two as factor are best.

    Args:
        texture: (B, H, W, C), or (1, H, W, C) for one that all pictures share.
    """
    levels = [texture]
    while max(texture.shape[1:3]) > 1 and all(side == 1 or side % 2 == 0 for side in texture.shape[1:3]):
        window = (min(texture.shape[1], 2), min(texture.shape[2], 2))
        texture = F.avg_pool2d(texture.permute(0, 3, 1, 2), window).permute(0, 2, 3, 1)
        levels.append(texture)
    return levels


def sample(
    levels: Sequence[Tensor],
    uv: Tensor,
    view: Tensor,
    footprint: Tensor | None = None,
    repeats: tuple[bool, bool] = (False, False),
) -> Tensor:
    """Texture values at the covered pixels, (P, C): bilinear in the two levels nearest the footprint's size.

    Differentiable in `levels` and `uv`; which levels are used is not.

    Args:
        levels: of `mipmaps`, or just [texture].
        uv: (P, 2) texture coordinates.
        view: (P,) the picture of each pixel (`Fragments.view`); unused if all share the texture.
        footprint: (P, 2, 2) change of u and v (rows) over one pixel to the right and one down (columns), as
            `raster.footprint` gives it; None uses the first level alone.
        repeats: whether the image repeats where u, and where v, is outside [0, 1]; else its border goes on.
    """
    table = torch.cat([level.reshape(-1, level.shape[-1]) for level in levels])
    rows, weights = lookup([level.shape for level in levels], uv, view, footprint, repeats)
    values = table.index_select(0, rows.view(-1)).view(*rows.shape, table.shape[1])
    return (values * weights[:, :, None]).sum(0)


def lookup(
    levels: Sequence[torch.Size],
    uv: Tensor,
    view: Tensor,
    footprint: Tensor | None = None,
    repeats: tuple[bool, bool] = (False, False),
) -> tuple[Tensor, Tensor]:
    """The texels that `sample` adds up for each pixel, by their shapes alone; its arguments otherwise.

    Returns:
        Rows (K, P) of the table of all levels' texels, one level after the other, and their weights (K, P),
        differentiable in `uv`.
    """
    sizes = torch.tensor([shape[1:3] for shape in levels], device=uv.device)
    texels = torch.tensor([shape[:3].numel() for shape in levels], device=uv.device)
    firsts = texels.cumsum(0) - texels
    texture = torch.zeros_like(view) if levels[0][0] == 1 else view

    def corners(level: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table around each point in its level, and their weights, each (4, P)."""
        height, width = sizes[level].unbind(1)
        place = uv * torch.stack([width, height], dim=1) - 0.5  # texel centres are at halves
        corner = place.detach().floor()
        right, down = (place - corner).unbind(1)
        left, top = corner.long().unbind(1)
        columns = [_wrapped(x, width, repeats[0]) for x in (left, left + 1)]
        lines = [_wrapped(y, height, repeats[1]) for y in (top, top + 1)]
        lines = [firsts[level] + (texture * height + line) * width for line in lines]
        rows = [line + column for line in lines for column in columns]
        weights = [y * x for y in (share * (1 - down), share * down) for x in (1 - right, right)]
        return torch.stack(rows), torch.stack(weights)

    if footprint is None:
        return corners(torch.zeros_like(view), torch.ones_like(uv[:, 0]))
    level = _level(footprint, sizes)
    fine = level.floor().long()
    coarse = (fine + 1).clamp(max=len(levels) - 1)
    both = corners(fine, 1 - (level - fine)), corners(coarse, level - fine)
    rows, weights = (torch.cat(parts) for parts in zip(*both))
    return rows, weights


def _wrapped(texel: Tensor, count: Tensor, repeats: bool) -> Tensor:
    """Texels (P,) of rows or columns of `count` (P,) texels, where they may lie outside."""
    return texel % count if repeats else torch.minimum(texel.clamp(min=0), count - 1)


def _level(footprint: Tensor, sizes: Tensor) -> Tensor:
    """The level whose texels are as wide as each footprint's longer side, (P,) in [0, levels - 1]."""
    square = (footprint.detach() * sizes[0].flip(0)[:, None]).square()
    longer = torch.maximum(square[:, 0, 0] + square[:, 1, 0], square[:, 0, 1] + square[:, 1, 1])
    return (longer.clamp(min=1).log2() / 2).clamp(max=len(sizes) - 1)
