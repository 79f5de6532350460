"""Volume rendering: ray marching past empty space, and compositing.

nerfacc (Li et al. 2023, arXiv 2305.04966) keeps the occupancy grid and composites; it marches rays
only on CUDA, so torch does that elsewhere. Rays are cut where they meet the unit sphere, since scenes
fit in it. Samples are packed: one flat list over all rays, in order along each ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .backends import nerfacc_cuda_works


@dataclass(frozen=True)
class Samples:
    """N intervals along R rays.

    Attributes:
        ray: (N,) int64, which ray, not decreasing.
        start, end: (N,) distances along the ray, increasing within a ray.
        rays: R.
    """

    ray: Tensor
    start: Tensor
    end: Tensor
    rays: int

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Midpoints (N, 3) on rays given by origins and directions (R, 3)."""
        middle = (self.start + self.end) / 2
        return origins.index_select(0, self.ray) + middle[:, None] * directions.index_select(0, self.ray)

    @cached_property
    def _place(self) -> tuple[Tensor, int]:
        """Place of each sample in a flattened (R, M) array with M samples a ray, and M."""
        counts = torch.bincount(self.ray, minlength=self.rays)
        first = counts.cumsum(0) - counts
        width = max(int(counts.max()), 1) if self.rays else 1
        slot = torch.arange(len(self.ray), device=self.ray.device) - first[self.ray]
        return self.ray * width + slot, width

    def pad(self, values: Tensor) -> Tensor:
        """Values (N,) as (R, M), zero where a ray has fewer than M samples; differentiable."""
        place, width = self._place
        return values.new_zeros(self.rays * width).index_copy(0, place, values).view(self.rays, width)

    def unpad(self, values: Tensor) -> Tensor:
        """Values (R, M) of the samples, (N,); differentiable."""
        return values.reshape(-1).index_select(0, self._place[0])


@dataclass(frozen=True)
class Composite:
    """What R rays see.

    Attributes:
        weights: (N,) how much each sample is seen.
        alpha: (R,) opacity in [0, 1].
        values: (R, C) the samples' values summed by weight (premultiplied by alpha).
    """

    weights: Tensor
    alpha: Tensor
    values: Tensor


def composite(samples: Samples, density: Tensor, values: Tensor) -> Composite:
    """Emission and absorption along rays (Max 1995, as in NeRF), by nerfacc's batched functions.

    Args:
        samples: N intervals of R rays.
        density: (N,) extinction per scene unit, constant over an interval.
        values: (N, C).

    Differentiable in density and values.
    """
    import nerfacc

    padded = (samples.pad(v) for v in (samples.start, samples.end, density))
    weights = samples.unpad(nerfacc.render_weight_from_density(*padded)[0])
    ones = torch.ones_like(weights)[:, None]
    sums = nerfacc.accumulate_along_rays(weights, torch.cat([values, ones], -1), samples.ray, samples.rays)
    return Composite(weights, sums[:, -1], sums[:, :-1])


def occupancy_grid(resolution: int):
    """nerfacc's occupancy grid over [-1, 1]^3 with `resolution` cells per axis, all empty."""
    import nerfacc

    return nerfacc.OccGridEstimator([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], resolution)


@torch.no_grad()
def march(origins: Tensor, directions: Tensor, occupancy, step: float, jitter: Tensor) -> Samples:
    """Samples of rays where they pass occupied cells inside the unit sphere.

    Args:
        origins, directions: (R, 3), directions of unit length.
        occupancy: nerfacc's `OccGridEstimator` over [-1, 1]^3.
        step: length of an interval in scene units.
        jitter: (R,) in [0, 1): shifts a ray's midpoints by that share of a step; 0.5 centres them.
    """
    near, far = sphere_chord(origins, directions)
    first = near + (jitter - 0.5) * step
    if not nerfacc_cuda_works(origins.device):
        return march_in_torch(origins, directions, occupancy.binaries[0], step, first, far)
    hit = far > near
    ray, start, end = occupancy.sampling(
        origins[hit], directions[hit], t_min=first[hit], t_max=far[hit], render_step_size=step
    )
    return Samples(hit.nonzero()[:, 0][ray], start, end, len(origins))


def sphere_chord(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (R,) at which rays enter and leave the unit sphere; equal where they miss it.

    Rays that start inside enter at 0.
    """
    closest = -(origins * directions).sum(-1)
    half = (1 - (origins + closest[:, None] * directions).square().sum(-1)).clamp_min(0).sqrt()
    near, far = (closest - half).clamp_min(0), (closest + half).clamp_min(0)
    return near, torch.where(half > 0, far, near)


def march_in_torch(
    origins: Tensor, directions: Tensor, occupied: Tensor, step: float, first: Tensor, far: Tensor
) -> Samples:
    """`march` without nerfacc's CUDA extension: all steps at once, then those in occupied cells.

    Args:
        origins, directions: (R, 3).
        occupied: (K, K, K) bool over [-1, 1]^3, axes in the order x, y, z.
        step: length of an interval.
        first, far: (R,) where a ray's first interval starts, and where its last midpoint may be.
    """
    rays = (far > first).nonzero()[:, 0]
    count = int(((far - first).max() / step).ceil()) if len(rays) else 0
    start = first[rays, None] + step * torch.arange(count, device=first.device)
    middle = start + step / 2
    resolution = len(occupied)
    # Positions in cells, an axis at a time: fewer passes over memory than with a trailing axis of 3.
    index = torch.zeros_like(middle, dtype=torch.int32)
    for axis in range(3):
        origin = (origins[rays, axis, None] + 1) * (resolution / 2)
        cell = torch.addcmul(origin, middle, directions[rays, axis, None], value=resolution / 2).to(torch.int32)
        index = index * resolution + cell.clamp_(0, resolution - 1)
    visible = occupied.flatten()[index.long()] & (middle < far[rays, None])
    ray, slot = visible.nonzero(as_tuple=True)
    start = start[ray, slot]
    return Samples(rays[ray], start, start + step, len(origins))
