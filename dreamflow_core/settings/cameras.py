"""Where cameras are taken from while a scene is optimised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras


@dataclass(frozen=True)
class ViewRange:
    """Random cameras that look at the origin; angles in degrees, conventions as in `cameras`.

    The defaults are the demo domain's. At radius r the whole unit sphere is in view if the field of
    view is at least 2 asin(1 / r): 39 degrees at radius 3.

    Attributes:
        views: cameras per iteration. Azimuths are spread over them: each has an equal share of the range.
        azimuth: range.
        elevation: range within (-90, 90).
        radius: range in scene units, above 1.
        fov: range of vertical fields of view.

    Raises:
        ValueError: a range is empty or not allowed.
    """

    views: int = 4
    azimuth: tuple[float, float] = (-180.0, 180.0)
    elevation: tuple[float, float] = (-30.0, 60.0)
    radius: tuple[float, float] = (3.0, 3.0)
    fov: tuple[float, float] = (40.0, 40.0)

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"views is {self.views}; it must be at least 1")
        for name in ("azimuth", "elevation", "radius", "fov"):
            low, high = getattr(self, name)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"the range of {name} is {low:g} to {high:g}; both ends must be numbers")
            if low > high:
                raise ValueError(f"the range of {name} is {low:g} to {high:g}; the lower end comes first")
        if self.elevation[0] <= -90 or self.elevation[1] >= 90:
            raise ValueError("elevations must lie between -90 and 90 degrees, both excluded")
        if self.radius[0] <= 1:
            raise ValueError("radii must be above 1: a scene fills the unit sphere")
        if self.fov[0] <= 0 or self.fov[1] >= 180:
            raise ValueError("fields of view must lie between 0 and 180 degrees")

    def sample(self, generator: torch.Generator) -> Cameras:
        """`views` cameras; `generator` is on the CPU, and so are they."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(self.views, generator=generator)

        low, high = self.azimuth
        azimuth = low + (high - low) * (torch.arange(self.views) + uniform(0, 1)) / self.views
        return Cameras(azimuth, uniform(*self.elevation), uniform(*self.radius), uniform(*self.fov))
