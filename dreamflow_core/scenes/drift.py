"""Keeps the colours of a texture near where they started, on each of the six sides of an object."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..mesh.bake import nearest
from ..mesh.mesh import Ints

_SIDE = 1024
"""Texels of a larger texture are taken together: the survey has too few pixels to tell them apart."""
_TOGETHER = 1 << 16
"""Texels that are worked on at a time."""


class Blocks:
    """The T painted texels of a texture in B squares of equal size, the texels of a smaller texture.

    At 1024 texels and less each is a block of its own. A chart narrower than a block shares it with its neighbours.

    Attributes:
        size: height and width of the smaller texture, at most 1024 unless a side could not be halved so often.
        block: (T,) int32, the block that each texel is in.
        nearest: (height * width,) for each texel of the smaller texture the block that it copies.
        texels: (B,) how many texels a block has.

    Args:
        surface: (T,) the painted texels, row * W + column.
        size: height H and width W of the texture.
    """

    def __init__(self, surface: Ints, size: tuple[int, int], device: torch.device):
        height, width = size
        side = 1
        while max(height, width) > _SIDE and height % 2 == width % 2 == 0:
            height, width, side = height // 2, width // 2, 2 * side
        place = surface // size[1] // side * width
        place += surface % size[1] // side
        count = np.bincount(place, minlength=height * width)
        painted = count > 0
        number = (np.cumsum(painted) - 1).astype(np.int32)
        self.size = height, width
        self.block = torch.from_numpy(number.take(place)).to(device)
        self.nearest = torch.from_numpy(number.take(nearest(painted.reshape(self.size)))).to(device).long()
        self.texels = torch.from_numpy(count[painted]).to(device)


class Drift:
    """Bounds how far the mean colour of each of six sides moves from where it is now.

    Args:
        blocks: of the texels.
        prominence: (6, B) how much of each block cameras see turned each way.
        texels: (T, 3) colours.
        most: in each channel.
    """

    def __init__(self, blocks: Blocks, prominence: Tensor, texels: Tensor, most: float):
        self._block, self._most = blocks.block, most
        share, turned = _normalised(prominence, dim=1), _normalised(prominence, dim=0).T
        # A block is turned several ways, so what is taken from one mean is taken from others too.
        self._spread = turned @ torch.linalg.pinv(share @ turned)
        # A row for each block: rows are picked many times as fast as columns.
        self._share = (share / blocks.texels).T.contiguous()
        self._first = self.mean_colours(texels)

    def mean_colours(self, texels: Tensor) -> Tensor:
        """Of texels (T, 3), as cameras see them turned each of six ways, (6, 3)."""
        parts = zip(self._block.split(_TOGETHER), texels.split(_TOGETHER))
        return torch.stack([self._share.index_select(0, block).T @ colours for block, colours in parts]).sum(0)

    def bound(self, texels: Tensor) -> None:
        """Take from texels (T, 3), in place, what of their drift is too much."""
        drift = self.mean_colours(texels) - self._first
        excess = self._spread @ (drift - drift.clamp(-self._most, self._most))
        for block, colours in zip(self._block.split(_TOGETHER), texels.split(_TOGETHER)):
            colours.sub_(excess.index_select(0, block))


def six_ways(normals: Tensor) -> Tensor:
    """How much unit normals (B, 3, ...) are turned along each axis and against it, (B, 6, ...), summing to 1.

    The ambient cube's basis (Mitchell, McTaggart and Green 2006, "Shading in Valve's Source engine").
    """
    return torch.cat([normals, -normals], dim=1).clamp_min(0).square()


def _normalised(shares: Tensor, dim: int) -> Tensor:
    return shares / shares.sum(dim, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
