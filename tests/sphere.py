"""A sphere beside the origin as cameras see it, by intersecting rays."""

from __future__ import annotations

import torch
from torch import Tensor

CENTRE, RADIUS = torch.tensor([0.4, 0.1, 0.0]), 0.5


def sphere_from(cameras, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour, alpha, depth and normal, as of a `View`."""
    origins, directions = cameras.rays(size)
    towards = CENTRE - origins
    along = (towards * directions).sum(-1)
    discriminant = RADIUS**2 - (towards.square().sum(-1) - along**2)
    alpha = (discriminant > 0).float()
    depth = (along - discriminant.clamp_min(0).sqrt()) * alpha
    normal = (origins + depth[..., None] * directions - CENTRE) / RADIUS * alpha[..., None]
    colour = torch.full((3,), 0.5) * alpha[..., None]
    return colour.movedim(-1, 1), alpha[:, None], depth[:, None], normal.movedim(-1, 1)
