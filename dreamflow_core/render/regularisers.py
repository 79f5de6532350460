"""Losses on volume renders, one value per ray.

All take padded samples: (R, M) arrays with weight zero where a ray has fewer than M samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def orientation(weights: Tensor, facing: Tensor) -> Tensor:
    """Visible normals should face the camera (Verbin et al. 2022, Ref-NeRF, equation 11).

    Args:
        weights: (R, M) how much each sample is seen. No gradient flows into them, as in DreamFusion:
            else the loss would hide samples instead of turning them.
        facing: (R, M) cosine between the outward normal and the ray's direction, positive on
            surfaces that face away.

    Returns:
        (R,) not negative.
    """
    return (weights.detach() * facing.clamp_min(0).square()).sum(-1)


def opacity(alpha: Tensor) -> Tensor:
    """Space should be empty where nothing is needed (Poole et al. 2023, DreamFusion, appendix A).

    Args:
        alpha: (R,) in [0, 1].

    Returns:
        (R,) in [0.1, 1.01]: close to alpha, with no kink at zero.
    """
    return (alpha.square() + 0.01).sqrt()


def distortion(weights: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """What a ray sees should lie close together (Barron et al. 2022, mip-NeRF 360, equation 15).

    Args:
        weights: (R, M).
        start, end: (R, M) intervals in scene units, increasing along the ray.

    Returns:
        (R,) sum over pairs of w_i w_j |m_i - m_j| plus a third of the sum of w_i^2 (end_i - start_i),
        where m are the midpoints. Prefix sums make it linear in M.
    """
    middle = (start + end) / 2
    before = torch.cumsum(weights, -1) - weights
    moment_before = torch.cumsum(weights * middle, -1) - weights * middle
    pairs = 2 * (weights * (middle * before - moment_before)).sum(-1)
    return pairs + (weights.square() * (end - start)).sum(-1) / 3
