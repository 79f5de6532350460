"""Marching, compositing and regularisers against closed forms and plain float64 loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from dreamflow_core.cameras import orbit
from dreamflow_core.render import regularisers
from dreamflow_core.render.backends import nerfacc_cuda_works
from dreamflow_core.render.volume import Samples, composite, march, occupancy_grid, sphere_chord


def rays(size: int = 12, dtype=torch.float64):
    cameras = orbit(3, elevation=25.0, radius=3.0, fov=45.0)
    return tuple(r.reshape(-1, 3).to(dtype) for r in cameras.rays(size))


def everywhere(resolution: int = 4):
    return SimpleNamespace(binaries=torch.ones(1, resolution, resolution, resolution, dtype=torch.bool))


def ball_occupancy(radius: float, resolution: int = 16):
    """Cells that touch a ball around the origin."""
    edges = torch.linspace(-1, 1, resolution + 1, dtype=torch.float64)
    nearest = torch.where(edges[:-1] > 0, edges[:-1], torch.where(edges[1:] < 0, edges[1:], torch.zeros(resolution)))
    squares = nearest.square()
    total = squares[:, None, None] + squares[None, :, None] + squares[None, None, :]
    return SimpleNamespace(binaries=(total < radius**2)[None])


def centred(origins):
    return torch.full((len(origins),), 0.5, dtype=origins.dtype)


def chord_of_ball(origins, directions, radius: float):
    closest = -(origins * directions).sum(-1)
    gap = (origins + closest[:, None] * directions).square().sum(-1)
    return 2 * (radius**2 - gap).clamp_min(0).sqrt()


@pytest.mark.parametrize("extinction", [0.1, 1.0, 20.0])
def test_homogeneous_ball_follows_beer_and_lambert(extinction):
    origins, directions = rays()
    step = 1 / 2048
    samples = march(origins, directions, ball_occupancy(0.7), step, centred(origins))
    inside = samples.positions(origins, directions).norm(dim=-1) < 0.7
    density = torch.tensor(extinction, dtype=torch.float64, requires_grad=True)
    colour = torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64).expand(len(inside), 3)
    seen = composite(samples, density * inside, colour)

    chord = chord_of_ball(origins, directions, 0.7)
    alpha = 1 - torch.exp(-extinction * chord)
    # The ball's border falls within a step at either end.
    torch.testing.assert_close(seen.alpha, alpha, atol=extinction * step, rtol=0)
    torch.testing.assert_close(seen.values, alpha[:, None] * colour[:1], atol=extinction * step, rtol=0)
    (gradient,) = torch.autograd.grad(seen.alpha.sum(), density)
    exact = (chord * torch.exp(-extinction * chord)).sum()
    assert gradient.item() == pytest.approx(exact.item(), rel=5e-3 + extinction * step)


def test_slab_hides_what_is_behind_it():
    """A red slab in front of a green one: transmittance of the first times opacity of the second."""
    origins = torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64)
    directions = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64)
    samples = march(origins, directions, everywhere(), 2 / 64, centred(origins))
    z = samples.positions(origins, directions)[:, 2]
    first, second = (z > 0.25) & (z < 0.5), (z < -0.25) & (z > -0.75)
    seen = composite(samples, 2.0 * first + 3.0 * second, torch.stack([first, second], -1).double())
    red, green = 1 - math.exp(-2 * 0.25), math.exp(-2 * 0.25) * (1 - math.exp(-3 * 0.5))
    torch.testing.assert_close(seen.values[0], torch.tensor([red, green], dtype=torch.float64))


def bump(points):
    """A smooth density with support in the ball of radius 0.6."""
    return 40 * (0.36 - points.square().sum(-1)).clamp_min(0) * (1.2 + torch.sin(7 * points[..., 0]))


def dense_sum(origins, directions, step, jitter):
    """Alpha and mean depth of each ray by a loop over all steps, without an occupancy grid."""
    alphas, depths = [], []
    for origin, direction, shift in zip(origins.double(), directions.double(), jitter.double()):
        closest = float(-(origin @ direction))
        half = math.sqrt(max(1 - float((origin + closest * direction).square().sum()), 0))
        transmittance, depth, t = 1.0, 0.0, closest - half + float(shift) * step
        while t < closest + half:
            stays = math.exp(-float(bump(origin + t * direction)) * step)
            depth += transmittance * (1 - stays) * t
            transmittance *= stays
            t += step
        alphas.append(1 - transmittance)
        depths.append(depth)
    return torch.tensor(alphas), torch.tensor(depths)


def test_marching_past_empty_space_equals_the_dense_sum():
    origins, directions = rays(8, torch.float32)
    jitter = torch.rand(len(origins), generator=torch.Generator().manual_seed(3))
    occupancy, step = ball_occupancy(0.6), 2 / 48
    samples = march(origins, directions, occupancy, step, jitter)
    seen = composite(samples, bump(samples.positions(origins, directions)), (samples.start + samples.end)[:, None] / 2)
    alpha, depth = dense_sum(origins, directions, step, jitter)
    torch.testing.assert_close(seen.alpha, alpha.float(), atol=2e-6, rtol=0)
    torch.testing.assert_close(seen.values[:, 0], depth.float(), atol=5e-6, rtol=0)
    full = march(origins, directions, everywhere(), step, jitter)
    assert len(samples.ray) < 0.5 * len(full.ray)


def test_samples_are_ordered_and_stay_in_the_sphere():
    origins, directions = rays()
    samples = march(origins, directions, everywhere(), 0.05, centred(origins))
    assert samples.rays == len(origins)
    assert (samples.ray.diff() >= 0).all()
    same = samples.ray.diff() == 0
    torch.testing.assert_close(samples.start[1:][same], samples.end[:-1][same])
    assert samples.positions(origins, directions).norm(dim=-1).max() <= 1
    near, far = sphere_chord(origins, directions)
    assert set(samples.ray.tolist()) == set((far > near).nonzero()[:, 0].tolist())
    padded = samples.pad(samples.start)
    assert torch.equal(samples.unpad(padded), samples.start)


def test_rays_from_within_start_at_the_camera():
    origins, directions = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -1.0]])
    near, far = sphere_chord(origins, directions)
    assert (near.item(), far.item()) == (0.0, 1.0)


def test_rays_that_see_nothing():
    origins, directions = torch.tensor([[0.0, 3.0, 3.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    samples = march(origins, directions, everywhere(), 0.1, centred(origins))
    density = torch.zeros(0, requires_grad=True)
    seen = composite(samples, density, torch.zeros(0, 3))
    assert seen.alpha.tolist() == [0.0] and seen.values.tolist() == [[0.0, 0.0, 0.0]]
    seen.alpha.sum().backward()


def example_samples() -> Samples:
    """Rays with 3, 0 and 2 samples of uneven lengths."""
    start = torch.tensor([0.0, 0.4, 0.9, 0.1, 0.7], dtype=torch.float64)
    length = torch.tensor([0.3, 0.2, 0.5, 0.2, 0.1], dtype=torch.float64)
    return Samples(torch.tensor([0, 0, 0, 2, 2]), start, start + length, 3)


def test_compositing_gradients_equal_finite_differences():
    samples, generator = example_samples(), torch.Generator().manual_seed(0)
    density = torch.rand(5, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.rand(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def everything(density, values):
        seen = composite(samples, 3 * density, values)
        return seen.weights, seen.alpha, seen.values

    assert torch.autograd.gradcheck(everything, (density, values))


def test_distortion_equals_the_double_sum():
    samples = example_samples()
    weights = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = regularisers.distortion(*(samples.pad(v) for v in (weights, samples.start, samples.end)))
    expected = [0.0, 0.0, 0.0]
    for i in range(5):
        expected[samples.ray[i]] += float(weights[i] ** 2 * (samples.end[i] - samples.start[i]) / 3)
        for j in range(5):
            if samples.ray[i] == samples.ray[j]:
                gap = (samples.start[i] + samples.end[i] - samples.start[j] - samples.end[j]).abs() / 2
                expected[samples.ray[i]] += float(weights[i] * weights[j] * gap)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_orientation_turns_samples_and_does_not_hide_them():
    weights = torch.tensor([[0.5, 0.25, 0.0]], requires_grad=True)
    facing = torch.tensor([[-0.9, 0.4, 1.0]], requires_grad=True)
    loss = regularisers.orientation(weights, facing)
    assert loss.item() == pytest.approx(0.25 * 0.16)
    loss.sum().backward()
    assert weights.grad is None
    torch.testing.assert_close(facing.grad, torch.tensor([[0.0, 0.2, 0.0]]))


def test_opacity_is_smooth_at_zero():
    alpha = torch.tensor([0.0, 1.0], requires_grad=True)
    loss = regularisers.opacity(alpha)
    assert loss.tolist() == pytest.approx([0.1, math.sqrt(1.01)])
    loss.sum().backward()
    assert alpha.grad[0] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a torch build for CUDA")
def test_nerfacc_marching_equals_torch():
    if not nerfacc_cuda_works(torch.device("cuda")):
        pytest.skip("nerfacc's CUDA extension did not build: it needs a CUDA toolkit that fits torch")
    origins, directions = rays(16, torch.float32)
    occupancy = occupancy_grid(16)
    occupancy.binaries = ball_occupancy(0.6).binaries
    jitter = torch.rand(len(origins), generator=torch.Generator().manual_seed(3))
    alphas = []
    for device in ("cpu", "cuda"):
        on = [t.to(device) for t in (origins, directions)]
        samples = march(*on, occupancy.to(device), 2 / 48, jitter.to(device))
        alphas.append(composite(samples, bump(samples.positions(*on)), samples.start[:, None]).alpha.cpu())
    torch.testing.assert_close(*alphas, atol=1e-4, rtol=0)
