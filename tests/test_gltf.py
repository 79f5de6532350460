"""Each feature of glTF 2.0 in a small file of its own, with the value that the specification gives."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gltf_file import BYTE, FLOAT, QUAD, SHORT, TRIANGLES, TYPES, UBYTE, UINT, USHORT, UVS, GltfFile
from PIL import Image

from dreamflow_core.mesh.gltf import Part, Scene, read_gltf
from dreamflow_core.state import BadFile

HALF = np.sqrt(0.5)
WHITE = np.full((2, 2, 3), 255, np.uint8)
# What is at the middle of the first face.
FACE, MIDDLE = np.array([0]), np.full((1, 3), 1 / 3)


@pytest.fixture
def file() -> GltfFile:
    return GltfFile()


def only(scene: Scene) -> Part:
    (part,) = scene.parts
    return part


def volume(part: Part) -> float:
    """Six times the volume that the faces enclose, positive if they face outwards."""
    return float(np.linalg.det(part.positions[part.faces]).sum())


def shaped(file: GltfFile, **attributes: list[Any]) -> dict[str, Any]:
    """A triangle list of float attributes."""
    return {"attributes": {name: file.accessor(rows) for name, rows in attributes.items()}}


def pixel(*values: int) -> np.ndarray:
    """A picture of one colour."""
    return np.array([[values]], np.uint8)


def textured(file: GltfFile, texture: int, **used: Any) -> int:
    """A material with a base colour texture."""
    return file.add("materials", pbrMetallicRoughness={"baseColorTexture": {"index": texture, **used}})


def base_colour(scene: Scene) -> np.ndarray:
    return scene.base_colours(only(scene), FACE, MIDDLE)[0]


def seen_at(scene: Scene, uv: list[float]) -> np.ndarray:
    """What the base colour texture shows at a UV, linear RGBA."""
    return scene.materials[only(scene).material].base_texture.sample(np.array([uv]))[0]


def test_buffers_beside_and_inside(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    whole = only(read_gltf(file.save(tmp_path)))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ein Würfel.bin").write_bytes(file.blob)
    inside = "data:application/octet-stream;base64," + base64.b64encode(file.blob).decode()
    for uri in ("bin/ein Würfel.bin", "bin/ein%20W%C3%BCrfel.bin", "./bin/ein Würfel.bin", inside):
        part = only(read_gltf(file.save_apart(tmp_path, uri)))
        assert np.array_equal(part.positions, whole.positions)
        assert np.array_equal(part.faces, whole.faces)
    assert np.array_equal(whole.positions, np.float32(QUAD))


@pytest.mark.parametrize("uri", ["../a.bin", "b/../../a.bin", "/a.bin", "C:\\a.bin", "http://a.org/a.bin", "..\\a.bin"])
def test_nothing_outside_its_folder_is_read(uri: str, file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    (tmp_path / "a.bin").write_bytes(file.blob)
    (tmp_path / "inner").mkdir()
    with pytest.raises(BadFile, match="only files in its own folder"):
        read_gltf(file.save_apart(tmp_path / "inner", uri))


def test_missing_buffer(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    with pytest.raises(BadFile, match=r"a file.gltf cannot be used: it needs a.bin"):
        read_gltf(file.save_apart(tmp_path, "a.bin"))


def test_cut_buffer(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    (tmp_path / "a.bin").write_bytes(file.blob[:-1])
    with pytest.raises(BadFile, match=r"cut off after 91 of 92 bytes"):
        read_gltf(file.save_apart(tmp_path, "a.bin"))


def test_unknown_chunks_are_passed_over(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    data = file.glb() + b"\x04\0\0\0NEWSabcd"
    (tmp_path / "a.glb").write_bytes(data[:8] + len(data).to_bytes(4, "little") + data[12:])
    assert len(only(read_gltf(tmp_path / "a.glb")).faces) == 2


def test_the_document_is_left_as_it_was(file: GltfFile, tmp_path: Path):
    file.tree["extras"] = {"extensions": {"kept": 1.5}}
    file.show(file.quad(), name="a quad")
    document = read_gltf(file.save(tmp_path)).document
    assert document.tree == {**file.tree, "buffers": [{"byteLength": len(file.blob)}]}
    assert document.buffer(0) == file.blob


@pytest.mark.parametrize(
    ("component", "integers", "fractions"),
    [
        (BYTE, [[-128, -127], [127, 0], [0, 64]], [[-1, -1], [1, 0], [0, 64 / 127]]),
        (UBYTE, [[0, 255], [51, 102], [1, 254]], [[0, 1], [0.2, 0.4], [1 / 255, 254 / 255]]),
        (SHORT, [[-32768, -32767], [32767, 0], [1, 2]], [[-1, -1], [1, 0], [1 / 32767, 2 / 32767]]),
        (USHORT, [[0, 65535], [13107, 26214], [1, 2]], [[0, 1], [0.2, 0.4], [1 / 65535, 2 / 65535]]),
    ],
)
def test_integers(component: int, integers: list, fractions: list, file: GltfFile, tmp_path: Path):
    for normalized, right in ((True, fractions), (False, integers)):
        primitive = shaped(file, POSITION=QUAD[:3])
        # Rows of fewer than four bytes are padded to four.
        rows = np.zeros((3, 4), TYPES[component])
        rows[:, :2] = integers
        view = file.view(rows.tobytes(), byteStride=rows.strides[0])
        more = {"count": 3, "type": "VEC2", "normalized": normalized}
        primitive["attributes"]["TEXCOORD_0"] = file.add("accessors", bufferView=view, componentType=component, **more)
        file.tree.pop("scenes", None)
        file.show(primitive)
        assert np.abs(only(read_gltf(file.save(tmp_path))).uvs[0] - right).max() < 1e-7


def test_normalised_colours_and_weights(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    colours = [[0, 51, 255], [255, 0, 0], [0, 255, 0], [1, 2, 3]]
    rows = np.pad(np.array(colours, "u1"), ((0, 0), (0, 1)))
    view = file.view(rows.tobytes(), byteStride=4)
    kind = {"componentType": UBYTE, "normalized": True, "count": 4, "type": "VEC3"}
    primitive["attributes"]["COLOR_0"] = file.add("accessors", bufferView=view, **kind)
    primitive["attributes"]["WEIGHTS_0"] = file.accessor([[65535, 0, 0, 0]] * 4, USHORT, normalized=True)
    file.show(primitive)
    part = only(read_gltf(file.save(tmp_path)))
    assert np.abs(part.colours - np.c_[np.array(colours) / 255, np.ones(4)]).max() < 1e-7
    assert part.local["WEIGHTS_0"].dtype == np.float32
    assert np.array_equal(part.local["WEIGHTS_0"][0], [1, 0, 0, 0])


def test_quantised_positions(file: GltfFile, tmp_path: Path):
    file.uses("KHR_mesh_quantization", required=True)
    rows = np.zeros((4, 4), "<i2")
    rows[:, :3] = np.array(QUAD) / 0.6 * 300
    view = file.view(rows.tobytes(), byteStride=8)
    position = file.add("accessors", bufferView=view, componentType=SHORT, count=4, type="VEC3")
    file.show({"attributes": {"POSITION": position}, "indices": file.accessor(TRIANGLES, UBYTE)}, scale=[0.002] * 3)
    part = only(read_gltf(file.save(tmp_path)))
    assert np.abs(part.positions - QUAD).max() < 1e-12
    assert part.local["POSITION"].dtype == np.float32
    assert np.array_equal(part.local["POSITION"][0], [-300, -300, 0])


def test_interleaved_with_offsets(file: GltfFile, tmp_path: Path):
    rows = np.zeros(4, [("id", "<u2"), ("colour", "u1", 4), ("pad", "u1", 2), ("at", "<f4", 3), ("uv", "<f4", 2)])
    rows["at"], rows["uv"], rows["colour"], rows["id"] = QUAD, UVS, [10, 20, 30, 255], [1, 2, 3, 65535]
    view = file.view(b"head" + rows.tobytes(), byteStride=rows.itemsize)
    kinds = {"POSITION": (12, FLOAT, "VEC3"), "TEXCOORD_0": (24, FLOAT, "VEC2"), "_ID": (4, USHORT, "SCALAR")}
    attributes = {
        name: file.add("accessors", bufferView=view, byteOffset=start, componentType=kind, count=4, type=width)
        for name, (start, kind, width) in kinds.items()
    }
    file.show({"attributes": attributes, "indices": file.accessor(TRIANGLES, UINT)})
    part = only(read_gltf(file.save(tmp_path)))
    assert np.array_equal(part.positions, np.float32(QUAD))
    assert np.array_equal(part.uvs[0], UVS)
    assert np.array_equal(part.local["_ID"][:, 0], [1, 2, 3, 65535])
    assert part.local["_ID"].dtype == np.uint16


def test_columns_of_matrices_start_at_four_bytes(file: GltfFile, tmp_path: Path):
    columns = np.zeros((4, 2, 4), "u1")
    columns[:, :, :2] = np.arange(16).reshape(4, 2, 2)
    primitive = file.quad()
    view = file.view(columns.tobytes()[:-2])
    matrices = file.add("accessors", bufferView=view, componentType=UBYTE, count=4, type="MAT2")
    primitive["attributes"]["_SHEAR"] = matrices
    file.show(primitive)
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).local["_SHEAR"], np.arange(16).reshape(4, 4))


def test_sparse(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    indices = file.view(np.array([2, 3], "u1").tobytes())
    values = file.view(b"head" + np.array([[0.9, 1.4, 0], [-0.6, 2, 0]], "<f4").tobytes())
    file.tree["accessors"][primitive["attributes"]["POSITION"]]["sparse"] = {
        "count": 2,
        "indices": {"bufferView": indices, "componentType": UBYTE},
        "values": {"bufferView": values, "byteOffset": 4},
    }
    file.show(primitive)
    right = np.float32([QUAD[0], QUAD[1], [0.9, 1.4, 0], [-0.6, 2, 0]])
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).positions, right)


def test_sparse_over_zeros(file: GltfFile, tmp_path: Path):
    indices, values = file.view(np.array([1, 3], "<u4").tobytes()), file.view(np.ones((2, 3), "<f4").tobytes())
    sparse = {
        "count": 2,
        "indices": {"bufferView": indices, "componentType": UINT},
        "values": {"bufferView": values},
    }
    position = file.add("accessors", componentType=FLOAT, count=4, type="VEC3", sparse=sparse)
    file.show({"attributes": {"POSITION": position}, "indices": file.accessor(TRIANGLES, USHORT)})
    positions = only(read_gltf(file.save(tmp_path))).positions
    assert np.array_equal(positions, [[0, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 1]])


FIVE = ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (2, 0, 0))


@pytest.mark.parametrize(
    ("mode", "indices", "right"),
    [
        (4, [0, 2, 1, 1, 2, 3], [[0, 2, 1], [1, 2, 3]]),
        (5, [1, 0, 3, 2, 4], [[1, 0, 3], [0, 2, 3], [3, 2, 4]]),
        (5, [1, 0, 3, 3, 2, 4], [[1, 0, 3], [3, 4, 2]]),
        (6, [0, 2, 3, 1], [[2, 3, 0], [3, 1, 0]]),
        (5, None, [[0, 1, 2], [1, 3, 2], [2, 3, 4]]),
        (6, None, [[1, 2, 0], [2, 3, 0], [3, 4, 0]]),
    ],
)
def test_modes(mode: int, indices: list[int] | None, right: list, file: GltfFile, tmp_path: Path):
    primitive = {**shaped(file, POSITION=FIVE), "mode": mode}
    if indices is not None:
        primitive["indices"] = file.accessor(indices, UBYTE)
    file.show(primitive)
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).faces, right)


def test_without_indices(file: GltfFile, tmp_path: Path):
    file.show(shaped(file, POSITION=[*QUAD[:3], *QUAD[1:]]))
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).faces, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(("mode", "name"), [(0, "points"), (1, "lines"), (2, "lines"), (3, "lines")])
def test_points_and_lines(mode: int, name: str, file: GltfFile, tmp_path: Path):
    node = file.show({**shaped(file, POSITION=QUAD), "mode": mode})
    with pytest.raises(BadFile, match=f"it shows no triangles; the {name} of its mesh 0 are not read"):
        read_gltf(file.save(tmp_path))
    file.tree["meshes"][file.tree["nodes"][node]["mesh"]]["primitives"].append(file.quad())
    scene = read_gltf(file.save(tmp_path))
    assert only(scene).primitive == 1
    assert scene.warnings == [f"the {name} of its mesh 0 are not read"]


def test_a_triangle_cut_off(file: GltfFile, tmp_path: Path):
    file.show(file.quad([0, 1, 2, 0, 2]))
    scene = read_gltf(file.save(tmp_path))
    assert np.array_equal(only(scene).faces, [[0, 1, 2]])
    assert scene.warnings == ["the last triangle of its mesh 0 is cut off"]


def test_no_positions(file: GltfFile, tmp_path: Path):
    file.show(file.quad(), shaped(file, TEXCOORD_0=UVS))
    scene = read_gltf(file.save(tmp_path))
    assert only(scene).primitive == 0
    assert scene.warnings == ["primitive 1 of its mesh 0 has no positions"]


CORNER = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
OUTWARD = [0, 2, 1, 0, 1, 3, 1, 2, 3, 0, 3, 2]


def corner(file: GltfFile, **attributes: list[Any]) -> dict[str, Any]:
    """A tetrahedron whose faces face outwards."""
    primitive = shaped(file, POSITION=CORNER, **attributes)
    return {**primitive, "indices": file.accessor(OUTWARD, USHORT)}


def test_scale_then_rotate_then_move(file: GltfFile, tmp_path: Path):
    # A quarter turn about z takes x to y.
    move = {"translation": [10, 20, 30], "rotation": [0, 0, HALF, HALF], "scale": [2, 3, 4]}
    file.show(corner(file), **move)
    part = only(read_gltf(file.save(tmp_path)))
    right = [[10, 20, 30], [10, 22, 30], [7, 20, 30], [10, 20, 34]]
    assert np.abs(part.positions - right).max() < 1e-12
    assert np.array_equal(part.local["POSITION"], CORNER)
    assert np.abs(part.matrices[0] @ [0, 0, 1, 1] - [10, 20, 34, 1]).max() < 1e-12


def test_matrices_are_given_by_columns(file: GltfFile, tmp_path: Path):
    file.show(corner(file), matrix=[0, 2, 0, 0, -3, 0, 0, 0, 0, 0, 4, 0, 10, 20, 30, 1])
    right = [[10, 20, 30], [10, 22, 30], [7, 20, 30], [10, 20, 34]]
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).positions, right)


def test_hierarchy(file: GltfFile, tmp_path: Path):
    mesh = file.add("meshes", primitives=[corner(file)], name="corner")
    leaf = file.add("nodes", mesh=mesh, translation=[1, 0, 0])
    middle = file.add("nodes", children=[leaf], rotation=[0, 0, HALF, HALF])
    file.root(children=[middle], scale=[2, 2, 2])
    part = only(read_gltf(file.save(tmp_path)))
    assert np.abs(part.positions[0] - [0, 2, 0]).max() < 1e-12
    assert (part.node, part.name) == (leaf, "corner")


@pytest.mark.parametrize("scale", [[-1, 1, 1], [-1, -2, 1], [-1, -1, -3], [1, 1, 1]])
def test_mirrored_faces_still_face_outwards(scale: list[float], file: GltfFile, tmp_path: Path):
    up = [[0, 0, 1.0]] * 4
    file.show(corner(file, NORMAL=up, TANGENT=[[1.0, 0, 0, 1]] * 4), scale=scale)
    part = only(read_gltf(file.save(tmp_path)))
    assert volume(part) == pytest.approx(abs(np.prod(scale)))
    # The bitangent, which is +y where the vertices are, goes where they go.
    bitangent = np.cross(part.normals[0], part.tangents[0, :3]) * part.tangents[0, 3]
    assert np.array_equal(part.normals[0], [0, 0, np.sign(scale[2])])
    assert np.array_equal(bitangent, [0, np.sign(scale[1]), 0])


def test_normals_stay_upright_on_slopes(file: GltfFile, tmp_path: Path):
    # The plane x + y = 1, twice as wide: x / 2 + y = 1.
    slope = [[1.0, 0, 0], [0, 1, 0], [0, 1, 1]]
    file.show(shaped(file, POSITION=slope, NORMAL=[[HALF, HALF, 0]] * 3), scale=[2, 1, 1])
    normals = only(read_gltf(file.save(tmp_path))).normals
    assert np.abs(normals - np.array([1, 2, 0]) / np.sqrt(5)).max() < 1e-7


def test_flat_shapes_have_normals(file: GltfFile, tmp_path: Path):
    file.show(shaped(file, POSITION=QUAD[:3], NORMAL=[[0, 0, 1.0]] * 3), scale=[2, 1, 0])
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).normals, [[0, 0, 1]] * 3)


def test_tangents_without_normals_do_not_count(file: GltfFile, tmp_path: Path):
    file.show(shaped(file, POSITION=QUAD[:3], TANGENT=[[1.0, 0, 0, 1]] * 3))
    part = only(read_gltf(file.save(tmp_path)))
    assert part.normals is None and part.tangents is None
    assert "TANGENT" in part.local


def test_one_mesh_in_two_places(file: GltfFile, tmp_path: Path):
    mesh = file.add("meshes", primitives=[file.quad()])
    file.root(mesh=mesh)
    file.root(mesh=mesh, translation=[5, 0, 0])
    first, second = read_gltf(file.save(tmp_path)).parts
    assert np.array_equal(second.positions, first.positions + np.array([5, 0, 0]))
    assert second.local is first.local


def test_the_default_scene(file: GltfFile, tmp_path: Path):
    for x in range(3):
        file.show(file.quad(), translation=[x, 0, 0])
    file.tree["scenes"] = [{"nodes": [0]}, {"nodes": [2, 1]}]
    for scene, nodes in ((1, [2, 1]), (0, [0])):
        file.tree["scene"] = scene
        read = read_gltf(file.save(tmp_path))
        assert [part.node for part in read.parts] == nodes
        assert read.warnings == [f"of its 2 scenes only number {scene} is read"]
    del file.tree["scene"]
    assert [part.node for part in read_gltf(file.save(tmp_path)).parts] == [0]
    del file.tree["scenes"]
    assert [part.node for part in read_gltf(file.save(tmp_path)).parts] == [0, 1, 2]


def test_hidden_nodes(file: GltfFile, tmp_path: Path):
    file.uses("KHR_node_visibility")
    file.show(file.quad())
    child = file.add("nodes", mesh=0)
    file.root(children=[child], extensions={"KHR_node_visibility": {"visible": False}})
    scene = read_gltf(file.save(tmp_path))
    assert only(scene).node == 0
    assert scene.warnings == ["its node 2 and all below it are hidden"]


def test_instances(file: GltfFile, tmp_path: Path):
    file.uses("EXT_mesh_gpu_instancing", required=True)
    attributes = {
        "TRANSLATION": file.accessor([[1, 0, 0], [0, 0, 5]]),
        "ROTATION": file.accessor(np.array([[0, 0, 0, 1], [0, 0, HALF, HALF]]) * 32767, SHORT, normalized=True),
        "SCALE": file.accessor([[1, 1, 1], [2, 2, -2]]),
        "_ID": file.accessor([7, 8], UBYTE),
    }
    instancing = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    file.show(corner(file), translation=[0, 0, 100], extensions=instancing)
    first, second = read_gltf(file.save(tmp_path)).parts
    assert (first.instance, second.instance) == (0, 1)
    assert np.array_equal(first.positions, CORNER + np.array([1, 0, 100]))
    assert np.abs(second.positions - [[0, 0, 105], [0, 2, 105], [-2, 0, 105], [0, 0, 103]]).max() < 1e-12
    assert volume(second) == pytest.approx(8)


def morphing(file: GltfFile, **mesh: Any) -> int:
    primitive = shaped(file, POSITION=QUAD[:3], NORMAL=[[0, 0, 1.0]] * 3, TEXCOORD_0=UVS[:3])
    primitive["attributes"]["COLOR_0"] = file.accessor([[0.5, 0.5, 0.5, 0.25]] * 3)
    indices, values = file.view(b"\1"), file.view(np.array([[0, 0, 2]], "<f4").tobytes())
    sparse = {
        "count": 1,
        "indices": {"bufferView": indices, "componentType": UBYTE},
        "values": {"bufferView": values},
    }
    raised = file.add("accessors", componentType=FLOAT, count=3, type="VEC3", sparse=sparse)
    primitive["targets"] = [
        {"POSITION": raised, "NORMAL": file.accessor([[1.0, 0, -1]] * 3)},
        {"TEXCOORD_0": file.accessor([[1.0, 0]] * 3), "COLOR_0": file.accessor([[0.25, -1, 1.0]] * 3)},
    ]
    return file.add("meshes", primitives=[primitive], **mesh)


def test_the_nodes_weights_come_before_the_meshs(file: GltfFile, tmp_path: Path):
    mesh = morphing(file, weights=[0.5, 1])
    file.root(mesh=mesh)
    file.root(mesh=mesh, weights=[1, 0])
    second_up, first_up = read_gltf(file.save(tmp_path)).parts
    assert np.array_equal(second_up.positions, np.float32(QUAD[:3]) + np.array([[0], [1], [0]]) * [0, 0, 1])
    assert np.abs(second_up.normals - [HALF, 0, HALF]).max() < 1e-7
    assert np.array_equal(second_up.uvs[0], np.add(UVS[:3], [1, 0]))
    assert np.array_equal(second_up.colours, [[0.75, 0, 1, 0.25]] * 3)
    assert np.array_equal(first_up.positions[1], np.add(np.float32(QUAD[1]), [0, 0, 2]))
    assert np.array_equal(first_up.uvs[0], UVS[:3])
    assert np.array_equal(first_up.local["POSITION"], np.float32(QUAD[:3]))


def test_without_weights_nothing_moves(file: GltfFile, tmp_path: Path):
    file.root(mesh=morphing(file))
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).positions, np.float32(QUAD[:3]))


def skinned(file: GltfFile, joints: list[list[int]], weights: list[list[float]]) -> dict[str, Any]:
    primitive = shaped(file, POSITION=QUAD, NORMAL=[[1.0, 0, 0]] * 4)
    for part in range(len(joints[0]) // 4):
        of_set = slice(4 * part, 4 * part + 4)
        primitive["attributes"][f"JOINTS_{part}"] = file.accessor(np.array(joints)[:, of_set], UBYTE)
        primitive["attributes"][f"WEIGHTS_{part}"] = file.accessor(np.array(weights)[:, of_set])
    return {**primitive, "indices": file.accessor(TRIANGLES, USHORT)}


def bones(file: GltfFile, bind: list[np.ndarray] | None) -> dict[str, Any]:
    """A joint at the origin turned about z by a quarter, and one at (10, 0, 0), both below a node 1 above."""
    hand = file.add("nodes", translation=[10, 0, 0])
    turn = file.add("nodes", rotation=[0, 0, HALF, HALF])
    file.root(children=[turn, hand], translation=[0, 0, 1])
    skin: dict[str, Any] = {"joints": [turn, hand]}
    if bind is not None:
        skin["inverseBindMatrices"] = file.accessor(np.stack([matrix.T for matrix in bind]).reshape(-1, 16))
    file.add("skins", **skin)
    return {"skin": 0}


def test_joints_at_rest(file: GltfFile, tmp_path: Path):
    half = [[1, 0, 0, 0]] * 3 + [[0.5, 0.5, 0, 0]]
    weights = [[1.0, 0, 0, 0], [0, 1, 0, 0], half[3], [1, 0, 0, 0]]
    bind = [np.eye(4), np.eye(4)]
    bind[1][:3, 3] = [-10, 0, 5]
    primitive = skinned(file, [[0, 1, 0, 0]] * 4, weights)
    # Neither the node of a skinned mesh counts, nor what is above it.
    shown = file.add("nodes", mesh=file.add("meshes", primitives=[primitive]), scale=[3, 3, -3])
    file.tree["nodes"][shown] |= bones(file, bind)
    file.root(children=[shown], translation=[7, 7, 7])
    part = only(read_gltf(file.save(tmp_path)))
    turned = [[0.6, -0.6, 1], [0.6, -0.6, 6], [0, 0.6, 3.5], [-0.6, -0.6, 1]]
    turned[2] = [(-0.6 + 0.6) / 2, (0.6 + 0.6) / 2, (1 + 6) / 2]
    assert np.abs(part.positions - turned).max() < 1e-6
    assert np.abs(part.normals[:3] - [[0, 1, 0], [1, 0, 0], [HALF, HALF, 0]]).max() < 1e-6
    assert part.matrices.shape == (len(part.positions), 4, 4)
    assert np.array_equal(part.faces.reshape(-1), TRIANGLES)


def test_two_sets_of_joints_and_no_bind_matrices(file: GltfFile, tmp_path: Path):
    weights = [[0.25, 0, 0, 0, 0.75, 0, 0, 0]] * 4
    primitive = skinned(file, [[0, 9, 0, 0, 1, 9, 0, 0]] * 4, weights)
    file.show(primitive, **bones(file, None))
    corner = 0.25 * np.array([0.6, -0.6, 1]) + 0.75 * np.array([9.4, -0.6, 1])
    assert np.abs(only(read_gltf(file.save(tmp_path))).positions[0] - corner).max() < 1e-6


def test_a_joint_that_is_not_there(file: GltfFile, tmp_path: Path):
    file.show(skinned(file, [[0, 2, 0, 0]] * 4, [[0.5, 0.5, 0, 0]] * 4), **bones(file, None))
    with pytest.raises(BadFile, match="2 joints, but its mesh asks for more"):
        read_gltf(file.save(tmp_path))


def test_a_skin_on_a_mesh_without_joints(file: GltfFile, tmp_path: Path):
    file.show(file.quad(), **bones(file, None))
    with pytest.raises(BadFile, match="skin 0 is on a mesh without JOINTS_0"):
        read_gltf(file.save(tmp_path))


# Red, green above blue, white.
FOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
RED, GREEN, BLUE = np.eye(4)[:3] + np.eye(4)[3]


def four(file: GltfFile, **sampler: int) -> int:
    return file.texture(FOUR, sampler=file.add("samplers", magFilter=9728, **sampler))


def test_uvs_start_at_the_top_left(file: GltfFile, tmp_path: Path):
    file.show(file.quad(material=textured(file, four(file))))
    scene = read_gltf(file.save(tmp_path))
    for uv, colour in (([0.1, 0.1], RED), ([0.9, 0.1], GREEN), ([0.1, 0.9], BLUE)):
        assert np.array_equal(seen_at(scene, uv), colour)


@pytest.mark.parametrize(
    ("wrap", "at", "column"),
    [
        (10497, 2.25, 2),
        (10497, -0.35, 6),
        (33648, 2.25, 2),
        (33648, -0.35, 3),
        (33648, 1.25, 7),
        (33071, 2.25, 9),
        (33071, -0.35, 0),
    ],
)
def test_wrapping(wrap: int, at: float, column: int, file: GltfFile, tmp_path: Path):
    # Ten columns, then ten rows, tell by their red where a coordinate ends up.
    ramp = np.zeros((1, 10, 3), np.uint8)
    ramp[0, :, 0] = np.arange(10)
    for axis, picture in enumerate((ramp, ramp.swapaxes(0, 1))):
        other = 33071 if wrap != 33071 else 10497
        sampler = {"wrapS": other, "wrapT": other, ("wrapS", "wrapT")[axis]: wrap, "magFilter": 9728}
        texture = file.texture(picture, sampler=file.add("samplers", **sampler))
        file.tree.pop("scenes", None)
        file.show(file.quad(material=textured(file, texture)))
        uv = [0.5, 0.5]
        uv[axis] = at
        assert seen_at(read_gltf(file.save(tmp_path)), uv)[0] == pytest.approx(column / 255 / 12.92)


def test_without_a_sampler_textures_repeat(file: GltfFile, tmp_path: Path):
    file.show(file.quad(material=textured(file, file.texture(FOUR))))
    scene = read_gltf(file.save(tmp_path))
    assert np.allclose(seen_at(scene, [2.25, -0.75]), RED)


def test_between_texels_light_is_interpolated(file: GltfFile, tmp_path: Path):
    shades = np.array([[[0] * 3, [255] * 3]], np.uint8)
    file.show(file.quad(material=textured(file, file.texture(shades))))
    scene = read_gltf(file.save(tmp_path))
    assert seen_at(scene, [0.5, 0.5])[0] == pytest.approx(0.5)
    assert seen_at(scene, [0.375, 0.5])[0] == pytest.approx(0.25)
    assert seen_at(scene, [0.0, 0.5])[0] == pytest.approx(0.5)


def test_the_second_set_of_uvs(file: GltfFile, tmp_path: Path):
    primitive = file.quad(material=textured(file, four(file), texCoord=1))
    primitive["attributes"]["TEXCOORD_1"] = file.accessor([[0.75, 0.25]] * 4)
    file.show(primitive)
    scene = read_gltf(file.save(tmp_path))
    assert np.array_equal(base_colour(scene), GREEN)
    assert sorted(only(scene).uvs) == [0, 1]


def test_a_set_of_uvs_that_is_not_there(file: GltfFile, tmp_path: Path):
    file.show(file.quad(material=textured(file, four(file), texCoord=3)))
    scene = read_gltf(file.save(tmp_path))
    assert scene.warnings == ["primitive 0 of its mesh 0 has no TEXCOORD_3, so it does not show texture 0"]
    assert np.array_equal(base_colour(scene), np.ones(4))


@pytest.mark.parametrize(
    ("transform", "uv", "right"),
    [
        ({"scale": [0.5, 2]}, [0.4, 0.2], [0.2, 0.4]),
        ({"offset": [0.25, 0.5]}, [0.4, 0.2], [0.65, 0.7]),
        # The extension's own examples: the lower left quadrant turned by a quarter, and the origin below.
        ({"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]}, [0, 0], [0, 1]),
        ({"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]}, [1, 1], [0.5, 0.5]),
        ({"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]}, [1, 0], [0, 0.5]),
        ({"offset": [0, 1], "scale": [1, -1]}, [0.25, 0.25], [0.25, 0.75]),
        # Scale comes before rotation.
        ({"rotation": np.pi / 2, "scale": [3, 1]}, [1, 0], [0, -3]),
    ],
)
def test_transform(transform: dict, uv: list, right: list, file: GltfFile, tmp_path: Path):
    file.uses("KHR_texture_transform", required=True)
    extensions = {"KHR_texture_transform": transform}
    file.show(file.quad(material=textured(file, four(file), extensions=extensions)))
    scene = read_gltf(file.save(tmp_path))
    texture = scene.materials[0].base_texture
    assert np.abs(texture.transform(np.array([uv])) - right).max() < 1e-12


def test_a_transform_has_its_own_uvs(file: GltfFile, tmp_path: Path):
    file.uses("KHR_texture_transform")
    extensions = {"KHR_texture_transform": {"texCoord": 1, "scale": [0.5, 0.5]}}
    primitive = file.quad(material=textured(file, four(file), texCoord=0, extensions=extensions))
    primitive["attributes"]["TEXCOORD_1"] = file.accessor([[0.5, 1.5]] * 4)
    file.show(primitive)
    assert np.array_equal(base_colour(read_gltf(file.save(tmp_path))), BLUE)


@pytest.mark.parametrize(
    ("picture", "form", "right"),
    [
        (Image.fromarray(np.full((2, 2), 32768, np.uint16)), "PNG", [32768 / 65535] * 3 + [1]),
        (Image.new("L", (2, 2), 51), "PNG", [0.2, 0.2, 0.2, 1]),
        (Image.new("LA", (2, 2), (51, 102)), "PNG", [0.2, 0.2, 0.2, 0.4]),
        (Image.new("RGBA", (2, 2), (51, 102, 153, 0)), "PNG", [0.2, 0.4, 0.6, 0]),
        (Image.new("1", (2, 2), 1), "PNG", [1, 1, 1, 1]),
        (Image.new("RGB", (2, 2), (51, 102, 153)).quantize(4), "PNG", [0.2, 0.4, 0.6, 1]),
        (Image.new("RGBA", (2, 2), (51, 102, 153, 51)).quantize(4), "PNG", [0.2, 0.4, 0.6, 0.2]),
        (Image.new("L", (8, 8), 51), "JPEG", [0.2, 0.2, 0.2, 1]),
        (Image.new("RGBA", (2, 2), (51, 102, 153, 204)), "WEBP", [0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_pictures(picture: Image.Image, form: str, right: list, file: GltfFile, tmp_path: Path):
    if form == "WEBP":
        file.uses("EXT_texture_webp", required=True)
        source = file.image(picture, form)
        texture = file.add("textures", extensions={"EXT_texture_webp": {"source": source}})
    else:
        texture = file.texture(picture, form)
    file.show(file.quad(material=textured(file, texture)))
    texture = read_gltf(file.save(tmp_path)).materials[0].base_texture
    assert np.abs(texture.sample(np.array([[0.3, 0.8]]), display=False) - right).max() < 1e-6
    view = file.tree["bufferViews"][file.tree["images"][0]["bufferView"]]
    assert texture.picture.data == file.blob[view["byteOffset"] :][: view["byteLength"]]


def test_webp_comes_before_its_stand_in(file: GltfFile, tmp_path: Path):
    file.uses("EXT_texture_webp")
    webp = file.image(pixel(0, 255, 0), "WEBP")
    texture = file.texture(pixel(255, 0, 0), extensions={"EXT_texture_webp": {"source": webp}})
    file.show(file.quad(material=textured(file, texture)))
    assert np.array_equal(base_colour(read_gltf(file.save(tmp_path))), GREEN)


def test_pictures_beside_the_file(file: GltfFile, tmp_path: Path):
    (tmp_path / "maps").mkdir()
    Image.fromarray(pixel(0, 0, 255)).save(tmp_path / "maps" / "a b.png")
    texture = file.add("textures", source=file.add("images", uri="maps/a%20b.png"))
    file.show(file.quad(material=textured(file, texture)))
    assert np.array_equal(base_colour(read_gltf(file.save(tmp_path))), BLUE)


@pytest.mark.parametrize(("cut", "reason"), [(50, "cannot be read"), (2, "is no PNG, JPEG, WEBP picture")])
def test_broken_pictures_are_named(cut: int, reason: str, file: GltfFile, tmp_path: Path):
    file.show(file.quad(material=textured(file, four(file))))
    file.tree["bufferViews"][file.tree["images"][0]["bufferView"]]["byteLength"] = cut
    file.tree["images"][0]["name"] = "brick"
    scene = read_gltf(file.save(tmp_path))
    with pytest.raises(BadFile, match=f"a file.glb: its image 0 brick {reason}"):
        base_colour(scene)


def test_basis_pictures(file: GltfFile, tmp_path: Path):
    file.uses("KHR_texture_basisu")
    basis = file.add("images", bufferView=file.view(b"KTX 20"), mimeType="image/ktx2")
    texture = file.texture(pixel(255, 0, 0), extensions={"KHR_texture_basisu": {"source": basis}})
    file.show(file.quad(material=textured(file, texture)))
    assert np.array_equal(base_colour(read_gltf(file.save(tmp_path))), RED)
    del file.tree["textures"][0]["source"]
    with pytest.raises(BadFile, match=r"texture 0 is KHR_texture_basisu.*gltf-transform/cli ktxdecompress in.glb"):
        read_gltf(file.save(tmp_path))


def test_base_colour_is_factor_times_texture_times_colour(file: GltfFile, tmp_path: Path):
    texture = file.texture(pixel(64, 124, 231, 255))
    base = {"baseColorTexture": {"index": texture}, "baseColorFactor": [0.2, 1.0, 0.7, 1.0]}
    primitive = file.quad(material=file.add("materials", pbrMetallicRoughness=base))
    file.show(primitive)
    # The specification's example, to its three digits.
    right = np.array([0.0102, 0.202, 0.5593, 1.0])
    assert np.abs(base_colour(read_gltf(file.save(tmp_path))) - right).max() < 5e-4
    primitive["attributes"]["COLOR_0"] = file.accessor([[0.5, 0.25, 1, 0.5]] * 4)
    assert np.abs(base_colour(read_gltf(file.save(tmp_path))) - right * [0.5, 0.25, 1, 0.5]).max() < 5e-4


def test_without_a_material(file: GltfFile, tmp_path: Path):
    primitive = file.quad()
    primitive["attributes"]["COLOR_0"] = file.accessor([[2, -1, 0.25]] * 4)
    file.show(primitive)
    scene = read_gltf(file.save(tmp_path))
    material = scene.materials[None]
    assert np.array_equal(base_colour(scene), [1, 0, 0.25, 1])
    assert (material.metallic, material.roughness, material.alpha_mode, material.unlit) == (1, 1, "OPAQUE", False)
    assert not material.double_sided and not list(material.textures())


def test_alpha_modes(file: GltfFile, tmp_path: Path):
    for more in ({"alphaMode": "MASK"}, {"alphaMode": "MASK", "alphaCutoff": 0.2}, {"alphaMode": "BLEND"}, {}):
        file.show(file.quad(material=file.add("materials", **more)))
    alphas = np.array([0.1, 0.2, 0.5, 1])
    covered = [m.coverage(alphas).tolist() for m in read_gltf(file.save(tmp_path)).materials.values()]
    assert covered == [[0, 0, 1, 1], [0, 1, 1, 1], [0.1, 0.2, 0.5, 1], [1, 1, 1, 1]]


def test_unlit_and_double_sided_are_each_materials_own(file: GltfFile, tmp_path: Path):
    file.uses("KHR_materials_unlit")
    file.show(file.quad(material=file.add("materials", extensions={"KHR_materials_unlit": {}})))
    file.show(file.quad(material=file.add("materials", doubleSided=True, name="leaf")))
    first, second = read_gltf(file.save(tmp_path)).materials.values()
    assert (first.unlit, first.double_sided, first.name) == (True, False, "")
    assert (second.unlit, second.double_sided, second.name) == (False, True, "leaf")


def test_diffuse_of_specular_and_glossiness(file: GltfFile, tmp_path: Path):
    name = "KHR_materials_pbrSpecularGlossiness"
    file.uses(name)
    diffuse = {"diffuseFactor": [0.5, 0.25, 1, 0.5], "diffuseTexture": {"index": file.texture(pixel(255, 255, 0))}}
    base = {"baseColorFactor": [0, 0, 0, 1]}
    material = file.add("materials", pbrMetallicRoughness=base, extensions={name: diffuse})
    file.show(file.quad(material=material))
    assert np.array_equal(base_colour(read_gltf(file.save(tmp_path))), [0.5, 0.25, 0, 0.5])


def test_the_other_textures_are_kept(file: GltfFile, tmp_path: Path):
    file.uses("KHR_materials_emissive_strength")
    metal, bumps, shade, glow = (file.texture(pixel(10 * k, 20, 30)) for k in range(1, 5))
    rough = {"metallicFactor": 0.25, "roughnessFactor": 0.5, "metallicRoughnessTexture": {"index": metal}}
    material = file.add(
        "materials",
        pbrMetallicRoughness=rough,
        normalTexture={"index": bumps, "scale": 0.75, "texCoord": 1},
        occlusionTexture={"index": shade, "strength": 0.125},
        emissiveTexture={"index": glow},
        emissiveFactor=[0.5, 1, 0],
        extensions={"KHR_materials_emissive_strength": {"emissiveStrength": 4}},
    )
    primitive = file.quad(material=material)
    primitive["attributes"]["TEXCOORD_1"] = file.accessor(UVS)
    file.show(primitive)
    read = read_gltf(file.save(tmp_path)).materials[material]
    assert (read.metallic, read.roughness, read.emissive) == (0.25, 0.5, (2, 4, 0))
    assert (read.normal_texture.strength, read.normal_texture.tex_coord) == (0.75, 1)
    assert read.occlusion_texture.strength == 0.125
    kept = (read.metallic_roughness_texture, read.normal_texture, read.occlusion_texture, read.emissive_texture)
    assert [texture.picture.pixels[0, 0, 0] for texture in kept] == [10, 20, 30, 40]
    assert [texture.number for texture in read.textures()] == [metal, bumps, shade, glow]


def test_required_ones_that_are_not_known(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    file.uses("EXT_nobody_knows", required=True)
    with pytest.raises(BadFile, match=r"a file.glb cannot be used: it requires the extension EXT_nobody_knows"):
        read_gltf(file.save(tmp_path))


def test_others_are_named(file: GltfFile, tmp_path: Path):
    glass = {"KHR_materials_transmission": {"transmissionFactor": 1}}
    file.show(file.quad(material=file.add("materials", extensions=glass)))
    file.uses("KHR_lights_punctual", required=True)
    file.tree["extensions"] = {"KHR_lights_punctual": {"lights": [{"type": "point"}]}, "KHR_xmp_json_ld": {}}
    file.add("animations", channels=[], samplers=[])
    assert read_gltf(file.save(tmp_path)).warnings == [
        "its animations stand still",
        "its extension KHR_lights_punctual is not applied",
        "its extension KHR_materials_transmission is not applied",
    ]


# A quad with UVs upright and four colours, by Google's own encoder (draco3d 1.5.7, 14 and 12 bits).
DRACO = (
    "RFJBQ08CAgEBAAAABAICAgAAAR//ARH/ARH/ARED/wABAAAAAQAAAQAJAwAAAgEDCQIAAQIBAgIDAAIBAQEBAAMDATABEAMAKIKYAAAAAAD/PwAA"
    "mpkZv5qZGb8AAAAAmpmZPw4FAQEAAwMBMAEQAwAkgiYAAgAAAAEBIAAAAAD/DwAAAAAAAAAAAAAAAIA/DAEBAQAJAwEQARAPARABEAMAtECRzJjL"
    "0IEyAAAAAP8AAAA="
)
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (51, 102, 204))
# The same quad by meshoptimizer's own encoder (1.3): shorts of which the fourth is padding, indices as triangles
# and one after the other, and octahedral normals of eight bits.
PACKED_POSITIONS = "oAEzAAAAAwQBEgAAAAEMAAAAAwEEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAGAAYAAAAAA"
PACKED_TRIANGLES = "4fAAAHaHVmd4qYZliWiYAWkAAA=="
PACKED_SEQUENCE = "0QAEBAQAAAAA"
PACKED_NORMALS = "oAE/AAAA/v2AAQ8AAAD9AwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAfwA="


def draco(file: GltfFile) -> None:
    file.uses("KHR_draco_mesh_compression", required=True)
    kinds = {"POSITION": (FLOAT, "VEC3"), "TEXCOORD_0": (FLOAT, "VEC2"), "COLOR_0": (UBYTE, "VEC3")}
    attributes = {
        name: file.add("accessors", componentType=kind, type=width, count=4, normalized=kind == UBYTE)
        for name, (kind, width) in kinds.items()
    }
    indices = file.add("accessors", componentType=USHORT, type="SCALAR", count=6)
    packed = {"bufferView": file.view(base64.b64decode(DRACO)), "attributes": dict(zip(kinds, range(3)))}
    extensions = {"KHR_draco_mesh_compression": packed}
    file.show({"attributes": attributes, "indices": indices, "extensions": extensions})


def test_draco(file: GltfFile, tmp_path: Path):
    draco(file)
    part = only(read_gltf(file.save(tmp_path)))
    # The encoder may put the vertices in another order.
    order = [int(np.abs(part.positions - corner).sum(axis=1).argmin()) for corner in QUAD]
    assert np.abs(part.positions[order] - QUAD).max() < 1e-4
    assert np.abs(part.uvs[0][order] - UVS).max() < 1e-3
    assert np.abs(part.colours[order, :3] - np.array(COLOURS) / 255).max() < 1e-7
    faces = {tuple(np.roll(face, -face.argmin())) for face in np.argsort(order)[part.faces]}
    assert faces == {(0, 1, 2), (0, 2, 3)}


def test_draco_with_a_plain_copy(file: GltfFile, tmp_path: Path):
    draco(file)
    file.tree["meshes"][0]["primitives"][0] |= {"attributes": file.quad()["attributes"]}
    file.tree["meshes"][0]["primitives"][0]["indices"] = file.accessor(TRIANGLES, USHORT)
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).positions, np.float32(QUAD))


def test_draco_that_is_not_what_it_says(file: GltfFile, tmp_path: Path):
    draco(file)
    file.tree["accessors"][1]["count"] = 5
    with pytest.raises(BadFile, match="its compressed TEXCOORD_0 is not the one that it describes"):
        read_gltf(file.save(tmp_path))


def packed(file: GltfFile, data: str, count: int, stride: int, mode: str, **more: str) -> int:
    """A buffer view compressed with meshoptimizer."""
    raw = base64.b64decode(data)
    view = file.view(raw)
    start = file.tree["bufferViews"][view]["byteOffset"]
    described = {"buffer": 0, "byteOffset": start, "byteLength": len(raw), "count": count, "byteStride": stride}
    extensions = {"EXT_meshopt_compression": {**described, "mode": mode, **more}}
    file.tree["bufferViews"].pop()
    strides = {"byteStride": stride} if mode == "ATTRIBUTES" else {}
    length = count * stride
    return file.add("bufferViews", buffer=1, byteLength=length, extensions=extensions, **strides)


@pytest.mark.parametrize(("data", "mode"), [(PACKED_TRIANGLES, 4), (PACKED_SEQUENCE, 6)])
def test_meshopt(data: str, mode: int, file: GltfFile, tmp_path: Path):
    pytest.importorskip("meshopt", reason="it has no wheel for Python 3.10") if sys.version_info < (3, 11) else None
    file.uses("EXT_meshopt_compression", required=True)
    file.tree["buffers"] = [{"byteLength": 1000, "extensions": {"EXT_meshopt_compression": {"fallback": True}}}]
    positions = packed(file, PACKED_POSITIONS, 4, 8, "ATTRIBUTES")
    normals = packed(file, PACKED_NORMALS, 4, 4, "ATTRIBUTES", filter="OCTAHEDRAL")
    count, coded = (6, "TRIANGLES") if mode == 4 else (4, "INDICES")
    indices = packed(file, data, count, 2, coded)
    kinds = {"POSITION": (positions, SHORT), "NORMAL": (normals, BYTE)}
    attributes = {
        name: file.add("accessors", bufferView=view, componentType=kind, type="VEC3", count=4, normalized=True)
        for name, (view, kind) in kinds.items()
    }
    numbers = file.add("accessors", bufferView=indices, componentType=USHORT, type="SCALAR", count=count)
    file.show({"attributes": attributes, "indices": numbers, "mode": mode})
    part = only(read_gltf(file.save(tmp_path)))
    assert np.array_equal(part.positions, np.sign(QUAD))
    assert np.abs(part.normals - [[0, 0, 1], [1, 0, 0], [0, -1, 0], [0, HALF, -HALF]]).max() < 0.02
    assert sorted(map(sorted, part.faces.tolist())) == [[0, 1, 2], [0, 2, 3]]


def test_meshopt_with_a_plain_copy(file: GltfFile, tmp_path: Path):
    file.uses("EXT_meshopt_compression")
    (tmp_path / "plain.bin").write_bytes(np.array(QUAD, "<f4").tobytes())
    file.tree["buffers"] = [{"byteLength": 48, "uri": "plain.bin"}]
    view = packed(file, PACKED_POSITIONS, 4, 12, "ATTRIBUTES")
    position = file.add("accessors", bufferView=view, componentType=FLOAT, type="VEC3", count=4)
    file.show({"attributes": {"POSITION": position}, "indices": file.accessor(TRIANGLES, USHORT)})
    assert np.array_equal(only(read_gltf(file.save(tmp_path))).positions, np.float32(QUAD))


@pytest.mark.parametrize("package", ["DracoPy", "meshopt"])
def test_without_the_package(package: str, file: GltfFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "DracoPy":
        draco(file)
    else:
        file.tree["buffers"] = [{"byteLength": 1000}]
        view = packed(file, PACKED_POSITIONS, 4, 8, "ATTRIBUTES")
        position = file.add("accessors", bufferView=view, componentType=SHORT, type="VEC3", count=4)
        file.show({"attributes": {"POSITION": position}})
    with pytest.raises(BadFile, match=f"_compression: pip install {package}, or convert it first: npx .* copy in"):
        read_gltf(file.save(tmp_path))


def broken(change: str, file: GltfFile) -> None:
    """Spoil a file of one quad in one way."""
    tree = file.tree
    primitive, node = tree["meshes"][0]["primitives"][0], tree["nodes"][0]
    position, uvs, view = tree["accessors"][0], tree["accessors"][1], tree["bufferViews"][0]
    if change == "an accessor that is not there":
        primitive["attributes"]["POSITION"] = 99
    elif change == "a number below zero":
        primitive["attributes"]["POSITION"] = -1
    elif change == "a number that is none":
        primitive["material"] = "brick"
    elif change == "elements beyond the buffer view":
        position["count"] = 5
    elif change == "a huge count":
        uvs["count"] = 10**12
    elif change == "a huge count of zeros":
        del uvs["bufferView"]
        uvs["count"] = 10**12
    elif change == "a buffer view beyond the buffer":
        view["byteLength"] = 10**9
    elif change == "indices beyond the vertices":
        primitive["indices"] = file.accessor([0, 1, 4], USHORT)
    elif change == "attributes of different lengths":
        primitive["attributes"]["TEXCOORD_0"] = file.accessor(UVS[:3])
    elif change == "a sparse index beyond the elements":
        part = {"bufferView": file.view(b"\4"), "componentType": UBYTE}
        position["sparse"] = {"count": 1, "indices": part, "values": {"bufferView": 0}}
    elif change == "NaN":
        primitive["attributes"]["TEXCOORD_0"] = file.accessor([[np.nan, 0]] * 4)
    elif change == "a ring of nodes":
        tree["nodes"] += [{"children": [2]}, {"children": [1]}]
    elif change == "two parents":
        tree["nodes"] += [{"children": [0]}, {"children": [0]}]
    elif change == "a matrix with perspective":
        node["matrix"] = [1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    elif change == "a place at infinity":
        node["translation"] = [1e400, 0, 0]
    elif change == "a component type that glTF lacks":
        position["componentType"] = 5124
    elif change == "a mode that glTF lacks":
        primitive["mode"] = 7
    elif change == "no attributes":
        del primitive["attributes"]
    elif change == "a list where an object should be":
        tree["nodes"] = [[]]
    elif change == "a scene that is not there":
        tree["scene"] = 1
    elif change == "billions of vertices":
        tree["nodes"] = [{"mesh": 0} for _ in range(14000)]
        tree["scenes"] = [{"nodes": list(range(14000))}]
        primitive["attributes"] = {"POSITION": file.accessor(np.zeros((10000, 3)))}
    elif change == "glTF 1.0":
        tree["asset"]["version"] = "1.0"
    elif change == "a later glTF":
        tree["asset"] |= {"version": "2.1", "minVersion": "2.1"}
    elif change == "no asset":
        del tree["asset"]


BROKEN = {
    "an accessor that is not there": "number 99 of its 3 accessors",
    "a number below zero": "number -1 of its 3 accessors",
    "a number that is none": "number brick of its 0 materials",
    "elements beyond the buffer view": "5 elements up to byte 60 of a buffer view of 48",
    "a huge count": "1000000000000 elements up to byte",
    "a huge count of zeros": "1000000000000 elements of zeros",
    "a buffer view beyond the buffer": "bytes 0 to 1000000000 in a buffer of 92",
    "indices beyond the vertices": "4 vertices but indices up to 4",
    "attributes of different lengths": "4 positions but 3 of TEXCOORD_0",
    "a sparse index beyond the elements": "displaces element 4 of 4",
    "NaN": "TEXCOORD_0 contains NaN",
    "a ring of nodes": "children of each other",
    "two parents": "node 0 has two parents",
    "a matrix with perspective": "matrix of a node is not affine",
    "a place at infinity": "node lies at infinity",
    "a component type that glTF lacks": "type 5124",
    "a mode that glTF lacks": "mode 7",
    "no attributes": "lacks 'attributes'",
    "a list where an object should be": "is broken",
    "a scene that is not there": "number 1 of its 1 scenes",
    "billions of vertices": "show 140000000 vertices; at most 134217728 are read",
    "glTF 1.0": "it is glTF 1.0; only glTF 2.0",
    "a later glTF": "it is glTF 2.1; only glTF 2.0",
    "no asset": "it is not glTF",
}


@pytest.mark.parametrize("change", BROKEN)
def test_one_line_names_the_file_and_what_is_wrong(change: str, file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    assert read_gltf(file.save(tmp_path)).parts
    broken(change, file)
    with pytest.raises(BadFile) as refusal:
        read_gltf(file.save(tmp_path))
    assert BROKEN[change] in str(refusal.value)
    assert str(refusal.value).startswith(str(tmp_path / "a file.glb"))
    assert "\n" not in str(refusal.value)


def test_missing(tmp_path: Path):
    with pytest.raises(BadFile, match=r"there is no file .*none.glb"):
        read_gltf(tmp_path / "none.glb")


def test_cut_anywhere(file: GltfFile, tmp_path: Path):
    file.show(file.quad())
    data = file.glb()
    for length in range(len(data)):
        (tmp_path / "a.glb").write_bytes(data[:length])
        with pytest.raises(BadFile, match=r"a\.glb (cannot be used|is broken): "):
            read_gltf(tmp_path / "a.glb")


def test_any_value_of_the_json_replaced(file: GltfFile, tmp_path: Path):
    """Whatever stands where in the JSON, the file is read or refused."""
    file.uses("EXT_mesh_gpu_instancing")
    primitive = file.quad(material=textured(file, file.texture(WHITE, sampler=file.add("samplers")), texCoord=0))
    primitive["targets"] = [{"POSITION": file.accessor(QUAD)}]
    instancing = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": file.accessor([[0, 0, 1]])}}}
    file.show(primitive, weights=[0.5], rotation=[0, 0, 0, 1], extensions=instancing)
    file.show(skinned(file, [[0] * 4] * 4, [[1.0, 0, 0, 0]] * 4), **bones(file, None))
    assert len(read_gltf(file.save(tmp_path)).parts) == 2
    whole, outcomes = json.dumps(file.tree), set()

    def places(part: Any) -> list[tuple[Any, Any]]:
        items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else []
        return [found for key, value in list(items) for found in [(part, key), *places(value)]]

    for number in range(len(places(file.tree))):
        for value in (None, -1, 1e300, "x", [[]], {}):
            file.tree = json.loads(whole)
            part, key = places(file.tree)[number]
            part[key] = value
            try:
                outcomes.add(bool(read_gltf(file.save(tmp_path)).parts))
            except BadFile as refusal:
                outcomes.add(str(refusal).partition(": ")[0])
    name = str(tmp_path / "a file.glb")
    assert outcomes == {True, f"{name} cannot be used", f"{name} is broken"}
