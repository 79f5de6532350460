"""The demo domain's shapes as signed distance functions.

Each takes points (..., 3) and returns (...) distances, negative inside. They are bounds rather than
exact distances: good for sphere tracing with `STEP_FRACTION`, not for offsetting a surface. All fit
in a sphere of radius `BOUNDING_RADIUS`; the front faces +Z, up is +Y.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

BOUNDING_RADIUS = 1.0
STEP_FRACTION = 0.85
"""Share of the distance a tracer may step: ellipsoids and smooth unions overestimate a little."""


def _offset(points: Tensor, x: float, y: float, z: float) -> Tensor:
    return points - torch.tensor([x, y, z], dtype=points.dtype, device=points.device)


def _ball(points: Tensor, radius: float) -> Tensor:
    return points.norm(dim=-1) - radius


def _box(points: Tensor, x: float, y: float, z: float, rounding: float) -> Tensor:
    half = torch.tensor([x, y, z], dtype=points.dtype, device=points.device) - rounding
    q = points.abs() - half
    return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0) - rounding


def _ellipsoid(points: Tensor, x: float, y: float, z: float) -> Tensor:
    radii = torch.tensor([x, y, z], dtype=points.dtype, device=points.device)
    k0 = (points / radii).norm(dim=-1)
    k1 = (points / radii**2).norm(dim=-1).clamp_min(1e-6)
    return k0 * (k0 - 1) / k1


def _capsule(points: Tensor, start: tuple, end: tuple, radius: float) -> Tensor:
    a = torch.tensor(start, dtype=points.dtype, device=points.device)
    axis = torch.tensor(end, dtype=points.dtype, device=points.device) - a
    along = ((points - a) @ axis / (axis @ axis)).clamp(0, 1)
    return (points - a - along[..., None] * axis).norm(dim=-1) - radius


def _wheel(points: Tensor, radius: float, half_width: float) -> Tensor:
    return torch.maximum(points[..., 1:].norm(dim=-1) - radius, points[..., 0].abs() - half_width)


def _smooth_union(first: Tensor, *others: Tensor, width: float) -> Tensor:
    """Union whose creases are filled over about `width`."""
    for other in others:
        blend = (0.5 + 0.5 * (other - first) / width).clamp(0, 1)
        first = other + (first - other) * blend - width * blend * (1 - blend)
    return first


def sphere(points: Tensor) -> Tensor:
    return _ball(points, 0.75)


def cube(points: Tensor) -> Tensor:
    return _box(points, 0.56, 0.56, 0.56, rounding=0.03)


def cone(points: Tensor) -> Tensor:
    """Apex up, base radius 0.66, height 1.46."""
    radius, height, half = 0.66, 1.46, 0.73
    slant = math.hypot(radius, height)
    r, y = points[..., [0, 2]].norm(dim=-1), points[..., 1]
    side = (r * height + (y - half) * radius) / slant
    return torch.maximum(side, -half - y)


def torus(points: Tensor) -> Tensor:
    """Lying flat: its hole is open along Y."""
    ring = points[..., [0, 2]].norm(dim=-1) - 0.62
    return torch.hypot(ring, points[..., 1]) - 0.27


def star(points: Tensor) -> Tensor:
    """Five points, one up, facing front and back, 0.44 thick."""
    outer, inner, half_thickness, sector = 0.92, 0.44, 0.22, math.tau / 5
    x, y, z = points.unbind(-1)
    radius, angle = torch.hypot(x, y), torch.atan2(x, y)
    # Fold onto half a sector: the edge then runs from the outer point to the inner corner.
    folded = ((angle + sector / 2) % sector - sector / 2).abs()
    px, py = radius * folded.sin(), radius * folded.cos()
    corner_x, corner_y = inner * math.sin(sector / 2), inner * math.cos(sector / 2)
    edge_x, edge_y = corner_x, corner_y - outer
    flat = (py - outer) * edge_x - px * edge_y
    return torch.maximum(flat / math.hypot(edge_x, edge_y), z.abs() - half_thickness)


def car(points: Tensor) -> Tensor:
    """Bonnet to the front, cabin set back, four wheels."""
    body = _box(_offset(points, 0, -0.12, 0), 0.42, 0.2, 0.85, rounding=0.06)
    cabin = _box(_offset(points, 0, 0.22, -0.22), 0.36, 0.26, 0.42, rounding=0.08)
    wheel = _offset(torch.cat([points[..., :1].abs(), points[..., 1:2], points[..., 2:].abs()], -1), 0.38, -0.32, 0.5)
    return torch.minimum(torch.minimum(body, cabin), _wheel(wheel, 0.24, 0.12))


def duck(points: Tensor) -> Tensor:
    """Beak to the front, raised tail behind."""
    body = _ellipsoid(_offset(points, 0, -0.28, -0.08), 0.46, 0.4, 0.62)
    head = _ball(_offset(points, 0, 0.4, 0.28), 0.35)
    tail = _ellipsoid(_offset(points, 0, -0.02, -0.66), 0.18, 0.2, 0.2)
    beak = _ellipsoid(_offset(points, 0, 0.34, 0.66), 0.2, 0.09, 0.24)
    return torch.minimum(_smooth_union(body, head, tail, width=0.12), beak)


def rabbit(points: Tensor) -> Tensor:
    """Two long ears, snout to the front, round tail behind."""
    mirrored = torch.cat([points[..., :1].abs(), points[..., 1:]], -1)
    body = _ellipsoid(_offset(points, 0, -0.4, -0.08), 0.46, 0.46, 0.5)
    head = _ball(_offset(points, 0, 0.18, 0.18), 0.36)
    ears = _capsule(mirrored, (0.15, 0.42, 0.1), (0.26, 0.82, 0.0), 0.12)
    snout = _ball(_offset(points, 0, 0.08, 0.5), 0.15)
    tail = _ball(_offset(points, 0, -0.42, -0.62), 0.19)
    return torch.minimum(_smooth_union(body, head, ears, snout, width=0.08), tail)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "sphere": sphere,
    "cube": cube,
    "cone": cone,
    "torus": torus,
    "star": star,
    "car": car,
    "duck": duck,
    "rabbit": rabbit,
}
WITH_FRONT = ("car", "duck", "rabbit")
"""Shapes that look different from the front and from behind."""
