"""A PLY file as it lies on disk: its header, and the numbers of its elements.

Source: G. Turk, "The PLY Polygon File Format", Stanford 1994. Types have the names of C there, later files also those
of their sizes.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .mesh import BadMesh, Ints

_TYPES = {
    **dict.fromkeys(("char", "int8"), "b"),
    **dict.fromkeys(("uchar", "uint8"), "B"),
    **dict.fromkeys(("short", "int16"), "h"),
    **dict.fromkeys(("ushort", "uint16"), "H"),
    **dict.fromkeys(("int", "int32"), "i"),
    **dict.fromkeys(("uint", "uint32"), "I"),
    **dict.fromkeys(("int64",), "q"),
    **dict.fromkeys(("uint64",), "Q"),
    **dict.fromkeys(("float16",), "e"),
    **dict.fromkeys(("float", "float32"), "f"),
    **dict.fromkeys(("double", "float64"), "d"),
}
"""The letters that numpy and struct both know. 64 bits and float16 are later additions."""
_LENGTHS = [name for name, letter in _TYPES.items() if letter not in "efd"]
_ORDERS = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}
# A binary file's first byte can be that of a line's end, so the header's last line ends as its first does.
_HEADER = re.compile(rb"ply[ \t]*(\r\n|\n|\r)(.*?)(?<=[\r\n])end_header[ \t]*(?:\1|\r\n|\n|\Z)", re.DOTALL)
_MOST_EXACT = 1 << 53
"""Whole numbers up to here are exact as float64."""


@dataclass(frozen=True, eq=False)
class Column:
    """The numbers of one property.

    Attributes:
        values: (C,) one row's after the other's.
        sizes: (N,) how many each row has; None for a scalar, which has one in each.
        declared: their type in the header. Those of text are float64 whatever it says.
    """

    values: np.ndarray
    sizes: Ints | None
    declared: np.dtype

    def whole(self) -> Ints:
        """The values as int64.

        Raises:
            BadMesh: not all are whole numbers.
        """
        if self.values.dtype.kind == "f":
            fits = (self.values == np.floor(self.values)) & (np.abs(self.values) < _MOST_EXACT)
            if not fits.all():
                raise BadMesh(f"it has {self.values[~fits][0]} where whole numbers must be")
        return self.values.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Element:
    """A table of the file.

    Attributes:
        count: its rows.
        columns: its properties by their names, in the file's order.
    """

    count: int
    columns: dict[str, Column]


@dataclass(frozen=True)
class _Property:
    name: str
    declared: np.dtype
    kind: np.dtype
    """How its numbers lie in the data; those of text became float64."""
    length: struct.Struct | None
    """Of a list, how its length lies in the data; None for a scalar."""


class Document:
    """All of a PLY file.

    Attributes:
        comments: the text of its comments.
        strange: lines of its header that are of no kind known, as old Blender versions write them.
        elements: by their names, in the file's order.
        bytes_left: how much follows the last element of a binary file.

    Raises:
        BadMesh: it is no PLY file, its header has what is not known, or it is cut off.
    """

    def __init__(self, path: Path):
        data = path.read_bytes()
        header = _HEADER.match(data)
        if header is None:
            raise BadMesh("it is no PLY file, or its header has no end")
        self.comments: list[str] = []
        self.strange: list[str] = []
        self._format: str | None = None
        described: dict[str, tuple[int, list[_Property]]] = {}
        for line in header[2].splitlines():
            self._read_line(line, described)
        self._data = data[header.end() :]
        if self._format == "ascii":
            self._data = np.array(self._data.split(), np.float64).astype("<d").tobytes()
        self._place = 0
        self.elements = {name: self._element(name, *table) for name, table in described.items()}
        left = self._data[self._place :]
        if self._format == "ascii" and left:
            raise BadMesh("it has more numbers than its header describes")
        self.bytes_left = len(left) if left.strip() else 0

    def _read_line(self, line: bytes, described: dict[str, tuple[int, list[_Property]]]) -> None:
        """One line of the header: a comment, the format, or more of what is described."""
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            text = line.decode("latin-1")
        match text.split():
            case []:
                return
            case ["comment" | "obj_info", *_]:
                self.comments += text.split(None, 1)[1:]
                return
            case ["format", name, "1.0"] if name in _ORDERS and self._format is None:
                self._format = name
                return
            case ["element", name, count] if count.isdecimal() and name not in described and self._format:
                described[name] = int(count), []
                return
            case ["property", kind, name] if kind in _TYPES and described:
                length = None
            case ["property", "list", length, kind, name] if length in _LENGTHS and kind in _TYPES and described:
                pass
            case ["format" | "element" | "property", *_]:
                raise _wrong_line(text)
            case _:
                self.strange.append(text)
                return
        properties = [*described.values()][-1][1]
        if name in (known.name for known in properties):
            raise _wrong_line(text)
        declared = np.dtype(_TYPES[kind])
        properties.append(
            _Property(
                name,
                declared,
                np.dtype(self._stored(kind)),
                None if length is None else struct.Struct(self._stored(length)),
            )
        )

    def _stored(self, name: str) -> str:
        """How numbers of a type lie in the data, as numpy and struct both say it."""
        order = _ORDERS[str(self._format)]
        return "<d" if order is None else order + _TYPES[name]

    def _element(self, name: str, count: int, properties: list[_Property]) -> Element:
        """The rows of the next element."""
        fixed = sum(p.length.size if p.length else p.kind.itemsize for p in properties)
        if count * fixed > len(self._data) - self._place:
            raise _cut_off(name)
        if not properties:
            return Element(count, {})
        sizes = self._sizes(name, count, properties)
        lengths = fixed + sizes @ np.array([p.kind.itemsize for p in properties if p.length], np.int64)
        alike = bool((sizes == sizes[:1]).all())
        places = self._place + np.cumsum(lengths) - lengths
        self._place += int(lengths.sum())
        columns = {}
        of_list = iter(sizes.T)
        for p in properties:
            row = np.ones(count, np.int64)
            if p.length:
                row = next(of_list)
                places = places + p.length.size
            columns[p.name] = Column(
                values=self._numbers(places, row, p.kind, alike),
                sizes=row if p.length else None,
                declared=p.declared,
            )
            places = places + row * p.kind.itemsize
        return Element(count, columns)

    def _sizes(self, name: str, count: int, properties: list[_Property]) -> Ints:
        """How long the lists of each row are, (rows, lists)."""
        if count and any(p.length for p in properties):
            # Most meshes have triangles alone, and then no loop is needed.
            first = self._walk(name, 1, properties)
            if self._are_alike(first[0].tolist(), count, properties):
                return np.broadcast_to(first, (count, first.shape[1]))
        return self._walk(name, count, properties)

    def _are_alike(self, first: list[int], count: int, properties: list[_Property]) -> bool:
        """Whether the lists of all rows are as long as those of the first one."""
        sizes = iter(first)
        lengths, end = [], self._place
        for p in properties:
            if p.length:
                lengths.append((end, p.length.format))
                end += p.length.size
            end += (next(sizes) if p.length else 1) * p.kind.itemsize
        stride = end - self._place
        if self._place + count * stride > len(self._data):
            return False
        return all(
            (np.ndarray(count, kind, self._data, place, (stride,)) == size).all()
            for (place, kind), size in zip(lengths, first)
        )

    def _walk(self, name: str, count: int, properties: list[_Property]) -> Ints:
        """`_sizes` of the first rows, one after the other."""
        steps, gap = [], 0
        for p in properties:
            if p.length:
                steps.append((gap, p.length.unpack_from, p.length.size, p.kind.itemsize))
                gap = 0
            else:
                gap += p.kind.itemsize
        sizes, place, data = [], self._place, self._data
        for _ in range(count if steps else 0):
            for before, unpack, width, item in steps:
                try:
                    (size,) = unpack(data, place + before)
                except struct.error as error:
                    raise _cut_off(name) from error
                if not (size >= 0 and size % 1 == 0):
                    raise BadMesh(f"its element {name} has a list of {size} numbers")
                sizes.append(int(size))
                place += before + width + int(size) * item
            place += gap
        if place > len(data):
            raise _cut_off(name)
        return np.array(sizes, np.int64).reshape(count, len(steps))

    def _numbers(self, places: Ints, sizes: Ints, kind: np.dtype, alike: bool) -> np.ndarray:
        """The numbers at places (N,) in the data, so many at each; `alike` if all rows have the same layout."""
        if alike and len(places):
            stride = int(places[1] - places[0]) if len(places) > 1 else 0
            values: np.ndarray = np.ndarray(
                (len(places), int(sizes[0])), kind, self._data, int(places[0]), (stride, kind.itemsize)
            )
            return values.reshape(-1).astype(kind.newbyteorder("="))
        starts = np.repeat(places - (np.cumsum(sizes) - sizes) * kind.itemsize, sizes)
        starts += np.arange(len(starts)) * kind.itemsize
        data = np.frombuffer(self._data, np.uint8)
        return data[starts[:, None] + np.arange(kind.itemsize)].view(kind)[:, 0].astype(kind.newbyteorder("="))


def _wrong_line(text: str) -> BadMesh:
    return BadMesh(f"its header has the line {text[:80]!r}")


def _cut_off(name: str) -> BadMesh:
    return BadMesh(f"it is cut off within its element {name}")
