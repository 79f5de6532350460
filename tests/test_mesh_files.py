from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_fields import EXTENT, distances, soft_grid
from other_tools import Missing, cast, khronos_complaints
from PIL import Image

from dreamflow_core.cameras import orbit
from dreamflow_core.mesh import files
from dreamflow_core.mesh.bake import bake, sample_texture
from dreamflow_core.mesh.extract import extract, simplify
from dreamflow_core.mesh.files import load_mesh, save_mesh
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.mesh.normal_map import to_normal_map
from dreamflow_core.mesh.unwrap import unwrap
from dreamflow_core.scenes.mesh import look_at
from dreamflow_core.state import BadFile


def colour(points: np.ndarray) -> np.ndarray:
    return 0.5 + 0.45 * np.sin(3 * points + [0, 1, 2])


@pytest.fixture(scope="module")
def bare() -> Mesh:
    return simplify(extract(soft_grid("duck", 48), EXTENT, threshold=50.0), 800)


@pytest.fixture(scope="module")
def textured(bare: Mesh) -> Mesh:
    return bake(unwrap(bare, 128)[0], 128, lambda points, _: colour(points))


@pytest.fixture(scope="module")
def mapped(textured: Mesh) -> Mesh:
    """With a normal map of noise."""
    slopes = torch.from_numpy(np.random.default_rng(0).normal(size=(128, 128, 2)))
    return replace(textured, normal_map=to_normal_map(slopes).numpy())


@pytest.fixture(scope="module")
def coloured(bare: Mesh) -> Mesh:
    return replace(bare, colours=colour(bare.vertices))


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize("kind", ["bare", "coloured", "textured"])
def test_round_trip(kind: str, suffix: str, tmp_path: Path, request: pytest.FixtureRequest):
    mesh: Mesh = request.getfixturevalue(kind)
    path = tmp_path / f"a mesh{suffix}"
    save_mesh(path, mesh)
    read = load_mesh(path)
    assert np.abs(read.vertices[read.faces] - mesh.vertices[mesh.faces]).max() < 1e-7
    byte = 0.5 / 255 + 1e-6
    if kind == "coloured":
        assert np.abs(read.colours - mesh.colours).max() < (1e-6 if suffix == ".glb" else byte)
    if kind == "textured" and suffix != ".ply":
        assert np.abs(read.uvs[read.faces] - mesh.uvs[mesh.faces]).max() < 1e-6
        assert np.abs(read.texture - mesh.texture).max() < byte
    if kind == "textured" and suffix == ".ply":
        assert np.abs(read.colours - colour(mesh.vertices)).max() < 0.05


@pytest.mark.parametrize("name", ["a.obj", "a.ply", ""])
def test_a_bare_mesh_has_its_grey_in_other_programs(name: str, bare: Mesh, tmp_path: Path):
    mesh = bare
    if name:
        save_mesh(tmp_path / name, bare)
        if name == "a.obj":
            # Without the material that is written.
            text = (tmp_path / name).read_text()
            (tmp_path / name).write_text("".join(line for line in text.splitlines(True) if "mtl" not in line))
        mesh = load_mesh(tmp_path / name, kept_in="the GLB")
    save_mesh(tmp_path / "written.glb", mesh)
    base = Glb((tmp_path / "written.glb").read_bytes()).material["pbrMetallicRoughness"]
    # A mesh without colours is drawn in 0.8, which is ((0.8 + 0.055) / 1.055)^2.4 of the light (IEC 61966-2-1).
    assert base["baseColorFactor"] == pytest.approx([0.6038273] * 3 + [1], abs=1e-6)
    read = load_mesh(tmp_path / "written.glb")
    assert read.colours == pytest.approx(0.8, abs=1e-6)


def test_a_texture_is_not_darkened_by_the_grey_of_bare_meshes(textured: Mesh, tmp_path: Path):
    save_mesh(tmp_path / "a.glb", textured)
    assert "baseColorFactor" not in Glb((tmp_path / "a.glb").read_bytes()).material["pbrMetallicRoughness"]


def test_unlit_survives(textured: Mesh, tmp_path: Path):
    for unlit in (False, True):
        save_mesh(tmp_path / "a.glb", replace(textured, unlit=unlit))
        assert load_mesh(tmp_path / "a.glb").unlit == unlit


class Glb:
    """A GLB file as its specification describes it, read with nothing else."""

    def __init__(self, data: bytes):
        magic, version, length, size, kind = struct.unpack_from("<4sIII4s", data)
        assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
        self.tree = json.loads(data[20 : 20 + size])
        self.blob = data[28 + size :]
        self.primitive = self.tree["meshes"][0]["primitives"][0]
        self.material = self.tree["materials"][self.primitive["material"]]

    def view(self, number: int) -> bytes:
        view = self.tree["bufferViews"][number]
        return self.blob[view.get("byteOffset", 0) :][: view["byteLength"]]

    def array(self, number: int) -> np.ndarray:
        accessor = self.tree["accessors"][number]
        dtype = {5123: np.uint16, 5125: np.uint32, 5126: np.float32}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        return np.frombuffer(self.view(accessor["bufferView"]), dtype).reshape(-1, width)[: accessor["count"]]

    def attribute(self, name: str) -> np.ndarray:
        return self.array(self.primitive["attributes"][name])

    def texture(self) -> np.ndarray:
        return self.image(self.material["pbrMetallicRoughness"]["baseColorTexture"]["index"])

    def image(self, number: int) -> np.ndarray:
        image = self.tree["images"][self.tree["textures"][number]["source"]]
        return np.asarray(Image.open(io.BytesIO(self.view(image["bufferView"]))).convert("RGB"), np.float32) / 255


def meet(vertices: np.ndarray, faces: np.ndarray, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first face (P,) that lines along -Z meet, -1 for none, and the weights (P, 3): every line and face."""
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))

    def area(p, q, r):
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    lines = origins[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.stack([area(lines, b, c), area(a, lines, c), area(a, b, lines)], axis=-1) / area(a, b, c)[:, None]
    depth = (weights * np.stack([a[:, 2], b[:, 2], c[:, 2]], axis=-1)).sum(-1)
    depth[~(weights >= 0).all(-1)] = -np.inf
    first = depth.argmax(axis=1)
    hit = np.isfinite(depth.max(axis=1))
    return np.where(hit, first, -1), weights[np.arange(len(origins)), first]


def test_glb_looks_like_the_shape_in_another_renderer(textured: Mesh, tmp_path: Path):
    save_mesh(tmp_path / "a.glb", textured)
    glb = Glb((tmp_path / "a.glb").read_bytes())
    vertices, uvs = glb.attribute("POSITION"), glb.attribute("TEXCOORD_0")
    faces = glb.array(glb.primitive["indices"]).reshape(-1, 3).astype(int)
    x, y = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 48))
    origins = np.stack([x, y], axis=-1).reshape(-1, 2)
    face, weights = meet(vertices, faces, origins)
    hit = face >= 0
    depths = np.linspace(-1.1, 1.1, 128)
    lines = np.concatenate([np.repeat(origins, 128, axis=0), np.tile(depths, len(origins))[:, None]], axis=1)
    inside = (distances("duck", lines) < 0).reshape(-1, 128).any(axis=1)
    assert (hit & inside).sum() / (hit | inside).sum() > 0.93
    points, at = (np.einsum("pk,pkc->pc", weights[hit], v[faces[face[hit]]]) for v in (vertices, uvs))
    shown = sample_texture(glb.texture(), at)
    assert np.abs(shown - colour(points)).max() < 0.05
    normals = np.einsum("pk,pkc->pc", weights[hit], glb.attribute("NORMAL")[faces[face[hit]]])
    assert (normals[:, 2] > 0).mean() > 0.97
    assert np.abs(np.linalg.norm(glb.attribute("NORMAL"), axis=1) - 1).max() < 1e-4


def test_glb_material(textured: Mesh, coloured: Mesh, tmp_path: Path):
    save_mesh(tmp_path / "a.glb", replace(textured, unlit=True))
    glb = Glb((tmp_path / "a.glb").read_bytes())
    assert glb.material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert glb.material["extensions"] == {"KHR_materials_unlit": {}}
    assert glb.tree["extensionsUsed"] == ["KHR_materials_unlit"]
    save_mesh(tmp_path / "a.glb", coloured)
    linear = Glb((tmp_path / "a.glb").read_bytes()).attribute("COLOR_0")
    assert np.abs(linear - ((coloured.colours + 0.055) / 1.055) ** 2.4).max() < 2e-3


def test_a_normal_map_survives_with_its_tangents(mapped: Mesh, tmp_path: Path):
    save_mesh(tmp_path / "a.glb", mapped)
    byte = 0.5 / 255 + 1e-6
    assert np.abs(load_mesh(tmp_path / "a.glb").normal_map - mapped.normal_map).max() < byte
    glb = Glb((tmp_path / "a.glb").read_bytes())
    assert np.abs(glb.image(glb.material["normalTexture"]["index"]) - mapped.normal_map).max() < byte
    tangents, normals = glb.attribute("TANGENT"), glb.attribute("NORMAL")
    assert np.abs(np.linalg.norm(tangents[:, :3], axis=1) - 1).max() < 1e-4
    assert np.abs((tangents[:, :3] * normals).sum(1)).max() < 1e-4
    assert set(np.unique(tangents[:, 3])) <= {-1.0, 1.0}


@pytest.mark.parametrize("kind", ["bare", "coloured", "textured", "mapped"])
@pytest.mark.parametrize("unlit", [False, True])
def test_the_khronos_validator_has_nothing_to_say(kind, unlit, tmp_path, request):
    save_mesh(tmp_path / "a.glb", replace(request.getfixturevalue(kind), unlit=unlit))
    try:
        assert khronos_complaints(tmp_path / "a.glb") == []
    except Missing as missing:
        pytest.skip(str(missing))


def test_embree_sees_what_our_renderer_sees(textured: Mesh, tmp_path: Path):
    """Another reader and another renderer; differences are those of filtering."""
    save_mesh(tmp_path / "a.glb", replace(textured, unlit=True))
    cameras = orbit(3, 20.0, 3.0, 40.0)
    ours = look_at(load_mesh(tmp_path / "a.glb"))(cameras, 64).on((1.0, 1.0, 1.0))
    theirs = cast(tmp_path / "a.glb", cameras, 64, (1.0, 1.0, 1.0))
    assert -10 * (ours - theirs).square().mean().log10() > 30


def test_several_meshes_in_one_file_become_one(bare: Mesh, tmp_path: Path):
    import trimesh

    scene = trimesh.Scene()
    for offset in (-2.0, 2.0):
        moved = trimesh.transformations.translation_matrix([offset, 0, 0])
        scene.add_geometry(trimesh.Trimesh(bare.vertices, bare.faces, process=False), transform=moved)
    (tmp_path / "two.glb").write_bytes(scene.export(file_type="glb"))
    read = load_mesh(tmp_path / "two.glb")
    assert len(read.faces) == 2 * len(bare.faces)
    assert np.ptp(read.vertices[:, 0]) == pytest.approx(4 + np.ptp(bare.vertices[:, 0]), abs=1e-4)


def test_files_that_cannot_be_used_are_one_clear_error(bare: Mesh, textured: Mesh, tmp_path: Path):
    save_mesh(tmp_path / "whole.glb", bare)
    whole = (tmp_path / "whole.glb").read_bytes()
    bad = {
        "cut.glb": whole[: len(whole) // 2],
        "empty.glb": b"",
        "noise.glb": np.random.default_rng(0).bytes(500),
        "noise.ply": b"not a mesh\n\n at all",
        "empty.obj": b"",
        "points.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\n",
        "nan.obj": b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
        "range.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n",
        "mesh.stl": b"",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadFile) as caught:
            load_mesh(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(BadFile, match="there is no file"):
        load_mesh(tmp_path / "missing.glb")
    with pytest.raises(BadFile, match="must end in"):
        save_mesh(tmp_path / "a.fbx", bare)
    (tmp_path / "file").write_bytes(b"")
    for name in ("a.glb", "a.obj", "a.ply"):
        with pytest.raises(BadFile, match="cannot be written"):
            save_mesh(tmp_path / "file" / name, textured)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_a_write_that_fails_leaves_the_old_file(suffix: str, bare: Mesh, textured: Mesh, tmp_path: Path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    save_mesh(path, bare)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(BadFile, match="No space left"):
        save_mesh(path, textured)
    assert path.read_bytes() == before
