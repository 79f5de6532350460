"""The hash grid as Warp kernels with their own backward: same values and gradients as `hashgrid.encode`.

Features and their derivatives by the point are both linear in the tables, so the one backward here
gives exact table gradients of any loss on features or on normals, without double backward.
"""

# mypy: disable-error-code="valid-type,index"
# Annotations of kernels are Warp's own: values, and vectors that mypy does not know to be indexable.

import functools
from collections.abc import Sequence
from types import SimpleNamespace

import torch
import warp as wp
from torch import Tensor

from ..quiet import quiet_warp
from .hashgrid import PRIMES


def encode(
    points: Tensor, tables: Sequence[Tensor], resolutions: Sequence[int], jacobian: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`hashgrid.encode` for float32 tensors on a device where `backends.warp_works`."""
    features, slopes = _Encode.apply(points.detach(), tuple(resolutions), jacobian, *tables)
    return features, slopes if jacobian else None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, points, resolutions, jacobian, *tables):
        width = tables[0].shape[1]
        kernels, vector = _kernels(width)
        points = points.contiguous()
        features = points.new_empty(len(points), len(tables) * width)
        slopes = points.new_empty(len(points) if jacobian else 0, 3, len(tables) * width)
        arrays = (
            wp.from_torch(features.view(-1, len(tables), width), dtype=vector),
            wp.from_torch(slopes.view(-1, 3, len(tables), width), dtype=vector),
        )
        for level, (table, resolution) in enumerate(zip(tables, resolutions)):
            lattice = _lattice(table, resolution, level)
            inputs = [wp.from_torch(points, dtype=wp.vec3), wp.from_torch(table.detach(), dtype=vector), *lattice]
            _launch(kernels.forward_jacobian if jacobian else kernels.forward, points, [*inputs, *arrays])
        ctx.save_for_backward(points)
        ctx.resolutions, ctx.jacobian = resolutions, jacobian
        ctx.shapes = [table.shape for table in tables]
        return features, slopes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_features, grad_slopes):
        (points,) = ctx.saved_tensors
        levels, width = len(ctx.shapes), ctx.shapes[0][1]
        kernels, vector = _kernels(width)
        arrays = (
            wp.from_torch(grad_features.contiguous().view(-1, levels, width), dtype=vector),
            wp.from_torch(grad_slopes.contiguous().view(-1, 3, levels, width), dtype=vector),
        )
        gradients = []
        for level, (shape, resolution) in enumerate(zip(ctx.shapes, ctx.resolutions)):
            gradient = points.new_zeros(shape)
            inputs = [wp.from_torch(points, dtype=wp.vec3), *arrays, *_lattice(gradient, resolution, level)]
            kernel = kernels.backward_jacobian if ctx.jacobian else kernels.backward
            _launch(kernel, points, [*inputs, wp.from_torch(gradient, dtype=vector)])
            gradients.append(gradient)
        return None, None, None, *gradients


def _lattice(table: Tensor, resolution: int, level: int) -> tuple[int, int, int, int]:
    """Arguments that describe a level: cells per axis, entries, whether they are hashed, its number."""
    entries = len(table)
    return resolution, entries, int((resolution + 1) ** 3 > entries), level


@quiet_warp()
def _launch(kernel, points: Tensor, inputs: list) -> None:
    """One thread per point, on torch's own stream."""
    if len(points) == 0:
        return
    if points.is_cuda:
        with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(points.device))):
            wp.launch(kernel, dim=len(points), inputs=inputs, device=str(points.device))
    else:
        wp.launch(kernel, dim=len(points), inputs=inputs, device="cpu")


@functools.cache
def _kernels(width: int):
    """The kernels for so many features per level, and their vector type.

    The modules have names of their own: inside ComfyUI this file's module name is a path.
    """
    vector = wp.types.vector(length=width, dtype=wp.float32)
    prime_y, prime_z = wp.uint32(PRIMES[1]), wp.uint32(PRIMES[2])

    @wp.func
    def corner(cell: wp.vec3i, index: int, resolution: int, entries: int, hashed: int):
        x = cell[0] + (index >> 2)
        y = cell[1] + ((index >> 1) & 1)
        z = cell[2] + (index & 1)
        if hashed == 1:
            code = wp.uint32(x) ^ (wp.uint32(y) * prime_y) ^ (wp.uint32(z) * prime_z)
            return wp.int32(code & wp.uint32(entries - 1))
        return (x * (resolution + 1) + y) * (resolution + 1) + z

    @wp.func
    def lower(point: wp.vec3, resolution: int):
        lattice = (point + wp.vec3(1.0, 1.0, 1.0)) * (float(resolution) / 2.0)
        return wp.vec3i(
            wp.clamp(int(wp.floor(lattice[0])), 0, resolution - 1),
            wp.clamp(int(wp.floor(lattice[1])), 0, resolution - 1),
            wp.clamp(int(wp.floor(lattice[2])), 0, resolution - 1),
        )

    @wp.func
    def weights(point: wp.vec3, cell: wp.vec3i, index: int, resolution: int):
        """The corner's weight along each axis."""
        half = float(resolution) / 2.0
        x = (point[0] + 1.0) * half - float(cell[0])
        y = (point[1] + 1.0) * half - float(cell[1])
        z = (point[2] + 1.0) * half - float(cell[2])
        return wp.vec3(
            wp.where((index >> 2) == 1, x, 1.0 - x),
            wp.where(((index >> 1) & 1) == 1, y, 1.0 - y),
            wp.where((index & 1) == 1, z, 1.0 - z),
        )

    @wp.func
    def slopes(weight: wp.vec3, index: int, resolution: int):
        """Derivatives of the product of the weights by the point."""
        half = float(resolution) / 2.0
        return wp.vec3(
            wp.where((index >> 2) == 1, half, -half) * weight[1] * weight[2],
            wp.where(((index >> 1) & 1) == 1, half, -half) * weight[0] * weight[2],
            wp.where((index & 1) == 1, half, -half) * weight[0] * weight[1],
        )

    @wp.kernel(enable_backward=False, module=f"dreamflow_hashgrid_forward_{width}")
    def forward(
        points: wp.array(dtype=wp.vec3),
        table: wp.array(dtype=vector),
        resolution: int,
        entries: int,
        hashed: int,
        level: int,
        features: wp.array2d(dtype=vector),
        unused: wp.array3d(dtype=vector),
    ):
        p = wp.tid()
        cell = lower(points[p], resolution)
        total = vector()
        for c in range(8):
            weight = weights(points[p], cell, c, resolution)
            total += (weight[0] * weight[1] * weight[2]) * table[corner(cell, c, resolution, entries, hashed)]
        features[p, level] = total

    @wp.kernel(enable_backward=False, module=f"dreamflow_hashgrid_forward_jacobian_{width}")
    def forward_jacobian(
        points: wp.array(dtype=wp.vec3),
        table: wp.array(dtype=vector),
        resolution: int,
        entries: int,
        hashed: int,
        level: int,
        features: wp.array2d(dtype=vector),
        jacobian: wp.array3d(dtype=vector),
    ):
        p = wp.tid()
        cell = lower(points[p], resolution)
        total = vector()
        dx = vector()
        dy = vector()
        dz = vector()
        for c in range(8):
            weight = weights(points[p], cell, c, resolution)
            slope = slopes(weight, c, resolution)
            value = table[corner(cell, c, resolution, entries, hashed)]
            total += (weight[0] * weight[1] * weight[2]) * value
            dx += slope[0] * value
            dy += slope[1] * value
            dz += slope[2] * value
        features[p, level] = total
        jacobian[p, 0, level] = dx
        jacobian[p, 1, level] = dy
        jacobian[p, 2, level] = dz

    @wp.kernel(enable_backward=False, module=f"dreamflow_hashgrid_backward_{width}")
    def backward(
        points: wp.array(dtype=wp.vec3),
        grad_features: wp.array2d(dtype=vector),
        unused: wp.array3d(dtype=vector),
        resolution: int,
        entries: int,
        hashed: int,
        level: int,
        grad_table: wp.array(dtype=vector),
    ):
        p = wp.tid()
        cell = lower(points[p], resolution)
        for c in range(8):
            weight = weights(points[p], cell, c, resolution)
            gradient = (weight[0] * weight[1] * weight[2]) * grad_features[p, level]
            wp.atomic_add(grad_table, corner(cell, c, resolution, entries, hashed), gradient)

    @wp.kernel(enable_backward=False, module=f"dreamflow_hashgrid_backward_jacobian_{width}")
    def backward_jacobian(
        points: wp.array(dtype=wp.vec3),
        grad_features: wp.array2d(dtype=vector),
        grad_jacobian: wp.array3d(dtype=vector),
        resolution: int,
        entries: int,
        hashed: int,
        level: int,
        grad_table: wp.array(dtype=vector),
    ):
        p = wp.tid()
        cell = lower(points[p], resolution)
        for c in range(8):
            weight = weights(points[p], cell, c, resolution)
            slope = slopes(weight, c, resolution)
            gradient = (weight[0] * weight[1] * weight[2]) * grad_features[p, level]
            gradient += slope[0] * grad_jacobian[p, 0, level]
            gradient += slope[1] * grad_jacobian[p, 1, level]
            gradient += slope[2] * grad_jacobian[p, 2, level]
            wp.atomic_add(grad_table, corner(cell, c, resolution, entries, hashed), gradient)

    return SimpleNamespace(
        forward=forward, forward_jacobian=forward_jacobian, backward=backward, backward_jacobian=backward_jacobian
    ), vector
