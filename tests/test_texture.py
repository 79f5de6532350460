"""Texture lookups against closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamflow_core.cameras import orbit
from dreamflow_core.mesh.bake import sample_texture
from dreamflow_core.render.raster import footprint, interpolate, rasterize, to_clip
from dreamflow_core.render.texture import mipmaps, sample


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def scaled(texels: float, count: int, size: int) -> Tensor:
    """Footprints that many texels wide, on a square texture."""
    return (torch.eye(2, dtype=torch.float64) * texels / size).expand(count, 2, 2)


def views(points: Tensor) -> Tensor:
    return torch.zeros(len(points), dtype=torch.int64)


def texel_centres(height: int, width: int) -> Tensor:
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([u, v], dim=-1).view(-1, 2).double()


@pytest.mark.parametrize("height,width,levels", [(8, 8, 4), (4, 16, 5), (12, 20, 3), (5, 5, 1)])
def test_mipmaps_keep_the_mean(height, width, levels):
    texture = noise(2, height, width, 3)
    chain = mipmaps(texture)
    assert len(chain) == levels
    for level in chain:
        torch.testing.assert_close(level.mean(dim=(1, 2)), texture.mean(dim=(1, 2)))


def test_texel_centres_and_the_upper_left_origin():
    texture = noise(1, 4, 6, 2)
    uv = texel_centres(4, 6)
    torch.testing.assert_close(sample([texture], uv, views(uv)), texture.view(-1, 2))
    corner = sample([texture], torch.tensor([[0.5 / 6, 0.5 / 4]]).double(), torch.tensor([0]))
    torch.testing.assert_close(corner[0], texture[0, 0, 0])


@pytest.mark.parametrize(
    ("repeats", "seen"),
    [
        ((True, True), [1.5, 0.5, 0.5, 2.0]),
        ((False, False), [1.5, 0.5, 0.0, 1.0]),
        ((True, False), [1.5, 0.5, 0.5, 0.0]),
        ((False, True), [1.5, 0.5, 0.0, 3.0]),
    ],
)
def test_bilinear_and_beyond_the_borders(repeats, seen):
    texture = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64).view(1, 2, 2, 1)
    uv = torch.tensor([[0.5, 0.5], [0.5, 0.25], [0.0, 0.25], [1.25, -0.25]], dtype=torch.float64)
    colours = sample([texture], uv, views(uv), repeats=repeats)[:, 0]
    torch.testing.assert_close(colours, torch.tensor(seen).double())
    # The twin in NumPy.
    grey = texture[0].expand(-1, -1, 3).numpy()
    np.testing.assert_allclose(sample_texture(grey, uv.numpy(), repeats)[:, 0], seen)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_levels(level):
    """A footprint of 2^k texels reads level k, and one between two levels is between them."""
    chain = mipmaps(noise(1, 16, 16, 3))
    uv = noise(50, 2)
    exact = sample(chain, uv, views(uv), scaled(2.0**level, 50, 16))
    torch.testing.assert_close(exact, sample([chain[level]], uv, views(uv)))
    between = sample(chain, uv, views(uv), scaled(2.0 ** (level + 0.25), 50, 16))
    torch.testing.assert_close(between, 0.75 * exact + 0.25 * sample([chain[level + 1]], uv, views(uv)))


def test_levels_end():
    chain = mipmaps(noise(1, 8, 8, 1))
    uv = noise(5, 2)
    torch.testing.assert_close(sample(chain, uv, views(uv), scaled(1e6, 5, 8)), chain[0].mean(dim=(1, 2)).expand(5, 1))
    torch.testing.assert_close(sample(chain, uv, views(uv), scaled(1e-6, 5, 8)), sample(chain[:1], uv, views(uv)))


def test_each_view_can_have_its_texture():
    texture = noise(3, 4, 4, 2)
    uv, view = noise(20, 2), torch.arange(20) % 3
    together = sample(mipmaps(texture), uv, view, scaled(1.7, 20, 4))
    for k in range(3):
        alone = sample(mipmaps(texture[k : k + 1]), uv, views(uv), scaled(1.7, 20, 4))
        torch.testing.assert_close(together[view == k], alone[view == k])


def test_gradients():
    uv = noise(30, 2)
    texture = noise(1, 8, 4, 2).requires_grad_()

    def lookup(texture: Tensor, uv: Tensor) -> Tensor:
        return sample(mipmaps(texture), uv, views(uv), scaled(1.4, 30, 8))

    assert torch.autograd.gradcheck(lookup, (texture, uv.requires_grad_()), eps=1e-7, atol=1e-6)
    lookup(texture, uv).sum().backward()
    torch.testing.assert_close(texture.grad.sum(), torch.tensor(30.0 * 2).double())


def checkerboard(distance: float) -> tuple[Tensor, Tensor, Tensor]:
    """A square with 32 x 32 fields of 4 x 4 texels: pictures with and without mip-mapping, and the texture."""
    corners = torch.tensor([[-1.0, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]])
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    field = (torch.arange(128) // 4) % 2
    texture = (field[:, None] ^ field[None, :]).float().view(1, 128, 128, 1).requires_grad_()
    fragments = rasterize(to_clip(corners, orbit(1, 0.0, distance, 40.0).world_to_clip()), faces, (64, 64), "torch")
    place = interpolate(uv, faces, fragments)
    smooth = sample(mipmaps(texture), place, fragments.view, footprint(uv, faces, fragments))
    return smooth, sample([texture], place, fragments.view), texture


def test_checkerboard_goes_grey_at_a_distance():
    smooth, aliased, texture = checkerboard(distance=14.0)
    assert (smooth - 0.5).abs().max() < 1e-5 and aliased.std() > 0.3
    smooth.sum().backward()
    reached = (texture.grad > 0).float().mean()
    assert reached > 0.99, "every texel that a pixel averages gets a gradient"
    near, plain, _ = checkerboard(distance=1.0)
    torch.testing.assert_close(near.mean(), plain.mean(), atol=0.02, rtol=0)
    assert near.std() > 0.3
