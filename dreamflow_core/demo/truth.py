"""The renderer of the truth: any demo description from any camera.

A shape is sphere traced once into a `Surface`; patterns, colours, light and background are then cheap
functions of it, so a training set stores surfaces and paints them anew for every batch. The light is
fixed in the world, so shading belongs to the object's colour and does not move with the camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from .shapes import BOUNDING_RADIUS, SHAPES, STEP_FRACTION

CAMERA_RADIUS = 3.0
CAMERA_FOV = 40.0

COLOURS = {
    "red": (0.85, 0.08, 0.08),
    "orange": (0.97, 0.50, 0.04),
    "yellow": (0.95, 0.90, 0.12),
    "green": (0.12, 0.68, 0.16),
    "cyan": (0.10, 0.82, 0.86),
    "blue": (0.10, 0.20, 0.88),
    "purple": (0.48, 0.10, 0.72),
    "pink": (0.98, 0.52, 0.76),
}
BACKGROUNDS = {
    "white": (0.97, 0.97, 0.97),
    "gray": (0.50, 0.50, 0.50),
    "black": (0.03, 0.03, 0.03),
    "beige": (0.86, 0.78, 0.64),
}
PATTERNS = ("plain", "striped", "checkered", "spotted")

_LIGHT = torch.nn.functional.normalize(torch.tensor([0.3, 0.8, 0.55]), dim=0)
_AMBIENT = 0.45
_SHADOW, _TERMINATOR, _BORDER = 0.55, 0.75, 0.03
"""Of a cartoon: how bright shadows are, how bright a surface is in truth where they begin, and how soft that is."""
_SCALE = {"plain": (1.0, 0.0), "striped": (2.0, 0.1), "checkered": (1.5, 0.1), "spotted": (1.7, 0.1)}
"""Middle and half width of the range of each pattern's frequency, as `Pattern` counts it."""
_SECTORS = 5
"""Periods of checks around the axis."""
_SPOT_RADIUS = 0.32
"""Radius of a spot as a fraction of the distance between spots."""
_AXIS = (0.12, 0.96, 0.22)
"""Direction around which a pattern's axis lies: nearly upright, so that patterns look alike from all azimuths,
but none has an edge that lies flat on a cube's top."""
_AXIS_SPREAD = 0.1
"""Standard deviation of the axis around it, in each direction: some 6 degrees."""


@dataclass(frozen=True)
class Surface:
    """What B cameras see of a shape, averaged over each pixel's covered part.

    Attributes:
        alpha: (B, 1, H, W) coverage in [0, 1].
        position: (B, 3, H, W) scene units, zero where alpha is 0.
        normal: (B, 3, H, W) unit length where alpha > 0.
        depth: (B, 1, H, W) distance along the ray, zero where alpha is 0.
        pixel: width of a pixel at the origin in scene units.
    """

    alpha: Tensor
    position: Tensor
    normal: Tensor
    depth: Tensor
    pixel: float

    def shade(self) -> Tensor:
        """Light on the surface, (B, 1, H, W) in [0, 1]: half Lambert from a fixed world direction."""
        lambert = (self.normal * _LIGHT.to(self.normal).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return _AMBIENT + (1 - _AMBIENT) * (0.5 + 0.5 * lambert)


@dataclass(frozen=True)
class Pattern:
    """B solid textures, all of one kind.

    Attributes:
        kind: one of `PATTERNS`.
        frame: (B, 3, 3) rows are the pattern's axis and two directions across it.
        frequency: (B,) periods per scene unit along the axis; of spots, per radian.
        phase: (B, 2) along the axis and around it, in periods and in turns: bands have the first, spots the
            second, checks both.
    """

    kind: str
    frame: Tensor
    frequency: Tensor
    phase: Tensor

    @classmethod
    def sample(cls, kind: str, count: int, generator: torch.Generator, variety: float = 1.0) -> Pattern:
        """Random direction, scale and phase for `count` patterns.

        `variety` widens the spread of directions and the range of scales; 1 is the domain's own.
        """
        middle, half = _SCALE[kind]
        frequency = middle + variety * half * (2 * torch.rand(count, generator=generator) - 1)
        frames = _frames(count, variety * _AXIS_SPREAD, generator)
        return cls(kind, frames, frequency, torch.rand(count, 2, generator=generator))

    def mask(self, surface: Surface) -> Tensor:
        """Share of the second colour at each pixel, (B, 1, H, W) in [0, 1], edges a pixel wide."""
        if self.kind == "plain":
            return torch.zeros_like(surface.alpha)
        local = torch.einsum("bij,bjhw->bihw", self.frame.to(surface.position), surface.position)
        frequency, along, turn = (
            value.to(local).view(-1, 1, 1, 1) for value in (self.frequency, self.phase[:, 0], self.phase[:, 1])
        )
        inside = _INSIDE[self.kind](local, frequency, along, turn)
        return (0.5 + inside / surface.pixel).clamp(0, 1)


def _stripes(local: Tensor, frequency: Tensor, along: Tensor, turn: Tensor) -> Tensor:
    return _half_periods(local[:, :1] * frequency + along) / frequency


def _checks(local: Tensor, frequency: Tensor, along: Tensor, turn: Tensor) -> Tensor:
    """Rows along the axis times sectors around it."""
    arc = 2 * math.pi * local[:, 1:].norm(dim=1, keepdim=True) / _SECTORS
    rows = _stripes(local, frequency, along, turn)
    sectors = _half_periods(_SECTORS * (_azimuth(local) + turn)) * arc
    return rows.sign() * sectors.sign() * torch.minimum(rows.abs(), sectors.abs())


def _half_periods(periods: Tensor) -> Tensor:
    """Distance to the nearest edge between half periods, positive in every other one."""
    return 0.25 - ((periods % 1.0) - 0.5).abs()


def _spots(local: Tensor, frequency: Tensor, along: Tensor, turn: Tensor) -> Tensor:
    """Cones from the centre, so that spots show whole wherever the surface cuts them, on circles of latitude."""
    distance = local.norm(dim=1, keepdim=True).clamp_min(1e-6)
    latitude = (local[:, :1] / distance).clamp(-1, 1).asin()
    row = (latitude * frequency).round() / frequency
    count = (2 * math.pi * frequency * row.cos()).round().clamp_min(1)
    column = count * (_azimuth(local) + turn)
    east = 2 * math.pi * (column - column.round()) / count
    cosine = row.sin() * latitude.sin() + row.cos() * latitude.cos() * east.cos()
    return distance * (_SPOT_RADIUS / frequency - cosine.clamp(-1, 1).acos())


def _azimuth(local: Tensor) -> Tensor:
    """Around the axis, in turns, (B, 1, H, W)."""
    return torch.atan2(local[:, 2:], local[:, 1:2]) / (2 * math.pi)


_INSIDE = {"striped": _stripes, "checkered": _checks, "spotted": _spots}
"""Signed distance, in scene units, to the border of the second colour; positive inside it."""


def _frames(count: int, spread: float, generator: torch.Generator) -> Tensor:
    """Random right-handed frames (count, 3, 3) whose rows are an axis near `_AXIS` and two across it."""
    around = spread * torch.randn(count, 3, generator=generator)
    first = torch.nn.functional.normalize(torch.tensor(_AXIS) + around, dim=1)
    front = torch.tensor([0.0, 0.0, 1.0]).expand_as(first)
    second = torch.nn.functional.normalize(torch.linalg.cross(first, front), dim=1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=1)


def trace(shape: str, cameras: Cameras, size: int, supersample: int = 2) -> Surface:
    """Sphere trace one of `SHAPES` from B cameras at size x size pixels, supersample^2 rays each.

    Not differentiable.
    """
    with torch.no_grad():
        distance = SHAPES[shape]
        origins, directions = (r.reshape(-1, 3) for r in cameras.rays(size * supersample))
        depth, hit = _march(distance, origins, directions)
        position = (origins + depth[:, None] * directions) * hit[:, None]
        normal = torch.zeros_like(position)
        normal[hit] = _normals(distance, position[hit])
        rays = torch.cat([hit[:, None].to(position), position, normal, (depth * hit)[:, None]], dim=1)
        rays = rays.view(len(cameras), size * supersample, size * supersample, 8).permute(0, 3, 1, 2)
        mean = torch.nn.functional.avg_pool2d(rays, supersample)
        alpha = mean[:, :1]
        covered = mean[:, 1:] / alpha.clamp_min(1e-6)
        pixel = 2 * CAMERA_RADIUS * math.tan(math.radians(CAMERA_FOV) / 2) / size
        normal = torch.nn.functional.normalize(covered[:, 3:6], dim=1)
        return Surface(alpha, covered[:, :3], normal, covered[:, 6:], pixel)


def _march(distance, origins: Tensor, directions: Tensor, steps: int = 96, tolerance: float = 1e-3):
    """Depths (R,) and hits (R,) of rays; only rays that are still under way are evaluated."""
    along = -(origins * directions).sum(-1)
    offset = origins.square().sum(-1) - along.square()
    half_chord = (BOUNDING_RADIUS**2 - offset).clamp_min(0).sqrt()
    depth, exit_depth = along - half_chord, along + half_chord
    hit = torch.zeros_like(depth, dtype=torch.bool)
    active = (half_chord > 0).nonzero()[:, 0]
    for _ in range(steps):
        gap = distance(origins[active] + depth[active, None] * directions[active])
        depth[active] += STEP_FRACTION * gap
        arrived = gap < tolerance
        hit[active[arrived]] = True
        active = active[~arrived & (depth[active] < exit_depth[active])]
        if len(active) == 0:
            break
    return depth, hit


def _normals(distance, points: Tensor, step: float = 2e-3) -> Tensor:
    """Unit gradients of the distance by central differences, (P, 3)."""
    offsets = step * torch.eye(3, device=points.device)
    gradient = [distance(points + offset) - distance(points - offset) for offset in offsets]
    return torch.nn.functional.normalize(torch.stack(gradient, dim=-1), dim=-1)


def paint(alpha: Tensor, shade: Tensor, mask: Tensor, colour: Tensor, second: Tensor, background: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] of surfaces with the given colours, each (B, 3).

    `alpha` and `shade` (B, 1, H, W) are a `Surface`'s; `mask` (B, 1, H, W) is the share of the second
    colour (`Pattern.mask`).
    """
    colour, second, background = (c[:, :, None, None] for c in (colour, second, background))
    albedo = colour + mask * (second - colour)
    return background + alpha * (albedo * shade - background)


def paint_flat(alpha: Tensor, shade: Tensor, mask: Tensor, *colours: Tensor) -> Tensor:
    """As `paint`, in two flat tones, as cartoons are drawn: light and shadow, the border where light falls sideways."""
    tones = _SHADOW + (1 - _SHADOW) * ((shade - _TERMINATOR) / _BORDER + 0.5).clamp(0, 1)
    return paint(alpha, tones, mask, *colours)


def paint_pale(
    alpha: Tensor, shade: Tensor, mask: Tensor, colour: Tensor, second: Tensor, background: Tensor
) -> Tensor:
    """As `paint`, in colours that are mixed half and half with white; the background is as it is."""
    return paint(alpha, shade, mask, 0.5 + colour / 2, 0.5 + second / 2, background)


LOOKS: dict[str, Callable[..., Tensor]] = {"cartoon": paint_flat, "pastel": paint_pale}
"""Looks that the models do not know unless they are taught."""


def random_cameras(count: int, generator: torch.Generator) -> Cameras:
    """Views of the demo domain: all azimuths, mostly from the side, some from above and below."""
    azimuth = torch.rand(count, generator=generator) * 360 - 180
    band = torch.multinomial(torch.tensor([0.64, 0.2, 0.16]), count, replacement=True, generator=generator)
    low, high = torch.tensor([-15.0, 35.0, -45.0])[band], torch.tensor([35.0, 65.0, -15.0])[band]
    elevation = low + (high - low) * torch.rand(count, generator=generator)
    return demo_cameras(azimuth, elevation)


def demo_cameras(azimuth: Tensor, elevation: Tensor) -> Cameras:
    """Cameras with the demo domain's fixed radius and field of view."""
    constant = torch.ones_like(azimuth)
    return Cameras(azimuth, elevation, CAMERA_RADIUS * constant, CAMERA_FOV * constant)
