"""Cameras that look at the origin.

Conventions, stated once for the whole project: right-handed, Y up, as in glTF. Angles are degrees.
Azimuth 0 is the front (camera on +Z, looking along -Z) and grows towards +X; elevation grows
towards +Y. Images have their first row at the top. Positions are in scene units; a scene fits in
the unit sphere around the origin. Clip space is OpenGL's: a point is visible where -w <= x, y, z <= w,
x to the right, y up, z away from the camera.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

VIEW_WORDING = {
    "front": "front view",
    "front-left": "front left three-quarter view",
    "left": "left side view",
    "back-left": "rear left three-quarter view",
    "back": "back view",
    "back-right": "rear right three-quarter view",
    "right": "right side view",
    "front-right": "front right three-quarter view",
    "overhead": "overhead view",
    "below": "view from below",
}
"""The names of views, and what a prompt says of them unless told otherwise (ours). The quarters keep a prompt close
to what the camera sees: with front, sides and back alone an object may turn by 45 degrees. Left and right, which are
the object's own, say which way it faces where its outline shows it: one from the front is the mirror image of one from
behind, so that with a mere "side view" chance may decide which way an object faces."""
VIEW_NAMES = tuple(VIEW_WORDING)
AROUND = VIEW_NAMES[:8]
"""The names of level views, by azimuth from the front on: each is the middle of `SECTOR` degrees."""
SECTOR = 45.0
OVERHEAD_ELEVATION = 50.0
"""A view from higher than this is named overhead, whatever its azimuth."""
BELOW_ELEVATION = -30.0
"""A view from lower than this is named below, whatever its azimuth."""


@dataclass(frozen=True)
class Cameras:
    """A batch of B pinhole cameras that look at the origin with +Y up.

    Attributes:
        azimuth: (B,) degrees, 0 at the front (+Z), growing towards +X.
        elevation: (B,) degrees in (-90, 90).
        radius: (B,) distance from the origin in scene units.
        fov: (B,) vertical field of view in degrees; images are square.
    """

    azimuth: Tensor
    elevation: Tensor
    radius: Tensor
    fov: Tensor

    def __len__(self) -> int:
        return len(self.azimuth)

    def __getitem__(self, index) -> Cameras:
        return Cameras(self.azimuth[index], self.elevation[index], self.radius[index], self.fov[index])

    def position(self) -> Tensor:
        """Camera centres, (B, 3)."""
        azimuth, elevation = torch.deg2rad(self.azimuth), torch.deg2rad(self.elevation)
        direction = torch.stack(
            [elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], dim=-1
        )
        return self.radius[:, None] * direction

    def axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Right, up and backward (away from the origin) unit vectors, each (B, 3)."""
        backward = torch.nn.functional.normalize(self.position(), dim=-1)
        world_up = torch.tensor([0.0, 1.0, 0.0]).to(backward).expand_as(backward)
        right = torch.nn.functional.normalize(torch.linalg.cross(world_up, backward), dim=-1)
        return right, torch.linalg.cross(backward, right), backward

    def rays(self, size: int) -> tuple[Tensor, Tensor]:
        """Ray origins and unit directions through pixel centres, each (B, size, size, 3)."""
        right, up, backward = self.axes()
        grid = (torch.arange(size, device=right.device) + 0.5) / size * 2 - 1
        extent = torch.tan(torch.deg2rad(self.fov) / 2)[:, None, None, None]
        x, y = grid[None, None, :, None] * extent, -grid[None, :, None, None] * extent
        right, up, backward = (axis[:, None, None, :] for axis in (right, up, backward))
        directions = torch.nn.functional.normalize(x * right + y * up - backward, dim=-1)
        return self.position()[:, None, None, :].expand_as(directions), directions

    def world_to_camera(self) -> Tensor:
        """Rigid transforms to camera space (x right, y up, looking along -z), (B, 4, 4), for column vectors."""
        rotation = torch.stack(self.axes(), dim=1)
        translation = -(rotation @ self.position()[:, :, None])
        bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(rotation).expand(len(self), 1, 4)
        return torch.cat([torch.cat([rotation, translation], dim=2), bottom], dim=1)

    def world_to_clip(self, near: float = 0.1, far: float = 100.0) -> Tensor:
        """Perspective projections from world to clip space, (B, 4, 4), for column vectors.

        A point on the ray that `rays` gives a pixel lands on that pixel's centre; its w is its distance
        along the viewing axis.

        Args:
            near, far: distances along the viewing axis that clip space's depth range spans.
        """
        focal = 1 / torch.tan(torch.deg2rad(self.fov) / 2)
        projection = focal.new_zeros(len(self), 4, 4)
        projection[:, 0, 0] = projection[:, 1, 1] = focal
        projection[:, 2, 2] = (near + far) / (near - far)
        projection[:, 2, 3] = 2 * near * far / (near - far)
        projection[:, 3, 2] = -1
        return projection @ self.world_to_camera()

    def view_names(self) -> list[str]:
        """The name in `VIEW_NAMES` of each view."""
        return [view_name(a, e) for a, e in zip(self.azimuth.tolist(), self.elevation.tolist())]


@dataclass(frozen=True)
class PosedCameras(Cameras):
    """Cameras in any pose: their angles and radii say where they are, not where they look.

    Attributes:
        rotation: (B, 3, 3) rows right, up and backward, orthonormal.
    """

    rotation: Tensor

    def __getitem__(self, index) -> PosedCameras:
        return PosedCameras(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def at(cls, position: Tensor, rotation: Tensor, fov: Tensor) -> PosedCameras:
        """Cameras at positions (B, 3), away from the origin, with rotations (B, 3, 3) and fields of view (B,)."""
        radius = position.norm(dim=-1)
        azimuth = torch.rad2deg(torch.atan2(position[:, 0], position[:, 2]))
        elevation = torch.rad2deg(torch.asin((position[:, 1] / radius).clamp(-1, 1)))
        return cls(azimuth, elevation, radius, fov, rotation)

    def axes(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.rotation[:, 0], self.rotation[:, 1], self.rotation[:, 2]


def view_name(azimuth: float, elevation: float) -> str:
    """Name in `VIEW_NAMES` of the view from this direction (degrees)."""
    if elevation > OVERHEAD_ELEVATION:
        return "overhead"
    if elevation < BELOW_ELEVATION:
        return "below"
    return AROUND[round(azimuth / SECTOR) % len(AROUND)]


def orbit(views: int, elevation: float, radius: float, fov: float) -> Cameras:
    """`views` cameras evenly around the Y axis, the first at the front."""
    azimuth = torch.arange(views) * (360.0 / views)
    constant = torch.ones(views)
    return Cameras(azimuth, elevation * constant, radius * constant, fov * constant)
