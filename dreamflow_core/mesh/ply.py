"""PLY files and the pictures beside them.

Colours are display-referred (sRGB), as three.js shows them: floats count to 1, ushort to 65535, other integers to 255.
The origin of UVs is at the bottom left. Source of the names: see `ply_document`; those of pictures, UVs of faces and
strips are VCGlib's (MeshLab), in its import_ply.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..state import reading
from .beside import PictureFile, beside
from .colours import to_linear
from .gltf_materials import REPEAT, Material, Texture
from .mesh import BadMesh, Floats, Ints
from .ply_document import Column, Document
from .polygons import triangulate
from .scene import Part, Scene

_ELEMENTS = ("vertex", "face", "tristrips")
_INDICES = ("vertex_indices", "vertex_index")
_UVS = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"), ("tx", "ty"))
_COLOURS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_ALPHAS = (("alpha",), ("diffuse_alpha",), ("a",))
_WITHOUT_EFFECT = ("flags",)
_SPLATS = ("f_dc_0", "packed_position")
"""Vertices with one of these are Gaussians."""
_RESTART = -1
"""Parts strips in a list."""
_TEXTURE_FILE = re.compile(r"TextureFile:?\s+(.+)", re.IGNORECASE)
_OWN_NAME = "<this>"
"""Stands for the PLY file's own name without its suffix, in names of pictures."""
_MOST_NAMES = 5


def read_ply(path: Path) -> Scene:
    """Read a PLY file. Vertices are in the file's order, and are split where UVs or colours of faces part.

    Colours of vertices come before those of faces, unless all are white. Where faces show a picture they have no other
    colours: in PLY files these record the same look once more, and are no factor.

    Raises:
        BadFile: the file is missing or broken, or shows no triangles; one line says what.
    """
    with reading(path):
        return _Reader(path).scene()


@dataclass(frozen=True, eq=False)
class _Triangles:
    """Those of faces, then those of strips.

    Attributes:
        vertices: (T, 3) numbers of vertices.
        corners: (T, 3) places in the faces' lists, one list after the other; -1 in strips.
        rows: (T,) numbers of faces; -1 in strips.
    """

    vertices: Ints
    corners: Ints
    rows: Ints


@dataclass(frozen=True, eq=False)
class _Attribute:
    """Values of the triangles' corners.

    Attributes:
        values: (N, components).
        of: (T, 3) which of them each corner has.
    """

    values: Floats
    of: Ints


class _Reader:
    """Reads one file, and notes what of it is read, so that the rest can be named."""

    def __init__(self, path: Path):
        self._path = path
        self._document = Document(path)
        self._elements = self._document.elements
        self._read: set[tuple[str, str]] = set()
        self._warnings: list[str] = []

    def scene(self) -> Scene:
        positions = self._stack("vertex", ("x", "y", "z"))
        if positions is None:
            raise self._nothing("it has no vertices with x, y and z")
        triangles = self._triangles(positions)
        pictures = self._pictures()
        parts = list(self._parts(triangles, positions, pictures))
        self._name_unread()
        if not parts:
            raise self._nothing("it holds no triangles")
        translucent = any(part.colours is not None and (part.colours[:, 3] < 1).any() for part in parts)
        materials: dict[int | None, Material] = {
            number: Material(
                number=number,
                base_texture=None if number is None else pictures[number],
                alpha_mode="BLEND" if translucent else "OPAQUE",
            )
            for number in dict.fromkeys(part.material for part in parts)
        }
        return Scene(parts, materials, list(dict.fromkeys(self._warnings)))

    def _nothing(self, reason: str) -> BadMesh:
        columns = self._elements["vertex"].columns if "vertex" in self._elements else {}
        for name in _SPLATS:
            if name in columns:
                return BadMesh(f"it holds Gaussian splats ({name}), and no triangles")
        return BadMesh("; ".join([reason, *self._warnings]))

    def _scalars(self, element: str, *spellings: tuple[str, ...]) -> list[Column] | None:
        """The scalars that the first of several spellings names; None if the element has none of them."""
        columns = self._elements[element].columns if element in self._elements else {}
        for names in spellings:
            if all(name in columns and columns[name].sizes is None for name in names):
                self._read |= {(element, name) for name in names}
                return [columns[name] for name in names]
        return None

    def _stack(self, element: str, *spellings: tuple[str, ...]) -> Floats | None:
        """`_scalars` as (rows, names), float64."""
        columns = self._scalars(element, *spellings)
        return None if columns is None else np.stack([column.values for column in columns], -1).astype(np.float64)

    def _list(self, element: str, *names: str) -> tuple[Column, Ints] | None:
        """A list under the first of several names that an element has, and how long it is in each row."""
        columns = self._elements[element].columns if element in self._elements else {}
        for name in names:
            if name in columns and (sizes := columns[name].sizes) is not None:
                self._read.add((element, name))
                return columns[name], sizes
        return None

    def _triangles(self, positions: Floats) -> _Triangles:
        faces, strips = self._faces(positions), self._strips(len(positions))
        none = np.full_like(strips, -1)
        return _Triangles(
            np.concatenate([faces.vertices, strips]),
            np.concatenate([faces.corners, none]),
            np.concatenate([faces.rows, none[:, 0]]),
        )

    def _faces(self, positions: Floats) -> _Triangles:
        numbers, sizes = self._indices("face")
        _check(numbers, len(positions))
        kept = sizes >= 3
        if not kept.all():
            self._warnings.append("its faces of fewer than three corners are not read")
        places = np.flatnonzero(np.repeat(kept, sizes))
        cuts, polygons = triangulate(positions[numbers[places]], sizes[kept])
        corners = places[cuts]
        return _Triangles(numbers[corners], corners, np.flatnonzero(kept)[polygons])

    def _strips(self, count: int) -> Ints:
        """The triangles (T, 3) of strips, without those that name a vertex twice."""
        numbers, sizes = self._indices("tristrips")
        _check(numbers[numbers != _RESTART], count)
        # A strip ends where its list does, too.
        strip = np.repeat(np.arange(len(sizes)), sizes) + np.cumsum(numbers == _RESTART)
        _, starts, strip = np.unique(strip, return_index=True, return_inverse=True)
        first = starts + (numbers[starts] == _RESTART)
        start = np.arange(max(len(numbers) - 2, 0))
        odd = (start - first[strip[start]]) % 2
        triangles = numbers[np.stack([start, start + 1 + odd, start + 2 - odd], axis=-1)]
        whole = (strip[start] == strip[start + 2]) & (triangles != _RESTART).all(axis=1)
        return triangles[whole & (triangles != np.roll(triangles, 1, axis=1)).all(axis=1)]

    def _indices(self, element: str) -> tuple[Ints, Ints]:
        """What the lists of an element name, one list after the other, and how long they are."""
        if element not in self._elements or not self._elements[element].count:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        found = self._list(element, *_INDICES)
        if found is None:
            raise BadMesh(f"its element {element} has no list vertex_indices")
        return found[0].whole(), found[1]

    def _parts(self, triangles: _Triangles, positions: Floats, pictures: list[Texture | None]) -> Iterator[Part]:
        """The triangles of each picture, those with UVs apart from those without."""
        uvs, normals, colours = self._uvs(triangles), self._normals(triangles), self._colours(triangles)
        with_uvs = np.full(len(triangles.vertices), False)
        if uvs is not None:
            with_uvs = np.asarray(np.isfinite(uvs.values[uvs.of]).all(axis=(1, 2)))
        number = self._picture_numbers(pictures)[triangles.rows]
        if (number[~with_uvs] >= 0).any():
            self._warnings.append("some of its faces have no UVs, so they do not show its texture")
            number[~with_uvs] = -1
        if colours is not None and (number >= 0).any():
            self._warnings.append("where it shows a texture, its other colours are left out")

        groups = 2 * number + with_uvs
        kinds, first = np.unique(groups, return_index=True)
        for kind in kinds[np.argsort(first)].tolist():
            shown, has_uvs = divmod(kind, 2)
            chosen = np.flatnonzero(groups == kind)
            attributes = {
                "positions": _Attribute(positions, triangles.vertices),
                "normals": normals,
                "uvs": uvs if has_uvs else None,
                "colours": colours if shown < 0 else None,
            }
            given = {name: attribute for name, attribute in attributes.items() if attribute is not None}
            # Most attributes are the vertices' own, and part none of them.
            corners = {id(attribute.of): attribute.of[chosen].reshape(-1) for attribute in given.values()}
            apart, vertices = _distinct(np.stack(list(corners.values()), axis=-1))
            values = {name: attribute.values[corners[id(attribute.of)][apart]] for name, attribute in given.items()}
            yield Part(
                material=shown if shown >= 0 else None,
                faces=vertices.reshape(-1, 3),
                positions=values["positions"],
                normals=values.get("normals"),
                uvs={0: values["uvs"]} if has_uvs else {},
                colours=values.get("colours"),
            )

    def _uvs(self, triangles: _Triangles) -> _Attribute | None:
        """Those of faces, or else of vertices; NaN for corners that have none."""
        found = self._list("face", "texcoord")
        if found is not None and found[1].any():
            return self._face_uvs(*found, triangles)
        uvs = self._stack("vertex", *_UVS)
        if uvs is None:
            return None
        if not np.isfinite(uvs).all():
            self._warnings.append("some of its UVs are no numbers, and are left out")
        return _Attribute(_from_top(uvs), triangles.vertices)

    def _face_uvs(self, column: Column, sizes: Ints, triangles: _Triangles) -> _Attribute:
        """UVs of the corners of faces. Strips have none."""
        corners = self._indices("face")[1]
        fits = sizes == 2 * corners
        if (sizes[~fits] > 0).any():
            self._warnings.append(
                "some of its faces have UVs that are not two numbers for each corner, and are left out"
            )
        uvs = np.full((corners.sum() + 1, 2), np.nan)
        uvs[:-1][np.repeat(fits, corners)] = column.values[np.repeat(fits, sizes)].reshape(-1, 2)
        if not np.isfinite(uvs[:-1][np.repeat(fits, corners)]).all():
            self._warnings.append("some of its UVs are no numbers, and are left out")
        first, kinds = _distinct(uvs)
        return _Attribute(_from_top(uvs[first]), kinds[triangles.corners])

    def _normals(self, triangles: _Triangles) -> _Attribute | None:
        """Those of vertices, of unit length."""
        normals = self._stack("vertex", ("nx", "ny", "nz"))
        if normals is None:
            return None
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        good = np.isfinite(lengths) & (lengths > 0)
        if not good[triangles.vertices].all():
            self._warnings.append("its normals are left out, since some are zero or no numbers")
            return None
        return _Attribute(np.divide(normals, lengths, out=np.zeros_like(normals), where=good), triangles.vertices)

    def _colours(self, triangles: _Triangles) -> _Attribute | None:
        """Linear RGBA of vertices, or else of faces. Strips are white where faces have colours."""
        of_vertices = self._linear_colours("vertex")
        # White vertices say nothing that coloured faces do not.
        if of_vertices is not None and not (of_vertices == 1).all():
            return _Attribute(of_vertices, triangles.vertices)
        colours = self._linear_colours("face")
        if colours is None:
            return None if of_vertices is None else _Attribute(of_vertices, triangles.vertices)
        colours = np.concatenate([colours, np.ones((1, 4))])
        first, kinds = _distinct(colours)
        return _Attribute(colours[first], np.repeat(kinds[triangles.rows, None], 3, axis=1))

    def _linear_colours(self, element: str) -> Floats | None:
        """Linear RGBA of an element's rows."""
        columns = self._scalars(element, *_COLOURS)
        if columns is None:
            return None
        columns += self._scalars(element, *_ALPHAS) or []
        colours = np.stack([column.values / _most(column.declared) for column in columns], axis=-1)
        if colours.min(initial=0) < 0 or colours.max(initial=0) > 1:
            self._warnings.append(f"the colours of its element {element} reach outside 0 to 1 and are cut")
            colours = np.clip(colours, 0, 1)
        alpha = colours[:, 3:] if len(columns) == 4 else np.ones((len(colours), 1))
        return np.concatenate([to_linear(colours[:, :3]), alpha], axis=1)

    def _pictures(self) -> list[Texture | None]:
        """The pictures that the file names, in the order in which faces count them; None for those that are missing."""
        names = [match[1].strip() for comment in self._document.comments if (match := _TEXTURE_FILE.match(comment))]
        pictures: list[Texture | None] = []
        for number, name in enumerate(names):
            place = beside(self._path, name.replace(_OWN_NAME, self._path.stem))
            if place is None:
                self._warnings.append(f"there is no texture {name} beside it")
                pictures.append(None)
                continue
            picture = Texture(
                number=number,
                picture=PictureFile(place),
                tex_coord=0,
                wrap=(REPEAT, REPEAT),
                nearest=False,
                offset=(0.0, 0.0),
                rotation=0.0,
                scale=(1.0, 1.0),
                strength=1.0,
            )
            pictures.append(picture)
        return pictures

    def _picture_numbers(self, pictures: list[Texture | None]) -> Ints:
        """The picture of each face, and that of strips at the end; -1 for none, and for those that are missing."""
        given = self._scalars("face", ("texnumber",))
        if given is not None:
            numbers = given[0].whole()
        else:
            numbers = np.zeros(self._elements["face"].count if "face" in self._elements else 0, np.int64)
            if len(pictures) > 1:
                self._warnings.append("only the first of its textures is shown, since its faces have no texnumber")
        numbers = np.append(numbers, 0)
        if pictures and (numbers >= len(pictures)).any():
            self._warnings.append(f"some of its faces have a texnumber above those of its {len(pictures)} textures")
        # The last one is that of all numbers without a picture.
        numbers = np.where((numbers < 0) | (numbers >= len(pictures)), len(pictures), numbers)
        return np.where([picture is not None for picture in [*pictures, None]], range(len(pictures) + 1), -1)[numbers]

    def _name_unread(self) -> None:
        others = [name for name, element in self._elements.items() if element.count and name not in _ELEMENTS]
        if others:
            self._warnings.append(f"its elements {', '.join(others[:_MOST_NAMES])} are not read")
        for name in _ELEMENTS:
            element = self._elements.get(name)
            columns = element.columns if element is not None and element.count else {}
            unread = [key for key in columns if (name, key) not in self._read and key not in _WITHOUT_EFFECT]
            if unread:
                shown = ", ".join(unread[:_MOST_NAMES])
                self._warnings.append(f"the properties {shown} of its element {name} are not read")
        if self._document.strange:
            self._warnings.append(f"the line {self._document.strange[0][:80]!r} of its header is not read")
        if self._document.bytes_left:
            self._warnings.append(f"its last {self._document.bytes_left} bytes are not read")


def _check(numbers: Ints, count: int) -> None:
    beyond = (numbers < 0) | (numbers >= count)
    if beyond.any():
        raise BadMesh(f"it has {count} vertices, and no such one as {numbers[beyond][0]}")


def _most(declared: np.dtype) -> int:
    """What stands for all of a colour."""
    return 1 if declared.kind == "f" else 65535 if declared == np.uint16 else 255


def _from_top(uvs: Floats) -> Floats:
    return np.stack([uvs[:, 0], 1 - uvs[:, 1]], axis=-1)


def _distinct(rows: np.ndarray) -> tuple[Ints, Ints]:
    """The first of each kind of rows (N, C), sorted by the rows' values, and the kind of each row (N,)."""
    first, kinds = np.zeros(0, np.int64), np.zeros(len(rows), np.int64)
    for column in rows.T:
        values, ranks = np.unique(column, return_inverse=True)
        _, first, kinds = np.unique(kinds * len(values) + ranks, return_index=True, return_inverse=True)
    return first, kinds
