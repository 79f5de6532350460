"""A mesh with UVs of every kind before a stage: kept to the bit, or baked into an atlas that looks the same."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from gltf_file import GltfFile
from test_cli import run as run_command
from test_mesh_scene import VIEWS
from truth_prior import TruthPrior

from dreamflow_core.mesh.bake import bake, sample_texture
from dreamflow_core.mesh.files import load_mesh, save_mesh
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.mesh.normal_map import to_normal_map
from dreamflow_core.mesh.prepare import paintable, uv_warning
from dreamflow_core.mesh.unwrap import unwrap
from dreamflow_core.pipeline import optimise_mesh
from dreamflow_core.scenes.mesh import look_at
from dreamflow_core.schedule import Schedule
from dreamflow_core.settings.cameras import ViewRange
from dreamflow_core.settings.scenes import MeshSettings
from dreamflow_core.settings.stages import MeshStage

QUAD = np.array([[-0.6, -0.6, 0], [0.6, -0.6, 0], [0.6, 0.6, 0], [-0.6, 0.6, 0]])
UVS = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])
FEW = Schedule(torch.tensor([2.0, 1.0]), 1)


def colour(points: np.ndarray) -> np.ndarray:
    return 0.5 + 0.4 * np.sin(4 * points + [0, 1, 2])


def ball(**attributes) -> Mesh:
    made = trimesh.creation.icosphere(3, 0.8)
    return bake(unwrap(Mesh(made.vertices, made.faces, **attributes), 256)[0], 256, lambda points, _: colour(points))


def quads(*uvs: np.ndarray) -> Mesh:
    """Quads side by side, each with its own UVs."""
    places = np.concatenate([QUAD + np.array([2 * number, 0, 0]) for number in range(len(uvs))])
    faces = np.concatenate([TRIANGLES + 4 * number for number in range(len(uvs))])
    return Mesh(places, faces, uvs=np.concatenate(uvs), texture=np.full((16, 16, 3), 0.5))


def test_uvs_are_kept_to_the_bit():
    mesh = ball()
    for kept in (paintable(mesh), paintable(mesh, 512)):
        assert kept.uvs is mesh.uvs and kept.faces is mesh.faces and kept.vertices is mesh.vertices
    assert paintable(mesh).texture is mesh.texture


@pytest.mark.parametrize("size", [None, 640])
def test_a_new_atlas_shows_the_same_colours(size: int | None):
    """Mirrored halves, on UVs of which one half lies on the other, become two halves that may differ."""
    mesh = ball()
    halves = Mesh(
        np.concatenate([mesh.vertices, mesh.vertices * [-1, 1, 1]]),
        np.concatenate([mesh.faces, mesh.faces[:, ::-1] + len(mesh.vertices)]),
        uvs=np.tile(mesh.uvs, (2, 1)),
        texture=mesh.texture,
        double_sided=True,
    )
    assert "50% of its UVs lie on others" in uv_warning(halves)
    made = paintable(halves, size, new_uvs=True)
    assert made.texture.shape == (size or 512, size or 512, 3) and made.double_sided
    assert uv_warning(made) is None
    assert np.array_equal(made.vertices[made.faces], halves.vertices[halves.faces])
    rng = np.random.default_rng(0)
    face, weights = rng.integers(len(made.faces), size=5000), rng.dirichlet((1, 1, 1), 5000)
    points, uvs = (np.einsum("pk,pkc->pc", weights, of[made.faces[face]]) for of in (made.vertices, made.uvs))
    # The second half shows the first one's mirror image.
    points[face >= len(mesh.faces)] *= [-1, 1, 1]
    assert np.abs(sample_texture(made.texture, uvs) - colour(points)).max() < 0.03


@pytest.mark.parametrize(
    ("right", "up"), [((1, 0), (0, 1)), ((0, 1), (-1, 0)), ((-1, 0), (0, 1)), ((0.6, 0.8), (-0.8, 0.6))]
)
def test_a_normal_map_means_the_same_on_new_uvs(right: tuple, up: tuple):
    """Flat, leaning everywhere by one slope to the right and another up, on UVs that are turned and mirrored."""
    frame = np.array([right, up])
    uvs = 0.5 + 0.5 * (QUAD[:, :2] @ frame.T) * [1, -1]
    slopes = torch.tensor([0.75, 0.25])
    normal_map = to_normal_map(slopes).expand(16, 16, 3).numpy()
    mesh = replace(quads(uvs), normal_map=normal_map, normals=np.tile([0.0, 0, 1], (4, 1)))
    made = paintable(mesh, 64, new_uvs=True)
    # Where u grows and v falls in the new atlas, from its corners.
    edges = made.vertices[made.faces[0, 1:]] - made.vertices[made.faces[0, 0]]
    inverse = np.linalg.solve(made.uvs[made.faces[0, 1:]] - made.uvs[made.faces[0, 0]], edges)
    along, down = inverse / np.linalg.norm(inverse, axis=1, keepdims=True)
    normals = 2 * made.normal_map.reshape(-1, 3) - 1
    bent = normals @ np.stack([along, -down, [0, 0, 1]])
    wanted = np.append(np.array([0.75, 0.25]) @ frame, 1)
    assert bent == pytest.approx(np.tile(wanted / np.linalg.norm(wanted), (len(bent), 1)), abs=1e-4)


def test_a_normal_map_looks_the_same_on_a_round_shape():
    mesh = ball()
    v, u = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 256), indexing="ij")
    bumps = torch.from_numpy(0.3 * np.stack([np.sin(9 * u), np.cos(7 * v)], axis=-1))
    mesh = replace(mesh, normal_map=to_normal_map(bumps).numpy())
    flat = replace(mesh, normal_map=None)
    before, after, without = (look_at(m)(VIEWS, 96) for m in (mesh, paintable(mesh, 512, new_uvs=True), flat))
    inside = (before.alpha > 0.99).expand(-1, 3, -1, -1)

    def apart(one, other) -> float:
        return (one.normal - other.normal).abs()[inside].mean().item()

    assert apart(before, after) < 0.1 * apart(before, without)


def test_uvs_that_are_not_the_usual_ones_are_said():
    assert uv_warning(Mesh(QUAD, TRIANGLES)) is None
    assert uv_warning(ball()) is None
    half = UVS * [0.5, 1]
    assert uv_warning(quads(half, half + np.array([0.5, 0]))) is None
    # Of their area of 1, a tenth lies on the other's.
    assert "10% of its UVs lie on others" in uv_warning(quads(half, half + np.array([0.4, 0])))
    assert "25% of its UVs lie on others" in uv_warning(quads(half, half[:, ::-1]))
    assert "reach outside the texture" in uv_warning(quads(half, half + np.array([0.75, 0])))
    assert "have no area, so a new atlas is made" in uv_warning(quads(np.full((4, 2), 0.3), np.full((4, 2), 0.8)))
    assert "the UVs of 50% of its surface have no area" in uv_warning(quads(half, np.full((4, 2), 0.8)))


def test_colours_at_points_of_a_palette_become_an_atlas():
    palette = np.zeros((16, 16, 3))
    palette[:, 8:] = [1.0, 0.5, 0.0]
    mesh = replace(quads(np.full((4, 2), 0.25), np.full((4, 2), 0.75)), texture=palette)
    made = paintable(mesh)
    assert uv_warning(made) is None
    middles = sample_texture(made.texture, made.uvs[made.faces].mean(axis=1))
    assert middles == pytest.approx(np.repeat([[0, 0, 0], [1.0, 0.5, 0.0]], 2, axis=0), abs=1e-6)


def test_a_stage_says_it_before_it_starts_and_unwraps_if_asked(caplog):
    prior = TruthPrior("cube", (0.97, 0.5, 0.04), 48)
    mesh = quads(UVS, UVS[::-1])
    stage = MeshStage(scene=MeshSettings(size=48, optimise="texture"), views=ViewRange(views=1), method="sds")

    def run(stage: MeshStage) -> Mesh:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return optimise_mesh(prior, FEW, mesh, stage, seed=0)

    kept = run(stage)
    assert "50% of its UVs lie on others" in caplog.text and "--unwrap" in caplog.text and len(caplog.records) == 1
    assert np.array_equal(kept.uvs, mesh.uvs) and np.array_equal(kept.faces, mesh.faces)
    made = run(replace(stage, unwrap=True))
    assert caplog.text == "" and uv_warning(made) is None
    shape = replace(stage, scene=replace(stage.scene, optimise="geometry"))
    assert np.array_equal(run(shape).uvs, mesh.uvs) and caplog.text == ""
    assert uv_warning(run(replace(shape, unwrap=True))) is None


@pytest.mark.parametrize("unwrap", [False, True])
def test_the_command_unwraps_if_asked(unwrap: bool, tmp_path: Path):
    mesh = quads(UVS, UVS[::-1])
    save_mesh(tmp_path / "given.glb", mesh)
    few = ("--levels", 1, "--views", 1, "--texture-size", 64)
    run_command("tune", tmp_path / "given.glb", "a red cube", "--out", tmp_path, *few, *["--unwrap"] * unwrap)
    made = load_mesh(tmp_path / "mesh.glb")
    assert made.texture.shape == (64, 64, 3)
    assert np.array_equal(made.uvs, mesh.uvs) != unwrap
    assert (uv_warning(made) is None) == unwrap


def test_a_stage_says_what_its_file_loses_before_it_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = GltfFile()
    primitive = file.quad()
    primitive["attributes"]["NORMAL"] = file.accessor([[0, 0, 1]] * 4)
    file.show(primitive)
    file.show(primitive, scale=[1, 1, 0])
    mesh = load_mesh(file.save(tmp_path), kept_in="the GLB file")
    stage = MeshStage(scene=MeshSettings(size=48, optimise="geometry"), views=ViewRange(views=1), method="sds")
    with caplog.at_level(logging.WARNING):
        optimise_mesh(TruthPrior("cube", (0.97, 0.5, 0.04), 48), FEW, mesh, stage, seed=0)
    said = "lost in the GLB file: moves along axes of scale 0 (nodes: 1)"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 'a file.glb'}: {said}"]


def test_the_command_bakes_materials_into_an_atlas_of_the_size_that_is_asked_for(tmp_path: Path):
    file = GltfFile()
    for grey in (50, 200):
        texture = file.texture(np.full((4, 4, 3), grey, np.uint8))
        material = file.add("materials", pbrMetallicRoughness={"baseColorTexture": {"index": texture}})
        file.show(file.quad(material=material), translation=[grey / 100, 0, 0])
    few = ("--levels", 1, "--iterations", 1, "--views", 1)
    for name, size, given in (("own", 512, ()), ("asked", 64, ("--texture-size", 64))):
        run_command("tune", file.save(tmp_path), "a red cube", "--out", tmp_path / name, *few, *given)
        assert load_mesh(tmp_path / name / "mesh.glb").texture.shape == (size, size, 3)
