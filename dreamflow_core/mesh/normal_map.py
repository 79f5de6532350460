"""Normal maps in glTF's convention, and the tangent space that they are written in.

A texel holds a unit normal n as 0.5 + 0.5 n: x along the tangent, to the right in the texture, y along the
bitangent, up in it, and z along the smooth normal. What is sampled and optimised are slopes, n's x and y
over its z: they are averaged without losing their meaning, and every value of them is a normal.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .mesh import Floats, Mesh

_LEAST_Z = 0.1
"""Normals that lean further than this are taken as leaning so far."""


def to_slopes(normal_map: Tensor) -> Tensor:
    """Slopes (..., 2) of texels (..., 3) in [0, 1]."""
    normal = 2 * normal_map - 1
    return normal[..., :2] / normal[..., 2:].clamp_min(_LEAST_Z)


def to_normal_map(slopes: Tensor) -> Tensor:
    """Texels (..., 3) in [0, 1] of slopes (..., 2)."""
    return 0.5 + 0.5 * F.normalize(F.pad(slopes, (0, 1), value=1.0), dim=-1)


def tangents(mesh: Mesh) -> Floats:
    """glTF's TANGENT of each vertex of a mesh with UVs and normals, (V, 4)."""
    assert mesh.uvs is not None and mesh.normals is not None
    vertices, faces, uvs, normals = (torch.from_numpy(a) for a in (mesh.vertices, mesh.faces, mesh.uvs, mesh.normals))
    made = vertex_tangents(vertices, faces, uvs, faces, normals, faces)
    # Vertices without faces, too, have one of unit length.
    bare = (made[:, :3] == 0).all(dim=1)
    made[bare, :3] = _perpendicular(made[bare, :3], normals[bare])
    return made.numpy()


def any_tangents(normals: Floats) -> Floats:
    """Unit vectors (V, 3) across normals (V, 3) of unit length."""
    across = torch.from_numpy(normals.astype(np.float64))
    return _perpendicular(torch.zeros_like(across), across).numpy()


def vertex_tangents(
    vertices: Tensor, faces: Tensor, uvs: Tensor, uv_faces: Tensor, normals: Tensor, normal_faces: Tensor
) -> Tensor:
    """glTF's TANGENT of each of the N texture coordinates: where u grows, and the bitangent's side, (N, 4).

    The mean of the faces around it, each weighted by its size, made perpendicular to the normal. Differentiable
    in vertices and normals.

    Args:
        vertices: (V, 3).
        faces: (F, 3) indices into the vertices.
        uvs: (N, 2), origin at the texture's top left.
        uv_faces: (F, 3) indices into the texture coordinates.
        normals: (M, 3) unit length.
        normal_faces: (F, 3) indices into the normals.

    Returns:
        Unit tangents, and 1 or -1: the bitangent is that times normal x tangent.
    """
    (p, q), (a, b) = (
        (values[corners[:, 1]] - values[corners[:, 0]], values[corners[:, 2]] - values[corners[:, 0]])
        for values, corners in ((vertices, faces), (uvs, uv_faces))
    )
    area = (a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1])[:, None]  # in the texture, twice and signed
    along_u = area.sign() * (p * b[:, 1:] - q * a[:, 1:])
    corner = uv_faces.flatten()
    total = vertices.new_zeros(len(uvs), 3).index_add(0, corner, along_u.repeat_interleave(3, dim=0))
    sides = vertices.new_zeros(len(uvs), 1).index_add(0, corner, area.repeat_interleave(3, dim=0))
    normal = torch.zeros_like(total).index_copy(0, corner, normals[normal_faces.flatten()])
    tangent = _perpendicular(total, normal)
    # v grows downwards and the bitangent points up.
    return torch.cat([tangent, torch.where(sides > 0, -1.0, 1.0).to(tangent)], dim=1)


def bend(normal: Tensor, tangent: Tensor, slopes: Tensor) -> Tensor:
    """Normals (P, 3) that a normal map turns the smooth ones into. Differentiable.

    Args:
        normal: (P, 3) unit length.
        tangent: (P, 4) as `vertex_tangents` gives it, interpolated.
        slopes: (P, 2).
    """
    along, bitangent = _axes(normal, tangent)
    return F.normalize(normal + slopes[:, :1] * along + slopes[:, 1:] * bitangent, dim=1)


def slopes_of(bent: Tensor, normal: Tensor, tangent: Tensor) -> Tensor:
    """The slopes (P, 2) by which `bend` turns smooth normals into bent ones (P, 3)."""
    along, bitangent = _axes(normal, tangent)
    x, y, z = ((bent * axis).sum(1) for axis in (along, bitangent, normal))
    return torch.stack([x, y], dim=1) / z[:, None].clamp_min(_LEAST_Z)


def _axes(normal: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    along = _perpendicular(tangent[:, :3], normal)
    return along, tangent[:, 3:].sign() * torch.linalg.cross(normal, along)


def _perpendicular(tangent: Tensor, normal: Tensor) -> Tensor:
    """The part of tangents (P, 3) across the normals, unit length; any direction across where there is none."""
    across = tangent - (tangent * normal).sum(1, keepdim=True) * normal
    axis = F.one_hot(normal.detach().abs().argmin(1), 3).to(normal)
    other = torch.linalg.cross(normal, axis)
    vanishes = across.norm(dim=1, keepdim=True) <= torch.finfo(normal.dtype).eps * tangent.norm(dim=1, keepdim=True)
    return F.normalize(torch.where(vanishes, other, across), dim=1)
