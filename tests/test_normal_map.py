"""Normal maps: tangent space against closed forms, gradients, and what a stage makes of a true picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from test_mesh_scene import VIEWS, difference, double, painted, sphere
from torch import Tensor
from truth_prior import TruthPrior

from dreamflow_core.cameras import orbit
from dreamflow_core.demo import truth
from dreamflow_core.demo.shapes import SHAPES
from dreamflow_core.mesh.mesh import BadMesh, Mesh
from dreamflow_core.mesh.normal_map import bend, to_normal_map, to_slopes, vertex_tangents
from dreamflow_core.pipeline import optimise_mesh
from dreamflow_core.scenes.mesh import MeshScene, look_at
from dreamflow_core.schedule import Schedule, log_uniform
from dreamflow_core.settings.scenes import MeshSettings
from dreamflow_core.settings.stages import MeshStage

ORANGE = (0.97, 0.5, 0.04)
SIZE = 48


@pytest.mark.parametrize("mirrored", [False, True])
def test_tangent_space_of_a_square(mirrored: bool):
    """Facing +Z with its texture upright: x is to the right and y up, whether or not the texture is mirrored."""
    vertices = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    right = -1.0 if mirrored else 1.0
    uvs = torch.stack([0.5 + 0.5 * right * vertices[:, 0], 0.5 - 0.5 * vertices[:, 1]], dim=1)
    normals = torch.tensor([[0.0, 0, 1]]).expand(4, 3)
    tangents = vertex_tangents(vertices, faces, uvs, faces, normals, faces)
    torch.testing.assert_close(tangents, torch.tensor([[right, 0, 0, right]]).expand(4, 4))
    bent = bend(normals[:2], tangents[:2], torch.tensor([[0.75, 0.0], [0.0, 0.75]]))
    torch.testing.assert_close(bent, torch.tensor([[0.6 * right, 0, 0.8], [0, 0.6, 0.8]]))


def test_slopes_and_normals_are_one_thing():
    slopes = torch.tensor([[0.0, 0.0], [0.75, 0.0], [-3.0, 2.0]])
    texels = to_normal_map(slopes)
    torch.testing.assert_close(texels[:2], torch.tensor([[0.5, 0.5, 1.0], [0.8, 0.5, 0.9]]))
    torch.testing.assert_close(to_slopes(texels), slopes)
    assert to_slopes(torch.rand(100, 3)).isfinite().all()


@pytest.mark.parametrize("look", ["normal", "colour"])
def test_gradients_by_slopes_equal_finite_differences(look: str):
    settings = MeshSettings("normal_map", look, size=24)
    scene = double(MeshScene(painted(sphere(2, 0.75), colour=None), settings, seed=0))
    slopes = scene.theta["normal_map"]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        slopes.add_(0.3 * torch.randn(slopes.shape, generator=generator))
    pull = torch.randn(2, 3, 24, 24, generator=generator).double()

    def loss() -> Tensor:
        scene.generator.manual_seed(1)  # the same backgrounds each time
        return (pull * scene.render(VIEWS).values.square()).sum()

    (gradient,) = torch.autograd.grad(loss(), slopes)
    for index in gradient.abs().flatten().topk(5).indices.tolist():
        assert gradient.flatten()[index].item() == pytest.approx(difference(loss, slopes, index, 1e-5), rel=1e-5)


def true_cube() -> Mesh:
    """Of the truth's size, with 8 vertices: smooth normals make it look like a ball."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1 << 14, 3, generator=generator) * 2 - 1
    side = float(points[SHAPES["cube"](points) < 0].abs().max())
    box = trimesh.creation.box((2 * side,) * 3)
    return painted(Mesh(box.vertices, box.faces), 64, colour=1.0)


def misjudged_light(mesh: Mesh) -> float:
    """Root mean square of what the shading of a mesh and of the true cube differ by, away from its edges."""
    cameras = orbit(5, 30.0, 3.0, 40.0)
    seen, true = look_at(mesh)(cameras, 64), truth.trace("cube", cameras, 64)
    flat = (true.normal.abs().amax(1, keepdim=True) > 0.999) & (seen.alpha > 0.999) & (true.alpha > 0.999)
    difference = seen.colour - true.shade() * seen.colour.new_tensor(ORANGE).view(1, 3, 1, 1)
    return float(difference.permute(0, 2, 3, 1)[flat[:, 0]].square().mean().sqrt())


def test_a_stage_finds_slopes_that_catch_the_light_as_pictures_show():
    """Shaded pictures of a flat-sided cube, and a mesh that is shaded round. One light leaves the normals'
    directions around it open, so that it is the shading that is compared. Measured: 0.059 to 0.008."""
    mesh = true_cube()
    mesh = replace(mesh, texture=np.broadcast_to(np.float32(ORANGE), mesh.texture.shape))
    settings = MeshSettings("normal_map", "colour", size=SIZE, normal_rate=0.1)
    stage = MeshStage(scene=settings, method="sds")
    schedule = Schedule(log_uniform(0.5, 0.1, 10), 3)
    made = optimise_mesh(TruthPrior("cube", ORANGE, SIZE), schedule, mesh, stage, seed=0)
    before, after = misjudged_light(mesh), misjudged_light(made)
    assert after < 0.4 * before
    np.testing.assert_array_equal(made.vertices, mesh.vertices)
    np.testing.assert_array_equal(made.texture, mesh.texture)
    # A second run goes on from the map, at the size of a larger texture too.
    again = optimise_mesh(
        TruthPrior("cube", ORANGE, SIZE),
        Schedule(log_uniform(0.2, 0.1, 2), 1),
        made,
        replace(stage, texture_size=128),
        seed=1,
    )
    assert again.normal_map.shape == (128, 128, 3) and misjudged_light(again) < 0.5 * before


def test_a_map_where_it_does_not_show_is_refused():
    mesh = replace(painted(sphere(1, 0.75)), unlit=True)
    with pytest.raises(BadMesh, match="set geometry_look to 'normal'"):
        MeshScene(mesh, MeshSettings("normal_map", "colour"), seed=0)
    with pytest.raises(BadMesh, match="normal map but no UVs"):
        Mesh(mesh.vertices, mesh.faces, normal_map=np.zeros((4, 4, 3)))
    with pytest.raises(BadMesh, match="no UVs, which its texture needs"):
        MeshScene(sphere(1, 0.75), MeshSettings("normal_map"), seed=0)
