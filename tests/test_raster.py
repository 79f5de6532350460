"""Visibility against ray casting, attributes against closed forms, gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
import trimesh
from torch import Tensor

from dreamflow_core.cameras import Cameras, orbit
from dreamflow_core.render import raster
from dreamflow_core.render.backends import warp_works
from dreamflow_core.render.raster import (
    BackendUnavailable,
    footprint,
    interpolate,
    rasterize,
    to_clip,
    to_pixels,
    visible,
)

CPU = torch.device("cpu")
needs_warp = pytest.mark.skipif(not warp_works(CPU), reason="Warp does not work here: pip install warp-lang")
BACKENDS = ["torch", pytest.param("warp", marks=needs_warp)]


def sphere(subdivisions: int, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces, dtype=torch.int64)


def soup(triangles: int) -> tuple[Tensor, Tensor]:
    """Random triangles that cut through each other."""
    vertices = torch.rand(3 * triangles, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return vertices, torch.arange(3 * triangles).view(-1, 3)


def double(cameras: Cameras) -> Cameras:
    return Cameras(*(value.double() for value in (cameras.azimuth, cameras.elevation, cameras.radius, cameras.fov)))


def ndc_triangle(*corners: tuple[float, float], depth: float = 0.0) -> tuple[Tensor, Tensor]:
    """One triangle, given in normalised device coordinates."""
    return torch.tensor([[[x, y, depth, 1.0] for x, y in corners]]), torch.tensor([[0, 1, 2]])


def cast(vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Möller and Trumbore 1997: distance of (R, 3) rays to F triangles and their least weight, each (R, F)."""
    a, b, c = vertices[faces].unbind(1)
    cross = torch.linalg.cross(directions[:, None], (c - a)[None])
    determinant = (cross * (b - a)).sum(-1)
    offset = origins[:, None] - a
    u = (offset * cross).sum(-1) / determinant
    other = torch.linalg.cross(offset, (b - a)[None].expand_as(offset))
    v = (directions[:, None] * other).sum(-1) / determinant
    return (other * (c - a)).sum(-1) / determinant, torch.stack([u, v, 1 - u - v]).amin(0)


def test_clip_space_agrees_with_the_cameras_rays():
    cameras = double(Cameras(*(torch.tensor(x) for x in ([10.0, 200.0], [-20.0, 60.0], [2.5, 4.0], [40.0, 70.0]))))
    origins, directions = cameras.rays(6)
    points = (origins + 1.7 * directions).view(2, 36, 3)
    place = to_pixels(to_clip(points, cameras.world_to_clip()), 6, 6).view(2, 6, 6, 3)
    index = torch.arange(6.0).double()
    torch.testing.assert_close(place[..., 0], index[None, None, :].expand(2, 6, 6))
    torch.testing.assert_close(place[..., 1], index[None, :, None].expand(2, 6, 6))


def test_clip_space_depth_and_w():
    cameras = orbit(1, 0.0, 3.0, 40.0)
    clip = to_clip(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0]]), cameras.world_to_clip(near=1.0, far=5.0))
    torch.testing.assert_close(clip[0, :, 3], torch.tensor([1.0, 5.0]))
    torch.testing.assert_close(clip[0, :, 2] / clip[0, :, 3], torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mesh", [sphere(2), soup(60)], ids=["sphere", "soup"])
def test_ids_agree_with_ray_casting(backend, mesh):
    vertices, faces = mesh
    cameras = orbit(2, 25.0, 3.0, 50.0)
    ids = visible(to_clip(vertices, cameras.world_to_clip()), faces, (32, 32), backend).view(-1)
    origins, directions = (rays.reshape(-1, 3) for rays in double(cameras).rays(32))
    distance, least = cast(vertices.double(), faces, origins, directions)
    distance = torch.where(least >= 0, distance, torch.inf)
    nearest, expected = distance.min(dim=1)
    expected = torch.where(nearest < torch.inf, expected, -1)
    # Rays within rounding of an edge or of another surface may see either.
    gap = torch.where(torch.arange(len(faces)) == expected[:, None], torch.inf, distance).amin(1) - nearest
    clear = (least.abs().amin(1) > 1e-4) & ~(gap < 1e-4)
    assert clear.float().mean() > 0.8 and (expected[clear] >= 0).float().mean() > 0.2
    assert torch.equal(ids[clear], expected[clear])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_cracks_and_no_pixel_outside(backend):
    """A square cut into triangles at random covers just its pixels, whatever its inner edges."""
    from scipy.spatial import Delaunay

    inner = torch.rand(400, 2, generator=torch.Generator().manual_seed(1)) - 0.5
    grid = torch.cartesian_prod(torch.arange(-7, 8), torch.arange(-7, 8)) / 16 + 1 / 32  # on pixel centres
    corner = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
    points = torch.cat([corner, inner, grid])
    faces = torch.tensor(Delaunay(points.numpy()).simplices, dtype=torch.int64)
    w = 0.5 + torch.rand(len(points), 1, generator=torch.Generator().manual_seed(2))
    clip = torch.cat([points, torch.zeros_like(w), torch.ones_like(w)], dim=1) * w
    covered = visible(clip[None], faces, (32, 32), backend)[0] >= 0
    assert covered[8:24, 8:24].all() and covered.sum() == 256


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_dropped(backend):
    clip, faces = ndc_triangle((-0.9, -0.9), (0.9, -0.9), (0.0, 0.9))

    def covered(change: Tensor) -> int:
        return len(rasterize(change, faces, (16, 16), backend).pixel)

    assert covered(clip) > 50
    assert covered(clip.flip(1)) == covered(clip), "both sides are drawn"
    behind, broken, far = clip.clone(), clip.clone(), clip.clone()
    behind[0, 0, 3] = -0.1
    broken[0, 1, 0] = torch.nan
    far[..., 2] = 1.1
    assert covered(behind) == covered(broken) == covered(far) == covered(clip + 5.0 * torch.eye(4)[0]) == 0
    assert len(rasterize(clip, faces[:0], (16, 16), backend).pixel) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_and_order(backend):
    near, _ = ndc_triangle((-0.9, -0.9), (0.9, -0.9), (0.0, 0.9), depth=-0.5)
    far, _ = ndc_triangle((-0.9, -0.9), (0.9, -0.9), (0.0, 0.9), depth=0.5)
    clip = torch.cat([far, near, near], dim=1)
    ids = visible(clip, torch.arange(9).view(3, 3), (16, 16), backend)
    assert set(ids.unique().tolist()) == {-1, 1}


@needs_warp
def test_warp_agrees_with_torch_on_every_pixel():
    huge = torch.tensor([[-40.0, -30.0, -3.0], [50.0, -20.0, -3.0], [3.0, 60.0, -3.5]])
    for vertices, faces in (sphere(5, 0.9), soup(300), sphere(0)):
        faces = torch.cat([faces, len(vertices) + torch.tensor([[0, 1, 2]])])
        clip = to_clip(torch.cat([vertices, huge]), orbit(2, 10.0, 2.2, 60.0).world_to_clip())
        assert torch.equal(*(visible(clip, faces, (120, 200), backend) for backend in ("torch", "warp")))


def test_torch_memory_is_bounded_by_chunks(monkeypatch):
    vertices, faces = soup(40)
    clip = to_clip(vertices, orbit(2, 10.0, 3.0, 50.0).world_to_clip())
    whole = visible(clip, faces, (64, 64), "torch")
    monkeypatch.setattr(raster, "CHUNK", 64**2)  # few tiles at a time, or only one
    assert torch.equal(visible(clip, faces, (64, 64), "torch"), whole)


def test_triangle_coverage():
    clip, faces = ndc_triangle((-0.8, -0.7), (0.9, -0.5), (0.1, 0.8))
    area = 0.5 * (1.7 * 1.5 - 0.9 * 0.2) / 4
    assert rasterize(clip, faces, (400, 400), "torch").pixel.numel() / 400**2 == pytest.approx(area, abs=2e-4)


def test_interpolation_is_perspective_correct():
    """Positions as attributes of a tilted plane are where the pixels' rays meet the plane."""
    cameras = double(orbit(2, 20.0, 3.0, 60.0))
    vertices = torch.tensor([[-1.0, -0.8, 0.9], [1.0, -0.9, -0.7], [-0.2, 1.0, 0.1]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2]])
    fragments = rasterize(to_clip(vertices, cameras.world_to_clip()), faces, (32, 32), "torch")
    origins, directions = (rays.reshape(-1, 3)[fragments.pixel] for rays in cameras.rays(32))
    normal = torch.linalg.cross(vertices[1] - vertices[0], vertices[2] - vertices[0])
    distance = ((vertices[0] - origins) @ normal) / (directions @ normal)
    expected = origins + distance[:, None] * directions
    torch.testing.assert_close(interpolate(vertices, faces, fragments), expected)
    batched = torch.stack([vertices, vertices + 1])
    shift = fragments.view[:, None].double()
    torch.testing.assert_close(interpolate(batched, faces, fragments), expected + shift)
    forward = to_clip(expected[None], cameras.world_to_clip())
    forward = forward[fragments.view, torch.arange(len(expected))]
    torch.testing.assert_close(fragments.depth[:, 0], forward[:, 2] / forward[:, 3])


def test_gradients_of_barycentrics_depth_and_attributes():
    vertices, faces = (sphere(0)[0].double(), sphere(0)[1])
    clip = to_clip(vertices, double(orbit(1, 30.0, 3.0, 50.0)).world_to_clip()).requires_grad_()
    attributes = torch.rand(12, 2, dtype=torch.float64, requires_grad=True)

    def render(clip: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
        fragments = rasterize(clip, faces, (8, 8), "torch")
        return interpolate(attributes, faces, fragments), fragments.depth

    assert torch.autograd.gradcheck(render, (clip, attributes), eps=1e-7)


def test_footprint_is_the_change_over_a_pixel():
    vertices, faces = sphere(1)
    clip = to_clip(vertices.double(), double(orbit(1, 30.0, 2.0, 50.0)).world_to_clip())
    attributes = torch.rand(len(vertices), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fragments = rasterize(clip, faces, (20, 30), "torch")
    step = 1e-6

    def seen_from(right: float, down: float) -> Tensor:
        """The same triangles at points off the pixels' centres: the picture is moved the other way."""
        moved = clip.clone()
        moved[..., 0] -= right * 2 / 30 * clip[..., 3]
        moved[..., 1] += down * 2 / 20 * clip[..., 3]
        other = rasterize(moved, faces, (20, 30), "torch")
        assert torch.equal(other.triangle, fragments.triangle)
        return interpolate(attributes, faces, other)

    right = (seen_from(step, 0) - seen_from(-step, 0)) / (2 * step)
    down = (seen_from(0, step) - seen_from(0, -step)) / (2 * step)
    expected = torch.stack([right, down], dim=2)
    torch.testing.assert_close(footprint(attributes, faces, fragments), expected, rtol=1e-5, atol=1e-8)


def test_images_put_values_back():
    clip, faces = ndc_triangle((-0.9, -0.9), (0.9, -0.9), (-0.9, 0.9))  # the lower left half
    fragments = rasterize(torch.cat([clip, clip]), faces, (8, 8), "torch")
    image = fragments.image(fragments.view[:, None] + 1.0, background=-5.0)
    assert image.shape == (2, 8, 8, 1)
    assert image[0, 6, 1, 0] == 1 and image[1, 6, 1, 0] == 2 and image[0, 1, 6, 0] == -5


@pytest.mark.parametrize(
    "clip,faces,message",
    [
        (torch.zeros(3, 4), torch.zeros(1, 3, dtype=torch.int64), "clip"),
        (torch.zeros(1, 3, 4).half(), torch.zeros(1, 3, dtype=torch.int64), "float16"),
        (torch.zeros(1, 3, 4), torch.zeros(1, 3), "faces"),
    ],
)
def test_wrong_arguments(clip, faces, message):
    with pytest.raises(ValueError, match=message):
        rasterize(clip, faces, (8, 8))


def test_backend_policy(monkeypatch):
    with pytest.raises(ValueError, match="unknown rasteriser"):
        raster._choose("opengl", CPU)
    with pytest.raises(BackendUnavailable, match="CUDA"):
        raster._choose("nvdiffrast", CPU)
    monkeypatch.setattr(raster, "warp_works", lambda device: False)
    assert raster._choose("auto", CPU) == "torch"
    with pytest.raises(BackendUnavailable, match="pip install warp-lang"):
        raster._choose("warp", CPU)
    monkeypatch.setattr(raster, "warp_works", lambda device: True)
    assert raster._choose("auto", CPU) == "warp"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: run on one to test its rasterisers")
@pytest.mark.parametrize("backend", ["torch", "warp", "nvdiffrast"])
def test_cuda_agrees_with_the_cpu(backend):
    vertices, faces = sphere(5, 0.9)
    clip = to_clip(vertices, orbit(2, 10.0, 2.5, 50.0).world_to_clip())
    try:
        ids = visible(clip.cuda(), faces.cuda(), (256, 256), backend).cpu()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    differing = (ids != visible(clip, faces, (256, 256), "torch")).float().mean()
    assert differing <= (1e-3 if backend == "nvdiffrast" else 1e-5)
