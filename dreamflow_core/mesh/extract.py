"""From a density field to one closed mesh within a face budget."""

from __future__ import annotations

from collections.abc import Callable

import fast_simplification
import numpy as np
from skimage.measure import marching_cubes

from . import topology
from .inside import with_solid_inside
from .mesh import BadMesh, Floats, Ints, Mesh
from .repair import pull_apart
from .threshold import automatic_threshold

LEAST_FACES = 4
"""A tetrahedron: nothing closed has fewer faces."""


def sample_grid(density: Callable[[Floats], Floats], resolution: int, extent: float) -> Floats:
    """Densities (R, R, R) at the nodes of a grid over [-extent, extent]^3, indexed x, y, z.

    `density` maps points (R^2, 3) to (R^2,); it is asked for one slab of the grid at a time.
    """
    nodes = np.linspace(-extent, extent, resolution, dtype=np.float32)
    y, z = np.meshgrid(nodes, nodes, indexing="ij")
    slabs = [density(np.stack([np.full_like(y, x), y, z], axis=-1).reshape(-1, 3)) for x in nodes]
    return np.stack(slabs).reshape(resolution, resolution, resolution).astype(np.float32)


def extract(density: Floats, extent: float, threshold: float | None = None) -> Mesh:
    """The iso-surface of a density grid: its largest component, closed, facing outward.

    A field that reaches the grid's border is closed off there.

    Args:
        density: (R, R, R) per scene unit at the nodes of a grid over [-extent, extent]^3, R >= 3.
        threshold: the density at the surface; None finds it (`automatic_threshold`), and takes what light hardly
            reaches for solid, however thin it is (`with_solid_inside`).

    Raises:
        BadMesh: the field is empty or not finite, or nothing lies above the threshold.
    """
    _check_grid(density, extent, threshold)
    if threshold is None:
        threshold = automatic_threshold(density, extent)
        density = with_solid_inside(density, extent, threshold)
    solid = _without_border(density.astype(np.float32) - np.float32(threshold), -threshold)
    if not (solid > 0).any():
        raise BadMesh(
            f"nothing in the scene is denser than the threshold {threshold:.4g}; its highest density is "
            f"{density.max():.4g}: lower the threshold"
        )
    # A value of exactly zero would put several vertices on one node and tear the surface there.
    least = np.float32(1e-4 * np.abs(solid).max())
    solid = np.where(np.abs(solid) < least, np.copysign(least, solid), solid)
    vertices, faces, _, _ = marching_cubes(solid, 0.0, gradient_direction="ascent")
    vertices, faces = _largest_component(vertices, faces.astype(np.int64))
    cell = 2 * extent / (len(density) - 1)
    return Mesh((vertices * cell - extent).astype(np.float32), faces)


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with at most `faces` faces, still closed and of one component; attributes are dropped.

    Args:
        mesh: closed, as `extract` makes it.

    Raises:
        BadMesh: the budget is below `LEAST_FACES`, or the shape cannot be kept closed within it.
    """
    if faces < LEAST_FACES:
        raise BadMesh(f"the face budget is {faces}; a closed mesh has at least {LEAST_FACES} faces")
    if len(mesh.faces) <= faces:
        return Mesh(mesh.vertices, mesh.faces)
    for target in np.linspace(faces, 0.75 * faces, 6).astype(int):
        vertices, kept = fast_simplification.simplify(mesh.vertices, mesh.faces, target_count=max(target, LEAST_FACES))
        vertices, kept = pull_apart(vertices.astype(np.float32), kept.astype(np.int64))
        if 0 < len(kept) <= faces and topology.is_closed(kept):
            return Mesh(*_largest_component(vertices, kept))
    raise BadMesh(f"the shape cannot be kept closed with {faces} faces: raise the face budget")


def _check_grid(density: Floats, extent: float, threshold: float | None) -> None:
    if density.ndim != 3 or len(set(density.shape)) != 1 or len(density) < 3:
        raise BadMesh(f"the density grid has shape {density.shape}; it must be a cube of at least 3 nodes a side")
    if not extent > 0:
        raise BadMesh(f"the grid's extent is {extent}; it must be above 0")
    if threshold is not None and not 0 < threshold < np.inf:
        raise BadMesh(f"the threshold is {threshold}; it must be above 0")
    if not np.isfinite(density).all() or density.min() < 0:
        raise BadMesh("the scene's density contains NaN, infinity or negative values")


def _without_border(field: Floats, outside: float) -> Floats:
    field[[0, -1]] = field[:, [0, -1]] = field[:, :, [0, -1]] = outside
    return field


def _largest_component(vertices: Floats, faces: Ints) -> tuple[Floats, Ints]:
    """The component that encloses the largest volume; cavities inside it are components, and go too."""
    label = topology.components(faces)
    volume = np.bincount(label, topology.face_volumes(vertices, faces))
    return topology.without_unused(vertices, faces[label == volume.argmax()])
