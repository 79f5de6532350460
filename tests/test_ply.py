from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamflow_core.mesh.bake import sample_texture
from dreamflow_core.mesh.files import load_mesh
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.mesh.ply import read_ply
from dreamflow_core.state import BadFile

FORMATS = ["ascii", "binary_little_endian", "binary_big_endian"]
LETTERS = {
    "char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d",
    "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "float32": "f", "float64": "d",
}  # fmt: skip
XYZ = "float x, float y, float z"
FACE = "list uchar int vertex_indices"
SQUARE = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
UVS = [(0, 0), (1, 0), (1, 1), (0, 1)]
PIXELS = np.array([[[220, 30, 30], [30, 180, 30]], [[30, 30, 220], [240, 240, 240]]], np.uint8)

Table = tuple[str, str, list]
"""An element's name, its properties as the header has them with commas between them, and its rows."""


def encode(format_: str, *elements: Table, comments: tuple[str, ...] = (), newline: str = "\n") -> bytes:
    """A PLY file. Lists in rows are tuples."""
    header = ["ply", f"format {format_} 1.0", *(f"comment {comment}" for comment in comments)]
    body = b""
    for name, properties, rows in elements:
        header.append(f"element {name} {len(rows)}")
        types = [words.split() for words in properties.split(", ")]
        header += [f"property {' '.join(words)}" for words in types]
        body += b"".join(encode_row(format_, types, row, newline) for row in rows)
    return newline.join([*header, "end_header", ""]).encode() + body


def encode_row(format_: str, types: list[list[str]], row: tuple, newline: str) -> bytes:
    numbers = []
    for words, value in zip(types, row, strict=True):
        if words[0] == "list":
            numbers += [(words[1], len(value)), *((words[2], number) for number in value)]
        else:
            numbers.append((words[0], value))
    if format_ == "ascii":
        return (" ".join(repr(number) for _, number in numbers) + newline).encode()
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}[format_]
    return b"".join(struct.pack(order + LETTERS[kind], number) for kind, number in numbers)


def read(folder: Path, *elements: Table, comments: tuple[str, ...] = (), format_: str = "ascii") -> Mesh:
    (folder / "a.ply").write_bytes(encode(format_, *elements, comments=comments))
    return load_mesh(folder / "a.ply")


def square(vertices: list, properties: str = "", faces: tuple = ((0, 1, 2, 3),)) -> tuple[Table, Table]:
    """The unit square, with more properties of its vertices."""
    return (
        ("vertex", f"{XYZ}, {properties}".strip(", "), [(*at, *more) for at, more in zip(SQUARE, vertices)]),
        ("face", FACE, [(face,) for face in faces]),
    )


def areas(mesh: Mesh) -> np.ndarray:
    """Of each face, seen from +z; negative if it is wound clockwise."""
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return np.cross(b - a, c - a)[:, 2] / 2


@pytest.mark.parametrize("format_", FORMATS)
def test_types_of_lists_in_every_format(format_: str, tmp_path: Path):
    whole = [name for name in LETTERS if LETTERS[name] not in "fd"]
    for size, index in zip([*whole, *whole], [*whole[1:], *whole, whole[0]]):
        vertices, _ = square([()] * 4)
        faces = ("face", f"list {size} {index} vertex_index", [((0, 1, 2, 3),)])
        mesh = read(tmp_path, vertices, faces, format_=format_)
        assert mesh.vertices.tolist() == [list(map(float, at)) for at in SQUARE] and areas(mesh).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("format_", FORMATS)
def test_any_order_of_elements_and_properties_and_any_type(format_: str, tmp_path: Path, caplog):
    """Every name of a type, lists of changing lengths before and behind what counts, elements that are not known."""
    vertex = [f"{kind} {kind}_extra" for kind in LETTERS] + ["list uchar double more"]
    rows = []
    for k, (x, y, z) in enumerate(SQUARE):
        rows.append((*range(k, k + len(LETTERS)), tuple(0.5 * n for n in range(k)), z, x, 7, y))
    mesh = read(
        tmp_path,
        ("edge", "int vertex1, int vertex2", [(0, 1), (1, 2)]),
        ("face", "int flags, list ushort short others, list uchar int vertex_indices, float quality",
         [(1, (4, 5), (0, 1, 2), 0.5), (2, (), (0, 2, 3), 0.25)]),
        ("nothing", "float x", []),
        ("vertex", ", ".join([*vertex, "float64 z", "double x", "uchar flags", "float32 y"]), rows),
        format_=format_,
    )  # fmt: skip
    assert mesh.vertices.tolist() == [list(map(float, at)) for at in SQUARE]
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert "its elements edge are not read" in caplog.text and "nothing" not in caplog.text
    assert "the properties others, quality of its element face are not read" in caplog.text
    assert "char_extra" in caplog.text and "flags" not in caplog.text


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_of_the_header(format_: str, newline: str, tmp_path: Path):
    """The first number's first byte is that of a line's end, in a binary file of either order."""
    first = struct.unpack(">f" if "big" in format_ else "<f", b"\n\0\0\0" if "big" in format_ else b"\n\0\0\x40")[0]
    vertex = ("vertex", XYZ, [(first, 0, 0), (5, 0, 0), (5, 1, 0)])
    data = encode(format_, vertex, ("face", FACE, [((0, 1, 2),)]), comments=("end_header is near",), newline=newline)
    (tmp_path / "a.ply").write_bytes(data)
    assert load_mesh(tmp_path / "a.ply").vertices[:, 0].tolist() == [np.float32(first), 5, 5]


@pytest.mark.parametrize("format_", FORMATS)
def test_trimesh_reads_the_same_triangles(format_: str, tmp_path: Path):
    import trimesh

    rng = np.random.default_rng(0)
    rows = [tuple(map(float, np.float32(row))) for row in rng.normal(size=(50, 3))]
    faces = [(tuple(map(int, row)),) for row in rng.integers(0, 50, (99, 3))]
    mesh = read(tmp_path, ("vertex", XYZ, rows), ("face", FACE, faces), format_=format_)
    theirs = trimesh.load_mesh(tmp_path / "a.ply", process=False)
    assert np.array_equal(mesh.vertices[mesh.faces], np.float32(theirs.vertices[theirs.faces]))


@pytest.mark.parametrize("format_", FORMATS)
def test_polygons_of_mixed_sizes_and_concave_ones(format_: str, tmp_path: Path, caplog):
    """An arrow head of area 6, in which a fan about the first corner would cover the notch, a square and a triangle."""
    points = [(2, 1, 0), (4, 0, 0), (2, 4, 0), (0, 0, 0), (1.5, 0.75, 0), (9, 0, 0), (9, 5, 0), (4, 5, 0)]
    faces = [(0, 1, 2, 3, 4), (1, 5, 6, 7), (), (1, 2), (1, 7, 2), (1, 1, 2)]
    mesh = read(tmp_path, ("vertex", XYZ, points), ("face", FACE, [(face,) for face in faces]), format_=format_)
    assert len(mesh.faces) == 3 + 2 + 1 + 1 and (areas(mesh) >= 0).all()
    assert areas(mesh)[:3].sum() == pytest.approx(6) and areas(mesh)[3:5].sum() == 25
    assert areas(mesh)[5:].tolist() == [5, 0]
    assert "fewer than three corners" in caplog.text


@pytest.mark.parametrize("format_", FORMATS)
def test_strips(format_: str, tmp_path: Path):
    """Two strips in one list, a third one in another, all seen from +z. The first one turns by a repeated vertex."""
    points = [(x, y, 0) for x in range(5) for y in (1, 0)]
    strips = [((0, 1, 2, 3, 3, 5, 2, -1, 4, 5, 6, 7, -1),), ((6, 7, 8, 9),)]
    mesh = read(
        tmp_path,
        ("vertex", XYZ, points),
        ("tristrips", "list int int vertex_indices", strips),
        ("face", FACE, [((2, 5, 4),)]),
        format_=format_,
    )
    corners = [set(face) for face in mesh.faces.tolist()]
    assert corners == [{2, 4, 5}, {0, 1, 2}, {1, 2, 3}, {2, 3, 5}, {4, 5, 6}, {5, 6, 7}, {6, 7, 8}, {7, 8, 9}]
    assert areas(mesh).tolist() == [0.5] * 8


@pytest.mark.parametrize(
    ("kind", "names", "most"),
    [
        ("uchar", "red green blue", 255),
        ("uint8", "diffuse_red diffuse_green diffuse_blue", 255),
        ("ushort", "red green blue", 65535),
        ("int", "red green blue", 255),
        ("float", "r g b", 1),
        ("double", "red green blue", 1),
    ],
)
@pytest.mark.parametrize("format_", FORMATS)
def test_types_and_names_of_vertex_colours(format_: str, kind: str, names: str, most: int, tmp_path: Path):
    scale = most if most == 1 else int(most)
    rows = [(scale, 0, 0), (0, scale, 0), (0, 0, scale), (scale * 51 // 255 if most > 1 else 0.2,) * 3]
    mesh = read(tmp_path, *square(rows, ", ".join(f"{kind} {name}" for name in names.split())), format_=format_)
    assert mesh.colours == pytest.approx(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2] * 3]), abs=1e-6)


def test_colours_are_display_referred(tmp_path: Path):
    (tmp_path / "a.ply").write_bytes(
        encode("ascii", *square([(128, 255, 0)] * 4, "uchar red, uchar green, uchar blue"))
    )
    (part,) = read_ply(tmp_path / "a.ply").parts
    # sRGB: 128 / 255 is 0.21586 of the light.
    assert part.colours == pytest.approx(np.array([[0.21586, 1, 0, 1]] * 4), abs=1e-5)


def test_alpha_and_colours_outside_of_the_range_are_said(tmp_path: Path, caplog):
    mesh = read(tmp_path, *square([(2.0, -1.0, 0.5, 0.5)] * 4, "float red, float green, float blue, float alpha"))
    assert mesh.colours == pytest.approx(np.array([[1, 0, 0.5]] * 4), abs=1e-6)
    assert "transparency" in caplog.text and "outside 0 to 1" in caplog.text


@pytest.mark.parametrize("format_", FORMATS)
def test_colours_of_faces_stay_with_their_faces(format_: str, tmp_path: Path):
    faces = [((0, 1, 2), 255, 0, 0), ((0, 2, 3), 0, 0, 255)]
    more = f"{FACE}, uchar red, uchar green, uchar blue"
    mesh = read(tmp_path, ("vertex", XYZ, SQUARE), ("face", more, faces), format_=format_)
    assert len(mesh.vertices) == 6 and areas(mesh).tolist() == [0.5, 0.5]
    assert mesh.colours[mesh.faces].tolist() == [[[1, 0, 0]] * 3, [[0, 0, 1]] * 3]
    mesh = read(tmp_path, ("vertex", XYZ, SQUARE), ("face", more, [((0, 1), 0, 255, 0), *faces]), format_=format_)
    assert mesh.colours[mesh.faces].tolist() == [[[1, 0, 0]] * 3, [[0, 0, 1]] * 3]
    same = [((0, 1, 2), 9, 9, 9), ((0, 2, 3), 9, 9, 9)]
    assert len(read(tmp_path, ("vertex", XYZ, SQUARE), ("face", more, same)).vertices) == 4


def test_colours_of_vertices_come_before_those_of_faces(tmp_path: Path, caplog):
    vertex, _ = square([(0, 255, 0)] * 4, "uchar red, uchar green, uchar blue")
    face = ("face", f"{FACE}, uchar red, uchar green, uchar blue", [((0, 1, 2, 3), 255, 0, 0)])
    assert read(tmp_path, vertex, face).colours.tolist() == [[0, 1, 0]] * 4
    assert "red, green, blue of its element face are not read" in caplog.text


def test_white_vertices_leave_the_colours_to_the_faces(tmp_path: Path):
    vertex, plain = square([(255, 255, 255)] * 4, "uchar red, uchar green, uchar blue")
    face = ("face", f"{FACE}, uchar red, uchar green, uchar blue", [((0, 1, 2, 3), 255, 0, 0)])
    assert read(tmp_path, vertex, face).colours.tolist() == [[1, 0, 0]] * 4
    assert read(tmp_path, vertex, plain).colours.tolist() == [[1, 1, 1]] * 4


def test_normals_get_unit_length_and_zero_ones_are_left_out(tmp_path: Path, caplog):
    names = "float nx, float ny, float nz"
    mesh = read(tmp_path, *square([(0, 0, 2), (0, 3, 4), (0, 0, 1), (-1, 0, 0)], names))
    assert mesh.normals == pytest.approx(np.array([[0, 0, 1], [0, 0.6, 0.8], [0, 0, 1], [-1, 0, 0]]))
    # That of a vertex that no face has does not count.
    mesh = read(tmp_path, *square([(0, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, 0)], names, faces=((0, 1, 2),)))
    assert mesh.normals.tolist() == [[0, 0, 1]] * 3 and "left out" not in caplog.text
    assert read(tmp_path, *square([(0, 0, 1), (0, 0, 0), (0, 0, 1), (0, 0, 1)], names)).normals is None
    assert "its normals are left out" in caplog.text


@pytest.mark.parametrize("names", ["s t", "u v", "texture_u texture_v", "texture_s texture_t"])
def test_uvs_of_vertices_with_colours_and_without_a_picture(names: str, tmp_path: Path):
    u, v = names.split()
    rows = [(*uv, 0, 0, 255) for uv in UVS]
    mesh = read(tmp_path, *square(rows, f"float {u}, float {v}, uchar red, uchar green, uchar blue"))
    # The origin of PLY's UVs is at the bottom left, that of a mesh's at the top left.
    assert mesh.uvs.tolist() == [[0, 1], [1, 1], [1, 0], [0, 0]]
    assert mesh.texture is None and mesh.colours.tolist() == [[0, 0, 1]] * 4


@pytest.mark.parametrize("format_", FORMATS)
def test_uvs_of_faces_and_their_picture(format_: str, tmp_path: Path, caplog):
    """Two triangles that show the picture's lower right and upper left half, mirrored: their diagonal is a seam."""
    Image.fromarray(PIXELS).save(tmp_path / "four colours.png")
    faces = [((0, 1, 2), (0, 0, 1, 0, 1, 1)), ((0, 2, 3), (1, 0, 0, 1, 1, 1))]
    rows = [(*at, 200, 10, 10) for at in SQUARE]
    mesh = read(
        tmp_path,
        ("vertex", f"{XYZ}, uchar red, uchar green, uchar blue", rows),
        ("face", f"{FACE}, list uchar float texcoord", faces),
        comments=("TextureFile four colours.png",),
        format_=format_,
    )
    assert np.array_equal((mesh.texture * 255).round(), PIXELS)
    assert mesh.uvs[mesh.faces].tolist() == [[[0, 1], [1, 1], [1, 0]], [[1, 1], [0, 0], [1, 0]]]
    assert len(mesh.vertices) == 6 and areas(mesh).tolist() == [0.5, 0.5]
    # The colours of vertices and the texture are two records of one look.
    assert mesh.colours is None and "its other colours are left out" in caplog.text


def test_uvs_of_faces_follow_the_corners_of_polygons(tmp_path: Path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    uvs = {at[:2]: uv for at, uv in zip(SQUARE, [(0.25, 0), (1, 0.25), (0.75, 1), (0, 0.75)])}
    face = ((0, 1, 2, 3), tuple(number for at in SQUARE for number in uvs[at[:2]]))
    face_table = ("face", f"{FACE}, list uchar double texcoord", [((0, 1), ()), face])
    mesh = read(tmp_path, ("vertex", XYZ, SQUARE), face_table, comments=("TextureFile a.png",))
    assert {tuple(at): tuple(uv) for at, uv in zip(mesh.vertices[:, :2].tolist(), mesh.uvs.tolist())} == {
        at: (u, 1 - v) for at, (u, v) in uvs.items()
    }


def test_several_pictures(tmp_path: Path, caplog):
    """Faces of two pictures, of one that is missing, of none, and one without UVs, each in its own place."""
    colours = {"red.png": (255, 0, 0), "lime.png": (0, 255, 0)}
    for name, colour in colours.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    shown = [(255, 0, 0), (0, 255, 0), (10, 20, 30), (10, 20, 30), (10, 20, 30)]
    points = [(x + dx, dy, 0, 10, 20, 30) for x in range(5) for dx, dy in ((0, 0), (0.9, 0), (0, 1))]
    uvs = (0.1, 0.1, 0.9, 0.1, 0.1, 0.9)
    faces = [((3 * k, 3 * k + 1, 3 * k + 2), () if k == 4 else uvs, n) for k, n in enumerate((0, 1, 2, -1, 0))]
    mesh = read(
        tmp_path,
        ("vertex", f"{XYZ}, uchar red, uchar green, uchar blue", points),
        ("face", f"{FACE}, list uchar float texcoord, int texnumber", faces),
        comments=("TextureFile red.png", "TextureFile lime.png", "TextureFile lost.png"),
    )
    centres, at = mesh.vertices[mesh.faces].mean(axis=1), mesh.uvs[mesh.faces].mean(axis=1)
    for centre, colour in zip(centres, sample_texture(mesh.texture, at)):
        assert colour * 255 == pytest.approx(np.array(shown[int(centre[0])]), abs=1)
    assert "no texture lost.png" in caplog.text and "some of its faces have no UVs" in caplog.text


def test_a_missing_picture_leaves_uvs_and_colours(tmp_path: Path, caplog):
    rows = [(*uv, 0, 0, 255) for uv in UVS]
    tables = square(rows, "float s, float t, uchar red, uchar green, uchar blue")
    mesh = read(tmp_path, *tables, comments=("TextureFile lost.png",))
    assert mesh.texture is None and mesh.uvs.tolist() == [[0, 1], [1, 1], [1, 0], [0, 0]]
    assert mesh.colours.tolist() == [[0, 0, 1]] * 4 and "there is no texture lost.png beside it" in caplog.text
    mesh = read(tmp_path, *square(UVS, "float s, float t"), comments=("TextureFile lost.png",))
    assert mesh.texture is None and mesh.colours is None and mesh.uvs is not None


def test_names_of_pictures_that_stand_for_the_files_own(tmp_path: Path):
    Image.fromarray(PIXELS).save(tmp_path / "a_0.png")
    mesh = read(tmp_path, *square(UVS, "float s, float t"), comments=("TextureFile   <this>_0.png ",))
    assert np.array_equal((mesh.texture * 255).round(), PIXELS)


def test_uvs_that_cannot_be_used_are_said(tmp_path: Path, caplog):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for count in (6, 10):
        caplog.clear()
        face = ("face", f"{FACE}, list uchar float texcoord", [((0, 1, 2, 3), (0.5,) * count)])
        mesh = read(tmp_path, ("vertex", XYZ, SQUARE), face, comments=("TextureFile a.png",))
        assert mesh.uvs is None and "not two numbers for each corner" in caplog.text
    mesh = read(tmp_path, *square([(0, 0), (1, 0), (float("nan"), 1), (0, 1)], "float s, float t"))
    assert mesh.uvs is None and "no numbers" in caplog.text


def test_positions_keep_double_precision(tmp_path: Path):
    rows = [(1e6 + 1e-9 * k, float(k == 1), float(k == 2)) for k in range(3)]
    for format_ in FORMATS:
        data = encode(format_, ("vertex", "double x, double y, double z", rows), ("face", FACE, [((0, 1, 2),)]))
        (tmp_path / "a.ply").write_bytes(data)
        (part,) = read_ply(tmp_path / "a.ply").parts
        assert [tuple(row) for row in part.positions.tolist()] == rows


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(BadFile) as caught:
        load_mesh(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format_", FORMATS)
def test_what_shows_no_triangles_is_refused(format_: str, tmp_path: Path):
    path = tmp_path / "a.ply"
    points = ("vertex", XYZ, SQUARE)
    assert "no triangles" in refused(path, encode(format_, points))
    assert "no triangles" in refused(path, encode(format_, points, ("face", FACE, [])))
    grid = ("range_grid", "list uchar int vertex_indices", [((0,),), ((),)])
    assert "range_grid" in refused(path, encode(format_, points, grid))
    splats = ("vertex", f"{XYZ}, float f_dc_0, float opacity", [(*at, 0.5, 1) for at in SQUARE])
    assert "Gaussian splats (f_dc_0)" in refused(path, encode(format_, splats))
    packed = ("vertex", "uint packed_position", [(k,) for k in range(4)])
    assert "Gaussian splats" in refused(path, encode(format_, packed))
    assert "no vertices with x, y and z" in refused(path, encode(format_, ("vertex", "float x", [(0,)])))
    assert "no list vertex_indices" in refused(path, encode(format_, points, ("face", "int a", [(0,)])))


@pytest.mark.parametrize("format_", FORMATS)
def test_vertices_that_are_not_there_are_named(format_: str, tmp_path: Path):
    for wrong in (4, -1, 70000):
        data = encode(format_, *square([()] * 4, faces=((0, 1, 2), (0, 1, wrong))))
        assert f"no such one as {wrong}" in refused(tmp_path / "a.ply", data)
    strips = ("tristrips", "list int int vertex_indices", [((0, 1, 2, -2),)])
    assert "no such one as -2" in refused(tmp_path / "a.ply", encode(format_, ("vertex", XYZ, SQUARE), strips))
    data = encode(format_, ("vertex", XYZ, SQUARE), ("face", "list uchar float vertex_indices", [((0, 1, 1.5),)]))
    assert "1.5 where whole numbers" in refused(tmp_path / "a.ply", data)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("faces", [((0, 1, 2), (0, 2, 3)), ((0, 1, 2, 3), (0, 1, 2))])
def test_a_file_cut_off_anywhere_is_refused(format_: str, faces: tuple, tmp_path: Path):
    data = encode(format_, *square([()] * 4, faces=faces)).rstrip(b"\n")
    body = data.index(b"end_header\n") + len(b"end_header")
    for end in range(len(data)):
        assert ("is cut off" if end >= body else "no PLY file") in refused(tmp_path / "a.ply", data[:end])


@pytest.mark.parametrize("format_", FORMATS)
def test_counts_and_lists_that_no_file_holds_take_no_memory(format_: str, tmp_path: Path):
    lists = encode(format_, ("vertex", XYZ, SQUARE), ("face", "list uint int vertex_indices, int a", [((1, 2, 3), 0)]))
    three, many = (encode_row(format_, [["uint"]], (number,), "").strip() for number in (3, 4000000000))
    body = lists.index(b"end_header")
    start = lists.index(three, len(lists) - 20)
    files = [
        lists.replace(b"vertex 4", b"vertex 4000000000000"),
        lists.replace(b"face 1", b"face 9000000000000"),
        lists.replace(b"face 1", b"face 9000000000000").replace(b"property int a\n", b""),
        lists[:start] + many + lists[start + len(three) :],
        lists[:body].replace(b"face 1", b"vertices 1" + 5000 * b"0") + lists[body:],
    ]
    for data in files:
        tracemalloc.start()
        refused(tmp_path / "a.ply", data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1e6


@pytest.mark.parametrize(
    "header",
    [
        "ply",
        "ply\nend_header\n",
        "ply\nformat ascii 2.0\nend_header\n",
        "ply\nformat binary 1.0\nend_header\n",
        "ply\nelement vertex 1\nproperty float x\nformat ascii 1.0\nend_header\n0",
        "ply\nformat ascii 1.0\nproperty float x\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex -1\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex many\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty complex x\nend_header\n0",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty list float int x\nend_header\n0",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float x\nend_header\n0 0",
        "ply\nformat ascii 1.0\nelement vertex 0\nelement vertex 0\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\nzero",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float\nend_header\n0",
        "solid\nend_header\n",
    ],
)
def test_headers_and_rows_that_are_none_are_refused(header: str, tmp_path: Path):
    refused(tmp_path / "a.ply", header.encode())


@pytest.mark.parametrize("size", ["-1", "nan", "inf", "1.5"])
def test_lengths_of_lists_that_are_none_are_named(size: str, tmp_path: Path):
    lists = encode("ascii", ("vertex", XYZ, SQUARE), ("face", FACE, [((0, 1, 2),)])).replace(
        b"\n3 0", f"\n{size} 0".encode()
    )
    assert f"its element face has a list of {float(size)} numbers" in refused(tmp_path / "a.ply", lists)
    lists = encode("binary_big_endian", ("vertex", "list char int x", [((5, 6),)])).replace(b"\2", b"\xfe")
    assert "its element vertex has a list of -2 numbers" in refused(tmp_path / "a.ply", lists)


def test_a_line_of_no_kind_in_the_header_is_said(tmp_path: Path, caplog):
    """As Blender 2.4 wrote it, without the word comment."""
    text = encode("ascii", *square([()] * 4)).replace(b"1.0\n", b"1.0\nCreated by Blender3D\n")
    (tmp_path / "a.ply").write_bytes(text)
    assert areas(load_mesh(tmp_path / "a.ply")).tolist() == [0.5, 0.5]
    assert "'Created by Blender3D' of its header is not read" in caplog.text


def test_rows_with_more_numbers_than_the_header_says_are_refused(tmp_path: Path, caplog):
    """One more column would shift all others; bytes behind the last row are only said."""
    text = encode("ascii", *square([()] * 4))
    assert "more numbers" in refused(tmp_path / "a.ply", text.replace(b"\n1 1 0\n", b"\n1 1 0 1\n"))
    (tmp_path / "a.ply").write_bytes(encode("binary_little_endian", *square([()] * 4)) + b"\n")
    load_mesh(tmp_path / "a.ply")
    assert "bytes" not in caplog.text
    (tmp_path / "a.ply").write_bytes(encode("binary_little_endian", *square([()] * 4)) + b"more")
    load_mesh(tmp_path / "a.ply")
    assert "its last 4 bytes are not read" in caplog.text
