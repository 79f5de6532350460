"""What a stage did not change of a file is there, to the bit, when the mesh is written back into it."""

from __future__ import annotations

import copy
import io
import json
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gltf_file import BYTE, QUAD, SHORT, TRIANGLES, UBYTE, USHORT, UVS, GltfFile
from other_tools import Missing, khronos_complaints
from PIL import Image

from dreamflow_core.mesh.files import load_mesh, save_mesh
from dreamflow_core.mesh.mesh import BadMesh, Mesh
from dreamflow_core.mesh.prepare import paintable

SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
RNG = np.random.default_rng(0)
NOISE = RNG.integers(256, size=(32, 32, 4), dtype=np.uint8)
OTHER = RNG.integers(256, size=(32, 32, 3), dtype=np.uint8)


class Glb:
    """A GLB file read by its specification alone."""

    def __init__(self, path: Path):
        data = path.read_bytes()
        size = struct.unpack_from("<I", data, 12)[0]
        self.tree = json.loads(data[20 : 20 + size])
        self.blob = data[28 + size :]

    def view(self, number: int) -> bytes:
        view = self.tree["bufferViews"][number]
        return self.blob[view.get("byteOffset", 0) :][: view["byteLength"]]

    def array(self, number: int) -> np.ndarray:
        accessor = self.tree["accessors"][number]
        dtype, width = np.dtype(TYPES[accessor["componentType"]]), SIZES[accessor["type"]]
        view = self.tree["bufferViews"][accessor["bufferView"]]
        stride = view.get("byteStride", width * dtype.itemsize)
        data = self.view(accessor["bufferView"])
        shape, strides = (accessor["count"], width), (stride, dtype.itemsize)
        return np.ndarray(shape, dtype, data, accessor.get("byteOffset", 0), strides)

    def picture(self, used: dict[str, Any]) -> np.ndarray:
        image = self.tree["images"][self.tree["textures"][used["index"]]["source"]]
        return np.asarray(Image.open(io.BytesIO(self.view(image["bufferView"]))))

    def primitives(self) -> list[dict[str, Any]]:
        return [primitive for mesh in self.tree["meshes"] for primitive in mesh["primitives"]]

    def attribute(self, name: str, primitive: int = 0) -> np.ndarray:
        return self.array(self.primitives()[primitive]["attributes"][name])

    def corners(self, name: str, primitive: int = 0) -> np.ndarray:
        """An attribute at the corners of the primitive's triangles, in the file's order."""
        return self.attribute(name, primitive)[self.array(self.primitives()[primitive]["indices"])[:, 0]]


@pytest.fixture
def file() -> GltfFile:
    return GltfFile()


def write(file: GltfFile, folder: Path, stage: Callable[[Mesh], Mesh]) -> tuple[Glb, Glb, Path]:
    """The file before and after a stage, and where the latter is."""
    targeted(file)
    return written(file.save(folder), folder, stage)


def targeted(file: GltfFile) -> None:
    """Say of buffer views what they are for, as the validator likes it."""
    accessors, views = file.tree["accessors"], file.tree["bufferViews"]
    for primitive in (primitive for mesh in file.tree["meshes"] for primitive in mesh["primitives"]):
        targets = dict.fromkeys(primitive["attributes"].values(), 34962)
        if "indices" in primitive:
            targets[primitive["indices"]] = 34963
        for number, target in targets.items():
            if "bufferView" in accessors[number]:
                views[accessors[number]["bufferView"]]["target"] = target


def written(path: Path, folder: Path, stage: Callable[[Mesh], Mesh]) -> tuple[Glb, Glb, Path]:
    after = folder / "after.glb"
    save_mesh(after, stage(load_mesh(path, kept_in="the GLB")))
    with suppress(Missing):
        known = [_without_numbers(text) for text in khronos_complaints(path)] if path.suffix == ".glb" else []
        assert [text for text in khronos_complaints(after) if _without_numbers(text) not in known] == []
    return Glb(path) if path.suffix == ".glb" else Glb(after), Glb(after), after


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "", text)


def painted(mesh: Mesh) -> Mesh:
    """All colours turned round, as if a stage had optimised the texture."""
    ready = paintable(mesh, 64)
    return replace(ready, texture=1 - ready.texture)


def moved(mesh: Mesh) -> Mesh:
    """Vertices on the right are pushed up and back by half a unit."""
    vertices = mesh.vertices.copy()
    vertices[vertices[:, 0] > 0] += [0, 0.5, -0.5]
    return replace(mesh, vertices=vertices)


def same(mesh: Mesh) -> Mesh:
    return mesh


def everything(file: GltfFile) -> None:
    """A file with one of everything that a stage does not know, around a texture on its own UVs."""
    wraps = file.add("samplers", magFilter=9728, minFilter=9728, wrapS=33648, wrapT=33071)
    base = file.texture(NOISE, sampler=wraps, name="base colour")
    file.tree["images"][0]["name"] = "painted by hand"
    maps = {name: {"index": file.texture(RNG.integers(256, size=(16, 16, 3), dtype=np.uint8))} for name in "abcd"}
    metal = {
        "baseColorTexture": {"index": base},
        "baseColorFactor": [1, 1, 1, 0.5],
        "metallicFactor": 0.25,
        "metallicRoughnessTexture": maps["a"],
    }
    number = file.add(
        "materials",
        name="Skin",
        pbrMetallicRoughness=metal,
        normalTexture={**maps["b"], "scale": 0.5},
        occlusionTexture={**maps["c"], "texCoord": 1, "strength": 0.75},
        emissiveTexture=maps["d"],
        emissiveFactor=[0.5, 0.25, 0],
        alphaMode="BLEND",
        doubleSided=True,
        extras={"made by": "somebody"},
        extensions={"KHR_materials_clearcoat": {"clearcoatFactor": 0.5}},
    )
    file.uses("KHR_materials_clearcoat")
    primitive = file.quad(material=number)
    primitive["attributes"] |= {
        "TEXCOORD_1": file.accessor([[value, 0.5] for value in (0.1, 0.2, 0.3, 0.4)]),
        "NORMAL": file.accessor([[0, 0, 1]] * 4),
        "TANGENT": file.accessor([[1, 0, 0, 1]] * 4),
        "_HEAT": file.accessor([1, 2, 3, 4]),
    }
    shown = file.show(primitive, name="Body", translation=[0, 1, 0], rotation=[0, 0, 0.6, 0.8], scale=[2, 2, 2])
    file.tree["meshes"][0]["name"] = "body mesh"
    file.tree["cameras"] = [{"type": "perspective", "perspective": {"yfov": 1, "znear": 0.1}}]
    file.root(name="Eye", camera=0)
    times = file.accessor([0, 1], min=[0], max=[1])
    places = file.accessor([[0, 1, 0], [0, 2, 0]])
    file.tree["animations"] = [
        {
            "name": "hop",
            "samplers": [{"input": times, "output": places}],
            "channels": [{"sampler": 0, "target": {"node": shown, "path": "translation"}}],
        }
    ]
    file.tree["asset"] |= {"generator": "by hand", "copyright": "nobody"}


def arrays(glb: Glb) -> list[bytes]:
    return [glb.array(number).tobytes() for number in range(len(glb.tree["accessors"]))]


def test_an_unchanged_mesh_is_the_same_file(file: GltfFile, tmp_path: Path):
    everything(file)
    before, after, _ = write(file, tmp_path, same)
    for tree in (before.tree, after.tree):
        del tree["buffers"]
        for view in tree["bufferViews"]:
            del view["byteOffset"]
    assert after.tree == before.tree
    views = range(len(before.tree["bufferViews"]))
    assert [after.view(n) for n in views] == [before.view(n) for n in views]


def test_a_texture_is_all_that_changes(file: GltfFile, tmp_path: Path):
    everything(file)
    before, after, _ = write(file, tmp_path, painted)
    base = after.tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    picture = after.picture(base)
    assert picture.shape == (64, 64, 4)
    alpha = Image.fromarray(NOISE[..., 3]).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(picture[..., 3], np.asarray(alpha))
    for kind in ("nodes", "meshes", "scenes", "animations", "cameras", "asset", "extensionsUsed"):
        assert after.tree[kind] == before.tree[kind]
    assert arrays(after) == arrays(before)
    for name in ("normalTexture", "occlusionTexture", "emissiveTexture"):
        old, new = before.tree["materials"][0][name], after.tree["materials"][0][name]
        assert np.array_equal(after.picture(new), before.picture(old))
        assert {**new, "index": 0} == {**old, "index": 0}
    material = copy.deepcopy(after.tree["materials"][0])
    for name, used in before.tree["materials"][0].items():
        if not name.endswith("Texture") and name != "pbrMetallicRoughness":
            assert material[name] == used
    metal = material["pbrMetallicRoughness"]
    assert (metal["baseColorFactor"], metal["metallicFactor"]) == ([1, 1, 1, 0.5], 0.25)
    texture = after.tree["textures"][base["index"]]
    assert after.tree["samplers"][texture["sampler"]] == before.tree["samplers"][0]
    assert texture["name"] == "base colour" and after.tree["images"][texture["source"]]["name"] == "painted by hand"
    # Nothing is left of the old picture.
    assert len(after.tree["images"]) == len(before.tree["images"]) == len(after.tree["textures"])


def test_without_enlarging_the_picture_is_the_texture(file: GltfFile, tmp_path: Path):
    everything(file)
    _, after, _ = write(file, tmp_path, lambda mesh: replace(mesh, texture=OTHER / np.float32(255)))
    picture = after.picture(after.tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"])
    assert np.array_equal(picture, np.dstack([OTHER, NOISE[..., 3]]))


def test_a_factor_is_in_the_texture_afterwards(file: GltfFile, tmp_path: Path):
    metal = {"baseColorTexture": {"index": file.texture(NOISE)}, "baseColorFactor": [0.5, 0.2, 1, 1]}
    file.show(file.quad(material=file.add("materials", pbrMetallicRoughness=metal)))
    _, after, _ = write(file, tmp_path, painted)
    assert "baseColorFactor" not in after.tree["materials"][0]["pbrMetallicRoughness"]


def test_a_new_atlas_leaves_what_lies_on_other_uvs(file: GltfFile, tmp_path: Path):
    tiled = {"baseColorTexture": {"index": file.texture(NOISE[..., :3])}}
    tiled["metallicRoughnessTexture"] = {"index": file.texture(OTHER)}
    first = file.quad(material=file.add("materials", pbrMetallicRoughness=tiled, name="tiles", doubleSided=True))
    plain = {"baseColorFactor": [1, 0, 0, 0.5], "roughnessFactor": 0.5}
    second = file.quad(material=file.add("materials", pbrMetallicRoughness=plain, alphaMode="BLEND"))
    first["attributes"] |= {
        "TEXCOORD_0": file.accessor(np.array(UVS) * 2.5),
        "NORMAL": file.accessor([[0, 0, 1]] * 4),
        "TEXCOORD_1": file.accessor((np.array(UVS) * 65535), USHORT, normalized=True),
        "COLOR_0": file.accessor([[1, 0.5, 0.25]] * 4),
    }
    file.show(first, second, name="both", translation=[1, 2, 3])
    before, after, path = write(file, tmp_path, painted)
    assert after.tree["nodes"] == before.tree["nodes"]
    for name in ("POSITION", "NORMAL", "TEXCOORD_0", "TEXCOORD_1"):
        assert np.array_equal(after.corners(name), before.corners(name))
        assert after.attribute(name).dtype == before.attribute(name).dtype
    # The first set is the other map's, the second is nobody's; the atlas is on a third.
    tiles, red = after.tree["materials"]
    assert tiles["pbrMetallicRoughness"]["baseColorTexture"]["texCoord"] == 2
    assert np.array_equal(after.picture(tiles["pbrMetallicRoughness"]["metallicRoughnessTexture"]), OTHER)
    assert (tiles["name"], tiles["doubleSided"], red["alphaMode"]) == ("tiles", True, "BLEND")
    assert red["pbrMetallicRoughness"]["roughnessFactor"] == 0.5
    assert [name for primitive in after.primitives() for name in primitive["attributes"] if "COLOR" in name] == []
    atlas = after.picture(red["pbrMetallicRoughness"]["baseColorTexture"])
    assert set(np.unique(atlas[..., 3])) == {128, 255}
    assert "baseColorFactor" not in red["pbrMetallicRoughness"]
    # Seen again, it is what was painted.
    given, read = painted(load_mesh(tmp_path / "a file.glb")), load_mesh(path)
    assert np.abs(read.texture - given.texture).max() < 0.5 / 255 + 1e-5
    assert np.abs(read.uvs[read.faces] - given.uvs[given.faces]).max() < 1e-6


def test_plain_uvs_get_a_texture(file: GltfFile, tmp_path: Path):
    number = file.add("materials", pbrMetallicRoughness={"baseColorFactor": [0.5, 0.25, 1, 0.5]}, alphaMode="BLEND")
    primitive = file.quad(material=number)
    alphas = np.array([0.1, 0.5, 0.9, 1], np.float32)
    primitive["attributes"]["COLOR_0"] = file.accessor(np.c_[np.full((4, 3), 0.5), alphas])
    file.show(primitive)
    before, after, _ = write(file, tmp_path, painted)
    assert after.attribute("POSITION").tobytes() == before.attribute("POSITION").tobytes()
    assert after.attribute("TEXCOORD_0").tobytes() == before.attribute("TEXCOORD_0").tobytes()
    assert np.array_equal(after.attribute("COLOR_0"), np.c_[np.ones((4, 3)), alphas])
    metal = after.tree["materials"][0]["pbrMetallicRoughness"]
    assert metal["baseColorFactor"] == [1, 1, 1, 0.5]
    linear = np.array([0.25, 0.125, 0.5])
    display = 1.055 * linear ** (1 / 2.4) - 0.055
    assert np.abs(after.picture(metal["baseColorTexture"]) - 255 * (1 - display)).max() < 1


def test_a_default_material_is_not_anybody_elses(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    file.add("nodes", mesh=file.add("meshes", primitives=[file.quad()]), name="in no scene")
    _, after, _ = write(file, tmp_path, painted)
    assert [primitive.get("material") for primitive in after.primitives()] == [0, None]


def test_a_mesh_that_two_nodes_show_is_two_on_a_new_atlas(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    del primitive["attributes"]["TEXCOORD_0"]
    number = file.show(primitive)
    mesh = file.tree["nodes"][number]["mesh"]
    file.root(mesh=mesh, translation=[2, 0, 0], scale=[-1, 1, 1])
    before, after, path = write(file, tmp_path, painted)
    assert [node["mesh"] for node in after.tree["nodes"]] in ([0, 1], [1, 0])
    assert after.tree["nodes"][1]["scale"] == [-1, 1, 1]
    for number in (0, 1):
        assert np.array_equal(after.corners("POSITION", number), before.corners("POSITION"))
    places = [after.attribute("TEXCOORD_0", number) for number in (0, 1)]
    assert np.abs(places[0].mean(0) - places[1].mean(0)).max() > 0.1
    assert np.abs(load_mesh(path).vertices[load_mesh(path).faces] - load_mesh(tmp_path / "a file.glb").vertices[
        load_mesh(tmp_path / "a file.glb").faces]).max() == 0  # fmt: skip


def test_instances_become_nodes(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    del primitive["attributes"]["TEXCOORD_0"]
    attributes = {
        "TRANSLATION": file.accessor([[0, 0, 0], [2, 0, 0], [0, 2, 0]]),
        "ROTATION": file.accessor([[0, 0, 0, 127], [0, 0, 127, 0], [0, 0, 0, 127]], BYTE, normalized=True),
    }
    file.show(primitive, extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}}, scale=[0.5, 1, 1])
    file.uses("EXT_mesh_gpu_instancing", required=True)
    _, after, path = write(file, tmp_path, painted)
    one, other = load_mesh(tmp_path / "a file.glb"), load_mesh(path)
    assert np.abs(one.vertices[one.faces] - other.vertices[other.faces]).max() < 1e-6
    assert "extensionsRequired" not in after.tree and len(after.tree["meshes"]) == 3
    _, after, path = write(file, tmp_path, moved)
    other = load_mesh(path)
    assert np.abs(moved(one).vertices[one.faces] - other.vertices[other.faces]).max() < 1e-6


def cube(file: GltfFile) -> dict[str, Any]:
    """A cube with hard edges: each of its sides has vertices and normals of its own."""
    places, normals, faces = [], [], []
    for axis in range(3):
        for side in (-1, 1):
            normal, right, up = np.zeros(3), np.zeros(3), np.zeros(3)
            normal[axis], right[(axis + 1) % 3], up[(axis + 2) % 3] = side, 1, side
            start = len(places)
            places += [0.5 * (normal + a * right + b * up) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            normals += [normal] * 4
            faces += [start + corner for corner in TRIANGLES]
    attributes = {"POSITION": file.accessor(places), "NORMAL": file.accessor(normals)}
    return {"attributes": attributes, "indices": file.accessor(faces, USHORT)}


def flat_normals(glb: Glb) -> np.ndarray:
    a, b, c = np.moveaxis(glb.corners("POSITION").reshape(-1, 3, 3).astype(np.float64), 1, 0)
    normals = np.cross(b - a, c - a)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def test_hard_edges_stay_where_vertices_move(file: GltfFile, tmp_path: Path):
    file.show(cube(file), scale=[1, 2, 1], rotation=[0, 0.6, 0, 0.8])
    turned = load_mesh(file.save(tmp_path)).vertices

    def shear(mesh: Mesh) -> Mesh:
        return replace(mesh, vertices=mesh.vertices + 0.3 * mesh.vertices[:, [1, 2, 0]] * [1, 0, 0])

    before, after, path = write(file, tmp_path, shear)
    assert after.tree["nodes"] == before.tree["nodes"]
    assert np.abs(load_mesh(path).vertices - (turned + 0.3 * turned[:, [1, 2, 0]] * [1, 0, 0])).max() < 1e-6
    # Every side of a sheared cube is flat, so its normals are those of its faces.
    assert np.abs(after.corners("NORMAL").reshape(-1, 3, 3) - flat_normals(after)[:, None]).max() < 1e-3


def test_vertices_that_stay_are_the_same_to_the_bit(file: GltfFile, tmp_path: Path):
    file.show(cube(file), scale=[1, 2, 1], rotation=[0, 0.6, 0, 0.8], translation=[0.1, 0, 0])
    stays = load_mesh(file.save(tmp_path)).vertices[:, 0] <= 0
    before, after, _ = write(file, tmp_path, moved)
    assert stays.any() and not stays.all()
    changed = (after.attribute("POSITION") != before.attribute("POSITION")).any(axis=1)
    assert np.array_equal(changed, ~stays)


def test_skinned_and_morphed_vertices_move_as_they_are_seen(file: GltfFile, tmp_path: Path):
    primitive = file.quad(targets=[{"POSITION": file.accessor(RNG.normal(size=(4, 3)))}])
    del primitive["attributes"]["TEXCOORD_0"]
    primitive["attributes"] |= {
        "JOINTS_0": file.accessor([[0, 1, 0, 0]] * 4, UBYTE),
        "WEIGHTS_0": file.accessor([[0.25, 0.75, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0]]),
    }
    joints = [file.root(translation=[0.2, 0, 0]), file.root(rotation=[0, 0.6, 0, 0.8], scale=[1, 2, 1])]
    file.tree["skins"] = [{"joints": joints}]
    mesh = file.add("meshes", primitives=[primitive], weights=[0.5])
    file.root(mesh=mesh, skin=0)
    before, after, path = write(file, tmp_path, moved)
    wanted = moved(load_mesh(tmp_path / "a file.glb"))
    assert np.abs(load_mesh(path).vertices - wanted.vertices).max() < 1e-6
    assert after.tree["skins"] == before.tree["skins"] and after.tree["meshes"][0]["weights"] == [0.5]
    (target,), (old,) = (glb.primitives()[0]["targets"] for glb in (after, before))
    assert after.array(target["POSITION"]).tobytes() == before.array(old["POSITION"]).tobytes()
    # And split, for a texture on new UVs, with their joints and targets.
    before, after, path = write(file, tmp_path, painted)
    for name in ("POSITION", "JOINTS_0", "WEIGHTS_0"):
        assert np.array_equal(after.corners(name), before.corners(name))


def test_quantised_vertices_that_move_are_floats(file: GltfFile, tmp_path: Path):
    places = (np.array(QUAD) / 0.6 * 32767).round()
    number = file.accessor(np.c_[places, np.zeros(4)], SHORT)
    accessor = file.tree["accessors"][number]
    accessor |= {"type": "VEC3", "normalized": True, "min": [-32767, -32767, 0], "max": [32767, 32767, 0]}
    file.tree["bufferViews"][accessor["bufferView"]]["byteStride"] = 8
    file.show({"attributes": {"POSITION": number}, "indices": file.accessor(TRIANGLES, USHORT)}, scale=[0.6] * 3)
    file.uses("KHR_mesh_quantization", required=True)
    before, after, path = write(file, tmp_path, moved)
    assert np.abs(load_mesh(path).vertices - moved(load_mesh(tmp_path / "a file.glb")).vertices).max() < 1e-6
    assert "extensionsUsed" not in after.tree
    # A texture alone leaves them as they are.
    before, after, path = write(file, tmp_path, painted)
    assert after.attribute("POSITION").dtype == np.int16
    assert np.array_equal(after.corners("POSITION"), before.corners("POSITION"))
    assert after.tree["extensionsRequired"] == ["KHR_mesh_quantization"]


@pytest.mark.parametrize("stage", [painted, moved])
def test_compressed_meshes(stage: Callable[[Mesh], Mesh], file: GltfFile, tmp_path: Path):
    DracoPy = pytest.importorskip("DracoPy", reason="DracoPy is not installed: pip install DracoPy")
    packed = DracoPy.encode(np.array(QUAD, np.float32), np.array(TRIANGLES).reshape(-1, 3), quantization_bits=11)
    primitive = file.quad()
    primitive["attributes"] = {"POSITION": primitive["attributes"]["POSITION"]}
    for accessor in (primitive["attributes"]["POSITION"], primitive["indices"]):
        del file.tree["accessors"][accessor]["bufferView"]
    draco = {"bufferView": file.view(packed), "attributes": {"POSITION": 0}}
    file.show({**primitive, "extensions": {"KHR_draco_mesh_compression": draco}})
    file.tree["accessors"] = [a for n, a in enumerate(file.tree["accessors"]) if n != 1]
    primitive["indices"] = 1
    file.tree["meshes"][0]["primitives"][0]["indices"] = 1
    file.uses("KHR_draco_mesh_compression", required=True)
    given = load_mesh(file.save(tmp_path))
    _, after, path = write(file, tmp_path, stage)
    read = load_mesh(path)
    wanted = moved(given) if stage is moved else given
    assert np.abs(read.vertices[read.faces] - wanted.vertices[wanted.faces]).max() < 1e-6
    assert "extensionsUsed" not in after.tree and "extensions" not in after.primitives()[0]
    _, after, _ = write(file, tmp_path, same)
    assert after.view(after.primitives()[0]["extensions"]["KHR_draco_mesh_compression"]["bufferView"]) == packed


def test_files_beside_come_into_the_glb(file: GltfFile, tmp_path: Path):
    metal = {"baseColorTexture": {"index": file.texture(NOISE)}}
    bumps = {"index": file.add("textures", source=file.add("images", uri="bumps%20map.png"))}
    file.show(file.quad(material=file.add("materials", pbrMetallicRoughness=metal, occlusionTexture=bumps)))
    Image.fromarray(OTHER).save(tmp_path / "bumps map.png")
    (tmp_path / "data.bin").write_bytes(file.blob)
    targeted(file)
    _, after, _ = written(file.save_apart(tmp_path, "data.bin"), tmp_path, painted)
    assert after.tree["buffers"] == [{"byteLength": len(after.blob)}]
    assert np.array_equal(after.picture(after.tree["materials"][0]["occlusionTexture"]), OTHER)


def test_specular_glossiness(file: GltfFile, tmp_path: Path):
    glossy = {"diffuseTexture": {"index": file.texture(NOISE)}, "glossinessFactor": 0.25}
    extensions = {"KHR_materials_pbrSpecularGlossiness": glossy}
    file.show(file.quad(material=file.add("materials", extensions=extensions)))
    file.uses("KHR_materials_pbrSpecularGlossiness")
    save_mesh(tmp_path / "after.glb", painted(load_mesh(file.save(tmp_path), kept_in="the GLB")))
    after = Glb(tmp_path / "after.glb")
    (material,) = after.tree["materials"]
    made = material["extensions"]["KHR_materials_pbrSpecularGlossiness"]
    assert made["glossinessFactor"] == 0.25
    # Viewers that do not know the extension show it too.
    assert material["pbrMetallicRoughness"]["baseColorTexture"] == made["diffuseTexture"]


def test_a_normal_map_has_its_tangents_in_the_nodes_space(file: GltfFile, tmp_path: Path):
    number = file.add("materials", pbrMetallicRoughness={"baseColorTexture": {"index": file.texture(NOISE)}})
    primitive = file.quad(material=number)
    primitive["attributes"]["NORMAL"] = file.accessor([[0, 0, 1]] * 4)
    file.show(primitive, rotation=[0, 0.6, 0, 0.8], scale=[2, 2, -2])
    bumps = np.full((32, 32, 3), [0.5, 0.5, 1], np.float32)
    _, after, _ = write(file, tmp_path, lambda mesh: replace(mesh, normal_map=bumps))
    # UVs upright: u grows along +x, the bitangent is +y. The mirror of the node is the node's.
    assert np.abs(after.attribute("TANGENT") - [1, 0, 0, 1]).max() < 1e-6
    assert after.picture(after.tree["materials"][0]["normalTexture"])[0, 0].tolist() == [128, 128, 255]


def test_materials_of_an_obj_stay_in_the_glb(tmp_path: Path):
    Image.fromarray(OTHER).save(tmp_path / "cloth.png")
    (tmp_path / "m.mtl").write_text(
        "newmtl Red glass\nKd 1 0 0\nd 0.5\nnewmtl Cloth\nKd 0.5 0.5 0.5\nmap_Kd cloth.png\n"
    )
    (tmp_path / "m.obj").write_text(
        "mtllib m.mtl\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in QUAD) + "vt 0 0\nvt 3 0\nvt 3 3\nvt 0 3\n"
        "usemtl Red glass\nf 1 2 3\nusemtl Cloth\nf 1/1 3/3 4/4\n"
    )
    _, after, _ = written(tmp_path / "m.obj", tmp_path, same)
    glass, cloth = after.tree["materials"]
    assert (glass["name"], glass["alphaMode"]) == ("Red glass", "BLEND")
    assert glass["pbrMetallicRoughness"]["baseColorFactor"] == [1, 0, 0, 0.5]
    assert after.view(after.tree["images"][0]["bufferView"]) == (tmp_path / "cloth.png").read_bytes()
    assert cloth["pbrMetallicRoughness"]["baseColorTexture"] == {"index": 0}
    _, after, path = written(tmp_path / "m.obj", tmp_path, painted)
    assert [material["name"] for material in after.tree["materials"]] == ["Red glass", "Cloth"]
    given, read = painted(load_mesh(tmp_path / "m.obj")), load_mesh(path)
    assert np.abs(read.texture - given.texture).max() < 0.5 / 255 + 1e-5


def test_what_cannot_be_read_is_said_before_the_work(file: GltfFile, tmp_path: Path):
    from dreamflow_core.state import BadFile

    metal = {"baseColorTexture": {"index": file.texture(NOISE)}}
    extra = file.add("textures", source=file.add("images", uri="not there.png"))
    file.show(file.quad(material=file.add("materials", pbrMetallicRoughness=metal)))
    file.add("materials", normalTexture={"index": extra})
    path = file.save(tmp_path)
    load_mesh(path)
    with pytest.raises(BadFile, match="it needs not there"):
        load_mesh(path, kept_in="the GLB")


def test_only_a_normal_map_that_is_new_leaves_the_colours(file: GltfFile, tmp_path: Path):
    """Two materials with tiled UVs, on which their colours stay when the normal map lies on an atlas."""
    numbers = [
        file.add("materials", pbrMetallicRoughness={"baseColorTexture": {"index": file.texture(NOISE[..., :3])}})
        for _ in range(2)
    ]
    primitives = [file.quad(material=number) for number in numbers]
    for primitive in primitives:
        primitive["attributes"]["TEXCOORD_0"] = file.accessor(np.array(UVS) * 2.5)
        primitive["attributes"]["NORMAL"] = file.accessor([[0, 0, 1]] * 4)
    file.show(*primitives)

    def bumped(mesh: Mesh) -> Mesh:
        return replace(mesh, normal_map=np.full((*mesh.texture.shape[:2], 3), [0.6, 0.5, 1], np.float32))

    before, after, _ = write(file, tmp_path, bumped)
    for number in (0, 1):
        assert np.array_equal(after.corners("TEXCOORD_0", number), before.corners("TEXCOORD_0", number))
        base = after.tree["materials"][number]["pbrMetallicRoughness"]["baseColorTexture"]
        assert np.array_equal(after.picture(base), NOISE[..., :3])
        used = after.tree["materials"][number]["normalTexture"]
        assert used["texCoord"] == 1 and after.picture(used)[0, 0].tolist() == [153, 128, 255]


def test_split_vertices_share_their_normal_where_one_side_moves(file: GltfFile, tmp_path: Path):
    """Two triangles that meet at a UV seam; only the far corner of one moves."""
    places = [[0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0]]
    attributes = {"POSITION": file.accessor(places), "NORMAL": file.accessor([[0, 0, 1]] * 6)}
    file.show({"attributes": attributes, "indices": file.accessor([0, 1, 2, 3, 5, 4], USHORT)})
    _, after, _ = write(file, tmp_path, moved)
    normals = after.attribute("NORMAL")
    assert np.array_equal(normals[:2], normals[3:5]) and not np.array_equal(normals[0], normals[5])


def test_matrices_as_attributes(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    del primitive["attributes"]["TEXCOORD_0"]
    matrices = RNG.normal(size=(4, 16)).astype(np.float32)
    primitive["attributes"]["_PLACE"] = file.accessor(matrices)
    file.show(primitive)
    before, after, _ = write(file, tmp_path, painted)
    assert np.array_equal(after.corners("_PLACE"), before.corners("_PLACE"))


def test_a_texture_of_one_texel(file: GltfFile, tmp_path: Path):
    metal = {"baseColorTexture": {"index": file.texture(np.full((1, 1, 3), 90, np.uint8))}}
    file.show(file.quad(material=file.add("materials", pbrMetallicRoughness=metal)))
    assert paintable(load_mesh(file.save(tmp_path))).texture.shape == (512, 512, 3)


def rendered(glb: Glb, name: str, weights: list[float], primitive: int = 0) -> np.ndarray:
    """An attribute as the specification morphs it (3.7.2.2): plus the weighted displacements, (V, 3)."""
    values = glb.attribute(name, primitive)[:, :3].astype(np.float64)
    targets = glb.primitives()[primitive]["targets"]
    return values + sum(w * glb.array(target[name]) for w, target in zip(weights, targets) if name in target)


def morphed(file: GltfFile, displaced: list[list[float]], weights: list[float]) -> None:
    """A bent quad whose normals targets displace, each by one vector."""
    primitive = file.quad()
    del primitive["attributes"]["TEXCOORD_0"]
    primitive["attributes"]["NORMAL"] = file.accessor([[0, 0, 1]] * 4)
    primitive["targets"] = [
        {"POSITION": file.accessor(RNG.normal(size=(4, 3)) * 0.1), "NORMAL": file.accessor([vector] * 4)}
        for vector in displaced
    ]
    file.root(mesh=file.add("meshes", primitives=[primitive], weights=weights), rotation=[0, 0.6, 0, 0.8])


@pytest.mark.parametrize(
    ("displaced", "weights"),
    [
        ([[0.6, 0, -0.2]], [1]),
        # Two targets that turn the normals by 90 degrees, and one by nearly 180.
        ([[0.5, 0, -0.5], [1, 0, -1]], [1, 0.5]),
        ([[0.1, 0, -1.9]], [1]),
        ([[0.3, 0.2, 0], [0, 9, 9]], [0.5, 0]),
    ],
)
def test_normals_of_morph_targets_count_once(
    displaced: list[list[float]], weights: list[float], file: GltfFile, tmp_path: Path
):
    morphed(file, displaced, weights)

    def bent(mesh: Mesh) -> Mesh:
        return replace(mesh, vertices=mesh.vertices + 0.2 * mesh.vertices[:, [1, 2, 0]] * mesh.vertices)

    _, after, path = write(file, tmp_path, bent)
    places, normals = (rendered(after, name, weights) for name in ("POSITION", "NORMAL"))
    # Smooth normals, each the mean of the faces around its vertex.
    wanted = np.zeros((4, 3))
    for face in after.array(after.primitives()[0]["indices"]).reshape(-1, 3):
        a, b, c = places[face]
        wanted[face] += np.cross(b - a, c - a)
    turned = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs(normals / np.linalg.norm(normals, axis=1, keepdims=True) - turned).max() < 1e-5
    assert np.abs(np.linalg.norm(after.attribute("NORMAL"), axis=1) - 1).max() < 1e-6
    assert np.abs(load_mesh(path).vertices - bent(load_mesh(tmp_path / "a file.glb")).vertices).max() < 1e-6


def test_targets_keep_their_normals_where_that_is_possible(file: GltfFile, tmp_path: Path):
    morphed(file, [[0.6, 0, -0.2]], [1])
    before, after, _ = write(file, tmp_path, moved)
    (old,), (new,) = (glb.primitives()[0]["targets"] for glb in (before, after))
    for name in ("POSITION", "NORMAL"):
        assert after.array(new[name]).tobytes() == before.array(old[name]).tobytes()


def test_new_tangents_are_not_displaced_as_the_old_ones(file: GltfFile, tmp_path: Path):
    number = file.add("materials", pbrMetallicRoughness={"baseColorTexture": {"index": file.texture(NOISE)}})
    primitive = file.quad(material=number)
    primitive["attributes"] |= {
        "NORMAL": file.accessor([[0, 0, 1]] * 4),
        "TANGENT": file.accessor([[0, 1, 0, 1]] * 4),
    }
    still = file.accessor(np.zeros((4, 3)))
    primitive["targets"] = [{"POSITION": still, "TANGENT": file.accessor([[1, -1, 0]] * 4)}]
    file.root(mesh=file.add("meshes", primitives=[primitive], weights=[0.5]))
    bumps = np.full((32, 32, 3), [0.5, 0.5, 1], np.float32)
    _, after, _ = write(file, tmp_path, lambda mesh: replace(mesh, normal_map=bumps))
    # u grows along +x.
    assert np.abs(rendered(after, "TANGENT", [0.5]) - [1, 0, 0]).max() < 1e-6


@pytest.mark.parametrize("scale", [[1, 1, 0], [2, 0, 1], [0.5, 0, 0]])
def test_directions_are_of_unit_length_where_a_node_scales_to_nothing(
    scale: list[float], file: GltfFile, tmp_path: Path
):
    metal = {"baseColorTexture": {"index": file.texture(NOISE)}}
    primitive = file.quad(material=file.add("materials", pbrMetallicRoughness=metal))
    primitive["attributes"]["NORMAL"] = file.accessor([[0, 0, 1]] * 4)
    file.show(primitive, scale=scale, rotation=[0, 0.6, 0, 0.8])
    # Another part, that can move.
    file.show(primitive, translation=[0.1, 1, 0])
    bumps = np.full((32, 32, 3), [0.5, 0.5, 1], np.float32)
    _, after, path = write(file, tmp_path, lambda mesh: replace(moved(mesh), normal_map=bumps))
    for name in ("NORMAL", "TANGENT"):
        for number in (0, 1):
            lengths = np.linalg.norm(after.attribute(name, number)[:, :3], axis=1)
            assert np.abs(lengths - 1).max() < 1e-6
            assert np.isfinite(after.attribute("POSITION", number)).all()
    # The way that the vertices took is the one asked for without its part along the axis.
    given = load_mesh(tmp_path / "a file.glb")
    turn = np.array([[0.28, 0, 0.96], [0, 1, 0], [-0.96, 0, 0.28]]) * (np.array(scale) != 0)
    asked, went = moved(given).vertices - given.vertices, load_mesh(path).vertices - given.vertices
    assert np.abs(went[:4] - asked[:4] @ turn @ turn.T).max() < 1e-6
    assert np.abs(went[4:] - asked[4:]).max() < 1e-6


def in_variants(*numbers: int) -> dict[str, Any]:
    """The extension of a primitive that has these materials as variants."""
    mappings = [{"material": number, "variants": [place]} for place, number in enumerate(numbers)]
    return {"KHR_materials_variants": {"mappings": mappings}}


def with_variants(file: GltfFile, count: int) -> None:
    file.uses("KHR_materials_variants")
    named = [{"name": f"look {number}"} for number in range(count)]
    file.tree["extensions"] = {"KHR_materials_variants": {"variants": named}}


def test_other_variants_keep_their_look(file: GltfFile, tmp_path: Path):
    """Two parts that have each other's material as a variant, and their own."""
    with_variants(file, 2)
    tiled = [{"baseColorTexture": {"index": file.texture(pixels[..., :3])}} for pixels in (NOISE, OTHER)]
    numbers = [file.add("materials", pbrMetallicRoughness=base) for base in tiled]
    for one, other in ((0, 1), (1, 0)):
        mappings = in_variants(numbers[one], numbers[other])
        primitive = file.quad(material=numbers[one], extensions=mappings)
        primitive["attributes"]["TEXCOORD_0"] = file.accessor(np.array(UVS) * 2.5)
        file.show(primitive, translation=[2 * one, 0, 0])
    before, after, path = write(file, tmp_path, painted)
    for number, primitive in enumerate(after.primitives()):
        own, other = primitive["extensions"]["KHR_materials_variants"]["mappings"]
        assert own["material"] == primitive["material"]
        used = after.tree["materials"][other["material"]]["pbrMetallicRoughness"]["baseColorTexture"]
        assert np.array_equal(after.picture(used), (OTHER, NOISE[..., :3])[number])
        assert np.array_equal(after.corners("TEXCOORD_0", number), before.corners("TEXCOORD_0", number))
    given, read = painted(load_mesh(tmp_path / "a file.glb")), load_mesh(path)
    assert np.abs(read.texture - given.texture).max() < 0.5 / 255 + 1e-5


def notice(file: GltfFile, folder: Path, *optimised: str, unwrap: bool = False) -> str:
    """What is said before a stage optimises this, without the file's name."""
    mesh = load_mesh(file.save(folder), kept_in="the GLB")
    said = mesh.source.notice(mesh if optimised == ("vertices",) else paintable(mesh, 64, unwrap), optimised)
    return "" if said is None else said.removeprefix(f"{folder / 'a file.glb'}: ")


def test_vertex_colours_of_other_variants_are_named(file: GltfFile, tmp_path: Path):
    with_variants(file, 1)
    numbers = [file.add("materials", pbrMetallicRoughness={"baseColorFactor": [k, 1, 1, 1]}) for k in (0, 1)]
    primitive = file.quad(material=numbers[0], extensions=in_variants(numbers[1]))
    primitive["attributes"] |= {"NORMAL": file.accessor([[0, 0, 1]] * 4), "COLOR_0": file.accessor([[1, 0.5, 1]] * 4)}
    file.show(primitive)
    said = "lost in the GLB: vertex colours (COLOR_0) of its other variants"
    assert notice(file, tmp_path, "texture") == said
    assert notice(file, tmp_path, "vertices") == ""
    primitive["extensions"] = in_variants(numbers[0])
    assert notice(file, tmp_path, "texture") == ""


def test_what_is_kept_is_what_the_stage_keeps(file: GltfFile, tmp_path: Path):
    nearest = file.add("samplers", magFilter=9728)
    bumps = {"index": file.texture(OTHER), "scale": 0.5}
    metal = {"baseColorTexture": {"index": file.texture(NOISE, sampler=nearest)}}
    file.show(file.quad(material=file.add("materials", pbrMetallicRoughness=metal, normalTexture=bumps)))
    squares, bent = "texels as squares", "normal map, flat faces, as it has no normals"
    everything_kept = f"kept in the GLB: {squares}, {bent}"
    for optimised in (("texture",), ("vertices",), ("texture", "vertices")):
        assert notice(file, tmp_path, *optimised) == everything_kept
    wanted = f"kept in the GLB: {squares}; lost in the GLB: {bent}"
    assert notice(file, tmp_path, "normal_map") == wanted
    wanted = f"kept in the GLB: {bent}; lost in the GLB: {squares}"
    assert notice(file, tmp_path, "texture", unwrap=True) == wanted
    # And so it is.
    _, after, _ = write(file, tmp_path, lambda mesh: paintable(mesh, 64, new_uvs=True))
    (material,) = after.tree["materials"]
    base = after.tree["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]
    assert after.tree["samplers"][base["sampler"]]["magFilter"] == 9729
    assert material["normalTexture"]["scale"] == 0.5 and "NORMAL" not in after.primitives()[0]["attributes"]


def test_axes_along_which_nothing_moves_are_named(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    primitive["attributes"]["NORMAL"] = file.accessor([[0, 0, 1]] * 4)
    file.show(primitive)
    file.show(primitive, scale=[1, 1, 0])
    file.show(primitive, scale=[0, 0, 0])
    said = "lost in the GLB: moves along axes of scale 0 (nodes: 1, 2)"
    assert notice(file, tmp_path, "vertices") == said
    assert notice(file, tmp_path, "texture") == ""
    for node in file.tree["nodes"]:
        node["scale"] = [0, 0, 0]
    with pytest.raises(BadMesh, match="none of its vertices can move"):
        notice(file, tmp_path, "vertices")


def test_files_that_extensions_name_are_named(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    primitive["attributes"]["NORMAL"] = file.accessor([[0, 0, 1]] * 4)
    file.show(primitive)
    file.uses("KHR_audio_emitter")
    file.uses("EXT_structural_metadata")
    sounds = [{"uri": "sound.mp3"}, {"uri": "data:audio/mpeg;base64,"}, {"uri": "https://example.org/sound.mp3"}]
    metadata = {"schemaUri": "schema.json"}
    file.tree["extensions"] = {"KHR_audio_emitter": {"audio": sounds}, "EXT_structural_metadata": metadata}
    said = notice(file, tmp_path, "texture").removeprefix("lost in the GLB: ").split(", ")
    assert sorted(said) == [
        "the file schema.json that its EXT_structural_metadata names",
        "the file sound.mp3 that its KHR_audio_emitter names",
    ]


def test_instances_keep_attributes_of_their_own(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    del primitive["attributes"]["TEXCOORD_0"]
    tints = RNG.integers(256, size=(2, 4), dtype=np.uint8)
    attributes = {
        "TRANSLATION": file.accessor([[0, 0, 0], [2, 0, 0]]),
        "_COLOR_0": file.accessor(tints, UBYTE, normalized=True),
        "_FEATURE_ID_0": file.accessor([7, 9]),
    }
    features = {"featureIds": [{"featureCount": 2, "attribute": 0}]}
    extensions = {"EXT_mesh_gpu_instancing": {"attributes": attributes}, "EXT_instance_features": features}
    file.show(primitive, extensions=extensions, scale=[0.5, 1, 1])
    file.uses("EXT_mesh_gpu_instancing", required=True)
    file.uses("EXT_instance_features")
    _, after, path = write(file, tmp_path, moved)
    parent, *children = after.tree["nodes"]
    assert parent["children"] == [1, 2] and "extensions" not in parent
    for number, child in enumerate(children):
        kept = child["extensions"]["EXT_mesh_gpu_instancing"]["attributes"]
        assert np.array_equal(after.array(kept["_COLOR_0"]), tints[number : number + 1])
        assert after.tree["accessors"][kept["_COLOR_0"]]["normalized"]
        assert after.array(kept["_FEATURE_ID_0"]) == [[(7, 9)[number]]]
        assert child["extensions"]["EXT_instance_features"] == features
    wanted = moved(load_mesh(tmp_path / "a file.glb"))
    assert np.abs(load_mesh(path).vertices - wanted.vertices).max() < 1e-6
    assert "instances" not in notice(file, tmp_path, "vertices")
    features["featureIds"] = [{"featureCount": 2}]
    assert "the numbers of instances (EXT_instance_features)" in notice(file, tmp_path, "vertices")


def test_buffer_views_that_did_not_say_what_they_are_for_do(file: GltfFile, tmp_path: Path):
    everything(file)
    file.tree["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": file.accessor(np.zeros((4, 3)))}]
    # One buffer view for both would be wrong with either.
    mixed = file.view(np.array(QUAD, "<f4").tobytes() + np.array(TRIANGLES, "<u2").tobytes())
    bounds = {"min": [-0.6, -0.6, 0], "max": [0.6, 0.6, 0]}
    places = file.add("accessors", bufferView=mixed, componentType=5126, count=4, type="VEC3", **bounds)
    order = file.add("accessors", bufferView=mixed, byteOffset=48, componentType=5123, count=6, type="SCALAR")
    file.add("meshes", primitives=[{"attributes": {"POSITION": places}, "indices": order}])
    given = file.save(tmp_path)
    before, after, path = written(given, tmp_path, painted)
    assert [view for view in before.tree["bufferViews"] if "target" in view] == []
    wanted = {}
    for primitive in after.primitives()[:1]:
        for names in (primitive["attributes"], *primitive["targets"]):
            wanted |= dict.fromkeys(names.values(), 34962)
        wanted[primitive["indices"]] = 34963
    accessors = after.tree["accessors"]
    views = {accessors[number]["bufferView"]: target for number, target in wanted.items()}
    found = {number: view["target"] for number, view in enumerate(after.tree["bufferViews"]) if "target" in view}
    # Pictures, key frames and what is mixed have none.
    assert found == views
    with suppress(Missing):
        hints = [text for text in khronos_complaints(path) if "target" in text]
        assert len(hints) == len([text for text in khronos_complaints(given) if "target" in text]) - len(views)
    # Nothing is said of a file that did not change.
    _, after, _ = written(given, tmp_path, same)
    assert [view for view in after.tree["bufferViews"] if "target" in view] == []


def test_tangents_of_vertices_without_faces(file: GltfFile, tmp_path: Path):
    metal = {"baseColorTexture": {"index": file.texture(NOISE)}}
    primitive = file.quad(TRIANGLES[:3], material=file.add("materials", pbrMetallicRoughness=metal))
    primitive["attributes"]["NORMAL"] = file.accessor([[0, 0, 1]] * 4)
    file.show(primitive)
    bumps = np.full((32, 32, 3), [0.5, 0.5, 1], np.float32)
    _, after, _ = write(file, tmp_path, lambda mesh: replace(mesh, normal_map=bumps))
    tangents = after.attribute("TANGENT")
    assert np.abs(np.linalg.norm(tangents[:, :3], axis=1) - 1).max() < 1e-6 and (tangents[:, 2] == 0).all()


@pytest.mark.parametrize("more", [{}, {"_ID": [[0], [1]]}])
def test_weights_that_move_do_so_for_each_instance(more: dict[str, Any], file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    primitive["targets"] = [{"POSITION": file.accessor(np.ones((4, 3)))}]
    attributes = {"TRANSLATION": file.accessor([[0, 0, 0], [2, 0, 0]])}
    attributes |= {name: file.accessor(rows) for name, rows in more.items()}
    number = file.show(primitive, extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}}, weights=[0.5])
    file.uses("EXT_mesh_gpu_instancing")
    # Another node that moves too, and whose weights do.
    other = file.show(primitive, translation=[0, 3, 0])
    times = file.accessor([[0.0], [1.0]])
    file.tree["accessors"][times] |= {"min": [0], "max": [1]}
    samplers = [
        {"input": times, "output": file.accessor(rows)}
        for rows in ([[0.0], [1.0]], [[1.0], [0.0]], [[0, 0, 0], [1, 0, 0]])
    ]
    aims = [(number, "weights"), (other, "weights"), (number, "translation")]
    channels = [{"sampler": k, "target": {"node": n, "path": path}} for k, (n, path) in enumerate(aims)]
    file.tree["animations"] = [{"samplers": samplers, "channels": channels}]
    before, after, _ = write(file, tmp_path, moved)
    children = after.tree["nodes"][number]["children"]
    assert len(children) == 2
    (animation,) = after.tree["animations"]
    assert [(one["sampler"], one["target"]["node"], one["target"]["path"]) for one in animation["channels"]] == [
        *((0, child, "weights") for child in children),
        (1, other, "weights"),
        (2, number, "translation"),
    ]
    for one in animation["channels"]:
        node = after.tree["nodes"][one["target"]["node"]]
        assert one["target"]["path"] != "weights" or "targets" in after.tree["meshes"][node["mesh"]]["primitives"][0]
    # What shows all of them alike stays.
    assert write(file, tmp_path, same)[1].tree["animations"] == before.tree["animations"]


@pytest.mark.parametrize("scale", [[0.85, 0, 0.7], [0, 1, 1], [0.5, 0, 0], [0, 0, 0]])
def test_tangents_of_sides_that_a_node_flattens(scale: list[float], file: GltfFile, tmp_path: Path):
    metal = {"baseColorTexture": {"index": file.texture(NOISE)}}
    primitive = cube(file)
    primitive["material"] = file.add("materials", pbrMetallicRoughness=metal)
    primitive["attributes"]["TEXCOORD_0"] = file.accessor(np.tile(UVS, (6, 1)))
    file.show(primitive, scale=scale)
    # Another part, that does not vanish.
    file.show(primitive, translation=[2, 0, 0])
    bumps = np.full((32, 32, 3), [0.6, 0.5, 0.99], np.float32)
    _, after, _ = write(file, tmp_path, lambda mesh: replace(mesh, normal_map=bumps))
    for number in (0, 1):
        normals, along = after.attribute("NORMAL", number), after.attribute("TANGENT", number)[:, :3]
        for directions in (normals, along):
            assert np.abs(np.linalg.norm(directions, axis=1) - 1).max() < 1e-6
        assert np.abs((normals * along).sum(1)).max() < 1e-6


def test_tangents_of_morph_targets_are_named(file: GltfFile, tmp_path: Path):
    metal = {"baseColorTexture": {"index": file.texture(NOISE)}}
    primitive = file.quad(material=file.add("materials", pbrMetallicRoughness=metal))
    primitive["attributes"] |= {
        "NORMAL": file.accessor([[0, 0, 1]] * 4),
        "TANGENT": file.accessor([[1, 0, 0, 1]] * 4),
    }
    primitive["targets"] = [{"POSITION": file.accessor(np.zeros((4, 3)))}]
    file.show(primitive)
    assert notice(file, tmp_path, "normal_map") == ""
    primitive["targets"] += [{"TANGENT": file.accessor([[0, 1, 0]] * 4)}]
    assert notice(file, tmp_path, "normal_map") == "lost in the GLB: tangents of morph targets"
    assert notice(file, tmp_path, "vertices") == "lost in the GLB: tangents, tangents of morph targets"
    assert notice(file, tmp_path, "texture") == ""
