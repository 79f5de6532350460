"""What of a glTF file does not survive what a stage does, to be said before."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from .from_gltf import FLAT_FACES, NORMAL_MAP, SOME_NORMALS, SQUARES
from .gltf import GltfScene
from .gltf_document import Document, objects
from .mesh import BadMesh
from .node_space import rank

INSTANCE_FEATURES = "EXT_instance_features"
VARIANTS = "KHR_materials_variants"
_MOST_NAMES = 5


def losses(
    scene: GltfScene, unseen: Collection[str], *, repainted: bool, bent: bool, moved: bool, parted: bool
) -> Iterator[str]:
    """What is lost, a few words each.

    Args:
        unseen: what the file shows that the mesh has no place for (`from_gltf.one_mesh`).
        repainted: whether a new texture takes the place of all base colours.
        bent: whether a new normal map does of all others.
        moved: whether vertices move.
        parted: whether instances become nodes.

    Raises:
        BadMesh: vertices are to move and none can.
    """
    replaced = [*([SQUARES] if repainted else []), *([NORMAL_MAP, FLAT_FACES, SOME_NORMALS] if bent else [])]
    yield from (name for name in replaced if name in unseen)
    if repainted and _coloured_variants(scene):
        yield "vertex colours (COLOR_0) of its other variants"
    if moved:
        if any("TANGENT" in part.local for part in scene.parts):
            yield "tangents"
        if still := _still(scene):
            yield f"moves along axes of scale 0 (nodes: {_names(still)})"
    if (moved or bent) and _displaced_tangents(scene):
        yield "tangents of morph targets"
    if parted and _counted_instances(scene):
        yield f"the numbers of instances ({INSTANCE_FEATURES})"
    for extension, name in _files(scene.document):
        yield f"the file {name} that its {extension} names"


def _still(scene: GltfScene) -> list[str]:
    """The numbers of the nodes along whose axes vertices cannot move."""
    ranks = [rank(part.matrices[:, :3, :3]) for part in scene.parts]
    if not any(axes.any() for axes in ranks):
        raise BadMesh("none of its vertices can move: its nodes scale all of it to 0")
    return [str(part.node) for part, axes in zip(scene.parts, ranks) if (axes < 3).any()]


def _displaced_tangents(scene: GltfScene) -> bool:
    """Whether morph targets displace tangents."""
    primitives = (scene.document.item("meshes", part.mesh)["primitives"][part.primitive] for part in scene.parts)
    return any("TANGENT" in target for primitive in primitives for target in primitive.get("targets", []))


def _coloured_variants(scene: GltfScene) -> bool:
    """Whether a part has vertex colours that another material would multiply, were it chosen."""
    for part in scene.parts:
        primitive = scene.document.item("meshes", part.mesh)["primitives"][part.primitive]
        mappings = primitive.get("extensions", {}).get(VARIANTS, {}).get("mappings", [])
        others = any(mapping["material"] != part.material for mapping in mappings)
        if others and part.colours is not None and not np.all(part.colours[:, :3] == 1):
            return True
    return False


def _counted_instances(scene: GltfScene) -> bool:
    """Whether instances are features by their numbers, not by an attribute."""
    nodes = (scene.document.item("nodes", part.node) for part in scene.parts if part.instance == 0)
    features = (node["extensions"].get(INSTANCE_FEATURES, {}).get("featureIds", []) for node in nodes)
    return any("attribute" not in feature for of_node in features for feature in of_node)


def _files(document: Document) -> Iterator[tuple[str, str]]:
    """The extensions that name files, and these files' URIs; images and buffers come into the file."""
    for path, part in objects(document.tree):
        if path in (("images",), ("buffers",)):
            continue
        for key, value in part.items():
            if key.lower().endswith("uri") and isinstance(value, str) and not _is_complete(value):
                yield path[path.index("extensions") + 1] if "extensions" in path[:-1] else (*path, key)[0], value


def _is_complete(uri: str) -> bool:
    """Whether a URI means the same wherever the file is."""
    return uri.startswith("data:") or "://" in uri


def _names(names: list[str]) -> str:
    return ", ".join(list(dict.fromkeys(names))[:_MOST_NAMES])
