"""OBJ files and the MTL files beside them.

Colours, in both, are display-referred (sRGB) and multiply texture and vertex colours in linear light, as three.js
shows them. Source: Wavefront, "Advanced Visualizer Manual", appendix B1 "Object Files"; "MTL material format".
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..state import BadFile, reading
from .beside import PictureFile, beside
from .colours import to_linear
from .gltf_materials import CLAMP_TO_EDGE, REPEAT, Material, Texture
from .mesh import BadMesh, Floats, Ints
from .polygons import triangulate
from .scene import Part, Scene

_WITHOUT_EFFECT = set(
    ["o", "g", "s", "mg", "lod", "vp", "bevel", "c_interp", "d_interp", "shadow_obj", "trace_obj", "end"]
)
"""Groups, smoothing (normals say it better), and how other programs draw it."""
_ARGUMENTS = {
    **dict.fromkeys(("-blendu", "-blendv", "-bm", "-boost", "-cc", "-clamp", "-imfchan", "-texres", "-type"), 1),
    "-mm": 2,
}
"""How many words follow the options of a texture."""
_UP_TO_THREE = ("-o", "-s", "-t")
"""Options that one to three numbers follow."""
_NOT_APPLIED = ("-cc", "-imfchan", "-mm", "-t")
"""Those that change what a texture shows. The others concern bumps, or filters."""
_READ = ("kd", "d", "tr", "map_kd", "map_d", "norm")
"""What is read of a material."""
_NEUTRAL = {
    **dict.fromkeys(("ka", "ks", "ke", "pm", "ps", "pc", "aniso"), (0,)),
    **dict.fromkeys(("ni", "tf"), (1,)),
    "illum": (1, 2),
}
"""Numbers of other statements of a material that change nothing. Highlights (2) are what Ks makes of them."""
_AMBIENT = {"ka": "kd", "map_ka": "map_kd"}
"""What light from everywhere shows, and what other light does; mostly they are the same."""
_START = 64
"""Bytes that tell how a text is encoded."""
_MOST_NAMES, _MOST_STATEMENTS = 5, 20


def read_obj(path: Path) -> Scene:
    """Read an OBJ file. Vertices are in the file's order, and are split where UVs, normals or materials part.

    Raises:
        BadFile: the file is missing or broken, or shows no triangles; one line says what.
    """
    with reading(path):
        return _Reader(path).scene()


class _Reader:
    """Reads one file line by line; numbers become arrays at the end."""

    def __init__(self, path: Path):
        self._path = path
        self._rows: dict[str, list[str]] = {"v": [], "vt": [], "vn": []}
        self._corners: list[int] = []
        self._names: dict[str, int] = {}
        """A number for each kind of corner, by how it is written: 7/1/3."""
        self._sizes: list[int] = []
        self._face_materials: list[int] = []
        self._materials: dict[str, int] = {}
        self._material = -1
        self._library: dict[str, dict[str, str]] = {}
        self._unknown: dict[str, None] = {}
        self._spelling: dict[str, str] = {}
        """Of statements of materials, which are lower case here."""
        self._left_out: dict[str, None] = {}
        self._pictures: dict[Path, PictureFile] = {}
        self._warnings: list[str] = []

    def scene(self) -> Scene:
        for word, rest in _statements(self._path):
            self._read(word, rest)
        if not self._sizes:
            raise BadFile(f"{self._path} holds no triangles")
        if self._unknown:
            self._warnings.append(f"its statements {', '.join([*self._unknown][:_MOST_NAMES])} are not read")
        materials: dict[int | None, Material] = {
            number: self._read_material(name, number)
            for name, number in self._materials.items()
            if name in self._library
        }
        if self._left_out:
            words = [self._spelling[word] for word in [*self._left_out][:_MOST_STATEMENTS]]
            self._warnings.append(f"left out of its materials: {', '.join(words)}")
        parts = list(self._parts(materials))
        shown = {part.material: materials.get(part.material, Material()) for part in parts}
        return Scene(parts, shown, list(dict.fromkeys(self._warnings)))

    def _read(self, word: str, rest: str) -> None:
        """One statement of the OBJ file."""
        if word in self._rows:
            self._rows[word].append(rest.partition("#")[0])
        elif word in ("f", "fo"):
            self._read_face(rest.partition("#")[0])
        elif word == "usemtl":
            name = rest if rest in self._library else _without_comment(rest)
            self._material = self._materials.setdefault(name, len(self._materials))
        elif word == "mtllib":
            self._read_library(rest)
        elif word in ("l", "p"):
            self._warnings.append("its lines and points are not read")
        elif word not in _WITHOUT_EFFECT:
            self._unknown[word] = None

    def _read_face(self, text: str) -> None:
        corners = text.split()
        if len(corners) < 3:
            self._warnings.append("its faces of fewer than three corners are not read")
            return
        if "-" in text:
            corners = [self._from_start(corner) for corner in corners]
        self._corners += [self._names.setdefault(corner, len(self._names)) for corner in corners]
        self._sizes.append(len(corners))
        self._face_materials.append(self._material)

    def _from_start(self, corner: str) -> str:
        """A corner with its negative numbers, which count back from the last row so far, made positive."""
        numbers = zip(corner.split("/"), self._rows.values())
        return "/".join(str(int(n) + len(rows) + 1) if n.startswith("-") else n for n, rows in numbers)

    def _read_library(self, names: str) -> None:
        # Names part at spaces, but one file's name may have some.
        for name in [names] if beside(self._path, names) else _without_comment(names).split():
            place = beside(self._path, name)
            if place is None:
                self._warnings.append(f"there is no material file {name} beside it")
                continue
            material: dict[str, str] = {}
            for word, rest in _statements(place):
                if word == "newmtl":
                    material = self._library[rest] = {}
                    self._library.setdefault(_without_comment(rest), material)
                else:
                    material[word.lower()] = self._value(rest)
                    self._spelling[word.lower()] = word

    def _value(self, text: str) -> str:
        """What a material's statement says, without a comment behind it; a file's name may have ` #` in it."""
        plain = _without_comment(text)
        return plain if text == plain or not beside(self._path, _split_options(text)[0]) else text

    def _read_material(self, name: str, number: int) -> Material:
        given = self._library[name]
        statements = {word: value for word, value in given.items() if value}
        colour = _colour(statements.get("kd", "1"))
        if colour is None:
            self._warnings.append(f"the Kd of its material {name} is no RGB and not read")
        alpha = self._alpha(name, statements)
        self._left_out |= dict.fromkeys(
            word for word in given if word not in statements or _is_left_out(word, statements)
        )
        return Material(
            number=number,
            name=name,
            base_colour=(*(colour or (1.0, 1.0, 1.0)), alpha),
            base_texture=self._texture(name, number, statements, "map_kd"),
            alpha_mode="BLEND" if alpha < 1 or "map_d" in statements else "OPAQUE",
            normal_texture=self._texture(name, number, statements, "norm"),
        )

    def _alpha(self, name: str, statements: dict[str, str]) -> float:
        """From d, or else Tr, which says how much is missing."""
        word = "d" if "d" in statements else "tr"
        number = statements.get(word, "0").split()[-1]
        if not _is_number(number):
            self._warnings.append(f"the {self._spelling[word]} of its material {name} is no number and not read")
            return 1.0
        value = min(max(float(number), 0.0), 1.0)
        return value if word == "d" else 1 - value

    def _texture(self, name: str, number: int, statements: dict[str, str], word: str) -> Texture | None:
        if word not in statements:
            return None
        file, options = _split_options(statements[word])
        place = beside(self._path, file)
        if place is None:
            self._warnings.append(f"there is no texture {file} beside it, which its material {name} names")
            return None
        for option in options:
            if option in _NOT_APPLIED or (option == "-bm" and word == "norm"):
                self._warnings.append(f"the option {option} of the {word} of its material {name} is not applied")
        (u, v), (du, dv) = _pair(options.get("-s", []), 1.0), _pair(options.get("-o", []), 0.0)
        wrap = CLAMP_TO_EDGE if options.get("-clamp") == ["on"] else REPEAT
        return Texture(
            number=number,
            picture=self._pictures.setdefault(place, PictureFile(place)),
            tex_coord=0,
            wrap=(wrap, wrap),
            nearest=False,
            # The origin of OBJ's UVs is at the bottom left.
            offset=(du, 1 - v - dv),
            rotation=0.0,
            scale=(u, v),
            strength=1.0,
        )

    def _parts(self, materials: dict[int | None, Material]) -> Iterator[Part]:
        """The faces of each material, those with UVs apart from those without."""
        vertices = _table(self._rows["v"], 6)
        uvs = _table(self._rows["vt"], 2)
        normals = _table(self._rows["vn"], 3)
        # The second number of a UV may be left out.
        uvs[:, 1] = np.where(np.isnan(uvs[:, 1]), 0, uvs[:, 1])
        kinds = self._kinds([len(vertices), len(uvs), len(normals)])
        colours = self._colours(vertices)

        corners = np.array(self._corners)
        cuts, polygons = triangulate(vertices[kinds[corners, 0], :3], np.array(self._sizes))
        faces = corners[cuts]
        with_uvs = (kinds[faces, 1] >= 0).all(axis=1)
        lengths = np.linalg.norm(normals, axis=1)
        with_normals = (kinds[:, 2] >= 0).all() and (lengths[kinds[:, 2]] > 0).all()
        if len(normals) and not with_normals:
            self._warnings.append("its normals are left out, since not all corners of its faces have them")

        of_faces = np.array(self._face_materials)[polygons]
        groups, first = np.unique(np.stack([of_faces, with_uvs], axis=-1), axis=0, return_index=True)
        for number, has_uvs in groups[np.argsort(first)].tolist():
            material = self._known(number, materials)
            if material is not None and materials[material].base_texture is not None and not has_uvs:
                name = materials[material].name
                self._warnings.append(f"some faces of its material {name} have no UVs, so they do not show its texture")
            used, inverse = np.unique(faces[(of_faces == number) & (with_uvs == has_uvs)], return_inverse=True)
            apart = kinds[used]
            apart[:, 1:] *= [has_uvs, with_normals]
            apart, merged = np.unique(apart, axis=0, return_inverse=True)
            v, vt, vn = apart.T
            yield Part(
                material=material,
                faces=merged.reshape(-1)[inverse].reshape(-1, 3),
                positions=vertices[v, :3],
                normals=normals[vn] / lengths[vn, None] if with_normals else None,
                uvs={0: np.stack([uvs[vt, 0], 1 - uvs[vt, 1]], axis=-1)} if has_uvs else {},
                colours=None if colours is None else colours[v],
            )

    def _known(self, number: int, materials: dict[int | None, Material]) -> int | None:
        """The key of a material; None, with a warning, for one that no file has."""
        if number < 0 or number in materials:
            return number if number in materials else None
        name = [*self._materials][number]
        self._warnings.append(f"there is no material {name} in its material files")
        return None

    def _kinds(self, counts: list[int]) -> Ints:
        """Position, UV and normal of each kind of corner, (K, 3), from 0; -1 for what it lacks."""
        numbers = [[int(number or 0) for number in f"{name}//".split("/")[:3]] for name in self._names]
        kinds = np.array(numbers) - 1
        missing = np.flatnonzero((kinds[:, 0] < 0) | (kinds[:, 0] >= counts[0]))
        if len(missing):
            corner = [*self._names][missing[0]]
            raise BadMesh(f"it has {counts[0]} vertices, and no such corner as {corner}")
        for column, what in ((1, "UVs"), (2, "normals")):
            beyond = (kinds[:, column] < -1) | (kinds[:, column] >= counts[column])
            if beyond.any():
                self._warnings.append(f"it has {counts[column]} {what}, fewer than its faces name")
                kinds[beyond, column] = -1
        return kinds

    def _colours(self, vertices: Floats) -> Floats | None:
        """Linear RGBA of vertices whose rows go on with a colour, white for others; None where no row does."""
        colours = vertices[:, 3:]
        given = np.asarray(np.isfinite(colours).all(axis=1))
        if not given.any():
            return None
        colours = np.where(given[:, None], colours, 1)
        if colours.min() < 0 or colours.max() > 1:
            self._warnings.append("its vertex colours reach outside 0 to 1 and are cut")
        return np.pad(to_linear(np.clip(colours, 0, 1)), ((0, 0), (0, 1)), constant_values=1)


def _statements(path: Path) -> Iterator[tuple[str, str]]:
    """The first word of each line and the rest of it; lines that end in a backslash go on, comments do not.

    Behind a character beyond ASCII a backslash is no mark: in Shift-JIS, GBK and Big5 it is the second byte of one.
    """
    start = ""
    # Not `splitlines`, which takes bytes of other encodings for ends of lines.
    for line in [*re.split(r"\r\n|\n|\r", _text(path)), ""]:
        line = (start + line).strip(" \t")
        if line.endswith("\\") and not line.startswith("#") and not "\x80" <= line[-2:-1] <= "\xff":
            start = f"{line[:-1]} "
            continue
        start = ""
        words = line.split(None, 1)
        if words and not words[0].startswith("#"):
            yield words[0], words[1] if len(words) == 2 else ""


def _without_comment(text: str) -> str:
    """A statement's words up to a `#` behind a space; names may have others."""
    return re.split(r"[ \t]+#", text, maxsplit=1)[0]


def _text(path: Path) -> str:
    """A file's text: UTF-8, or else Latin-1.

    Raises:
        BadFile: the mark at its start or zeros there say that it is UTF-16 or UTF-32.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:_START]:
        raise BadFile(f"{path} is no text in UTF-8 or Latin-1, and UTF-16 is not read: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _is_left_out(word: str, statements: dict[str, str]) -> bool:
    """Whether a material, given by all its statements, has one that is not read and would change something."""
    value = statements[word]
    if word in _AMBIENT and value == statements.get(_AMBIENT[word]):
        return False
    if word == "map_d":
        colours = statements.get("map_kd")
        return not (value and colours) or _split_options(value)[0] != _split_options(colours)[0]
    if word == "ns" and _numbers(statements.get("ks", "")) == {0}:
        return False
    numbers = _numbers(value)
    return word not in _READ and not (numbers and numbers <= set(_NEUTRAL.get(word, ())))


def _split_options(text: str) -> tuple[str, dict[str, list[str]]]:
    """The file's name in a texture's statement, and the options before it."""
    options: dict[str, list[str]] = {}
    while (option := text.split(None, 1)[0].lower()) in (*_ARGUMENTS, *_UP_TO_THREE) and option != text.lower():
        text = text.split(None, 1)[1]
        options[option] = []
        while len(options[option]) < _ARGUMENTS.get(option, 3) and len(text.split(None, 1)) == 2:
            word, rest = text.split(None, 1)
            if option in _UP_TO_THREE and not _is_number(word):
                break
            options[option].append(word)
            text = rest
    return text, options


def _numbers(text: str) -> set[float]:
    return {float(word) for word in text.split() if _is_number(word)}


def _is_number(word: str) -> bool:
    """Whether this is a finite number."""
    plain = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", word)
    return plain is not None and math.isfinite(float(word))


def _pair(words: list[str], default: float) -> tuple[float, float]:
    first, second, *_ = [*map(float, words), default, default]
    return first, second


def _colour(text: str) -> tuple[float, ...] | None:
    """Linear red, green and blue; one number is grey. None for spectra and CIE XYZ."""
    words = text.split()
    if len(words) not in (1, 3) or not all(_is_number(word) for word in words):
        return None
    values = np.array([float(word) for word in words] * (3 // len(words)))
    return tuple(to_linear(np.clip(values, 0, 1)).tolist())


def _table(rows: list[str], width: int) -> Floats:
    """The first `width` numbers of each row, NaN where a row has fewer."""
    fields = [row.split()[:width] for row in rows]
    lengths = np.array([len(words) for words in fields], int)
    table = np.full((len(rows), width), np.nan)
    for length in np.unique(lengths):
        chosen = np.flatnonzero(lengths == length)
        table[chosen, :length] = np.array([fields[k] for k in chosen], np.float64)
    return table
