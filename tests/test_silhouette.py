"""Antialiased silhouettes: exact areas, and gradients against finite differences of exact areas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import ConvexHull
from torch import Tensor

from dreamflow_core.cameras import Cameras, orbit
from dreamflow_core.render.raster import Fragments, rasterize, to_clip
from dreamflow_core.render.silhouette import antialias, find_edges

CAMERA = Cameras(*(torch.tensor([x], dtype=torch.float64) for x in (17.0, 23.0, 3.0, 45.0)))


def sphere(subdivisions: int) -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions)
    return torch.tensor(mesh.vertices), torch.tensor(mesh.faces, dtype=torch.int64)


def draw(clip: Tensor, faces: Tensor, size: int, colours: Tensor | None = None) -> tuple[Tensor, Fragments]:
    """The picture of triangles in their (F, C) colours, or of their coverage."""
    fragments = rasterize(clip, faces, (size, size), "torch")
    colours = clip.new_ones(len(faces), 1) if colours is None else colours
    image = fragments.image(colours[fragments.triangle])
    return antialias(image, fragments, clip, find_edges(faces)), fragments


def flat(points: list[tuple[float, float]], depth: float = 0.0) -> Tensor:
    return torch.tensor([[x, y, depth, 1.0] for x, y in points], dtype=torch.float64)


def polygon_area(points: Tensor) -> Tensor:
    """In pixels of a picture of width 2."""
    x, y = points[:, 0], points[:, 1]
    return ((x * y.roll(-1)).sum() - (y * x.roll(-1)).sum()).abs() / 2


def hull_area(vertices: Tensor, size: int) -> float:
    """Pixels that a convex mesh covers, exactly."""
    clip = to_clip(vertices, CAMERA.world_to_clip())[0].numpy()
    return float(ConvexHull(clip[:, :2] / clip[:, 3:]).volume) * size**2 / 4


@pytest.mark.parametrize("subdivisions", [0, 1, 3, 5], ids=["20", "80", "1280", "20480"])
def test_area_and_its_gradient_by_scale(subdivisions):
    """The gradient stays within 3 % at all mesh densities, also where triangles are smaller than pixels."""
    vertices, faces = sphere(subdivisions)
    ratios = []
    for scale in (0.8, 0.83):
        factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        image, _ = draw(to_clip(vertices * factor, CAMERA.world_to_clip()), faces, 256)
        assert image.sum().item() == pytest.approx(hull_area(vertices * scale, 256), rel=1e-4)
        image.sum().backward()
        slope = (hull_area(vertices * (scale + 1e-4), 256) - hull_area(vertices * (scale - 1e-4), 256)) / 2e-4
        ratios.append(factor.grad.item() / slope)
    assert min(ratios) > 0.97 and max(ratios) < 1.03


def test_triangle_area_and_gradients():
    """Of each corner, against the analytic area's gradient."""
    corners = flat([(-0.83, -0.71), (0.92, -0.48), (0.13, 0.86)]).requires_grad_()
    image, _ = draw(corners[None], torch.tensor([[0, 1, 2]]), 256)
    area = polygon_area(corners) * 128**2
    torch.testing.assert_close(image.sum(), area, rtol=2e-4, atol=0)
    (ours,) = torch.autograd.grad(image.sum(), corners)
    (exact,) = torch.autograd.grad(area, corners)
    torch.testing.assert_close(ours[:, :2], exact[:, :2], rtol=0.03, atol=0.01 * exact.abs().max().item())


def test_gradients_are_those_of_the_image():
    """Finite differences of a coloured picture of overlapping triangles, by every coordinate.

    The picture is continuous but has kinks and rare jumps (a pixel changes its triangle), so single
    coordinates are left out where both one-sided differences disagree.
    """
    generator = torch.Generator().manual_seed(3)
    clip = torch.rand(12, 4, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    clip[:, 3] = 1
    faces = torch.arange(12).view(4, 3)
    colours = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(1, 40, 40, 3, generator=generator, dtype=torch.float64)

    def loss(clip: Tensor) -> Tensor:
        return (draw(clip[None], faces, 40, colours)[0] * weights).sum()

    (ours,) = torch.autograd.grad(loss(clip.requires_grad_()), clip)
    compared = 0
    for i, j in np.ndindex(12, 2):
        step = torch.zeros_like(clip)
        step[i, j] = 1e-6
        with torch.no_grad():
            ahead, back = (loss(clip + step) - loss(clip)) / 1e-6, (loss(clip) - loss(clip - step)) / 1e-6
        if abs(ahead - back) < 1e-3:
            compared += 1
            torch.testing.assert_close(ours[i, j], (ahead + back) / 2, rtol=1e-4, atol=1e-4)
    assert compared >= 20 and ours.abs().max() > 1


def test_inner_and_hidden_edges_are_left_alone():
    """A square's diagonal, and a triangle behind it, do not blend; the square's border does."""
    square = flat([(-0.71, -0.72), (0.73, -0.72), (0.73, 0.74), (-0.71, 0.74)], depth=-0.5)
    hidden = flat([(-0.3, -0.3), (0.4, -0.2), (0.1, 0.5)], depth=0.5)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    clip = torch.cat([square, hidden])[None]
    colours = torch.tensor([[1.0], [0.5], [0.2]], dtype=torch.float64)
    image, fragments = draw(clip, faces, 32, colours)
    plain = fragments.image(colours[fragments.triangle])
    assert torch.equal(image[:, 6:26, 6:26], plain[:, 6:26, 6:26])
    assert ((image > 0) & (image < 0.45)).any()
    clip[:, 4:, 2] = -0.7  # now in front
    image, fragments = draw(clip, faces, 32, colours)
    plain = fragments.image(colours[fragments.triangle])
    assert ((image != plain)[:, 6:26, 6:26]).sum() > 20


def test_results_are_convex_combinations():
    """Also for things of a pixel's size, which many edges cross."""
    centre = torch.rand(300, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    corner = torch.randn(300, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.04
    points = (centre + corner).view(-1, 2)
    clip = torch.cat([points, torch.zeros(900, 1), torch.ones(900, 1)], dim=1).double()[None]
    image, fragments = draw(clip, torch.arange(900).view(-1, 3), 64)
    assert image.min() >= 0 and image.max() <= 1 + 1e-12
    aliased = fragments.image(torch.ones_like(fragments.depth))
    assert (image != aliased).float().mean() > 0.1


def test_split_vertices_are_welded():
    """A mesh whose triangles share no vertices is one surface if its vertices' places are given."""
    vertices, faces = sphere(2)
    split, loose = vertices[faces].view(-1, 3), torch.arange(faces.numel()).view(-1, 3)
    whole, welded = find_edges(faces), find_edges(loose, split)
    assert len(whole.ends) == len(welded.ends) == faces.numel() // 2
    assert len(find_edges(loose).ends) == faces.numel()
    clip = to_clip(split, CAMERA.world_to_clip())
    fragments = rasterize(clip, loose, (64, 64), "torch")
    image = fragments.image(torch.rand(len(faces), 1, dtype=torch.float64)[fragments.triangle])
    expected = antialias(image, fragments, to_clip(vertices, CAMERA.world_to_clip()), whole)
    torch.testing.assert_close(antialias(image, fragments, clip, welded), expected)


def test_views_are_independent():
    vertices, faces = sphere(1)
    clip = to_clip(vertices.float(), orbit(3, 10.0, 3.0, 45.0).world_to_clip())
    together, _ = draw(clip, faces, 48)
    for k in range(3):
        torch.testing.assert_close(together[k], draw(clip[k : k + 1], faces, 48)[0][0])


def test_nothing_and_behind_the_camera():
    vertices, faces = sphere(1)
    clip = to_clip(vertices, CAMERA.world_to_clip()).requires_grad_()
    image, _ = draw(clip * torch.tensor([1.0, 1.0, 1.0, -1.0]), faces, 16)
    assert image.abs().sum() == 0
    mixed = to_clip(vertices * 4, CAMERA.world_to_clip()).requires_grad_()  # the camera is inside
    draw(mixed, faces, 16)[0].square().sum().backward()
    assert mixed.grad.isfinite().all()


def test_area_gradient_does_not_depend_on_the_winding():
    vertices, faces = sphere(2)
    clip = to_clip(vertices, CAMERA.world_to_clip())
    mixed = torch.where(torch.arange(len(faces))[:, None] % 3 == 0, faces.flip(1), faces)
    torch.testing.assert_close(draw(clip, faces, 64)[0], draw(clip, mixed, 64)[0])
