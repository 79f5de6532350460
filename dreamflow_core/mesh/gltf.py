"""glTF 2.0 files (.glb, and .gltf with its files beside it) as their specification reads them.

What is read is what is in the default scene at rest: animations stand still. Source: glTF 2.0 specification,
3.5 "Scenes" and 3.7 "Geometry"; the extensions are named where they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..state import BadFile
from .gltf_document import Document, extensions, scaled, whole
from .gltf_materials import Material, MaterialReader
from .gltf_nodes import placed, trs_matrices, world_matrices
from .mesh import BadMesh, Floats, Ints
from .scene import Part, Scene

SUFFIXES = (".glb", ".gltf")

INSTANCING = "EXT_mesh_gpu_instancing"
_VISIBILITY = "KHR_node_visibility"
_APPLIED = {
    "EXT_meshopt_compression",
    "EXT_texture_webp",
    "KHR_draco_mesh_compression",
    "KHR_materials_emissive_strength",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_materials_unlit",
    "KHR_mesh_quantization",
    "KHR_meshopt_compression",
    "KHR_texture_transform",
    INSTANCING,
    _VISIBILITY,
}
_WITHOUT_EFFECT = {
    # Knowledge about the shape, movement, other looks, and stand-ins for pictures that plain glTF names too.
    "EXT_instance_features",
    "EXT_mesh_features",
    "EXT_mesh_manifold",
    "EXT_structural_metadata",
    "EXT_texture_astc",
    "FB_ngon_encoding",
    "KHR_animation_pointer",
    "KHR_interactivity",
    "KHR_materials_variants",
    "KHR_node_hoverability",
    "KHR_node_selectability",
    "KHR_texture_basisu",
    "KHR_xmp",
    "KHR_xmp_json_ld",
    "MSFT_lod",
    "MSFT_texture_dds",
}
_LIGHTS = {"EXT_lights_ies", "EXT_lights_image_based", "KHR_lights_punctual"}

_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_WIDTHS = {"POSITION": (3,), "NORMAL": (3,), "TANGENT": (4,), "TEXCOORD": (2,), "COLOR": (3, 4), "WEIGHTS": (4,)}
"""Components of each attribute that is a fraction or a length."""
_MOST_VERTICES = 1 << 27
"""Instances multiply vertices: a small file could ask for more than any memory holds."""


@dataclass(frozen=True, eq=False)
class GltfPart(Part):
    """One primitive where a node puts it.

    Strips and fans are triangles, without those that name a vertex twice. Where the node mirrors, the second and third
    corner are swapped. Positions are morphed by the default weights, then skinned or placed; UVs and colours
    (COLOR_0) are morphed. Normals are None if the file has none: faces are then flat.

    Attributes:
        node, mesh, primitive: their numbers in the file; the primitive's is within its mesh.
        instance: which of the node's instances (EXT_mesh_gpu_instancing), None without.
        name: the node's name, or else the mesh's; may be empty.
        matrices: from the primitive's space to the scene's, for columns: (1, 4, 4), or (V, 4, 4) where a skin moves
            each vertex.
        local: the primitive's attributes by their glTF names, each (V, components) and read-only, before morphing:
            floats as float32, quantised ones too; JOINTS_n and what the specification does not name in the file's type.
        tangents: (V, 4) float64, in the scene. None if the file has none, or no normals.
    """

    node: int
    mesh: int
    primitive: int
    instance: int | None
    name: str
    matrices: Floats
    local: dict[str, np.ndarray]
    tangents: Floats | None


@dataclass(frozen=True, eq=False)
class GltfScene(Scene):
    """What a glTF file shows, its parts in the order of the nodes.

    Attributes:
        document: the file itself.
    """

    parts: Sequence[GltfPart]
    document: Document


def read_gltf(path: Path) -> GltfScene:
    """Read a .glb or .gltf file.

    Raises:
        BadFile: the file is missing, broken, shows no triangles, or requires what is not known; one line says what.
    """
    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    try:
        return read_document(Document(path))
    except BadMesh as error:
        raise BadFile(f"{path} cannot be used: {error}") from error
    except KeyError as error:
        raise BadFile(f"{path} is broken: it lacks {error}") from error
    # Foreign JSON can have anything anywhere.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFile(f"{path} is broken: {reason}") from error


def read_document(document: Document) -> GltfScene:
    """What a document shows. Of a broken one anything may be raised; `read_gltf` says it in one line."""
    return _Reader(document).scene()


class _Reader:
    """Reads one document; what nodes share is read once."""

    def __init__(self, document: Document):
        self._document = document
        self._materials = MaterialReader(document)
        self._primitives: dict[tuple[int, int], tuple[dict[str, np.ndarray], Ints]] = {}
        self._warnings: list[str] = []
        self._worlds = world_matrices(document)

    def scene(self) -> GltfScene:
        for name in self._document.tree.get("extensionsRequired", []):
            if name not in _APPLIED | _WITHOUT_EFFECT | _LIGHTS:
                raise BadMesh(f"it requires the extension {name}, which is not known")
        nodes = list(self._shown_nodes())
        self._check_size(nodes)
        parts = [part for node in nodes for part in self._parts(node)]
        if not parts:
            raise BadMesh("; ".join(["it shows no triangles", *dict.fromkeys(self._warnings)]))
        materials = {number: self._materials.read(number) for number in dict.fromkeys(part.material for part in parts)}
        for part in parts:
            self._check_uvs(part, materials[part.material])
        if self._document.tree.get("animations"):
            self._warn("its animations stand still")
        for name in sorted(extensions(self._document.tree) - _APPLIED - _WITHOUT_EFFECT):
            self._warn(f"its extension {name} is not applied")
        return GltfScene(parts, materials, list(dict.fromkeys(self._warnings)), self._document)

    def _warn(self, text: str) -> None:
        self._warnings.append(text)

    def _shown_nodes(self) -> Iterator[int]:
        """The nodes of the default scene, parents first."""
        tree = self._document.tree
        nodes = tree.get("nodes", [])
        if tree.get("scenes"):
            scene = tree.get("scene", 0)
            roots = self._document.item("scenes", scene).get("nodes", [])
            if len(tree["scenes"]) > 1:
                self._warn(f"of its {len(tree['scenes'])} scenes only number {scene} is read")
        else:
            children = {child for node in nodes for child in node.get("children", [])}
            roots = [number for number in range(len(nodes)) if number not in children]
        waiting, seen = list(reversed(roots)), set()
        while waiting:
            number = waiting.pop()
            node = self._document.item("nodes", number)
            if number in seen:
                continue
            if not node.get("extensions", {}).get(_VISIBILITY, {}).get("visible", True):
                self._warn(f"its node {number} and all below it are hidden")
                continue
            seen.add(number)
            yield number
            waiting += reversed(node.get("children", []))

    def _check_size(self, nodes: list[int]) -> None:
        """Refuse what no memory holds before any of it is made."""

        def counts(accessors: Iterable[int]) -> list[int]:
            return [whole(self._document.item("accessors", accessor), "count") for accessor in accessors]

        total = 0
        for number in nodes:
            node = self._document.item("nodes", number)
            primitives = self._document.item("meshes", node["mesh"])["primitives"] if "mesh" in node else []
            instancing = node.get("extensions", {}).get(INSTANCING, {}).get("attributes", {})
            attributes = [primitive["attributes"] for primitive in primitives]
            vertices = counts(names["POSITION"] for names in attributes if "POSITION" in names)
            total += max(counts(instancing.values()), default=1) * sum(vertices)
        if total > _MOST_VERTICES:
            raise BadMesh(f"its nodes show {total} vertices; at most {_MOST_VERTICES} are read")

    def _parts(self, number: int) -> Iterator[GltfPart]:
        """The triangles of a node, once for each of its instances."""
        node = self._document.item("nodes", number)
        if "mesh" not in node:
            return
        mesh = self._document.item("meshes", node["mesh"])
        instances = self._instances(node, number)
        for index, primitive in enumerate(mesh["primitives"]):
            if not self._is_drawn(node["mesh"], index, primitive):
                continue
            local, faces = self._primitive(node["mesh"], index, primitive)
            if not len(faces):
                continue
            attributes = self._morphed(local, primitive, node.get("weights", mesh.get("weights", [])))
            for instance, within in instances:
                matrices = self._skin(node["skin"], local) if "skin" in node else (self._worlds[number] @ within)[None]
                yield GltfPart(
                    node=number,
                    mesh=node["mesh"],
                    primitive=index,
                    instance=instance,
                    name=node.get("name") or mesh.get("name", ""),
                    material=primitive.get("material"),
                    matrices=matrices,
                    local=local,
                    **placed(attributes, faces, matrices),
                )

    def _is_drawn(self, mesh: int, index: int, primitive: dict[str, Any]) -> bool:
        """Whether a primitive has triangles at places; if not, a warning says so."""
        mode = primitive.get("mode", _TRIANGLES)
        if mode not in range(7):
            raise BadMesh(f"its mesh {mesh} has the mode {mode}, which glTF does not know")
        if mode not in (_TRIANGLES, _STRIP, _FAN):
            self._warn(f"the {'lines' if mode else 'points'} of its mesh {mesh} are not read")
        elif "POSITION" not in primitive["attributes"]:
            self._warn(f"primitive {index} of its mesh {mesh} has no positions")
        else:
            return True
        return False

    def _instances(self, node: dict[str, Any], number: int) -> list[tuple[int | None, Floats]]:
        """The numbers and matrices of a node's instances; one without a number where they are not asked for."""
        instancing = node.get("extensions", {}).get(INSTANCING)
        if instancing is None:
            return [(None, np.eye(4))]
        if "skin" in node:
            raise BadMesh(f"its node {number} has a skin and {INSTANCING} at once")
        names = ("TRANSLATION", "ROTATION", "SCALE")
        given = {k: self._document.values(v) for k, v in instancing["attributes"].items() if k in names}
        counts = {len(values) for values in given.values()}
        if len(counts) != 1:
            raise BadMesh(f"its node {number} has {INSTANCING} of different lengths")
        (count,) = counts
        defaults = (np.zeros((count, 3)), np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)), np.ones((count, 3)))
        within = trs_matrices(*(given.get(name, default) for name, default in zip(names, defaults)))
        return list(enumerate(within))

    def _primitive(self, mesh: int, index: int, primitive: dict[str, Any]) -> tuple[dict[str, np.ndarray], Ints]:
        """A primitive's attributes as `Part.local` has them, and its faces (F, 3)."""
        if (mesh, index) not in self._primitives:
            packed, faces = self._document.draco(primitive)
            arrays = {}
            for name, number in primitive["attributes"].items():
                array = packed[name] if name in packed else self._document.array(number)
                arrays[name] = scaled(array, self._document.item("accessors", number))
            local = {name: _checked(name, array, len(arrays["POSITION"])) for name, array in arrays.items()}
            if faces is None:
                faces = self._faces(mesh, primitive, len(local["POSITION"]))
            if len(faces) and faces.max() >= len(local["POSITION"]):
                raise BadMesh(f"its mesh {mesh} has {len(local['POSITION'])} vertices but indices up to {faces.max()}")
            self._primitives[mesh, index] = local, faces
        return self._primitives[mesh, index]

    def _faces(self, mesh: int, primitive: dict[str, Any], count: int) -> Ints:
        """The triangles (F, 3) of a primitive with `count` vertices."""
        indices = np.arange(count)
        if "indices" in primitive:
            indices = self._document.array(primitive["indices"]).astype(np.int64).reshape(-1)
        mode = primitive.get("mode", _TRIANGLES)
        if mode == _TRIANGLES:
            if len(indices) % 3:
                self._warn(f"the last triangle of its mesh {mesh} is cut off")
            return indices[: len(indices) // 3 * 3].reshape(-1, 3)
        start = np.arange(max(len(indices) - 2, 0))
        odd = start % 2
        corners = (start, start + 1 + odd, start + 2 - odd) if mode == _STRIP else (start + 1, start + 2, 0 * start)
        faces = indices[np.stack(corners, axis=-1)]
        return faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]

    def _morphed(
        self, local: dict[str, np.ndarray], primitive: dict[str, Any], weights: list[float]
    ) -> dict[str, np.ndarray]:
        """Attributes plus the weighted displacements of the morph targets."""
        targets = primitive.get("targets", [])
        if not targets or not any(weights):
            return local
        if len(weights) != len(targets):
            raise BadMesh(f"it has {len(weights)} weights for {len(targets)} morph targets")
        moved = dict(local)
        for weight, target in zip(weights, targets):
            for name, number in target.items():
                if name not in local:
                    raise BadMesh(f"it has a morph target for {name}, which its mesh lacks")
                displacements = self._document.values(number).astype(np.float64)
                if len(displacements) != len(local[name]):
                    raise BadMesh(f"it has {len(displacements)} displacements for {len(local[name])} of {name}")
                # Handedness is not displaced, and alpha need not be.
                missing = ((0, 0), (0, local[name].shape[1] - displacements.shape[1]))
                moved[name] = moved[name] + weight * np.pad(displacements, missing)
        return moved

    def _skin(self, number: int, local: dict[str, np.ndarray]) -> Floats:
        """The matrix (V, 4, 4) that a skin's joints at rest give each vertex. The node's own does not count."""
        skin = self._document.item("skins", number)
        for joint in skin["joints"]:
            self._document.item("nodes", joint)
        joints = np.stack([self._worlds[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            bind = self._document.values(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
            if len(bind) < len(joints):
                raise BadMesh(f"its skin {number} has {len(bind)} matrices for {len(joints)} joints")
            joints = joints @ bind[: len(joints)]
        names = [name for name in local if name.startswith("JOINTS_")]
        if not names:
            raise BadMesh(f"its skin {number} is on a mesh without JOINTS_0")
        used = np.concatenate([local[name].astype(np.int64) for name in names], axis=1)
        weights = np.concatenate([local[name.replace("JOINTS", "WEIGHTS")] for name in names], axis=1)
        weights = weights.astype(np.float64)
        # They should add up to one; those that do not are mended as three.js mends them.
        weights[weights.sum(axis=1) == 0, 0] = 1
        weights /= weights.sum(axis=1, keepdims=True)
        if used[weights != 0].max() >= len(joints):
            raise BadMesh(f"its skin {number} has {len(joints)} joints, but its mesh asks for more")
        used[weights == 0] = 0
        return sum(weights[:, k, None, None] * joints[used[:, k]] for k in range(used.shape[1]))

    def _check_uvs(self, part: GltfPart, material: Material) -> None:
        for texture in material.textures():
            if texture.tex_coord not in part.uvs:
                lacks = f"primitive {part.primitive} of its mesh {part.mesh} has no TEXCOORD_{texture.tex_coord}"
                self._warn(f"{lacks}, so it does not show texture {texture.number}")


def _checked(name: str, array: np.ndarray, count: int) -> np.ndarray:
    """An attribute as `Part.local` has it."""
    if len(array) != count:
        raise BadMesh(f"it has {count} positions but {len(array)} of {name}")
    kind = name.split("_")[0]
    if kind not in _WIDTHS:
        return array
    if array.shape[1] not in _WIDTHS[kind]:
        raise BadMesh(f"its {name} has {array.shape[1]} components")
    if not np.isfinite(array).all():
        raise BadMesh(f"its {name} contains NaN or infinity")
    array = array.astype(np.float32, copy=False)
    array.flags.writeable = False
    return array
