"""Meshes that lie far away, in files of single precision, with vertices that no face uses: painted where they are."""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from truth_prior import TruthPrior

from dreamflow_core import cli
from dreamflow_core.cameras import orbit
from dreamflow_core.mesh import topology
from dreamflow_core.mesh.files import SUFFIXES, load_mesh, save_mesh
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.mesh.prepare import framed
from dreamflow_core.mesh.unwrap import unwrap
from dreamflow_core.pipeline import optimise_mesh
from dreamflow_core.scenes.mesh import look_at
from dreamflow_core.schedule import Schedule, log_uniform
from dreamflow_core.settings.scenes import MeshSettings
from dreamflow_core.settings.stages import MeshStage

FEW = Schedule(log_uniform(1.0, 0.1, 3), 1)
PLACES = {"far and large": (1e6, 1000.0), "far and small": (1e5, 3.0), "at 26": (26.0, 0.9), "tiny": (0.0, 1e-9)}


def sphere(place: str, subdivisions: int = 2) -> Mesh:
    offset, radius = PLACES[place]
    ball = trimesh.creation.icosphere(subdivisions)
    return Mesh((ball.vertices * radius + (offset, 0, -offset)).astype(np.float32), ball.faces)


def with_strays(mesh: Mesh) -> Mesh:
    """Between its vertices others that no face uses, some of them very far away."""
    strays = np.array([(0, 0, 0), (1e30, 0, 0), (-1e30, 1e-30, 5)], np.float32)
    vertices = np.concatenate([strays[:2], mesh.vertices, strays[2:]])
    return replace(mesh, vertices=vertices, faces=mesh.faces + 2)


def run_command(*arguments: object) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        status = cli.main(list(map(str, arguments)))
    assert status == 0, complaint.getvalue()


@pytest.mark.parametrize("place", PLACES)
def test_cameras_see_the_same_wherever_a_mesh_lies(place: str):
    mesh = sphere(place)
    placed, back = framed(with_strays(mesh))
    corners = placed.vertices[placed.faces]
    assert np.linalg.norm(corners, axis=-1).max() == pytest.approx(0.9, rel=1e-2)
    # As far as the file's own precision goes, the corners are on a sphere.
    spacing = np.spacing(np.abs(mesh.vertices).max()) / PLACES[place][1]
    assert np.ptp(np.linalg.norm(corners, axis=-1)) < 1e-6 + 4 * spacing
    assert np.array_equal(framed(mesh)[0].vertices[mesh.faces], corners)
    assert np.array_equal(back(placed).vertices, with_strays(mesh).vertices)
    with_shape = look_at(placed)(orbit(2, 20.0, 3.0, 40.0), 32)
    assert np.isfinite(with_shape.alpha.numpy()).all() and with_shape.alpha.mean() > 0.2


@pytest.mark.parametrize("place", PLACES)
def test_no_face_is_lost_in_the_atlas(place: str):
    mesh = sphere(place, subdivisions=3)
    flat, source = unwrap(mesh, 256)
    assert np.array_equal(flat.vertices, mesh.vertices[source])
    in_atlas = topology.face_areas(np.pad(flat.uvs, ((0, 0), (0, 1))), flat.faces)
    assert (in_atlas[topology.face_areas(mesh.vertices, mesh.faces) > 0] > 0).all()


def test_no_face_is_lost_between_parts_that_lie_far_apart():
    ball = sphere("at 26", subdivisions=3)
    faces = np.concatenate([ball.faces, ball.faces + len(ball.vertices)])
    flat, _ = unwrap(Mesh(np.concatenate([ball.vertices, ball.vertices + np.float32(3e4)]), faces), 256)
    assert (topology.face_areas(np.pad(flat.uvs, ((0, 0), (0, 1))), flat.faces) > 0).all()


@pytest.mark.parametrize("optimise", ["texture", "both"])
@pytest.mark.parametrize("place", PLACES)
def test_what_does_not_move_stays_to_the_bit(place: str, optimise: str):
    ball = sphere(place)
    uvs = np.random.default_rng(0).random((len(ball.vertices), 2))
    texture = np.full((32, 32, 3), 0.5)
    mesh = with_strays(ball)
    mesh = replace(mesh, uvs=np.pad(uvs, ((2, 1), (0, 0))), texture=texture)
    stage = MeshStage(scene=MeshSettings(optimise, size=24), method="sds")
    made = optimise_mesh(TruthPrior("sphere", (0.9, 0.1, 0.1), 24), FEW, mesh, stage, seed=0)
    used = np.unique(mesh.faces)
    assert np.array_equal(np.delete(made.vertices, used, 0), np.delete(mesh.vertices, used, 0))
    apart = np.abs(made.vertices[used].astype(float) - mesh.vertices[used]).max()
    if optimise == "texture":
        assert apart == 0 and not np.array_equal(made.texture, mesh.texture)
    else:
        assert 0 < apart < PLACES[place][1]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("place", ["far and large", "tiny"])
def test_the_command_keeps_a_file_s_vertices_and_draws_it(suffix: str, place: str, tmp_path: Path):
    ball = sphere(place)
    save_mesh(tmp_path / f"given{suffix}", ball)
    given = load_mesh(tmp_path / f"given{suffix}")
    assert np.array_equal(given.vertices[given.faces], ball.vertices[ball.faces])
    few = ("--levels", 1, "--views", 1, "--texture-size", 32)
    format_ = suffix.removeprefix(".")
    run_command("tune", tmp_path / f"given{suffix}", "a red sphere", "--out", tmp_path, "--format", format_, *few)
    made = load_mesh(tmp_path / f"mesh{suffix}")
    assert np.array_equal(made.vertices[made.faces], ball.vertices[ball.faces])
    assert (tmp_path / "tune.png").exists()


def test_a_result_outlives_its_pictures(tmp_path: Path, monkeypatch, caplog):
    """Every command has written what it made before it draws it, and warns of a picture that fails."""

    def fail(*_, **__):
        raise RuntimeError("no memory\nfor pictures")

    for module in ("stages", "generate"):
        monkeypatch.setattr(f"dreamflow_core.cli.{module}.save_preview", fail)
    monkeypatch.setattr("dreamflow_core.cli.generate.save_turntable", fail)
    small = ("--hidden", 8, "--samples", 16, "--coarse-size", 16, "--grid-levels", 2)
    coarse = ("--faces", 200, "--texture-size", 32, "--resolution", 24)
    few = ("--levels", 1, "--views", 1)
    with caplog.at_level(logging.WARNING):
        run_command("nerf", "a red cube", "--out", tmp_path, *few, *small)
        run_command("extract", tmp_path / "nerf.safetensors", "--out", tmp_path, *coarse)
        run_command("tune", tmp_path / "mesh.glb", "a red cube", "--out", tmp_path / "tuned", *few)
        stages = [part for name in ("nerf", "tune") for part in (f"--{name}-levels", 1, f"--{name}-views", 1)]
        options = [part for name, value in zip(small[::2], small[1::2]) for part in (f"--nerf-{name[2:]}", value)]
        options += [part for name, value in zip(coarse[::2], coarse[1::2]) for part in (f"--extract-{name[2:]}", value)]
        run_command("generate", "a red cube", "--out", tmp_path / "all", *stages, *options)
    for made in ("nerf.safetensors", "mesh.glb", "tuned/mesh.glb", "tuned/run.json", "all/mesh.glb", "all/run.json"):
        assert (tmp_path / made).exists(), made
    assert not list(tmp_path.rglob("*.png"))
    warnings = [
        record.message for record in caplog.records if "cannot be drawn: no memory for pictures" in record.message
    ]
    pictures = ("nerf.png", "extract.png", "tune.png", "nerf.png", "extract.png", "tune.png", "turntable")
    assert len(warnings) == len(pictures) and all(p in w for p, w in zip(pictures, warnings))
