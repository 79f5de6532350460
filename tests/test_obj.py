from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamflow_core.mesh.files import load_mesh, save_mesh
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.mesh.obj import read_obj
from dreamflow_core.state import BadFile

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
UVS = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
PIXELS = np.array([[[220, 30, 30], [30, 180, 30]], [[30, 30, 220], [240, 240, 240]]], np.uint8)


def read(folder: Path, obj: str, mtl: str = "") -> Mesh:
    (folder / "a.obj").write_text(obj)
    (folder / "a.mtl").write_text(mtl)
    return load_mesh(folder / "a.obj")


def area(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return float(np.cross(b - a, c - a)[:, 2].sum() / 2)


def test_each_material_without_a_map_colours_its_faces(tmp_path: Path):
    mtl = "newmtl red\nKa 1 0 0\nKd 1 0 0\nnewmtl half\nKa 0.5 0.5 0.5\nKd 0.5 0.5 0.5\n"
    mesh = read(tmp_path, f"mtllib a.mtl\n{SQUARE}usemtl red\nf 1 2 3\nusemtl half\nf 1 3 4\n", mtl)
    assert area(mesh) == pytest.approx(1)
    assert np.allclose(mesh.colours[mesh.faces[0]], [1, 0, 0]) and np.allclose(mesh.colours[mesh.faces[1]], 0.5)


@pytest.mark.parametrize("name", ["tex\\four colours.png", "-s 1 1 1 -bm 2 -clamp on tex/four colours.png"])
def test_a_map_is_found_behind_options_and_backslashes(name: str, tmp_path: Path):
    (tmp_path / "tex").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "tex" / "four colours.png")
    mesh = read(tmp_path, f"mtllib a.mtl\n{SQUARE}{UVS}usemtl a\nf 1/1 2/2 \\\n3/3 4/4\n", f"newmtl a\nmap_Kd {name}\n")
    assert np.array_equal((mesh.texture * 255).round(), PIXELS)
    # The origin of OBJ's UVs is at the bottom left, that of a mesh's at the top left.
    assert np.array_equal(mesh.uvs, [[0, 1], [1, 1], [1, 0], [0, 0]])


def test_scale_and_offset_of_a_map(tmp_path: Path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    mtl = "newmtl a\nmap_Kd -s 0.5 0.25 -o 0.5 0.25 a.png\n"
    mesh = read(tmp_path, f"mtllib a.mtl\n{SQUARE}{UVS}usemtl a\nf 1/1 2/2 3/3 4/4\n", mtl)
    assert np.allclose(mesh.uvs, [[0.5, 0.75], [1, 0.75], [1, 0.5], [0.5, 0.5]])


def test_kd_multiplies_map_kd_in_linear_light(tmp_path: Path):
    Image.fromarray(np.full((2, 2, 3), 128, np.uint8)).save(tmp_path / "a.png")
    mtl = "newmtl a\nKd 0.5 0.5 0.5\nmap_Kd a.png\n"
    mesh = read(tmp_path, f"mtllib a.mtl\n{SQUARE}{UVS}usemtl a\nf 1/1 2/2 3/3 4/4\n", mtl)
    # sRGB: 0.5 is 0.21404 of the light, 128 / 255 is 0.21586; their product is shown as 0.23699.
    assert mesh.texture == pytest.approx(1.055 * (0.214041 * 0.215861) ** (1 / 2.4) - 0.055, abs=1e-4)


@pytest.mark.parametrize("face", ["1 2 3 4 5", "-5 -4 -3 -2 -1"])
def test_concave_polygons_and_negative_indices(face: str, tmp_path: Path):
    """An arrow head; a fan about its first corner would cover the notch."""
    mesh = read(tmp_path, f"v 2 1 0\nv 4 0 0\nv 2 4 0\nv 0 0 0\nv 1.5 0.75 0\nf {face}\n")
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    areas = np.cross(b - a, c - a)[:, 2] / 2
    assert len(areas) == 3 and (areas >= 0).all() and areas.sum() == pytest.approx(6)


def test_uvs_without_a_picture_stay_without(tmp_path: Path, caplog):
    mesh = read(tmp_path, f"mtllib none.mtl\n{SQUARE}{UVS}usemtl gone\nf 1/1 2/2 3/3 4/4\n")
    assert mesh.texture is None and mesh.colours is None and mesh.uvs is not None
    assert "none.mtl" in caplog.text and "gone" in caplog.text
    caplog.clear()
    mtl = "newmtl a\nKd 0 1 0\nmap_Kd lost.png\n"
    mesh = read(tmp_path, f"mtllib a.mtl\n{SQUARE}{UVS}usemtl a\nf 1/1 2/2 3/3 4/4\n", mtl)
    assert mesh.texture is None and np.allclose(mesh.colours, [0, 1, 0]) and "lost.png" in caplog.text


def test_uvs_all_alike_are_no_use(tmp_path: Path, caplog):
    mesh = read(tmp_path, f"{SQUARE}vt 0 0\nf 1/1 2/1 3/1 4/1\n")
    assert mesh.uvs is None and "a new atlas" in caplog.text


def test_vertex_colours_and_normals(tmp_path: Path):
    mesh = read(tmp_path, "v 0 0 0 1 0 0\nv 1 0 0 0 0.5 0\nv 0 1 0 0 0 1\nvn 0 0 2\nf 1//1 2//1 3//1\n")
    assert np.allclose(mesh.colours, [[1, 0, 0], [0, 0.5, 0], [0, 0, 1]]) and np.allclose(mesh.normals, [0, 0, 1])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.obj", "a.mtl"])
def test_text_in_utf_16_is_refused_by_that_name(name: str, encoding: str, tmp_path: Path):
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\n{SQUARE}usemtl a\nf 1 2 3\n")
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 1 0 0\n")
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(BadFile) as caught:
        load_mesh(tmp_path / "a.obj")
    assert f"{tmp_path / name} is no text in UTF-8" in str(caught.value) and "save it as UTF-8" in str(caught.value)
    # With its mark, as Notepad writes it.
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    assert np.allclose(load_mesh(tmp_path / "a.obj").colours, [1, 0, 0])


def test_latin_1(tmp_path: Path):
    (tmp_path / "a.obj").write_bytes(f"mtllib a.mtl\n{SQUARE}usemtl Gr\xfcn\nf 1 2 3\n".encode("latin-1"))
    (tmp_path / "a.mtl").write_bytes("newmtl Gr\xfcn\nKd 0 1 0\n".encode("latin-1"))
    assert np.allclose(load_mesh(tmp_path / "a.obj").colours, [0, 1, 0])


def test_a_corner_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BadFile, match="no such corner as 9"):
        read(tmp_path, f"{SQUARE}f 1 2 9\n")


@pytest.mark.parametrize(("far", "said"), [(5e5, True), (500.0, False)])
def test_coordinates_of_a_survey(far: float, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "a.obj").write_text(
        "".join(f"v {far + x} {far + y} 0\n" for x, y in ((0.013, 0), (1, 0), (0, 1))) + "f 1 2 3\n"
    )
    load_mesh(tmp_path / "a.obj")
    assert ("so far from the origin that single precision moves its vertices" in caplog.text) == said


RED_HALF = f"mtllib a.mtl\n{SQUARE}usemtl NAME\nf 1 2 3\nusemtl other\nf 1 3 4\n"


@pytest.mark.parametrize(
    "name",
    # Ends of lines to Unicode; and characters of two bytes, of which the second is a backslash or such an end.
    [
        *(f"a{chr(code)}b".encode("latin-1") for code in (0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85)),
        "a\u2028b".encode(),
        *(name.encode("shift-jis") for name in ("ソ", "一覧表", "キュー")),
        "功".encode("big5"),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_names_in_other_encodings(name: bytes, end: bytes, tmp_path: Path):
    mtl = b"newmtl NAME\nKd 1 0 0\nnewmtl other\nKd 0 0 1\n"
    for suffix, text in ((".obj", RED_HALF.encode()), (".mtl", mtl)):
        (tmp_path / f"a{suffix}").write_bytes(text.replace(b"NAME", name).replace(b"\n", end))
    mesh = load_mesh(tmp_path / "a.obj")
    assert area(mesh) == pytest.approx(1)
    assert np.allclose(mesh.colours[mesh.faces[0]], [1, 0, 0]) and np.allclose(mesh.colours[mesh.faces[1]], [0, 0, 1])


def test_what_goes_on_behind_a_backslash(tmp_path: Path):
    assert area(read(tmp_path, f"# C:\\\n{SQUARE}f 1 2 \\  \n3 4")) == pytest.approx(1)
    assert area(read(tmp_path, f"{SQUARE}f 1 2 3 4 \\")) == pytest.approx(1)


def test_comments_behind_statements(tmp_path: Path):
    for name in ("four.png", "a #1.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    obj = f"mtllib a.mtl # colours\n{SQUARE}{UVS}usemtl a # it\nf 1/1 2/2 3/3 4/4\n"
    for value in ("four.png # of four", "four.png\t#", "a #1.png"):
        mtl = f"newmtl a # first\nKd 1 1 1 # white\nKs 0 0 0 # was 1\nd 1 # 0.5\nmap_Kd {value}\n"
        assert np.array_equal((read(tmp_path, obj, mtl).texture * 255).round(), PIXELS)
        assert read_obj(tmp_path / "a.obj").warnings == []


def test_names_with_hashes(tmp_path: Path):
    obj = f"mtllib a.mtl\n{SQUARE}usemtl Material #1\nf 1 2 3\nusemtl b#2\nf 1 3 4\n"
    mesh = read(tmp_path, obj, "newmtl Material #2\nKd 0 1 0\nnewmtl Material #1\nKd 1 0 0\nnewmtl b#2\nKd 0 0 1\n")
    assert np.allclose(mesh.colours[mesh.faces[0]], [1, 0, 0]) and np.allclose(mesh.colours[mesh.faces[1]], [0, 0, 1])


@pytest.mark.parametrize(
    ("statement", "factor", "said"),
    [
        ("d 2", None, ""),
        ("d -0.5", [1, 0, 0, 0], ""),
        ("Tr -1", None, ""),
        ("Tr 7", [1, 0, 0, 0], ""),
        ("d nan", None, "the d of its material a is no number and not read"),
        ("Tr 1e999", None, "the Tr of its material a is no number and not read"),
        ("Kd inf 0 0", [1, 1, 1, 1], "the Kd of its material a is no RGB and not read"),
        ("Kd 0 1e999 0", [1, 1, 1, 1], "the Kd of its material a is no RGB and not read"),
        ("d", None, "left out of its materials: d"),
        ("Tr", None, "left out of its materials: Tr"),
        ("map_Kd", None, "left out of its materials: map_Kd"),
        ("norm", None, "left out of its materials: norm"),
        ("map_d", None, "left out of its materials: map_d"),
        ("Kd", [1, 1, 1, 1], "left out of its materials: Kd"),
        ("Ks", None, "left out of its materials: Ks"),
        ("Ks 0 0 0\nNs 96", None, ""),
    ],
)
def test_values_out_of_range_or_missing(
    statement: str, factor: list[float] | None, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\n{SQUARE}usemtl a\nf 1 2 3 4\n")
    (tmp_path / "a.mtl").write_text(f"newmtl a\nKd 1 0 0\n{statement}\n")
    mesh = load_mesh(tmp_path / "a.obj", kept_in="the GLB")
    assert said in caplog.text and bool(said) == ("not read" in caplog.text or "left out" in caplog.text)
    save_mesh(tmp_path / "a.glb", mesh)
    data = (tmp_path / "a.glb").read_bytes()
    size = int.from_bytes(data[12:16], "little")
    (material,) = json.loads(data[20 : 20 + size], parse_constant=pytest.fail)["materials"]
    assert material["pbrMetallicRoughness"].get("baseColorFactor", [1, 1, 1, 1]) == (factor or [1, 0, 0, 1])
