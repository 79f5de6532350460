"""The prior's own deterministic sampler: what the flow's results are compared with."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .prior import Session
from .schedule import check_levels


@torch.no_grad()
def heun(session: Session, noise: Tensor, levels: Tensor) -> Tensor:
    """Solve the prior's probability flow ODE by Heun's method (EDM, arXiv 2206.00364, algorithm 1).

    Args:
        session: of the prior.
        noise: (B, C, h, w) unit noise.
        levels: (N + 1,) decreasing sigmas; 2 N - 1 evaluations if the last is 0.

    Returns:
        Latents at the last level, (B, C, h, w). Not differentiable.
    """
    check_levels(levels)
    x = float(levels[0]) * noise.to(session.device)
    for sigma, following in pairwise(levels.tolist()):
        slope = (x - session.denoise(x, sigma, None, guided=True)) / sigma
        x_next = x + (following - sigma) * slope
        if following > 0:
            slope_next = (x_next - session.denoise(x_next, following, None, guided=True)) / following
            x_next = x + (following - sigma) * (slope + slope_next) / 2
        x = x_next
    return x
