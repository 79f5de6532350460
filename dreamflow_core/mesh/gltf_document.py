"""A glTF 2.0 file as it lies on disk: its JSON, its buffers, and the arrays in them.

Source: glTF 2.0 specification, 3.6 "Binary Data Storage" and 4 "GLB File Format".
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from .mesh import BadMesh, Ints

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_ROWS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 2, "MAT3": 3, "MAT4": 4}
"""A vector is one column, a matrix has as many as rows."""
DRACO = "KHR_draco_mesh_compression"
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
_MOST_MESHOPT = 1024
"""Bytes from one: meshopt's codec of vertices spends at least two bits on 256 bytes."""


class Document:
    """The JSON of a glTF file and the data that it refers to, read when they are asked for.

    What is asked for by number is checked against the file; every method raises `BadMesh` for what the file lacks,
    for sizes that its data do not fill, and for compression whose package is not installed.

    Attributes:
        path: the file.
        tree: its JSON, as parsed.
        binary: the BIN chunk of a .glb file, empty without one.

    Args:
        data: what the file holds, if it is not to be read.
    """

    def __init__(self, path: Path, data: bytes | None = None):
        if data is None:
            data = path.read_bytes()
        self.path = path
        self.tree, self.binary = _split(data)
        self._bytes_read = len(data)
        self._buffers: dict[int, bytes] = {}
        self._views: dict[int, memoryview] = {}
        self._arrays: dict[int, np.ndarray] = {}

    def item(self, kind: str, number: Any) -> dict[str, Any]:
        """An object of one of the top-level lists of the JSON."""
        items = self.tree.get(kind, [])
        if type(number) is not int or not 0 <= number < len(items):
            raise BadMesh(f"it asks for number {number} of its {len(items)} {kind}")
        return items[number]

    def resource(self, uri: str) -> bytes:
        """What a URI holds: a data URI, or a file in the glTF file's folder or below."""
        if uri.startswith("data:"):
            header, _, text = uri.partition(",")
            return base64.b64decode(unquote(text)) if header.lower().endswith(";base64") else unquote_to_bytes(text)
        name = os.path.normpath(unquote(uri).replace("\\", "/")).replace("\\", "/")
        if ":" in name or name.startswith(("/", "../")):
            raise BadMesh(f"it needs {uri[:80]}, and only files in its own folder are read")
        try:
            data = (self.path.parent / name).read_bytes()
        except OSError as error:
            raise BadMesh(f"it needs {name}, which cannot be read: {error.strerror}") from error
        self._bytes_read += len(data)
        return data

    def buffer(self, number: Any) -> bytes:
        """The bytes of a buffer."""
        if number not in self._buffers:
            buffer = self.item("buffers", number)
            if "uri" in buffer:
                data = self.resource(buffer["uri"])
            elif number == 0 and self.binary:
                data = self.binary
            else:
                raise BadMesh(f"its buffer {number} is nowhere")
            length = whole(buffer, "byteLength")
            if len(data) < length:
                raise BadMesh(f"its buffer {number} is cut off after {len(data)} of {length} bytes")
            self._buffers[number] = data
        return self._buffers[number]

    def view(self, number: Any) -> memoryview:
        """The bytes of a buffer view, decompressed."""
        if number not in self._views:
            view = self.item("bufferViews", number)
            packed = [view["extensions"][name] for name in MESHOPT if name in view.get("extensions", {})]
            # An uncompressed copy, where there is one, is what the file was made from.
            if packed and "uri" not in self.item("buffers", view.get("buffer")):
                self._views[number] = _unpack_meshopt(self._slice(packed[0]), packed[0], view)
            else:
                self._views[number] = self._slice(view)
        return self._views[number]

    def array(self, number: Any) -> np.ndarray:
        """The elements of an accessor in its own component type, (count, components); matrices column by column."""
        if number not in self._arrays:
            accessor = self.item("accessors", number)
            count = whole(accessor, "count")
            dtype = self._dtype(accessor)
            rows = _ROWS[accessor["type"]]
            columns = rows if accessor["type"].startswith("MAT") else 1
            if "bufferView" in accessor:
                array = self._elements(accessor, count, dtype, columns, rows)
            else:
                self._check_zeros(count)
                array = np.zeros((count, columns * rows), dtype)
            if "sparse" in accessor:
                array = self._displaced(array, accessor["sparse"], columns, rows)
            array.flags.writeable = False
            self._arrays[number] = array
        return self._arrays[number]

    def values(self, number: Any) -> np.ndarray:
        """The elements of an accessor, (count, components): float32, or its integers where they are no fractions."""
        return scaled(self.array(number), self.item("accessors", number))

    def is_stored(self, number: Any) -> bool:
        """Whether an accessor has data of its own; the others are zeros, or compressed with their primitive."""
        return "bufferView" in self.item("accessors", number)

    def draco(self, primitive: dict[str, Any]) -> tuple[dict[str, np.ndarray], Ints | None]:
        """What is compressed with Draco of a primitive: attributes as `array` gives them, and the faces (F, 3).

        No attributes and None for a primitive that is not compressed.
        """
        packed = primitive.get("extensions", {}).get(DRACO)
        # Whoever compresses a mesh may leave it in plain form too, and that is exact.
        if packed is None or self.is_stored(primitive["attributes"]["POSITION"]):
            return {}, None
        try:
            import DracoPy
        except ImportError as error:
            raise BadMesh(_lacking(DRACO, "DracoPy")) from error
        mesh = DracoPy.decode(bytes(self.view(packed["bufferView"])))
        data = {attribute["unique_id"]: attribute["data"] for attribute in mesh.attributes}
        arrays = {}
        for name, unique_id in packed["attributes"].items():
            accessor = self.item("accessors", primitive["attributes"][name])
            if unique_id not in data or len(data[unique_id]) != accessor["count"]:
                raise BadMesh(f"its compressed {name} is not the one that it describes")
            arrays[name] = data[unique_id].astype(self._dtype(accessor))
        return arrays, mesh.faces.astype(np.int64)

    def _slice(self, part: dict[str, Any]) -> memoryview:
        """The part of a buffer that an object with buffer, byteOffset and byteLength describes."""
        start, length = whole(part, "byteOffset", 0), whole(part, "byteLength")
        data = self.buffer(part.get("buffer"))
        if start + length > len(data):
            raise BadMesh(f"it looks for bytes {start} to {start + length} in a buffer of {len(data)}")
        return memoryview(data)[start : start + length]

    def _elements(self, part: dict[str, Any], count: int, dtype: np.dtype, columns: int, rows: int) -> np.ndarray:
        """Elements (count, columns * rows) from where an object with bufferView and byteOffset says."""
        data, start = self.view(part["bufferView"]), whole(part, "byteOffset", 0)
        column = rows * dtype.itemsize
        if columns > 1:
            # Columns of matrices start at multiples of four bytes.
            column += -column % 4
        stride = whole(self.item("bufferViews", part["bufferView"]), "byteStride", 0) or columns * column
        end = start + (count - 1) * stride + (columns - 1) * column + rows * dtype.itemsize
        if count and end > len(data):
            raise BadMesh(f"it looks for {count} elements up to byte {end} of a buffer view of {len(data)}")
        elements: np.ndarray = np.ndarray((count, columns, rows), dtype, data, start, (stride, column, dtype.itemsize))
        return elements.reshape(count, columns * rows).copy()

    def _displaced(self, array: np.ndarray, sparse: dict[str, Any], columns: int, rows: int) -> np.ndarray:
        """The array with the elements that a sparse accessor puts elsewhere."""
        count = whole(sparse, "count")
        places = self._elements(sparse["indices"], count, self._dtype(sparse["indices"]), 1, 1)[:, 0]
        if count and places.max() >= len(array):
            raise BadMesh(f"a sparse accessor displaces element {places.max()} of {len(array)}")
        array[places] = self._elements(sparse["values"], count, array.dtype, columns, rows)
        return array

    def _dtype(self, part: dict[str, Any]) -> np.dtype:
        kind = part.get("componentType")
        if kind not in COMPONENTS:
            raise BadMesh(f"it has numbers of the type {kind}, which glTF does not know")
        return np.dtype(COMPONENTS[kind])

    def _check_zeros(self, count: int) -> None:
        """Elements that take no room in the file could be any number; more than there are bytes are no mesh."""
        if count > self._bytes_read:
            raise BadMesh(f"it has {count} elements of zeros in {self._bytes_read} bytes")


def scaled(array: np.ndarray, accessor: dict[str, Any]) -> np.ndarray:
    """An accessor's elements as the fractions that they stand for, float32, where it says that they do."""
    if not accessor.get("normalized", False) or array.dtype.kind == "f":
        return array
    return np.maximum(array / np.iinfo(array.dtype).max, -1).astype(np.float32)


def whole(part: dict[str, Any], name: str, default: int | None = None) -> int:
    """A size, count or offset in a JSON object.

    Raises:
        BadMesh: it is missing without a default, or is no whole number.
    """
    value = part.get(name, default)
    if type(value) is not int or value < 0:
        raise BadMesh(f"it has a {name} of {value}")
    return value


def extensions(tree: dict[str, Any]) -> set[str]:
    """The names of the extensions that objects of a JSON tree have."""
    return {name for _, part in objects(tree) for name in part.get("extensions", {})}


def objects(tree: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """All objects of a JSON tree but users' own, each with the keys on the way to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, list):
            waiting += [(path, item) for item in part]
        elif isinstance(part, dict):
            yield path, part
            waiting += [((*path, key), value) for key, value in part.items() if key != "extras"]


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the BIN chunk of a .glb or .gltf file; which it is, its first bytes say."""
    text, binary = data, b""
    if data[:4] == b"glTF":
        version, length = struct.unpack_from("<II", data, 4)
        if version != 2:
            raise BadMesh(f"it is glTF {version}; only glTF 2 can be read")
        if length > len(data):
            raise BadMesh(f"it is cut off after {len(data)} of {length} bytes")
        chunks = _chunks(data[:length])
        text = chunks.get(b"JSON", b"")
        binary = chunks.get(b"BIN\0", b"")
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise BadMesh(f"its JSON is broken: {error}") from error
    if not isinstance(tree, dict) or "asset" not in tree:
        raise BadMesh("it is not glTF")
    version = str(tree["asset"].get("minVersion", tree["asset"].get("version")))
    if not (version == "2.0" or (version.startswith("2.") and "minVersion" not in tree["asset"])):
        raise BadMesh(f"it is glTF {version}; only glTF 2.0 can be read")
    return tree, binary


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The first chunk of each type of a .glb file."""
    chunks: dict[bytes, bytes] = {}
    start = 12
    while start + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, start)
        if start + 8 + length > len(data):
            raise BadMesh(f"it is cut off after {len(data)} of {start + 8 + length} bytes")
        chunks.setdefault(kind, data[start + 8 : start + 8 + length])
        start += 8 + length
    return chunks


def _unpack_meshopt(data: memoryview, packed: dict[str, Any], view: dict[str, Any]) -> memoryview:
    """The bytes of a buffer view compressed with meshoptimizer."""
    try:
        import meshopt
    except ImportError as error:
        raise BadMesh(_lacking(MESHOPT[0], "meshopt")) from error
    count, stride = whole(packed, "count"), whole(packed, "byteStride")
    if count * stride != whole(view, "byteLength") or count * stride > _MOST_MESHOPT * len(data):
        raise BadMesh(f"its {len(data)} compressed bytes cannot hold {count} elements of {stride} bytes")
    rows = meshopt.decode_gltf_buffer(bytes(data), count, stride, packed["mode"], packed.get("filter"))
    return memoryview(rows.tobytes())


def _lacking(extension: str, package: str) -> str:
    return f"it is compressed with {extension}: pip install {package}, or convert it first: {convert('copy')}"


def convert(command: str) -> str:
    """How glTF-Transform makes a file that can be read."""
    return f"npx @gltf-transform/cli {command} in.glb out.glb"
