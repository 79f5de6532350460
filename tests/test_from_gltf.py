"""glTF files as one mesh: each small file with the colours that the specification gives its surface."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gltf_file import BYTE, FLOAT, QUAD, SHORT, TRIANGLES, UBYTE, USHORT, UVS, GltfFile

from dreamflow_core.mesh import from_gltf
from dreamflow_core.mesh.bake import sample_texture
from dreamflow_core.mesh.colours import to_display, to_linear
from dreamflow_core.mesh.files import load_mesh, save_mesh
from dreamflow_core.mesh.gltf import read_gltf
from dreamflow_core.mesh.mesh import BadMesh, Mesh

CLAMP = {"wrapS": 33071, "wrapT": 33071}
FOUR = np.kron(
    np.array([[[220, 30, 30], [30, 180, 30]], [[30, 30, 220], [240, 240, 240]]], np.uint8),
    np.ones((32, 32, 1), np.uint8),
)
"""Red, green / blue, white."""
RAMP = np.stack([*np.meshgrid(np.arange(32, 160, 2), np.arange(200, 72, -2)), np.full((64, 64), 90)], -1).astype(
    np.uint8
)
"""Smooth, so that a second sampling of it differs little."""


@pytest.fixture
def file() -> GltfFile:
    return GltfFile()


def material(file: GltfFile, texture: int | None = None, used: dict[str, Any] | None = None, **more: Any) -> int:
    """A material with a base colour texture; `more` are its other properties, and `factor` its base colour's."""
    base: dict[str, Any] = {} if texture is None else {"baseColorTexture": {"index": texture, **(used or {})}}
    if "factor" in more:
        base["baseColorFactor"] = more.pop("factor")
    return file.add("materials", pbrMetallicRoughness=base, **more)


def clamped(file: GltfFile, pixels: np.ndarray) -> int:
    return file.texture(pixels, sampler=file.add("samplers", **CLAMP))


def uvs(file: GltfFile, primitive: dict[str, Any], values: Any, number: int = 0) -> dict[str, Any]:
    primitive["attributes"][f"TEXCOORD_{number}"] = file.accessor(values)
    return primitive


def colours(mesh: Mesh, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Display colours of a mesh at points of its faces, as its attributes give them."""

    def at(values: np.ndarray) -> np.ndarray:
        return np.einsum("pk,pkc->pc", weights, values[mesh.faces[faces]])

    if mesh.texture is not None:
        return sample_texture(mesh.texture, at(mesh.uvs))
    # Vertex colours are interpolated in linear light (glTF 2.0, 3.7.2.1).
    return to_display(at(to_linear(mesh.colours)))


def points(count: int, faces: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(faces, size=count), rng.dirichlet((1, 1, 1), count)


def differences(path: Path) -> np.ndarray:
    """Of the loaded mesh's colours from those of the file, display-referred, at points all over the surface, (P,)."""
    mesh, scene = load_mesh(path), read_gltf(path)
    faces, weights = points(4000, len(mesh.faces))
    wanted, start = np.empty((4000, 3)), 0
    for part in scene.parts:
        of_part = (faces >= start) & (faces < start + len(part.faces))
        wanted[of_part] = to_display(scene.base_colours(part, faces[of_part] - start, weights[of_part])[:, :3])
        start += len(part.faces)
    assert start == len(mesh.faces)
    return np.abs(colours(mesh, faces, weights) - wanted).max(axis=1)


def seen(mesh: Mesh, x: float, y: float) -> np.ndarray:
    """The colour of a mesh of flat faces at a place that one of them covers, seen along z."""
    for number, corners in enumerate(mesh.vertices[mesh.faces][..., :2].astype(np.float64)):
        weights = np.linalg.solve(np.vstack([corners.T, np.ones(3)]), [x, y, 1])
        if (weights >= 0).all():
            return colours(mesh, np.array([number]), weights[None])[0]
    raise AssertionError("nothing is there")


def test_a_factor_alone_becomes_vertex_colours(file: GltfFile, tmp_path: Path):
    file.show(file.quad(material=material(file, factor=[1, 0.5, 0.0, 1])))
    mesh = load_mesh(file.save(tmp_path))
    assert mesh.texture is None
    # 0.7353569 is sRGB's value of half the light.
    assert mesh.colours == pytest.approx(np.tile([1, 0.7353569, 0], (4, 1)), abs=1e-6)
    assert np.array_equal(mesh.uvs, np.float32(UVS))


def test_a_mesh_without_any_colour_gets_none(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    mesh = load_mesh(file.save(tmp_path))
    assert mesh.colours is None and mesh.texture is None


def test_a_factor_multiplies_vertex_colours(file: GltfFile, tmp_path: Path):
    quad = file.quad(material=material(file, factor=[0.5, 1, 1, 1]))
    quad["attributes"]["COLOR_0"] = file.accessor([[255, 255, 0], [128, 0, 255]] * 2, UBYTE, normalized=True)
    file.show(quad)
    mesh = load_mesh(file.save(tmp_path))
    assert to_linear(mesh.colours) == pytest.approx(np.array([[0.5, 1, 0], [64 / 255, 0, 1]] * 2), abs=1e-6)
    assert differences(tmp_path / "a file.glb").max() < 1e-5


def test_a_factor_multiplies_the_texture_in_linear_light(file: GltfFile, tmp_path: Path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    file.show(file.quad(material=material(file, clamped(file, pixels), factor=[1, 0.25, 0.5, 1])))
    mesh = load_mesh(file.save(tmp_path))
    wanted = pixels / 255
    wanted = np.where(wanted <= 0.04045, wanted / 12.92, ((wanted + 0.055) / 1.055) ** 2.4) * [1, 0.25, 0.5]
    wanted = np.where(wanted <= 0.0031308, wanted * 12.92, 1.055 * wanted ** (1 / 2.4) - 0.055)
    assert mesh.texture == pytest.approx(wanted, abs=1e-6)


def test_a_texture_times_vertex_colours(file: GltfFile, tmp_path: Path):
    quad = file.quad(material=material(file, clamped(file, np.full((2, 2, 3), 188, np.uint8))))
    quad["attributes"]["COLOR_0"] = file.accessor([[1, 0, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1.0]])
    file.show(quad)
    mesh = load_mesh(file.save(tmp_path))
    # Across the quad red falls and green rises with no regard to how it is cut in two.
    for x, y in ((-0.45, 0.3), (0.0, 0.0), (0.4, -0.1), (-0.2, -0.5)):
        light = to_linear(np.array(188 / 255)) * np.array([0.5 - x / 1.2, 0.5 + y / 1.2, 1])
        assert seen(mesh, x, y) == pytest.approx(to_display(light), abs=0.003)
    assert np.median(differences(tmp_path / "a file.glb")) < 0.003


def test_two_materials_with_a_texture_each(file: GltfFile, tmp_path: Path):
    for pixels, x in ((FOUR, -0.7), (np.rot90(FOUR), 0.7)):
        file.show(file.quad(material=material(file, clamped(file, pixels))), translation=[x, 0, 0])
    mesh = load_mesh(file.save(tmp_path))
    red, green, blue, white = FOUR[[0, 0, -1, -1], [0, -1, 0, -1]] / 255
    # Turned by 90 degrees against the clock: green, white / red, blue.
    for middle, wanted in ((-0.7, (red, green, blue, white)), (0.7, (green, white, red, blue))):
        for (x, y), colour in zip(((-0.3, 0.3), (0.3, 0.3), (-0.3, -0.3), (0.3, -0.3)), wanted):
            assert seen(mesh, middle + x, y) == pytest.approx(colour, abs=1e-6)
    assert np.quantile(differences(tmp_path / "a file.glb"), 0.9) < 1e-6


def test_many_parts_get_an_atlas_that_is_large_enough(file: GltfFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(from_gltf, "_SIZES", (16, 32, 64, 128, 256))
    two = [file.quad(material=material(file, clamped(file, np.full((1, 1, 3), grey, np.uint8)))) for grey in (0, 255)]
    file.show(*two)
    for number in range(1, 60):
        file.root(mesh=0, translation=[2 * number, 0, number % 2])
    mesh = load_mesh(file.save(tmp_path))
    assert mesh.texture.shape[0] > 16
    assert differences(tmp_path / "a file.glb").max() < 1e-6


def test_tiled_uvs_are_baked(file: GltfFile, tmp_path: Path):
    quad = file.quad(material=material(file, file.texture(FOUR), doubleSided=True))
    file.show(uvs(file, quad, 2.5 * np.array(UVS)))
    mesh = load_mesh(file.save(tmp_path))
    assert mesh.uvs.min() >= 0 and mesh.uvs.max() <= 1
    # 5 x 5 squares of half a tile, from the top left.
    for row in range(5):
        for column in range(5):
            wanted = FOUR[32 * (row % 2), 32 * (column % 2)] / 255
            place = -0.6 + 0.24 * (column + 0.5), 0.6 - 0.24 * (row + 0.5)
            assert seen(mesh, *place) == pytest.approx(wanted, abs=1e-6)


def test_smooth_textures_are_baked_without_loss(file: GltfFile, tmp_path: Path):
    for number, pixels in enumerate((RAMP, RAMP[::-1, ::-1, ::-1])):
        file.show(file.quad(material=material(file, clamped(file, pixels))), translation=[1.5 * number, 0, 0])
    assert differences(file.save(tmp_path)).max() < 0.01


def checker(squares: int, side: int) -> np.ndarray:
    light = np.indices((squares, squares)).sum(axis=0) % 2 == 0
    picture = np.where(light[..., None], (230, 60, 20), (10, 90, 200)).astype(np.uint8)
    return np.kron(picture, np.ones((side, side, 1), np.uint8))


@pytest.mark.parametrize("repeats", [1, 2.5])
def test_a_small_part_keeps_its_texels(repeats: float, file: GltfFile, tmp_path: Path, caplog):
    """Beside a quad ten times as large whose texture has a sixteenth of its texels."""
    small = uvs(file, file.quad(material=material(file, file.texture(checker(16, 16)))), repeats * np.array(UVS))
    file.show(file.quad(material=material(file, file.texture(checker(4, 16)))), scale=[10] * 3)
    file.show(small, translation=[9, 0, 0])
    with caplog.at_level(logging.WARNING):
        mesh = load_mesh(file.save(tmp_path))
    size = len(mesh.texture)
    assert f"several materials, so its colours are baked into a new atlas of {size} x {size}" in caplog.text
    assert "resolution" not in caplog.text
    of_large, of_small = np.linalg.norm(np.ptp(mesh.uvs[mesh.faces], axis=1), axis=1).reshape(2, 2) * size
    assert of_large.min() > 64 and of_small.min() > 256 * repeats and size <= 512 * repeats
    scene, weights = read_gltf(tmp_path / "a file.glb"), np.random.default_rng(0).dirichlet((1, 1, 1), 4000)
    for number, part in enumerate(scene.parts):
        faces = np.arange(4000) % 2
        wanted = to_display(scene.base_colours(part, faces, weights)[:, :3])
        apart = np.abs(colours(mesh, faces + 2 * number, weights) - wanted).max(axis=1)
        # A quarter of the surface lies within a texel of the edge of a square, where a second sampling blurs.
        assert np.quantile(apart, 0.75) < 0.01 and apart.mean() < 0.05


def test_an_atlas_that_cannot_hold_all_texels_says_so(file: GltfFile, tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(from_gltf, "_SIZES", (64, 128))
    quad = file.quad(material=material(file, file.texture(checker(16, 16))))
    file.show(uvs(file, quad, 1.5 * np.array(UVS)))
    mesh, said = warnings(file, tmp_path, caplog)
    assert mesh.texture.shape == (128, 128, 3)
    # 384 texels a side become those that a square of 124 has room for.
    assert "its UVs reach outside its texture" in said and "128 x 128, at 3" in said and "% of its textures'" in said


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("tiled", [False, True])
def test_an_atlas_has_the_size_that_is_asked_for(tiled: bool, size: int, file: GltfFile, tmp_path: Path):
    quad = file.quad(material=material(file, file.texture(RAMP)))
    file.show(uvs(file, quad, 2.5 * np.array(UVS)) if tiled else quad)
    if not tiled:
        file.show(file.quad(material=material(file, file.texture(RAMP[::-1]))), translation=[1.5, 0, 0])
    assert load_mesh(file.save(tmp_path)).texture.shape == (512, 512, 3)
    assert load_mesh(file.save(tmp_path), atlas_size=size).texture.shape == (size, size, 3)


def test_an_atlas_of_a_size_that_is_none_is_refused(file: GltfFile, tmp_path: Path):
    with pytest.raises(BadMesh, match="texture size is 9000; it must be from 16 to 8192"):
        load_mesh(file.save(tmp_path), atlas_size=9000)


@pytest.mark.parametrize("repeat", [False, True])
def test_uvs_in_the_unit_square_are_kept(repeat: bool, file: GltfFile, tmp_path: Path):
    given = np.random.default_rng(0).random((4, 2)).astype(np.float32)
    texture = file.texture(RAMP) if repeat else clamped(file, RAMP)
    file.show(uvs(file, file.quad(material=material(file, texture)), given))
    mesh = load_mesh(file.save(tmp_path))
    assert np.array_equal(mesh.uvs, given)
    assert np.array_equal((mesh.texture * 255).round(), RAMP)
    assert np.array_equal(mesh.vertices, np.float32(QUAD))
    assert np.array_equal(mesh.faces.reshape(-1), TRIANGLES)


def test_the_set_of_uvs_that_the_texture_names(file: GltfFile, tmp_path: Path):
    quad = file.quad(material=material(file, clamped(file, FOUR), {"texCoord": 1}))
    file.show(uvs(file, uvs(file, quad, UVS, 1), np.zeros((4, 2)), 0))
    mesh = load_mesh(file.save(tmp_path))
    assert np.array_equal(mesh.uvs, np.float32(UVS))


@pytest.mark.parametrize("other", [False, True])
def test_texture_transform(other: bool, file: GltfFile, tmp_path: Path):
    moved = {"extensions": {"KHR_texture_transform": {"offset": [0.5, 0], "scale": [0.5, 0.5]}}}
    file.uses("KHR_texture_transform", required=True)
    file.show(file.quad(material=material(file, clamped(file, FOUR), moved)))
    if other:
        file.show(file.quad(material=material(file, clamped(file, FOUR))), translation=[3, 0, 0])
    mesh = load_mesh(file.save(tmp_path))
    green = FOUR[0, -1] / 255
    for x, y in ((-0.5, -0.5), (0.5, 0.5), (0.1, -0.3)):
        assert seen(mesh, x, y) == pytest.approx(green, abs=1e-6)
    if other:
        assert seen(mesh, 2.6, 0.4) == pytest.approx(FOUR[0, 0] / 255, abs=1e-6)


def cube(file: GltfFile, **attributes: Any) -> dict[str, Any]:
    """A cube of 24 vertices, hard edges: the sides and their order as in `normals`."""
    corners, normals = [], []
    for axis in range(3):
        for sign in (-1, 1):
            normal, across, up = np.zeros(3), np.roll([1.0, 0, 0], axis + 1), np.roll([sign * 1.0, 0, 0], axis + 2)
            normal[axis] = sign
            corners += [normal + x * across + y * up for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            normals += [normal] * 4
    faces = [4 * side + corner for side in range(6) for corner in TRIANGLES]
    given = {"POSITION": file.accessor(0.5 * np.array(corners)), "NORMAL": file.accessor(normals), **attributes}
    return {"attributes": given, "indices": file.accessor(faces, USHORT)}


def test_hard_edges_stay(file: GltfFile, tmp_path: Path):
    file.show(cube(file))
    mesh = load_mesh(file.save(tmp_path))
    assert len(mesh.vertices) == 24
    # The normal of each corner is the side's: one axis, outwards.
    assert np.array_equal(np.sort(np.abs(mesh.normals), axis=1), np.tile([0, 0, 1], (24, 1)))
    assert ((mesh.vertices * mesh.normals).sum(axis=1) == 0.5).all()
    assert (mesh.normals[mesh.faces] == mesh.normals[mesh.faces[:, :1]]).all()
    save_mesh(tmp_path / "again.glb", mesh)
    assert np.array_equal(load_mesh(tmp_path / "again.glb").normals, mesh.normals)


def test_hard_edges_stay_in_a_new_atlas(file: GltfFile, tmp_path: Path):
    sides = np.tile(3 * np.array(UVS), (6, 1))
    file.show({**cube(file, TEXCOORD_0=file.accessor(sides)), "material": material(file, file.texture(FOUR))})
    mesh = load_mesh(file.save(tmp_path))
    assert mesh.texture is not None and mesh.uvs.max() <= 1
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert mesh.normals[mesh.faces] == pytest.approx(np.repeat(flat[:, None], 3, axis=1), abs=1e-6)


def test_without_normals_none_are_made_up(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    assert load_mesh(file.save(tmp_path)).normals is None


def test_quantised_in_two_places(file: GltfFile, tmp_path: Path):
    file.uses("KHR_mesh_quantization", required=True)
    corners = np.round(np.array(QUAD) / 0.6 * 32767)
    quad = {
        "attributes": {
            "POSITION": file.accessor(corners, SHORT, normalized=True),
            "NORMAL": file.accessor([[0, 0, 127]] * 4, BYTE, normalized=True),
            "TEXCOORD_0": file.accessor(np.array(UVS) * 65535, USHORT, normalized=True),
        },
        "indices": file.accessor(TRIANGLES, UBYTE),
        "material": material(file, clamped(file, FOUR)),
    }
    file.show(quad, scale=[0.6] * 3)
    file.root(mesh=0, scale=[0.1] * 3, translation=[2, 0, 0])
    mesh = load_mesh(file.save(tmp_path))
    wanted = np.concatenate([np.array(QUAD), np.array(QUAD) / 6 + [2, 0, 0]])
    assert mesh.vertices == pytest.approx(wanted, abs=1e-6)
    assert mesh.normals == pytest.approx(np.tile([0.0, 0, 1], (8, 1)), abs=1e-6)
    assert np.array_equal(mesh.uvs, np.float32(UVS * 2))
    assert np.array_equal(mesh.faces.reshape(-1), [*TRIANGLES, *np.array(TRIANGLES) + 4])


def warnings(file: GltfFile, folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[Mesh, str]:
    with caplog.at_level(logging.WARNING):
        mesh = load_mesh(file.save(folder))
    return mesh, caplog.text


@pytest.mark.parametrize("second", [True, False])
def test_unlit(second: bool, file: GltfFile, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file.uses("KHR_materials_unlit")
    unlit = {"extensions": {"KHR_materials_unlit": {}}}
    file.show(file.quad(material=material(file, **unlit)))
    file.show(file.quad(material=material(file, **(unlit if second else {}))))
    mesh, said = warnings(file, tmp_path, caplog)
    assert mesh.unlit == second
    assert ("unlit materials among lit ones" in said) == (not second)


@pytest.mark.parametrize("double_sided", [True, False])
def test_both_sides_stay(double_sided: bool, file: GltfFile, tmp_path: Path):
    file.show(file.quad(material=material(file, clamped(file, FOUR), doubleSided=double_sided)))
    mesh = load_mesh(file.save(tmp_path))
    assert mesh.double_sided == double_sided
    save_mesh(tmp_path / "again.glb", mesh)
    assert load_mesh(tmp_path / "again.glb").double_sided == double_sided


def test_nothing_is_said_where_nothing_is_lost(file: GltfFile, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file.show(with_normals(file, file.quad(material=material(file, clamped(file, FOUR)))))
    assert warnings(file, tmp_path, caplog)[1] == ""


def with_normals(file: GltfFile, primitive: dict) -> dict:
    primitive["attributes"]["NORMAL"] = file.accessor([[0.0, 0.0, 1.0]] * 4)
    return primitive


def test_normals_that_do_not_stay_are_said(file: GltfFile, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    number = material(file, clamped(file, FOUR))
    file.show(file.quad(material=number))
    assert "flat faces" in warnings(file, tmp_path, caplog)[1]
    caplog.clear()
    file.show(with_normals(file, file.quad(material=number)))
    mesh, said = warnings(file, tmp_path, caplog)
    assert mesh.normals is None and "normals, as some parts have none" in said


def test_what_is_left_out_is_said(file: GltfFile, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    other = {"index": clamped(file, FOUR)}
    number = material(
        file,
        clamped(file, FOUR),
        alphaMode="BLEND",
        occlusionTexture=other,
        emissiveTexture=other,
        emissiveFactor=[1, 1, 1],
        normalTexture={**other, "texCoord": 1},
    )
    file.tree["materials"][number]["pbrMetallicRoughness"]["metallicRoughnessTexture"] = other
    node = file.show(uvs(file, file.quad(material=number), UVS, 1))
    clock = file.accessor([0.0, 1.0], min=[0.0], max=[1.0])
    turns = file.accessor([[0, 0, 0, 1.0], [0, 0, 1.0, 0]], FLOAT)
    channel = {"sampler": 0, "target": {"node": node, "path": "rotation"}}
    file.add("animations", channels=[channel], samplers=[{"input": clock, "output": turns}])
    mesh, said = warnings(file, tmp_path, caplog)
    for name in ("transparency", "normal map", "metallic-roughness map", "occlusion map", "emission", "animations"):
        assert name in said
    assert str(tmp_path / "a file.glb") in said
    assert len(caplog.records) == 1
    assert mesh.normal_map is None


def test_emission_without_a_map_is_said(file: GltfFile, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file.show(file.quad(material=material(file, factor=[0, 0, 0, 1], emissiveFactor=[1, 0, 0])))
    assert "emission" in warnings(file, tmp_path, caplog)[1]


@pytest.mark.parametrize("used", [{}, {"texCoord": 1}, {"scale": 0.5}])
def test_a_normal_map_stays_where_it_lies_on_the_base_texture(used: dict[str, Any], file: GltfFile, tmp_path: Path):
    bumps = np.full((4, 4, 3), (100, 140, 240), np.uint8)
    normal = {"index": clamped(file, bumps), **used}
    file.show(uvs(file, file.quad(material=material(file, clamped(file, FOUR), normalTexture=normal)), UVS, 1))
    mesh = load_mesh(file.save(tmp_path))
    if used:
        assert mesh.normal_map is None
    else:
        assert np.array_equal((mesh.normal_map * 255).round(), bumps)


def test_a_part_without_the_uvs_of_its_texture(file: GltfFile, tmp_path: Path):
    """Such a part has no texture; the other one keeps its."""
    number = material(file, clamped(file, FOUR), factor=[0.5, 0.5, 0.5, 1])
    bare = file.quad(material=number)
    del bare["attributes"]["TEXCOORD_0"]
    file.show(file.quad(material=number))
    file.show(bare, translation=[2, 0, 0])
    mesh = load_mesh(file.save(tmp_path))
    # sRGB's value of half the light.
    assert seen(mesh, 2.1, 0.1) == pytest.approx([0.7353569] * 3, abs=1e-5)
    assert seen(mesh, -0.3, 0.3) == pytest.approx(to_display(to_linear(FOUR[0, 0] / 255) / 2), abs=1e-5)
