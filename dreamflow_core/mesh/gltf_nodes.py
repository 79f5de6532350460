"""Where the nodes of a glTF 2.0 file put what they show.

Source: glTF 2.0 specification, 3.5.3 "Transformations" and 3.7.4 "Instantiation".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .gltf_document import Document
from .mesh import BadMesh, Floats, Ints


def world_matrices(document: Document) -> dict[int, Floats]:
    """The matrix (4, 4) from each node's space to the scene's.

    Raises:
        BadMesh: the nodes are no forest, or one has a matrix that is not affine.
    """
    nodes = document.tree.get("nodes", [])
    inner = _local_matrices(nodes)
    parents: dict[int, int] = {}
    for number, node in enumerate(nodes):
        for child in node.get("children", []):
            document.item("nodes", child)
            if child in parents:
                raise BadMesh(f"its node {child} has two parents")
            parents[child] = number
    worlds: dict[int, Floats] = {}
    waiting = [number for number in range(len(nodes)) if number not in parents]
    while waiting:
        number = waiting.pop()
        worlds[number] = worlds[parents[number]] @ inner[number] if number in parents else inner[number]
        waiting += nodes[number].get("children", [])
    if len(worlds) < len(nodes):
        raise BadMesh("its nodes are children of each other")
    return worlds


def trs_matrices(translations: Floats, rotations: Floats, scales: Floats) -> Floats:
    """Matrices (N, 4, 4) that scale (N, 3), then turn by quaternions (N, 4) x, y, z, w, then move (N, 3).

    Raises:
        BadMesh: one is not finite.
    """
    from scipy.spatial.transform import Rotation

    made = np.tile(np.eye(4), (len(translations), 1, 1))
    made[:, :3, :3] = Rotation.from_quat(rotations).as_matrix() * scales[:, None]
    made[:, :3, 3] = translations
    return _finite(made)


def placed(attributes: dict[str, np.ndarray], faces: Ints, matrices: Floats) -> dict[str, Any]:
    """Faces, positions, normals, tangents, UVs and colours of a `Part`.

    Args:
        attributes: by their glTF names, (V, components).
        faces: (F, 3).
        matrices: (1, 4, 4), or (V, 4, 4) with one for each vertex.

    Raises:
        BadMesh: a vertex lies nowhere.
    """
    linear = matrices[:, :3, :3]
    positions = np.einsum("vij,vj->vi", linear, attributes["POSITION"], dtype=np.float64) + matrices[:, :3, 3]
    if not np.isfinite(positions).all():
        raise BadMesh("its nodes put vertices at infinity")
    turn = np.where(np.linalg.det(linear) < 0, -1.0, 1.0)
    # A skin can mirror some vertices only; what its first corner does, a face does.
    mirrored = (np.broadcast_to(turn, len(positions)) < 0)[faces[:, 0]]
    normals, tangents = attributes.get("NORMAL"), attributes.get("TANGENT")
    if normals is None:
        tangents = None
    else:
        # The rows of the cofactors: the inverse transpose times the determinant, also where there is no inverse.
        cofactors = np.cross(linear[:, [1, 2, 0]], linear[:, [2, 0, 1]])
        normals = unit(np.einsum("vij,vj->vi", cofactors * turn[:, None, None], normals, dtype=np.float64))
    if tangents is not None:
        along = unit(np.einsum("vij,vj->vi", linear, tangents[:, :3], dtype=np.float64))
        tangents = np.concatenate([along, tangents[:, 3:] * turn[:, None]], axis=-1)
    colours = attributes.get("COLOR_0")
    if colours is not None:
        colours = np.clip(np.pad(colours, ((0, 0), (0, 4 - colours.shape[1])), constant_values=1), 0, 1)
    return {
        "faces": np.where(mirrored[:, None], faces[:, [0, 2, 1]], faces),
        "positions": positions,
        "normals": normals,
        "tangents": tangents,
        "uvs": {int(name[9:]): array for name, array in attributes.items() if name.startswith("TEXCOORD_")},
        "colours": colours,
    }


def _local_matrices(nodes: list[dict[str, Any]]) -> Floats:
    """The matrix of each node to its parent's space, (N, 4, 4)."""
    translations, rotations, scales = (
        np.array([node.get(name, default) for node in nodes], np.float64).reshape(len(nodes), len(default))
        for name, default in (("translation", [0, 0, 0]), ("rotation", [0, 0, 0, 1]), ("scale", [1, 1, 1]))
    )
    made = trs_matrices(translations, rotations, scales)
    for number, node in enumerate(nodes):
        if "matrix" in node:
            made[number] = np.array(node["matrix"], np.float64).reshape(4, 4).T
    if not np.allclose(made[:, 3], [0, 0, 0, 1], rtol=0, atol=1e-6):
        raise BadMesh("the matrix of a node is not affine")
    made[:, 3] = [0, 0, 0, 1]
    return _finite(made)


def _finite(matrix: Floats) -> Floats:
    if not np.isfinite(matrix).all():
        raise BadMesh("a node lies at infinity")
    return matrix


def unit(vectors: Floats) -> Floats:
    """Vectors (N, 3) at unit length; those of none stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
