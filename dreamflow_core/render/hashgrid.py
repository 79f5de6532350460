"""Multiresolution hash grid in plain torch: the reference of the Warp kernel, and its fallback.

Müller et al. 2022, "Instant Neural Graphics Primitives" (arXiv 2201.05989). A level is a lattice over
the cube [-1, 1]^3 with a feature vector at each vertex, interpolated trilinearly. Where a level has
more vertices than its table has entries, vertices share entries by a spatial hash.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..settings.scenes import HashGridSettings
from .backends import warp_works
from .lattice import entry, locate

INITIAL_RANGE = 1e-4
"""Features start uniform in plus or minus this (the paper's section 3)."""


class HashGrid(nn.Module):
    """The tables, one Parameter per level: a single table would pay a whole-table gradient per level.

    Args:
        settings: sizes.
        generator: of the initial features; on the CPU.
    """

    def __init__(self, settings: HashGridSettings, generator: torch.Generator):
        super().__init__()
        self.settings = settings
        self.resolutions = settings.resolutions()
        sizes = [(settings.entries(resolution), settings.features) for resolution in self.resolutions]
        self.tables = nn.ParameterList(
            nn.Parameter((2 * torch.rand(size, generator=generator) - 1) * INITIAL_RANGE) for size in sizes
        )

    def forward(
        self, points: Tensor, active: float | None = None, jacobian: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Features of points, by Warp where it works.

        Args:
            points: (P, 3) in [-1, 1]; outside, the lattice is extended linearly. Not differentiated:
                ask for the Jacobian.
            active: how many levels take part, None for all; the last takes part by the fraction, and
                those above give zeros. This is how detail is introduced coarse to fine.
            jacobian: whether to return the Jacobian too.

        Returns:
            (P, levels * features) features and, if asked for, their (P, 3, levels * features)
            derivatives by the points. Both are differentiable in the tables.
        """
        levels = self.settings.levels
        active = float(levels) if active is None else min(max(active, 1.0), float(levels))
        used = -int(-active // 1)
        fast = points.dtype == torch.float32 and warp_works(points.device)
        if fast:
            from .hashgrid_warp import encode as encode_warp
        outputs = (encode_warp if fast else encode)(
            points.detach(), list(self.tables)[:used], self.resolutions[:used], jacobian
        )
        if active == levels:
            return outputs
        gain = (active - torch.arange(used, dtype=torch.float32)).clamp(max=1.0)
        gain = gain.repeat_interleave(self.settings.features).to(points)
        missing = (levels - used) * self.settings.features
        features, slopes = outputs
        features = nn.functional.pad(features * gain, (0, missing))
        return features, None if slopes is None else nn.functional.pad(slopes * gain, (0, missing))


def encode(
    points: Tensor, tables: Sequence[Tensor], resolutions: Sequence[int], jacobian: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Features (P, L * F) of points (P, 3) at L levels, and their derivatives (P, 3, L * F) or None.

    `tables` are L tensors (entries, F), `resolutions` the cells per axis of each.
    """
    levels = [_encode_level(points, table, resolution, jacobian) for table, resolution in zip(tables, resolutions)]
    features = torch.cat([level[0] for level in levels], dim=-1)
    slopes = [level[1] for level in levels if level[1] is not None]
    return features, torch.cat(slopes, dim=-1) if jacobian else None


def _encode_level(points: Tensor, table: Tensor, resolution: int, jacobian: bool) -> tuple[Tensor, Tensor | None]:
    cell, fraction = locate(points, resolution)
    # index_select: embedding's backward is several times slower on the CPU.
    corners = table.index_select(0, entry(cell, resolution, len(table)).flatten())
    corners = corners.view(len(points), 2, 2, 2, table.shape[1])
    x, y, z = fraction[:, None, None, None, :].unbind(-1)
    along_z = torch.lerp(corners[..., 0, :], corners[..., 1, :], z)
    along_yz = torch.lerp(along_z[:, :, 0], along_z[:, :, 1], y[:, 0])
    features = torch.lerp(along_yz[:, 0], along_yz[:, 1], x[:, 0, 0])
    if not jacobian:
        return features, None
    slope_x = along_yz[:, 1] - along_yz[:, 0]
    slope_y = along_z[:, :, 1] - along_z[:, :, 0]
    slope_y = torch.lerp(slope_y[:, 0], slope_y[:, 1], x[:, 0, 0])
    slope_z = corners[..., 1, :] - corners[..., 0, :]
    slope_z = torch.lerp(slope_z[:, :, 0], slope_z[:, :, 1], y[:, 0])
    slope_z = torch.lerp(slope_z[:, 0], slope_z[:, 1], x[:, 0, 0])
    return features, torch.stack([slope_x, slope_y, slope_z], dim=1) * (resolution / 2)
