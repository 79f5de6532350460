"""Each feature of the mesh formats that our pictures show, in a small file of its own, as three.js shows it.

docs/meshes.md names these files by the names of the functions here.
"""

from __future__ import annotations

import ast
import base64
import copy
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_docs import MARKDOWN, ROOT
from gltf_file import BYTE, FLOAT, QUAD, SHORT, TRIANGLES, TYPES, UBYTE, UINT, USHORT, UVS, GltfFile
from other_tools import Missing
from PIL import Image
from test_gltf import PACKED_POSITIONS, PACKED_TRIANGLES, bones, draco, packed, skinned
from threejs import BACKGROUND, ThreeJs, psnr, unlit_pictures

from dreamflow_core.cameras import Cameras
from dreamflow_core.mesh.files import load_mesh, save_mesh
from dreamflow_core.mesh.gltf import read_gltf
from dreamflow_core.mesh.gltf_document import Document, objects
from dreamflow_core.mesh.gltf_materials import Material
from dreamflow_core.mesh.obj import read_obj
from dreamflow_core.mesh.prepare import paintable
from dreamflow_core.state import BadFile

SIZE = 128
VIEWS = Cameras(*torch.tensor([[0.0, 40.0, 200.0], [0.0, 25.0, -20.0], [2.4] * 3, [50.0] * 3]))
"""The front, three quarters from above, and behind from below."""
ALIKE = 30.0
"""dB; edges are smoothed in different ways."""
HALF = np.sqrt(0.5)
FOUR = np.kron(
    np.array([[[220, 30, 30], [30, 180, 30]], [[30, 30, 220], [240, 240, 100]]], np.uint8),
    np.ones((32, 32, 1), np.uint8),
)
"""Red, green / blue, yellow."""
CORNERS = [[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.2]]

Files = Path | tuple[Path, Path]
"""A file; and one of the same look for three.js, where it does not know the feature."""
FEATURES: dict[str, Callable[[Path], Files]] = {}


def feature(build: Callable[[Path], Files]) -> Callable[[Path], Files]:
    FEATURES[build.__name__] = build
    return build


def gltf(build: Callable[[GltfFile], Any]) -> Callable[[Path], Files]:
    """A feature of a .glb file, which `build` fills."""

    def save(folder: Path) -> Path:
        file = GltfFile()
        build(file)
        return file.save(folder)

    save.__name__ = build.__name__
    return feature(save)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreeJs]:
    try:
        program = ThreeJs(tmp_path_factory.mktemp("browser"))
    except Missing as missing:
        pytest.skip(str(missing))
    yield program
    program.close()


def textured(file: GltfFile, pixels: np.ndarray | Image.Image = FOUR, form: str = "PNG", **used: Any) -> int:
    """A material with a picture; `used` says how."""
    base = {"index": file.texture(pixels, form), **used}
    return file.add("materials", pbrMetallicRoughness={"baseColorTexture": base})


def coloured(file: GltfFile, *factor: float, **more: Any) -> int:
    return file.add("materials", pbrMetallicRoughness={"baseColorFactor": [*factor, 1]}, **more)


def tetrahedron(file: GltfFile, **more: Any) -> dict[str, Any]:
    """A part of which every side tells where it went: four colours, four lengths."""
    corners = [[0.0, 0, 0], [0.7, 0, 0], [0, 0.5, 0], [0, 0, 0.9]]
    attributes = {"POSITION": file.accessor(corners), "COLOR_0": file.accessor(CORNERS)}
    return {"attributes": attributes, "indices": file.accessor([0, 2, 1, 0, 1, 3, 1, 2, 3, 0, 3, 2], USHORT), **more}


@gltf
def plain(file: GltfFile) -> None:
    file.show(file.quad())


@feature
def files_beside(folder: Path) -> Path:
    file = GltfFile()
    Image.fromarray(FOUR).save(folder / "four colours.png")
    texture = file.add("textures", source=file.add("images", uri="four%20colours.png"))
    material = file.add("materials", pbrMetallicRoughness={"baseColorTexture": {"index": texture}})
    file.show(file.quad(material=material))
    (folder / "a b.bin").write_bytes(file.blob)
    return file.save_apart(folder, "a%20b.bin")


@feature
def data_uris(folder: Path) -> Path:
    file = GltfFile()
    file.show(file.quad(material=textured(file)))
    return file.save_apart(folder, "data:application/octet-stream;base64," + base64.b64encode(file.blob).decode())


@gltf
def normalised_integers(file: GltfFile) -> None:
    primitive = file.quad(material=textured(file))
    uvs = np.zeros((4, 4), "<u1")
    uvs[:, :2] = np.array(UVS) * 255
    kind = {"bufferView": file.view(uvs.tobytes(), byteStride=4), "componentType": UBYTE, "normalized": True}
    primitive["attributes"]["TEXCOORD_0"] = file.add("accessors", count=4, type="VEC2", **kind)
    colours = np.round(np.array([[*corner, 1] for corner in CORNERS]) * 65535)
    primitive["attributes"]["COLOR_0"] = file.accessor(colours, USHORT, normalized=True)
    file.show(primitive)


@gltf
def interleaved(file: GltfFile) -> None:
    rows = np.zeros(4, [("colour", "u1", 4), ("at", "<f4", 3), ("uv", "<f4", 2)])
    rows["at"], rows["uv"], rows["colour"] = QUAD, UVS, [200, 220, 240, 255]
    view = file.view(b"head" + rows.tobytes(), byteStride=rows.itemsize)
    kinds = {
        "POSITION": {"byteOffset": 8, "componentType": FLOAT, "type": "VEC3"},
        "TEXCOORD_0": {"byteOffset": 20, "componentType": FLOAT, "type": "VEC2"},
        "COLOR_0": {"byteOffset": 4, "componentType": UBYTE, "type": "VEC4", "normalized": True},
    }
    attributes = {name: file.add("accessors", bufferView=view, count=4, **kind) for name, kind in kinds.items()}
    indices = file.accessor(TRIANGLES, UINT)
    file.show({"attributes": attributes, "indices": indices, "material": textured(file)})


@gltf
def sparse(file: GltfFile) -> None:
    primitive = file.quad()
    indices = file.view(np.array([2, 3], "u1").tobytes())
    values = file.view(np.array([[0.9, 1.2, 0.3], [-0.2, 0.4, 0.6]], "<f4").tobytes())
    file.tree["accessors"][primitive["attributes"]["POSITION"]]["sparse"] = {
        "count": 2,
        "indices": {"bufferView": indices, "componentType": UBYTE},
        "values": {"bufferView": values},
    }
    file.show(primitive)


LADDER = [[-0.9, -0.4, 0], [-0.8, 0.4, 0], [0, -0.4, 0.2], [0.1, 0.5, 0], [0.8, -0.2, 0], [0.9, 0.3, 0.3]]
LADDER_COLOURS = [*CORNERS, *CORNERS[:2]]


def ladder(file: GltfFile, mode: int, indices: list[int] | None) -> None:
    attributes = {"POSITION": file.accessor(LADDER), "COLOR_0": file.accessor(LADDER_COLOURS)}
    primitive = {"attributes": attributes, "mode": mode}
    if indices:
        primitive["indices"] = file.accessor(indices, UBYTE)
    file.show(primitive)


@gltf
def triangles_without_indices(file: GltfFile) -> None:
    ladder(file, 4, None)


@gltf
def strip(file: GltfFile) -> None:
    ladder(file, 5, None)


@gltf
def strip_with_indices(file: GltfFile) -> None:
    ladder(file, 5, [1, 0, 3, 3, 2, 5, 4])


@gltf
def fan(file: GltfFile) -> None:
    ladder(file, 6, [2, 0, 1, 3, 5, 4])


@gltf
def points_and_lines(file: GltfFile) -> None:
    file.show(file.quad(), *({**file.quad(), "mode": mode} for mode in range(4)))


@gltf
def first_uvs(file: GltfFile) -> None:
    file.show(file.quad(material=textured(file)))


@gltf
def second_uvs(file: GltfFile) -> None:
    primitive = file.quad(material=textured(file, texCoord=1))
    primitive["attributes"]["TEXCOORD_1"] = file.accessor([[1, 1], [1, 0], [0, 0], [0, 1]])
    file.show(primitive)


@gltf
def vertex_colours(file: GltfFile) -> None:
    file.show(tetrahedron(file))


@gltf
def skin(file: GltfFile) -> None:
    half = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0]]
    bind = [np.eye(4), np.eye(4)]
    bind[1][:3, 3] = [-9.5, 0, 0.5]
    primitive = skinned(file, [[0, 1, 0, 0]] * 4, half)
    primitive["attributes"]["COLOR_0"] = file.accessor(CORNERS)
    shown = file.add("nodes", mesh=file.add("meshes", primitives=[primitive]), scale=[3, 3, -3])
    file.tree["nodes"][shown] |= bones(file, bind)
    file.root(children=[shown], translation=[7, 7, 7])


@gltf
def morph_targets(file: GltfFile) -> None:
    primitive = tetrahedron(file)
    primitive["targets"] = [
        {"POSITION": file.accessor([[0.0, 0, 0], [0.4, 0, 0], [0, 0, 0], [0, 0, 0]])},
        {"POSITION": file.accessor([[-0.5, -0.5, 0], [0, 0, 0], [0, 0.3, 0], [0, 0, 0]])},
    ]
    file.root(mesh=file.add("meshes", primitives=[primitive], weights=[0.5, 1]))


@gltf
def morphed_colours(file: GltfFile) -> None:
    primitive = tetrahedron(file)
    # three.js wants positions to move, too.
    still = file.accessor(np.zeros((4, 3)))
    primitive["targets"] = [
        {"POSITION": still, "COLOR_0": file.accessor([[-0.9, 0.5, 0], [0, 0, 0], [0.5, 0.5, 0], [0, -0.5, 0.5]])}
    ]
    file.root(mesh=file.add("meshes", primitives=[primitive], weights=[0.9]))


@gltf
def node_transforms(file: GltfFile) -> None:
    leaf = file.add("nodes", mesh=file.add("meshes", primitives=[tetrahedron(file)]), translation=[0.2, 0, 0])
    middle = file.add("nodes", children=[leaf], rotation=[0, HALF, 0, HALF])
    file.root(children=[middle], scale=[1, 1.4, 0.8])


@gltf
def node_matrix(file: GltfFile) -> None:
    file.show(tetrahedron(file), matrix=[0, 1.2, 0, 0, -0.8, 0, 0, 0, 0, 0, 1, 0, 0.1, 0.2, 0, 1])


@gltf
def mirrored_node(file: GltfFile) -> None:
    file.show(tetrahedron(file), scale=[-1, 1, 1])


@gltf
def one_mesh_twice(file: GltfFile) -> None:
    file.show(tetrahedron(file))
    file.root(mesh=0, translation=[-0.8, 0, 0], rotation=[0, 0, HALF, HALF])


@gltf
def default_scene(file: GltfFile) -> None:
    for x in range(3):
        file.show(tetrahedron(file), rotation=[0, 0, np.sin(x), np.cos(x)])
    file.tree["scenes"], file.tree["scene"] = [{"nodes": [0, 1]}, {"nodes": [2]}], 1


@gltf
def animation(file: GltfFile) -> None:
    node = file.show(tetrahedron(file))
    clock = file.accessor([0.0, 1.0], min=[0.0], max=[1.0])
    turns = file.accessor([[0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    channel = {"sampler": 0, "target": {"node": node, "path": "rotation"}}
    file.add("animations", channels=[channel], samplers=[{"input": clock, "output": turns}])


@gltf
def cameras_of_the_file(file: GltfFile) -> None:
    file.show(tetrahedron(file))
    camera = file.add("cameras", type="perspective", perspective={"yfov": 0.5, "znear": 0.1})
    file.root(camera=camera, translation=[0, 0, 20])


@gltf
def factor(file: GltfFile) -> None:
    file.show(file.quad(material=coloured(file, 0.5, 0.1, 0.02)))


@gltf
def factor_times_texture_times_colour(file: GltfFile) -> None:
    material = textured(file)
    file.tree["materials"][material]["pbrMetallicRoughness"]["baseColorFactor"] = [0.2, 1, 0.7, 1]
    primitive = file.quad(material=material)
    primitive["attributes"]["COLOR_0"] = file.accessor([[1, 0.2, 0.5], [0.3, 1, 1], [1, 1, 0.1], [0.5, 0.5, 0.5]])
    file.show(primitive)


@gltf
def several_materials(file: GltfFile) -> None:
    # Not on the quad: which of two faces at one place is seen is chance.
    file.show(tetrahedron(file, material=coloured(file, 0.9, 0.4, 0.4)), translation=[0, 0, 0.05])
    file.show({**file.quad(), "material": textured(file)})
    file.show(file.quad(material=textured(file, FOUR[::-1])), translation=[1.3, 0, 0])
    file.show(file.quad(), translation=[0, 1.3, 0])


@gltf
def other_maps(file: GltfFile) -> None:
    material = textured(file)
    other = {"index": file.texture(FOUR[:, ::-1])}
    file.tree["materials"][material] |= {
        "normalTexture": other,
        "occlusionTexture": other,
        "emissiveTexture": other,
        "emissiveFactor": [1, 1, 1],
    }
    file.tree["materials"][material]["pbrMetallicRoughness"] |= {"metallicRoughnessTexture": other}
    file.show(file.quad(material=material))


ALPHA = np.dstack([FOUR, np.kron([[255, 128], [0, 64]], np.ones((32, 32))).astype(np.uint8)])


@gltf
def alpha_mask(file: GltfFile) -> None:
    material = textured(file, ALPHA)
    file.tree["materials"][material] |= {"alphaMode": "MASK", "alphaCutoff": 0.4}
    file.show(file.quad(material=material))


@gltf
def alpha_blend(file: GltfFile) -> None:
    material = textured(file, ALPHA)
    file.tree["materials"][material]["alphaMode"] = "BLEND"
    file.show(file.quad(material=material))


@gltf
def alpha_opaque(file: GltfFile) -> None:
    file.show(file.quad(material=textured(file, ALPHA)))


@gltf
def one_side(file: GltfFile) -> None:
    file.show(tetrahedron(file, material=coloured(file, 1, 1, 1, doubleSided=False)))


@gltf
def both_sides(file: GltfFile) -> None:
    file.show(file.quad(material=coloured(file, 0.9, 0.5, 0.1, doubleSided=True)))


@gltf
def jpeg(file: GltfFile) -> None:
    file.show(file.quad(material=textured(file, FOUR, "JPEG")))


@gltf
def grey_picture(file: GltfFile) -> None:
    file.show(file.quad(material=textured(file, Image.fromarray(FOUR).convert("L"))))


@gltf
def palette_picture(file: GltfFile) -> None:
    file.show(file.quad(material=textured(file, Image.fromarray(FOUR).quantize(4))))


@gltf
def picture_of_16_bits(file: GltfFile) -> None:
    grey = np.kron(np.array([[4000, 16000], [33000, 65535]], np.uint16), np.ones((32, 32), np.uint16))
    file.show(file.quad(material=textured(file, Image.fromarray(grey))))


def tiled(file: GltfFile, **sampler: int) -> None:
    material = textured(file)
    file.tree["textures"][0]["sampler"] = file.add("samplers", **sampler)
    primitive = file.quad(material=material)
    primitive["attributes"]["TEXCOORD_0"] = file.accessor((np.array(UVS) * 2.5 - 0.8).tolist())
    file.show(primitive)


@gltf
def repeated(file: GltfFile) -> None:
    tiled(file)


@gltf
def mirrored_repeat(file: GltfFile) -> None:
    tiled(file, wrapS=33648, wrapT=33648)


@gltf
def clamped(file: GltfFile) -> None:
    tiled(file, wrapS=33071, wrapT=33071)


@gltf
def clamped_inside(file: GltfFile) -> None:
    material = textured(file, FOUR[::32, ::32])
    file.tree["textures"][0]["sampler"] = file.add("samplers", wrapS=33071, wrapT=33071)
    file.show(file.quad(material=material))


@gltf
def wrapped_by_two_modes(file: GltfFile) -> None:
    tiled(file, wrapS=33648, wrapT=33071)


@gltf
def nearest_filter(file: GltfFile) -> None:
    file.show(file.quad(material=textured(file)))
    file.tree["textures"][0]["sampler"] = file.add("samplers", magFilter=9728, minFilter=9728)


@gltf
def smooth_magnification(file: GltfFile) -> None:
    file.show(file.quad(material=textured(file, FOUR[::32, ::32])))


@gltf
def non_square_texture(file: GltfFile) -> None:
    file.show(file.quad(material=textured(file, FOUR[::4, :48])))


@gltf
def KHR_texture_transform(file: GltfFile) -> None:
    file.uses("KHR_texture_transform", required=True)
    transform = {"offset": [0.1, 0.9], "rotation": 0.5, "scale": [0.6, 0.7]}
    file.show(file.quad(material=textured(file, extensions={"KHR_texture_transform": transform})))


@gltf
def KHR_mesh_quantization(file: GltfFile) -> None:
    file.uses("KHR_mesh_quantization", required=True)
    rows = np.zeros((4, 4), "<i2")
    rows[:, :3] = np.array(QUAD) / 0.6 * 300
    position = file.add(
        "accessors",
        bufferView=file.view(rows.tobytes(), byteStride=8),
        componentType=SHORT,
        count=4,
        type="VEC3",
        min=rows[:, :3].min(0).tolist(),
        max=rows[:, :3].max(0).tolist(),
    )
    uvs = np.zeros((4, 4), TYPES[BYTE])
    uvs[:, :2] = UVS
    view = file.view(uvs.tobytes(), byteStride=4)
    uv = file.add("accessors", bufferView=view, componentType=BYTE, count=4, type="VEC2")
    attributes = {"POSITION": position, "TEXCOORD_0": uv}
    primitive = {"attributes": attributes, "indices": file.accessor(TRIANGLES, UBYTE), "material": textured(file)}
    file.show(primitive, scale=[0.002] * 3)


@gltf
def KHR_draco_mesh_compression(file: GltfFile) -> None:
    draco(file)


@gltf
def EXT_meshopt_compression(file: GltfFile) -> None:
    file.uses("EXT_meshopt_compression", required=True)
    file.tree["buffers"] = [{"byteLength": 1000, "extensions": {"EXT_meshopt_compression": {"fallback": True}}}]
    views = packed(file, PACKED_POSITIONS, 4, 8, "ATTRIBUTES"), packed(file, PACKED_TRIANGLES, 6, 2, "TRIANGLES")
    more = {"count": 4, "min": [-1, -1, 0], "max": [1, 1, 0], "normalized": True}
    position = file.add("accessors", bufferView=views[0], componentType=SHORT, type="VEC3", **more)
    indices = file.add("accessors", bufferView=views[1], componentType=USHORT, type="SCALAR", count=6)
    attributes = {"POSITION": position, "COLOR_0": file.accessor(CORNERS)}
    file.show({"attributes": attributes, "indices": indices})


@gltf
def KHR_materials_unlit(file: GltfFile) -> None:
    file.uses("KHR_materials_unlit")
    file.show(file.quad(material=coloured(file, 0.1, 0.7, 0.3, extensions={"KHR_materials_unlit": {}})))


@gltf
def KHR_materials_variants(file: GltfFile) -> None:
    variants(file)


@gltf
def glass(file: GltfFile) -> None:
    file.uses("KHR_materials_transmission")
    extensions = {"KHR_materials_transmission": {"transmissionFactor": 1}}
    file.show(file.quad(material=coloured(file, 0.2, 0.9, 0.6, extensions=extensions)))


def variants(file: GltfFile) -> None:
    """A quad of green, or of red as a variant."""
    name = "KHR_materials_variants"
    file.uses(name)
    file.tree["extensions"] = {name: {"variants": [{"name": "red"}]}}
    green, red = coloured(file, 0, 0.9, 0.1), coloured(file, 0.9, 0.1, 0)
    mappings = {name: {"mappings": [{"material": red, "variants": [0]}]}}
    file.show(file.quad(material=green, extensions=mappings))


@feature
def KHR_materials_pbrSpecularGlossiness(folder: Path) -> tuple[Path, Path]:
    files = GltfFile(), GltfFile()
    name = "KHR_materials_pbrSpecularGlossiness"
    files[0].uses(name)
    for file in files:
        file.show(file.quad(material=textured(file)))
        base = file.tree["materials"][0]["pbrMetallicRoughness"]
        base["baseColorFactor"] = [0.5, 0.9, 0.2, 1]
        if file is files[0]:
            diffuse = {"diffuseFactor": base["baseColorFactor"], "diffuseTexture": base["baseColorTexture"]}
            file.tree["materials"][0] = {"extensions": {name: diffuse}}
    return _apart(folder, *files)


@gltf
def EXT_texture_webp(file: GltfFile) -> None:
    file.uses("EXT_texture_webp", required=True)
    webp = {"EXT_texture_webp": {"source": file.image(FOUR, "WEBP")}}
    base = {"baseColorTexture": {"index": file.add("textures", extensions=webp)}}
    file.show(file.quad(material=file.add("materials", pbrMetallicRoughness=base)))


@gltf
def KHR_texture_basisu(file: GltfFile) -> None:
    file.uses("KHR_texture_basisu")
    file.show(file.quad(material=textured(file)))
    basis = file.add("images", bufferView=file.view(b"KTX 20"), mimeType="image/ktx2")
    file.tree["textures"][0]["extensions"] = {"KHR_texture_basisu": {"source": basis}}


@gltf
def EXT_mesh_gpu_instancing(file: GltfFile) -> None:
    file.uses("EXT_mesh_gpu_instancing", required=True)
    attributes = {
        "TRANSLATION": file.accessor([[0.3, 0, 0], [-0.3, 0, 0.2]]),
        "ROTATION": file.accessor([[0, 0, 0, 1], [0, 0, HALF, HALF]]),
        "SCALE": file.accessor([[1.0, 1, 1], [0.8, 1.2, 0.5]]),
    }
    extensions = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    file.show(tetrahedron(file), translation=[0, 0.2, 0], extensions=extensions)


@feature
def KHR_node_visibility(folder: Path) -> tuple[Path, Path]:
    files = GltfFile(), GltfFile()
    for file in files:
        file.show(tetrahedron(file))
    child = files[0].add("nodes", mesh=0, translation=[0, 0, 1])
    files[0].uses("KHR_node_visibility")
    files[0].root(children=[child], extensions={"KHR_node_visibility": {"visible": False}})
    return _apart(folder, *files)


def _apart(folder: Path, *files: GltfFile) -> tuple[Path, Path]:
    """Two files, each in a folder of its own."""
    folders = folder / "here", folder / "there"
    for place in folders:
        place.mkdir()
    ours, theirs = (file.save(place) for file, place in zip(files, folders))
    return ours, theirs


SQUARE = "v -0.6 -0.6 0\nv 0.6 -0.6 0\nv 0.6 0.6 0\nv -0.6 0.6 0\n"
SQUARE_UVS = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
TEXTURED_SQUARE = f"{SQUARE}{SQUARE_UVS}usemtl a\nf 1/1 2/2 3/3 4/4\n"


def obj(folder: Path, text: str, mtl: str = "newmtl a\nKd 0.8 0.5 0.2\n") -> Path:
    Image.fromarray(FOUR).save(folder / "four colours.png")
    (folder / "a.mtl").write_text(mtl)
    (folder / "a.obj").write_text(f"mtllib a.mtl\n{text}")
    return folder / "a.obj"


@feature
def obj_polygons(folder: Path) -> Path:
    # Convex from its first corner on, which is how three.js cuts polygons.
    return obj(folder, "v 0 0 0\nv 0.8 -0.5 0\nv 0.2 0.1 0\nv 0.5 0.9 0.2\nv -0.6 0.3 0\nf 1 2 3 4 5\n")


@feature
def obj_negative_indices(folder: Path) -> Path:
    return obj(folder, f"{SQUARE}{SQUARE_UVS}usemtl a\nf -4/-4 -3/-3 -2/-2\nv 0 0 1\nf -5/1 -3/2 -1/3\n")


@feature
def obj_materials(folder: Path) -> Path:
    text = f"{SQUARE}usemtl red\nf 1 2 3\nusemtl half\nf 1 3 4\n"
    return obj(folder, text, "newmtl red\nKd 1 0 0\nnewmtl half\nKa 0.5 0.5 0.5\nKd 0.5 0.5 0.5\n")


@feature
def obj_missing_material(folder: Path) -> Path:
    return obj(folder, f"{SQUARE}usemtl a\nf 1 2 3\nusemtl gone\nf 1 3 4\n")


@feature
def obj_map(folder: Path) -> Path:
    return obj(folder, TEXTURED_SQUARE, "newmtl a\nKd 0.5 0.9 0.7\nmap_Kd four colours.png\n")


@feature
def obj_map_options(folder: Path) -> Path:
    return obj(folder, TEXTURED_SQUARE, "newmtl a\nmap_Kd -s 1.5 0.5 1 -o 0.2 0.1 0 four colours.png\n")


@feature
def obj_other_maps(folder: Path) -> Path:
    return obj(
        folder, TEXTURED_SQUARE, "newmtl a\nKd 0.9 0.6 0.1\nmap_Bump four colours.png\nmap_Ks four colours.png\n"
    )


@feature
def obj_clamp(folder: Path) -> tuple[Path, Path]:
    """three.js passes -clamp over, so a tile of green about the picture stands in for it."""
    text = f"{SQUARE}vt 0.75 0.75\nvt 1.75 0.75\nvt 1.75 1.75\nvt 0.75 1.75\nusemtl a\nf 1/1 2/2 3/3 4/4\n"
    for name in ("here", "there"):
        (folder / name).mkdir()
    ours = obj(folder / "here", text, "newmtl a\nmap_Kd -clamp on four colours.png\n")
    theirs = obj(folder / "there", text, "newmtl a\nmap_Kd four colours.png\n")
    Image.fromarray(FOUR[:1, 32:33]).save(folder / "there" / "four colours.png")
    return ours, theirs


@feature
def obj_tiled(folder: Path) -> Path:
    text = f"{SQUARE}vt -0.8 0.1\nvt 1.7 0.1\nvt 1.7 2.3\nvt -0.8 2.3\nusemtl a\nf 1/1 2/2 3/3 4/4\n"
    return obj(folder, text, "newmtl a\nmap_Kd four colours.png\n")


@feature
def obj_transparency(folder: Path) -> Path:
    return obj(folder, f"{SQUARE}usemtl a\nf 1 2 3 4\n", "newmtl a\nKd 0.8 0.5 0.2\nd 0.3\n")


@feature
def obj_vertex_colours(folder: Path) -> Path:
    text = "v -0.6 -0.6 0 1 0 0\nv 0.6 -0.6 0 0 0.5 0\nv 0 0.6 0 0 0 1\nf 1 2 3\n"
    (folder / "a.obj").write_text(text)
    return folder / "a.obj"


@feature
def obj_groups_lines_points(folder: Path) -> Path:
    return obj(folder, f"o a\n{SQUARE}g b c\ns 1\nusemtl a\nf 1 2 3\ns off\no b\nl 1 2 3\no c\np 4\n")


PLACES = [[-0.6, -0.6, 0], [0.6, -0.6, 0.2], [0.6, 0.6, 0], [-0.6, 0.6, 0.3]]
BYTES = [[230, 60, 60], [60, 200, 60], [60, 60, 230], [230, 230, 80]]


def ply(folder: Path, form: str = "ascii", faces: list[list[int]] | None = None, **more: Any) -> Path:
    """A PLY file of a bent square.

    Args:
        form: ascii, binary_little_endian or binary_big_endian.
        faces: corners of each face; the whole square by default.
        more: further properties of vertices, by their names with the type in front: float_s=[0, 1, 1, 0].
    """
    faces = faces or [[0, 1, 2, 3]]
    names = [name.split("_", 1) for name in more]
    header = ["ply", f"format {form} 1.0", "comment TextureFile four colours.png" * ("float_s" in more)]
    header += ["element vertex 4", *(f"property float {axis}" for axis in "xyz")]
    header += [f"property {kind} {name}" for kind, name in names]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    rows = [[*place, *extra] for place, extra in zip(PLACES, zip(*more.values()) if more else [()] * 4)]
    start = "\n".join(filter(None, header)).encode() + b"\n"
    if form == "ascii":
        lines = [*rows, *([len(face), *face] for face in faces)]
        body = "".join(" ".join(map(str, line)) + "\n" for line in lines).encode()
    else:
        order = "<" if "little" in form else ">"
        kinds = "fff" + "".join({"float": "f", "uchar": "B", "ushort": "H", "double": "d"}[kind] for kind, _ in names)
        body = b"".join(struct.pack(order + kinds, *row) for row in rows)
        body += b"".join(struct.pack(f"{order}B{len(face)}i", len(face), *face) for face in faces)
    (folder / "a.ply").write_bytes(start + body)
    Image.fromarray(FOUR).save(folder / "four colours.png")
    return folder / "a.ply"


def of_bytes() -> dict[str, Any]:
    return {f"uchar_{name}": column for name, column in zip(("red", "green", "blue"), zip(*BYTES))}


@feature
def ply_ascii(folder: Path) -> Path:
    return ply(folder, faces=[[0, 1, 2], [0, 2, 3]])


@feature
def ply_quads(folder: Path) -> Path:
    return ply(folder)


@feature
def ply_little_endian(folder: Path) -> Path:
    return ply(folder, "binary_little_endian", **of_bytes())


@feature
def ply_big_endian(folder: Path) -> Path:
    return ply(folder, "binary_big_endian", **of_bytes())


@feature
def ply_byte_colours(folder: Path) -> Path:
    return ply(folder, **of_bytes())


@feature
def ply_float_colours(folder: Path) -> Path:
    columns = zip(*(np.array(BYTES) / 255).tolist())
    return ply(folder, **{f"float_{name}": column for name, column in zip(("red", "green", "blue"), columns)})


@feature
def ply_texture(folder: Path) -> Path:
    return ply(folder, float_s=[0, 1, 1, 0], float_t=[0, 0, 1, 1])


@feature
def ply_strips(folder: Path) -> tuple[Path, Path]:
    """Strips, which three.js does not know, begin anew after -1."""
    header = "ply\nformat ascii 1.0\nelement vertex 6\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    rows = "".join(" ".join(map(str, row)) + "\n" for row in LADDER)
    strips = "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    faces = "element face 3\nproperty list uchar int vertex_indices\nend_header\n"
    (folder / "strips.ply").write_text(f"{header}{strips}{rows}8 0 1 2 3 -1 3 5 4\n")
    (folder / "faces.ply").write_text(f"{header}{faces}{rows}3 0 1 2\n3 1 3 2\n3 3 5 4\n")
    return folder / "strips.ply", folder / "faces.ply"


@feature
def ply_face_colours(folder: Path) -> Path:
    header = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    header += "element face 2\nproperty list uchar int vertex_indices\n"
    header += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue")) + "end_header\n"
    rows = "".join(" ".join(map(str, row)) + "\n" for row in PLACES)
    (folder / "a.ply").write_text(f"{header}{rows}3 0 1 2 230 60 60\n3 0 2 3 60 60 230\n")
    return folder / "a.ply"


@feature
def ply_face_uvs(folder: Path) -> Path:
    header = "ply\nformat ascii 1.0\ncomment TextureFile four colours.png\nelement vertex 4\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += "element face 2\nproperty list uchar int vertex_indices\nproperty list uchar float texcoord\n"
    rows = "".join(" ".join(map(str, row)) + "\n" for row in PLACES)
    faces = "3 0 1 2 6 0 0 1 0 1 1\n3 0 2 3 6 1 0 0 1 0 0\n"
    (folder / "a.ply").write_text(f"{header}end_header\n{rows}{faces}")
    Image.fromarray(FOUR).save(folder / "four colours.png")
    return folder / "a.ply"


@pytest.mark.parametrize("build", FEATURES.values(), ids=FEATURES)
def test_picture(build: Callable[[Path], Files], three: ThreeJs, tmp_path: Path):
    files = build(tmp_path)
    ours, theirs = files if isinstance(files, tuple) else (files, files)
    mesh = load_mesh(ours)
    here, there = unlit_pictures(mesh, VIEWS, SIZE), three.pictures(theirs, mesh, VIEWS, SIZE)
    background = torch.tensor(BACKGROUND).view(3, 1, 1)
    for one, other in zip(here, there):
        # Edge-on, a flat shape may be nowhere; none of the views is such.
        assert ((other - background).abs().amax(0) > 0.02).float().mean() > 0.03
        assert psnr(one, other) > ALIKE


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "KHR_node_visibility"])
def test_picture_of_what_is_written_back(name: str, three: ThreeJs, tmp_path: Path):
    """All colours turned round, as a stage that optimises the texture could, in a GLB file that keeps the rest.

    three.js shows what KHR_node_visibility hides.
    """
    files = FEATURES[name](tmp_path)
    mesh = paintable(load_mesh(files[0] if isinstance(files, tuple) else files, kept_in="the GLB"), 64)
    painted = replace(mesh, texture=1 - mesh.texture)
    save_mesh(tmp_path / "written.glb", painted)
    here = unlit_pictures(painted, VIEWS, SIZE)
    for one, other in zip(here, three.pictures(tmp_path / "written.glb", painted, VIEWS, SIZE)):
        assert psnr(one, other) > ALIKE


def document(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """The JSON of a GLB file without what says where its data lie, and what each buffer view holds."""
    read = Document(path)
    tree = copy.deepcopy(read.tree)
    tree.pop("buffers", None)
    views = tree.get("bufferViews", [])
    data = [bytes(read.view(number)) for number in range(len(views))]
    for view in views:
        for key in ("buffer", "byteOffset", "byteLength"):
            view.pop(key, None)
    return tree, data


@pytest.mark.parametrize("name", [name for name in FEATURES if not name.startswith(("obj", "ply"))])
def test_nothing_of_an_unchanged_file_is_lost(name: str, tmp_path: Path):
    files = FEATURES[name](tmp_path)
    path = files[0] if isinstance(files, tuple) else files
    save_mesh(tmp_path / "written.glb", load_mesh(path, kept_in="the GLB"))
    (tree, data), (kept, kept_data) = document(path), document(tmp_path / "written.glb")
    if name in ("files_beside", "data_uris"):
        # Pictures have moved into the buffer.
        tree["images"] = kept["images"]
        kept["bufferViews"], kept_data = kept["bufferViews"][: len(data)], kept_data[: len(data)]
    if name == "EXT_meshopt_compression":
        for view in tree["bufferViews"]:
            view.pop("extensions", None)
        del tree["extensionsUsed"], tree["extensionsRequired"]
    assert kept == tree
    assert kept_data == data


def numbers(part: Any) -> Iterator[int]:
    """All whole numbers in a part of the JSON."""
    if isinstance(part, (dict, list)):
        for value in part.values() if isinstance(part, dict) else part:
            yield from numbers(value)
    elif isinstance(part, int):
        yield part


@pytest.mark.parametrize("name", [name for name in FEATURES if not name.startswith(("obj", "ply"))])
def test_what_is_not_painted_is_kept(name: str, tmp_path: Path):
    files = FEATURES[name](tmp_path)
    path = files[0] if isinstance(files, tuple) else files
    mesh = paintable(load_mesh(path, kept_in="the GLB"), 64)
    save_mesh(tmp_path / "written.glb", replace(mesh, texture=1 - mesh.texture))
    (tree, _), (kept, _) = document(path), document(tmp_path / "written.glb")
    for kind in ("scene", "scenes", "cameras", "asset", "extensions"):
        assert kept.get(kind) == tree.get(kind)
    before, after = Document(path), Document(tmp_path / "written.glb")
    for kind, key in (("skins", "inverseBindMatrices"), ("animations", "samplers")):
        for old, new in zip(tree.get(kind, []), kept.get(kind, []), strict=True):
            # Arrays have other numbers now.
            olds, news = (list(numbers(part.pop(key, None))) for part in (old, new))
            assert new == old
            assert [after.array(n).tobytes() for n in news] == [before.array(n).tobytes() for n in olds]
    same = ("name", "translation", "rotation", "scale", "matrix", "skin", "camera", "weights")
    for old, new in zip(tree["nodes"], kept["nodes"]):
        assert [new.get(key) for key in same] == [old.get(key) for key in same]
    for old, new in zip(tree.get("materials", []), kept.get("materials", [])):
        for base in (old, new):
            for part in (base.get("pbrMetallicRoughness", {}), *base.get("extensions", {}).values()):
                for key in ("baseColorFactor", "baseColorTexture", "diffuseFactor", "diffuseTexture"):
                    part.pop(key, None)
        new["pbrMetallicRoughness"] = new.get("pbrMetallicRoughness") or old.get("pbrMetallicRoughness")
        if old.get("pbrMetallicRoughness") is None:
            del new["pbrMetallicRoughness"]
        # Other pictures have other numbers now, and are the same.
        for _, used in (*objects(old), *objects(new)):
            # Other pictures have other numbers now.
            used.pop("index", None)
        assert new == old


def test_another_picture_is_not_alike(three: ThreeJs, tmp_path: Path):
    files = GltfFile(), GltfFile()
    for file, pixels in zip(files, (FOUR, FOUR[::-1])):
        file.show(file.quad(material=textured(file, pixels)))
    ours, theirs = _apart(tmp_path, *files)
    mesh = load_mesh(ours)
    here, there = unlit_pictures(mesh, VIEWS, SIZE), three.pictures(theirs, mesh, VIEWS, SIZE)
    assert all(psnr(one, other) < ALIKE - 10 for one, other in zip(here, there))


def test_cameras_change_nothing(tmp_path: Path):
    file = GltfFile()
    file.show(tetrahedron(file))
    (alone,) = read_gltf(file.save(tmp_path)).parts
    file.root(camera=file.add("cameras", type="perspective", perspective={"yfov": 0.5, "znear": 0.1}))
    scene = read_gltf(file.save(tmp_path))
    (part,) = scene.parts
    assert np.array_equal(part.positions, alone.positions) and scene.warnings == []


def test_what_is_without_effect_is_not_said(tmp_path: Path):
    file = GltfFile()
    variants(file)
    scene = read_gltf(file.save(tmp_path))
    assert [scene.materials[part.material].base_colour for part in scene.parts] == [(0, 0.9, 0.1, 1)]
    assert scene.warnings == []


def material_of(folder: Path, mtl: str) -> Material:
    (material,) = read_obj(obj(folder, f"{SQUARE}{SQUARE_UVS}usemtl a\nf 1/1 2/2 3/3\n", mtl)).materials.values()
    return material


@pytest.mark.parametrize(
    ("mtl", "alpha", "mode"),
    [("d 0.25", 0.25, "BLEND"), ("d -halo 0.25", 0.25, "BLEND"), ("Tr 0.75", 0.25, "BLEND"), ("d 1", 1, "OPAQUE")],
)
def test_obj_transparency(mtl: str, alpha: float, mode: str, tmp_path: Path):
    material = material_of(tmp_path, f"newmtl a\nKd 1 0 0\n{mtl}\n")
    assert material.base_colour == (1, 0, 0, alpha) and material.alpha_mode == mode
    assert material_of(tmp_path, "newmtl a\nmap_d four colours.png\n").alpha_mode == "BLEND"


def test_obj_clamp(tmp_path: Path):
    texture = material_of(tmp_path, "newmtl a\nmap_Kd -clamp on four colours.png\n").base_texture
    # Right of the picture is its last column, above it its first row.
    assert np.allclose(texture.sample(np.array([[3.2, -0.7]]), display=False)[0, :3], FOUR[0, -1] / 255)
    texture = material_of(tmp_path, "newmtl a\nmap_Kd four colours.png\n").base_texture
    assert np.allclose(texture.sample(np.array([[3.2, -0.7]]), display=False)[0, :3], FOUR[0, 0] / 255)


def test_obj_normal_map(tmp_path: Path):
    material = material_of(tmp_path, "newmtl a\nnorm four colours.png\n")
    assert np.array_equal(material.normal_texture.picture.pixels[..., :3], FOUR)


def test_obj_groups_change_nothing(tmp_path: Path):
    plain = read_obj(obj(tmp_path, f"{SQUARE}f 1 2 3\nf 1 3 4\n"))
    grouped = read_obj(obj(tmp_path, f"o a\n{SQUARE}g b c\ns 1\nf 1 2 3\ns off\ng\nf 1 3 4\n"))
    for one, other in zip(plain.parts, grouped.parts, strict=True):
        assert np.array_equal(one.positions, other.positions) and np.array_equal(one.faces, other.faces)
    assert plain.warnings == grouped.warnings


@pytest.mark.parametrize(
    ("text", "mtl", "said"),
    [
        ("l 1 2\n", "", "its lines and points are not read"),
        ("p 1\n", "", "its lines and points are not read"),
        ("cstype bezier\ndeg 3\ncurv 0 1 1 2 3 4\n", "", "its statements cstype, deg, curv are not read"),
        ("", "map_Kd -mm 0 2 four colours.png", "the option -mm of the map_kd of its material a is not applied"),
        ("", "norm -bm 0.5 four colours.png", "the option -bm of the norm of its material a is not applied"),
        ("", "Ks 0.5 0.5 0.5\nNs 96\nillum 2", "left out of its materials: Ks, Ns"),
        ("", "Ke 1 0.5 0\nKa 0.1 0.1 0.1\nNi 1.45\nTf 0.5 1 1", "left out of its materials: Ke, Ka, Ni, Tf"),
        ("", "Pr 0.3\nPm 1\nPs 0.1\nPc 1\nPcr 0.2\naniso 0.5", "left out of its materials: Pr, Pm, Ps, Pc, Pcr, aniso"),
        ("", "map_Bump -bm 2 a.png\nmap_Pr b.png\nMAP_KS a.png", "left out of its materials: map_Bump, map_Pr, MAP_KS"),
        ("", "map_d mask.png\nmap_Kd four colours.png", "left out of its materials: map_d"),
        ("", "illum 7\nmap_Ka other.png", "left out of its materials: illum, map_Ka"),
    ],
)
def test_what_of_obj_is_not_read_is_said(text: str, mtl: str, said: str, tmp_path: Path):
    path = obj(tmp_path, f"{SQUARE}{SQUARE_UVS}{text}usemtl a\nf 1/1 2/2 3/3\n", f"newmtl a\n{mtl}\n")
    assert read_obj(path).warnings == [said]


def test_what_of_a_material_changes_nothing_is_not_said(tmp_path: Path):
    neutral = "Ka 0.8 0.5 0.2\nKd 0.8 0.5 0.2\nKs 0 0 0\nKe 0.0 0 0\nNi 1\nTf 1 1 1\nillum 1\nPm 0\n"
    maps = "map_Kd four colours.png\nmap_Ka four colours.png\nmap_d -clamp on four colours.png\n"
    path = obj(tmp_path, f"{SQUARE}{SQUARE_UVS}usemtl a\nf 1/1 2/2 3/3\n", f"newmtl a\n{neutral}{maps}newmtl b\nPr 1\n")
    assert read_obj(path).warnings == []


def test_obj_without_faces(tmp_path: Path):
    with pytest.raises(BadFile, match=r"a\.obj holds no triangles"):
        read_obj(obj(tmp_path, f"{SQUARE}l 1 2\n"))


def test_colours_mix_in_linear_light(tmp_path: Path):
    """Between black and white is half the light, which sRGB shows as 0.7354; so is a fine board from afar."""
    files = GltfFile(), GltfFile()
    primitive = files[0].quad()
    primitive["attributes"]["COLOR_0"] = files[0].accessor([[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]])
    files[0].show(primitive)
    board = np.indices((256, 256)).sum(0)[..., None] % 2 * np.full(3, 255)
    files[1].show(files[1].quad(material=textured(files[1], board.astype(np.uint8))))
    for path in _apart(tmp_path, *files):
        front = unlit_pictures(load_mesh(path), VIEWS[:1], 64)[0]
        assert front[:, 31:33, 31:33].mean() == pytest.approx(0.7354, abs=2e-3)


def table() -> Iterator[dict[str, str]]:
    """The rows of the tables of features, by the heads of their columns."""
    heads: list[str] = []
    row: list[str] = []
    for token in MARKDOWN.parse((ROOT / "docs" / "meshes.md").read_text()):
        if token.type == "tr_open":
            row = []
        elif token.type == "inline" and token.level > 2:
            row.append(token.content)
        elif token.type == "thead_close":
            heads = row
        elif token.type == "tr_close" and heads and row is not heads and "pictures" in heads:
            yield dict(zip(heads, row, strict=True))
        elif token.type == "table_close":
            heads = []


def in_code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_each_row_of_the_table_names_its_tests():
    rows, named = list(table()), set()
    for row in rows:
        assert row["tests"], row
        for name in in_code(row["tests"]):
            file, _, function = name.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
        # What is drawn, even if without the feature, is compared.
        assert not row["drawn"] or in_code(row["pictures"]) or "light" in row["drawn"], row
        named |= set(in_code(row["pictures"]))
    assert len(rows) > 80
    assert named == set(FEATURES)
