"""The hash grid as Warp kernels with their own backward: same values and gradients as `hashgrid.encode`.

Features and their derivatives by the point are both linear in the tables, so the one backward here
gives exact table gradients of any loss on features or on normals, without double backward.
"""

# mypy: disable-error-code="valid-type,index"
# Annotations of kernels are Warp's own: values, and vectors that mypy does not know to be indexable.

import functools
from collections.abc import Sequence

import torch
import warp as wp
from torch import Tensor

from ..quiet import quiet_warp
from .lattice import PRIMES


def encode(
    points: Tensor, tables: Sequence[Tensor], resolutions: Sequence[int], jacobian: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`hashgrid.encode` for float32 tensors on a device where `backends.warp_works`."""
    features, slopes = _Encode.apply(points.detach(), tuple(resolutions), jacobian, *tables)
    return features, slopes if jacobian else None


_PRIME_Y, _PRIME_Z = (wp.constant(wp.uint32(prime)) for prime in PRIMES[1:])


@wp.struct
class _Level:
    """A lattice and its table: cells per axis, entries, whether vertices share them by the hash, its number."""

    resolution: int
    entries: int
    hashed: bool
    number: int


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, points, resolutions, jacobian, *tables):
        width = tables[0].shape[1]
        gather, _, vector = _kernels(width, jacobian)
        points = points.contiguous()
        features = points.new_empty(len(points), len(tables) * width)
        slopes = points.new_empty(len(points) if jacobian else 0, 3, len(tables) * width)
        _launch(gather, vector, points, tables, resolutions, features, slopes)
        ctx.save_for_backward(points)
        ctx.resolutions, ctx.jacobian = resolutions, jacobian
        ctx.shapes = [table.shape for table in tables]
        return features, slopes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_features, grad_slopes):
        (points,) = ctx.saved_tensors
        _, scatter, vector = _kernels(ctx.shapes[0][1], ctx.jacobian)
        gradients = [points.new_zeros(shape) for shape in ctx.shapes]
        outputs = grad_features.contiguous(), grad_slopes.contiguous()
        _launch(scatter, vector, points, gradients, ctx.resolutions, *outputs)
        return None, None, None, *gradients


@quiet_warp()
def _launch(
    kernel,
    vector: type,
    points: Tensor,
    tables: Sequence[Tensor],
    resolutions: Sequence[int],
    features: Tensor,
    slopes: Tensor,
) -> None:
    """Run a kernel for every level, one thread per point, on torch's own stream.

    `features` (P, L * F) and `slopes` (P, 3, L * F) are what it writes or, going backward, reads.
    """
    if len(points) == 0:
        return
    shape = (len(tables), tables[0].shape[1])
    places = wp.from_torch(points, dtype=wp.vec3)
    outputs = [wp.from_torch(o.unflatten(-1, shape), dtype=vector) for o in (features, slopes)]
    stream = wp.stream_from_torch(torch.cuda.current_stream(points.device)) if points.is_cuda else None
    for number, (table, resolution) in enumerate(zip(tables, resolutions)):
        level = _Level()
        level.resolution, level.entries, level.number = resolution, len(table), number
        level.hashed = (resolution + 1) ** 3 > len(table)
        inputs = [places, wp.from_torch(table.detach(), dtype=vector), level, *outputs]
        wp.launch(kernel, dim=len(points), inputs=inputs, device=str(points.device), stream=stream)


@wp.func
def _entry(x: int, y: int, z: int, level: _Level):
    """Where the table has a vertex, as `lattice.entry`."""
    if level.hashed:
        code = wp.uint32(x) ^ (wp.uint32(y) * _PRIME_Y) ^ (wp.uint32(z) * _PRIME_Z)
        return wp.int32(code & wp.uint32(level.entries - 1))
    side = level.resolution + 1
    return (x * side + y) * side + z


@wp.func
def _vertex(point: wp.vec3, index: int, level: _Level):
    """One of the eight vertices around a point: its entry, and its weight along each axis."""
    place = (point + wp.vec3(1.0, 1.0, 1.0)) * (float(level.resolution) / 2.0)
    last = level.resolution - 1
    x = wp.clamp(int(wp.floor(place[0])), 0, last)
    y = wp.clamp(int(wp.floor(place[1])), 0, last)
    z = wp.clamp(int(wp.floor(place[2])), 0, last)
    weights = wp.vec3(
        _along(index >> 2, place[0] - float(x)),
        _along((index >> 1) & 1, place[1] - float(y)),
        _along(index & 1, place[2] - float(z)),
    )
    return _entry(x + (index >> 2), y + ((index >> 1) & 1), z + (index & 1), level), weights


@wp.func
def _along(side: int, fraction: float):
    return wp.where(side == 1, fraction, 1.0 - fraction)


@wp.func
def _slope(weights: wp.vec3, index: int, level: _Level):
    """Derivatives of the product of a vertex' weights by the point."""
    half = float(level.resolution) / 2.0
    return wp.vec3(
        wp.where((index >> 2) == 1, half, -half) * weights[1] * weights[2],
        wp.where(((index >> 1) & 1) == 1, half, -half) * weights[0] * weights[2],
        wp.where((index & 1) == 1, half, -half) * weights[0] * weights[1],
    )


@functools.cache
def _kernels(width: int, jacobian: bool):
    """Forward and backward kernel for so many features per level, with slopes or without, and their vector type.

    The modules have names of their own: inside ComfyUI this file's module name is a path.
    """
    vector = wp.types.vector(length=width, dtype=wp.float32)
    module = f"dreamflow_hashgrid_{width}{'_slopes' if jacobian else ''}"

    @wp.kernel(enable_backward=False, module=module)
    def gather(
        points: wp.array(dtype=wp.vec3),
        table: wp.array(dtype=vector),
        level: _Level,
        features: wp.array2d(dtype=vector),
        slopes: wp.array3d(dtype=vector),
    ):
        p = wp.tid()
        total = vector()
        dx = vector()
        dy = vector()
        dz = vector()
        for index in range(8):
            entry, weights = _vertex(points[p], index, level)
            total += weights[0] * weights[1] * weights[2] * table[entry]
            if wp.static(jacobian):
                slope = _slope(weights, index, level)
                dx += slope[0] * table[entry]
                dy += slope[1] * table[entry]
                dz += slope[2] * table[entry]
        features[p, level.number] = total
        if wp.static(jacobian):
            slopes[p, 0, level.number] = dx
            slopes[p, 1, level.number] = dy
            slopes[p, 2, level.number] = dz

    @wp.kernel(enable_backward=False, module=module)
    def scatter(
        points: wp.array(dtype=wp.vec3),
        grad_table: wp.array(dtype=vector),
        level: _Level,
        grad_features: wp.array2d(dtype=vector),
        grad_slopes: wp.array3d(dtype=vector),
    ):
        p = wp.tid()
        # Read once: to the compiler an atomic add may change any array.
        point = points[p]
        grad_feature = grad_features[p, level.number]
        for index in range(8):
            entry, weights = _vertex(point, index, level)
            gradient = weights[0] * weights[1] * weights[2] * grad_feature
            if wp.static(jacobian):
                slope = _slope(weights, index, level)
                gradient += slope[0] * grad_slopes[p, 0, level.number]
                gradient += slope[1] * grad_slopes[p, 1, level.number]
                gradient += slope[2] * grad_slopes[p, 2, level.number]
            wp.atomic_add(grad_table, entry, gradient)

    return gather, scatter, vector
