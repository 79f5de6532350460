"""Small glTF files for tests, byte by byte from the specification; nothing of ours writes them."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BYTE, UBYTE, SHORT, USHORT, UINT, FLOAT = 5120, 5121, 5122, 5123, 5125, 5126
TYPES = {BYTE: "<i1", UBYTE: "<u1", SHORT: "<i2", USHORT: "<u2", UINT: "<u4", FLOAT: "<f4"}
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}

QUAD = [[-0.6, -0.6, 0], [0.6, -0.6, 0], [0.6, 0.6, 0], [-0.6, 0.6, 0]]
TRIANGLES = [0, 1, 2, 0, 2, 3]
UVS = [[0, 1], [1, 1], [1, 0], [0, 0]]


class GltfFile:
    """A file under construction: a JSON tree, and the bytes of its one buffer."""

    def __init__(self, **tree: Any):
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}, **tree}
        self.blob = b""

    def add(self, kind: str, **item: Any) -> int:
        """Append to a top-level list; the item's number."""
        self.tree.setdefault(kind, []).append(item)
        return len(self.tree[kind]) - 1

    def view(self, data: bytes, **more: Any) -> int:
        self.blob += bytes(-len(self.blob) % 4)
        view = {"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data), **more}
        self.blob += data
        return self.add("bufferViews", **view)

    def accessor(self, rows: Sequence[Any] | np.ndarray, component: int = FLOAT, **more: Any) -> int:
        array = np.asarray(rows, TYPES[component])
        width = array[0].size
        bounds = {"min": array.min(0).tolist(), "max": array.max(0).tolist()} if width == 3 else {}
        item = {"bufferView": self.view(array.tobytes()), "componentType": component, "count": len(array)}
        return self.add("accessors", **item, type=KINDS[width], **bounds, **more)

    def quad(self, indices: Sequence[int] | None = TRIANGLES, **more: Any) -> dict[str, Any]:
        """A primitive of four corners, 1.2 wide, UVs upright; `more` are its further properties."""
        attributes = {"POSITION": self.accessor(QUAD), "TEXCOORD_0": self.accessor(UVS)}
        primitive = {"attributes": attributes, **more}
        if indices is not None:
            primitive["indices"] = self.accessor(indices, USHORT)
        return primitive

    def show(self, *primitives: dict[str, Any], **node: Any) -> int:
        """A mesh, and a node that shows it at the root of the scene; the node's number."""
        return self.root(mesh=self.add("meshes", primitives=list(primitives)), **node)

    def root(self, **node: Any) -> int:
        number = self.add("nodes", **node)
        self.tree.setdefault("scene", 0)
        self.tree.setdefault("scenes", [{"nodes": []}])[0]["nodes"].append(number)
        return number

    def texture(self, pixels: np.ndarray | Image.Image, form: str = "PNG", **more: Any) -> int:
        """A texture with a picture of its own in the buffer; `more` are its further properties."""
        return self.add("textures", source=self.image(pixels, form), **more)

    def image(self, pixels: np.ndarray | Image.Image, form: str = "PNG") -> int:
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
        data = io.BytesIO()
        picture.save(data, form, **({"lossless": True} if form == "WEBP" else {}))
        return self.add("images", bufferView=self.view(data.getvalue()), mimeType=f"image/{form.lower()}")

    def uses(self, name: str, required: bool = False) -> None:
        """Declare an extension."""
        self.tree.setdefault("extensionsUsed", []).append(name)
        if required:
            self.tree.setdefault("extensionsRequired", []).append(name)

    def glb(self) -> bytes:
        tree = dict(self.tree)
        blob = self.blob + bytes(-len(self.blob) % 4)
        if blob:
            tree["buffers"] = [{"byteLength": len(self.blob)}, *tree.get("buffers", [])]
        text = json.dumps(tree).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        if blob:
            chunks += struct.pack("<I4s", len(blob), b"BIN\0") + blob
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def save(self, folder: Path) -> Path:
        """Write it as .glb."""
        path = folder / "a file.glb"
        path.write_bytes(self.glb())
        return path

    def save_apart(self, folder: Path, uri: str) -> Path:
        """Write it as .gltf whose buffer is where the URI says; that is left to the caller."""
        path = folder / "a file.gltf"
        path.write_text(json.dumps({**self.tree, "buffers": [{"byteLength": len(self.blob), "uri": uri}]}))
        return path
