"""A glTF 2.0 document that is being changed, and the GLB file that it becomes.

Source: glTF 2.0 specification, 3.6 "Binary Data Storage" and 4 "GLB File Format".
"""

from __future__ import annotations

import copy
import io
import json
import struct
from typing import Any

import numpy as np
from PIL import Image

from .gltf_document import COMPONENTS, DRACO, MESHOPT, Document, extensions, objects, scaled
from .mesh import Ints

ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963

_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
_QUANTIZATION = "KHR_mesh_quantization"
_REFERRING_AS_GLTF = (
    *("EXT_mesh_gpu_instancing", "EXT_meshopt", "EXT_texture_", "FB_ngon_encoding", "KHR_animation_pointer"),
    *("KHR_draco", "KHR_lights_", "KHR_materials_", "KHR_mesh", "KHR_node_", "KHR_texture_", "KHR_xmp", "MSFT_"),
)
"""How the names of extensions start that refer to objects as `_refers` knows, or to none of the kinds swept."""
_SWEPT = ("accessors", "textures", "images", "samplers", "bufferViews")
"""Kinds of objects that are left out once nothing refers to them, those that refer to others first."""
_FLOAT = 5126
_WHOLE_NUMBERS = (5121, 5123, 5125)


class Draft:
    """The JSON of a document and what its buffer views hold, to be changed.

    What is added is said by number. What nothing refers to any more is left out of the file; what nothing referred to
    before stays. Where anything changed, buffer views that hold vertices or indices alone say so.

    Attributes:
        document: that it started from.
        tree: its JSON, a copy.
    """

    def __init__(self, document: Document):
        self.document = document
        self.tree: dict[str, Any] = copy.deepcopy(document.tree)
        self._views: list[bytes | memoryview] = [document.view(n) for n in range(len(self._all("bufferViews")))]
        self._arrays: dict[int, np.ndarray] = {}
        self._embed_images()
        self._used = {kind: self._references(kind) for kind in _SWEPT}
        self._counts = {kind: len(self._all(kind)) for kind in _SWEPT}
        self._extensions = extensions(self.tree)
        self._given: dict[str, Any] | None = None

    def copy(self) -> Draft:
        """Another one of the same document."""
        made = copy.copy(self)
        made.tree, made._views, made._arrays = copy.deepcopy(self.tree), [*self._views], {**self._arrays}
        made._given = self.tree
        return made

    def add(self, kind: str, **item: Any) -> int:
        """Append to a top-level list."""
        items = self.tree.setdefault(kind, [])
        items.append(item)
        return len(items) - 1

    def accessor(self, array: np.ndarray, target: int = ARRAY_BUFFER, bounds: bool = False, **more: Any) -> int:
        """Elements (count, components) in their own type; `more` are further properties."""
        array = array.reshape(len(array), -1)
        size = array.shape[1] * array.itemsize
        # Elements of attributes start at multiples of four bytes.
        stride = size + -size % 4 if target == ARRAY_BUFFER else size
        rows = np.zeros((len(array), stride), np.uint8)
        rows[:, :size] = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), size)
        view = self._view(rows.tobytes(), target=target, **({"byteStride": stride} if target == ARRAY_BUFFER else {}))
        ends = {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()} if bounds else {}
        kind = more.pop("type", None) or _TYPES[array.shape[1]]
        component = next(number for number, name in COMPONENTS.items() if np.dtype(name) == array.dtype)
        described = {"componentType": component, "count": len(array), "type": kind}
        number = self.add("accessors", bufferView=view, **described, **ends, **more)
        self._arrays[number] = array
        return number

    def values(self, number: int) -> np.ndarray:
        """The elements of an accessor as `Document.values` gives them, (count, components)."""
        return scaled(self._array(number), self.tree["accessors"][number])

    def taken(self, number: int, rows: Ints, bounds: bool = False) -> int:
        """An accessor of rows (N,) of another."""
        given = self.tree["accessors"][number]
        more = {key: given[key] for key in ("normalized", "name", "extras", "type") if key in given}
        array = self._array(number)
        if given["type"].startswith("MAT") and array.dtype != np.float32:
            # Columns of smaller numbers would need room between them.
            array, more = self.values(number).astype(np.float32), {**more, "normalized": False}
        return self.accessor(array[rows], bounds=bounds, **more)

    def _array(self, number: int) -> np.ndarray:
        return self._arrays[number] if number in self._arrays else self.document.array(number)

    def indices(self, faces: Ints) -> int:
        """An accessor of the corners of faces (F, 3)."""
        # The largest number of a type may not be used (3.7.2.1).
        kind = next(c for c in _WHOLE_NUMBERS[1:] if faces.max() < np.iinfo(COMPONENTS[c]).max)
        return self.accessor(faces.reshape(-1, 1).astype(COMPONENTS[kind]), ELEMENT_ARRAY_BUFFER)

    def image(self, pixels: np.ndarray, name: str = "") -> int:
        """A PNG picture of uint8 (H, W, 3) or (H, W, 4)."""
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        return self.encoded_image(data.getvalue(), "image/png", name)

    def encoded_image(self, data: bytes, kind: str, name: str = "") -> int:
        """A picture as it is in its file."""
        return self.add("images", bufferView=self._view(data), mimeType=kind, **({"name": name} if name else {}))

    def glb(self) -> bytes:
        """The file."""
        changed = self.tree != self._given
        self._sweep()
        if changed:
            self._set_targets()
        blob = self._pack()
        self._declare_extensions()
        text = json.dumps(self.tree, separators=(",", ":"), ensure_ascii=False).encode()
        chunks = b"".join(
            struct.pack("<I4s", len(data) + -len(data) % 4, kind) + data + padding * (-len(data) % 4)
            for data, kind, padding in ((text, b"JSON", b" "), (blob, b"BIN\0", b"\0"))
            if data
        )
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def _all(self, kind: str) -> list[dict[str, Any]]:
        return self.tree.get(kind, [])

    def _view(self, data: bytes, **more: Any) -> int:
        self._views.append(data)
        return self.add("bufferViews", **more)

    def _embed_images(self) -> None:
        """Pictures beside the file, or in the JSON, come into its buffer."""
        for image in self._all("images"):
            uri = image.get("uri", "")
            if uri:
                del image["uri"]
                data = self.document.resource(uri)
                image |= {"bufferView": self._view(data), "mimeType": image.get("mimeType", _mime_type(data))}

    def _sweep(self) -> None:
        """Leave out what nothing refers to any more, where every reference is known."""
        if not all(name.startswith(_REFERRING_AS_GLTF) for name in self._extensions):
            return
        for kind in _SWEPT:
            count, used = len(self._all(kind)), self._references(kind)
            left = (self._used[kind] | set(range(self._counts[kind], count))) - used
            kept = [number for number in range(count) if number not in left]
            places = {number: place for place, number in enumerate(kept)}
            for holder, key in _references(self.tree, kind):
                holder[key] = places[holder[key]]
            if kind == "bufferViews":
                self._views = [self._views[number] for number in kept]
            if left:
                self.tree[kind] = [self.tree[kind][number] for number in kept]
            if kind in self.tree and not self.tree[kind]:
                del self.tree[kind]

    def _set_targets(self) -> None:
        """Say of buffer views what they are for (3.6.2.4), where that is one thing alone and not said."""
        kinds = {}
        for primitive in (primitive for mesh in self._all("meshes") for primitive in mesh["primitives"]):
            kinds[id(primitive)] = ELEMENT_ARRAY_BUFFER
            for names in (primitive["attributes"], *primitive.get("targets", [])):
                kinds[id(names)] = ARRAY_BUFFER
        of_arrays: dict[int, set[int | None]] = {}
        for holder, key in _references(self.tree, "accessors"):
            of_arrays.setdefault(id(self.tree["accessors"][holder[key]]), set()).add(kinds.get(id(holder)))
        of_views: dict[int, set[int | None]] = {}
        for holder, key in _references(self.tree, "bufferViews"):
            of_views.setdefault(holder[key], set()).update(of_arrays.get(id(holder), {None}))
        for number, (kind, *others) in of_views.items():
            if kind is not None and not others:
                self.tree["bufferViews"][number].setdefault("target", kind)

    def _references(self, kind: str) -> set[int]:
        return {holder[key] for holder, key in _references(self.tree, kind)}

    def _declare_extensions(self) -> None:
        """Of the extensions that were used those that still are, and those that are used now."""
        now = extensions(self.tree)
        gone = self._extensions - now
        if not any(self._is_quantized(primitive) for mesh in self._all("meshes") for primitive in mesh["primitives"]):
            gone.add(_QUANTIZATION)
        used = self.tree.get("extensionsUsed", [])
        lists = {"extensionsUsed": [*used, *sorted(now - set(used))]}
        lists["extensionsRequired"] = self.tree.get("extensionsRequired", [])
        for name, names in lists.items():
            names = [extension for extension in names if extension not in gone]
            if names:
                self.tree[name] = names
            else:
                self.tree.pop(name, None)

    def _is_quantized(self, primitive: dict[str, Any]) -> bool:
        """Whether attributes have types that only KHR_mesh_quantization allows."""
        return any(
            not _is_plain(name, self.tree["accessors"][number])
            for names in [primitive["attributes"], *primitive.get("targets", [])]
            for name, number in names.items()
        )

    def _pack(self) -> bytes:
        """The one buffer that all buffer views lie in."""
        self.tree.pop("buffers", None)
        parts: list[bytes | memoryview] = []
        end = 0
        for view, data in zip(self._all("bufferViews"), self._views):
            for name in MESHOPT:
                view.get("extensions", {}).pop(name, None)
            if "extensions" in view and not view["extensions"]:
                del view["extensions"]
            view |= {"buffer": 0, "byteOffset": end, "byteLength": len(data)}
            padding = bytes(-len(data) % 4)
            parts += [data, padding]
            end += len(data) + len(padding)
        if end:
            self.tree["buffers"] = [{"byteLength": end}]
        return b"".join(parts)


def _references(tree: dict[str, Any], kind: str) -> list[tuple[dict[str, Any], str]]:
    """The objects, and their keys, that hold the number of an object of that kind."""
    return [(part, key) for path, part in objects(tree) for key in part if _refers(kind, path, key, part[key])]


def _refers(kind: str, path: tuple[str, ...], key: str, value: Any) -> bool:
    """Whether what the object at a path has under a key is the number of an object of that kind."""
    if type(value) is not int:
        return False
    if kind == "bufferViews":
        return key == "bufferView"
    if kind == "textures":
        return key == "index" and path[-1].endswith("Texture")
    if kind == "images":
        return key == "source" and path[0] == "textures"
    if kind == "samplers":
        return key == "sampler" and path == ("textures",)
    arrays = (path[-1:] == ("attributes",) and DRACO not in path) or path[-2:] == ("primitives", "targets")
    named = (path[-1:], key) in ((("primitives",), "indices"), (("skins",), "inverseBindMatrices"))
    return arrays or named or (path == ("animations", "samplers") and key in ("input", "output"))


def _is_plain(name: str, accessor: dict[str, Any]) -> bool:
    """Whether an attribute has a type that glTF allows it without extensions."""
    kind = accessor["componentType"]
    if name in ("POSITION", "NORMAL", "TANGENT"):
        return kind == _FLOAT
    fraction = kind in _WHOLE_NUMBERS[:2] and accessor.get("normalized", False)
    return kind == _FLOAT or fraction or not name.startswith("TEXCOORD")


def _mime_type(data: bytes) -> str:
    """Of a picture's file by its first bytes."""
    kinds = {b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp", b"\x89PNG": "image/png", b"\xabKTX": "image/ktx2"}
    return next((kind for start, kind in kinds.items() if data.startswith(start)), "image/vnd-ms.dds")
