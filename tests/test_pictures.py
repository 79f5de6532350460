"""Pictures in files, made here with known pixels: what is read is what they mean, or one line names the file."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamflow_core import cli
from dreamflow_core.mesh.files import load_mesh
from dreamflow_core.pictures import load_picture, to_colours
from dreamflow_core.state import BadFile

CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [51, 102, 204]]], np.uint8)
"""Two rows of three pixels, all different."""


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of its specification's own words (W3C PNG, second edition), written by nothing else."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    coded = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def read(path: Path) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    picture = load_picture(path).permute(1, 2, 0).numpy()
    assert picture.dtype == np.float32
    return picture


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    grey = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    (tmp_path / "grey.png").write_bytes(png(5, 1, 16, 0, b"\0" + grey.astype(">u2").tobytes()))
    (tmp_path / "grey.pgm").write_bytes(b"P5 5 1 65535\n" + grey.astype(">u2").tobytes())
    Image.fromarray(grey).save(tmp_path / "little.tif")
    Image.frombytes("I;16B", (5, 1), grey.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    for name in ("grey.png", "grey.pgm", "little.tif", "big.tif"):
        assert np.allclose(read(tmp_path / name), np.repeat(grey[..., None] / 65535, 3, -1), atol=1e-6), name
    colours = np.array([0, 32768, 65535, 257, 65535, 30000], ">u2")
    (tmp_path / "colours.png").write_bytes(png(2, 1, 16, 2, b"\0" + colours.tobytes()))
    assert np.abs(read(tmp_path / "colours.png").reshape(-1) - colours / 65535).max() < 1 / 255


@pytest.mark.parametrize(
    "tag,shown",
    [
        (1, CORNERS),
        (2, CORNERS[:, ::-1]),
        (3, CORNERS[::-1, ::-1]),
        (4, CORNERS[::-1]),
        (5, CORNERS.transpose(1, 0, 2)),
        (6, CORNERS.transpose(1, 0, 2)[:, ::-1]),
        (7, CORNERS[::-1, ::-1].transpose(1, 0, 2)),
        (8, CORNERS.transpose(1, 0, 2)[::-1]),
    ],
)
def test_a_picture_is_turned_as_exif_says(tag: int, shown: np.ndarray, tmp_path: Path):
    """Exif 2.32, Orientation: 6 has the row 0 at the right and the column 0 at the top, and so on."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(CORNERS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), shown / np.float32(255))


def test_transparent_parts_are_seen_on_white(tmp_path: Path):
    colours = np.concatenate([CORNERS, np.array([[255, 128, 0], [0, 51, 255]], np.uint8)[..., None]], axis=-1)
    alpha = colours[..., 3:] / np.float32(255)
    Image.fromarray(colours).save(tmp_path / "rgba.png")
    assert np.allclose(read(tmp_path / "rgba.png"), alpha * CORNERS / 255 + 1 - alpha, atol=1e-6)
    Image.fromarray(np.array([[[0, 255], [0, 0], [51, 128]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert np.allclose(read(tmp_path / "la.png")[0, :, 0], [0, 1, 1 - 128 / 255 * 0.8], atol=1e-6)
    # Palettes, a grey and a colour that count as transparent: PNG's tRNS chunk.
    palette = (b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    rows = b"\0\0\1\2"
    (tmp_path / "palette.png").write_bytes(png(3, 1, 8, 3, rows, palette, (b"tRNS", bytes([255, 0, 51]))))
    assert np.allclose(read(tmp_path / "palette.png")[0], [[1, 0, 0], [1, 1, 1], [0.8, 0.8, 1]], atol=1e-6)
    (tmp_path / "solid.png").write_bytes(png(3, 1, 8, 3, rows, palette))
    assert np.array_equal(read(tmp_path / "solid.png")[0], np.eye(3))
    (tmp_path / "grey.png").write_bytes(png(3, 1, 8, 0, b"\0\0\x33\xff", (b"tRNS", b"\0\x33")))
    assert np.allclose(read(tmp_path / "grey.png")[0, :, 0], [0, 1, 1])
    deep = b"\0" + np.array([0, 300, 65535], ">u2").tobytes()
    (tmp_path / "deep.png").write_bytes(png(3, 1, 16, 0, deep, (b"tRNS", struct.pack(">H", 300))))
    assert np.allclose(read(tmp_path / "deep.png")[0, :, 0], [0, 1, 1])


def test_a_texture_keeps_the_colours_of_its_transparent_parts():
    picture = Image.fromarray(np.full((1, 1, 4), (51, 102, 204, 0), np.uint8))
    assert np.allclose(to_colours(picture), np.array([51, 102, 204]) / 255)


def test_other_kinds_of_pixels(tmp_path: Path):
    cmyk = np.array([[[0, 255, 255, 0], [255, 255, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "cmyk.tif")
    assert np.array_equal(read(tmp_path / "cmyk.tif")[0], [[1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]])
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert np.array_equal(read(tmp_path / "bits.png")[0], [[1, 1, 1], [0, 0, 0]])
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for name in ("moving.gif", "moving.png", "moving.webp"):
        lossless = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100, **lossless)
        assert np.allclose(read(tmp_path / name), (1, 0, 0)), name


def test_a_picture_that_cannot_be_read_is_one_line_with_its_name(tmp_path: Path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for kind in ("png", "jpg", "webp", "tif", "gif"):
        Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
        data = (tmp_path / f"whole.{kind}").read_bytes()
        for share in (0.0, 0.02, 0.6):
            (tmp_path / f"cut-{share}.{kind}").write_bytes(data[: int(share * len(data))])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.zeros((2, 2), np.int32)).save(tmp_path / "integers.tif")
    (tmp_path / "folder.png").mkdir()
    for path in sorted(path for path in tmp_path.iterdir() if not path.name.startswith("whole")):
        complaint = complain(path)
        assert path.name in complaint, complaint
    # Pillow's own limit, lowered: above it Pillow warns, above twice of it it raises.
    for most in (64 * 64 - 1, 64 * 64 // 3):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        assert "exceeds limit" in complain(tmp_path / "whole.png")


def complain(picture: Path) -> str:
    """What the command says of it, on one line."""
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        status = cli.main(["image", "a cube", "--init", str(picture), "--out", str(picture.parent / "out")])
    assert status == 2 and stream.getvalue().count("\n") == 1, stream.getvalue()
    with pytest.raises(BadFile):
        load_picture(picture)
    return stream.getvalue()


def test_textures_are_read_by_the_same_rules(tmp_path: Path):
    grey = np.array([[0, 300], [32768, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "paint.png")
    (tmp_path / "a.mtl").write_text("newmtl paint\nKd 1 1 1\nmap_Kd paint.png\n")
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\n"
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\n{corners}usemtl paint\nf 1/1 2/2 3/3\n")
    texture = load_mesh(tmp_path / "a.obj").texture
    assert np.allclose(texture, np.repeat(grey[..., None] / 65535, 3, -1), atol=1e-6)
