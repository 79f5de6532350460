"""Visibility by nvdiffrast, if the user has installed it. CUDA only.

nvdiffrast's licence allows research and evaluation only, so the pack neither requires nor bundles it;
Warp does the same job. It clips triangles that reach behind the camera where the others drop them.
"""

import functools

import nvdiffrast.torch as dr
import torch
from torch import Tensor

MOST_FACES = 1 << 24
"""nvdiffrast returns triangle numbers as float32, which cannot tell more apart."""


def visible(clip: Tensor, faces: Tensor, size: tuple[int, int]) -> Tensor:
    """The triangle at each pixel, (B, H, W) int64, -1 where there is none.

    Raises:
        ValueError: there are too many faces.
    """
    if len(faces) >= MOST_FACES:
        raise ValueError(f"nvdiffrast cannot tell {len(faces)} faces apart; choose another rasteriser")
    drawn, _ = dr.rasterize(
        _context(clip.device), clip.float().contiguous(), faces.int().contiguous(), size, grad_db=False
    )
    # Its first row is the bottom one, and 0 means no triangle.
    return drawn[..., 3].flip(1).long() - 1


@functools.cache
def _context(device: torch.device):
    return dr.RasterizeCudaContext(device=device)
