"""The prior's own sampler: what the flow's results are compared with."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .prior import Session
from .schedule import check_levels


@torch.no_grad()
def heun(
    session: Session, noise: Tensor, levels: Tensor, churn: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Solve the prior's probability flow ODE by Heun's method, or sample it stochastically
    (EDM, arXiv 2206.00364, algorithms 1 and 2).

    Args:
        session: of the prior.
        noise: (B, C, h, w) unit noise.
        levels: (N + 1,) decreasing sigmas; 2 N - 1 evaluations if the last is 0.
        churn: share by which fresh noise raises the level before each step (the paper's gamma, which it
            keeps under 0.42); 0 is the ODE. What earlier steps got wrong is noised away and mended.
        generator: of the fresh noise, on the CPU.

    Returns:
        Latents at the last level, (B, C, h, w). Not differentiable.
    """
    check_levels(levels)
    x = float(levels[0]) * noise.to(session.device)
    for level, following in pairwise(levels.tolist()):
        sigma = (1 + churn) * level
        if churn:
            fresh = torch.randn(x.shape, generator=generator).to(x)
            x = x + math.sqrt(sigma**2 - level**2) * fresh
        slope = (x - session.denoise(x, sigma, None, guided=True)) / sigma
        x_next = x + (following - sigma) * slope
        if following > 0:
            slope_next = (x_next - session.denoise(x_next, following, None, guided=True)) / following
            x_next = x + (following - sigma) * (slope + slope_next) / 2
        x = x_next
    return x
