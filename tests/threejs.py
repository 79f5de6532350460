"""Pictures of mesh files by three.js, in Chromium without a window."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from browser import Browser
from other_tools import Missing
from PIL import Image
from torch import Tensor

from dreamflow_core.cameras import Cameras
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.mesh.prepare import BARE, framed
from dreamflow_core.scenes.mesh import look_at

VERSION = "0.187.0"
BACKGROUND = (0.35, 0.5, 0.65)
"""A colour that few meshes have."""
PAGE = Path(__file__).with_suffix(".html")


def package() -> Path:
    """Where npm put three.js.

    Raises:
        Missing: it is not installed, or in another version than the one that pictures are compared with.
    """
    if not shutil.which("npm"):
        raise Missing(f"npm is not installed; with it, `npm install -g three@{VERSION}` brings three.js")
    root = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=True).stdout.strip()
    folder = Path(root) / "three"
    about = folder / "package.json"
    if not about.is_file() or json.loads(about.read_text())["version"] != VERSION:
        raise Missing(f"three.js {VERSION} is not installed: `npm install -g three@{VERSION}`")
    return folder


class ThreeJs:
    """three.js, and a server on this machine that gives it files.

    Args:
        profile: folder for the browser's own files.

    Raises:
        Missing: three.js is not installed.
    """

    def __init__(self, profile: Path):
        self._folders = {"three": package(), "page": PAGE.parent}
        self._drawn = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._folders))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.browser = Browser(profile, webgl=True)

    def pictures(self, path: Path, mesh: Mesh, cameras: Cameras, size: int) -> Tensor:
        """What cameras see of a mesh file, (B, 3, size, size) in [0, 1].

        Base colours without light, opaque and from both sides, on `BACKGROUND`; neither lines nor points.

        Args:
            path: a .glb, .gltf, .obj or .ply file.
            mesh: what we read from it, which says where the file's scene is put: where `framed` puts the mesh. What
                has no colour at all is as grey as our own bare meshes.

        Raises:
            RuntimeError: three.js cannot read the file.
        """
        centre, scale = framing(mesh)
        # Never the same address twice: browsers keep what they had from one.
        self._drawn += 1
        self._folders[f"mesh-{self._drawn}"] = path.parent.absolute()
        job = {
            "url": f"/mesh-{self._drawn}/{quote(path.name)}",
            "size": size,
            "cameras": [
                {"position": position, "fov": fov}
                for position, fov in zip(cameras.position().tolist(), cameras.fov.tolist())
            ],
            "centre": centre.tolist(),
            "scale": scale,
            "background": BACKGROUND,
            "bare": [BARE if mesh.texture is None and mesh.colours is None else 1.0] * 3,
        }
        self.browser.open(f"http://127.0.0.1:{self._server.server_port}/page/{PAGE.name}")
        self.browser.wait("window.draw")
        return torch.stack([_pixels(picture) for picture in self.browser.run(f"draw({json.dumps(job)})")])

    def close(self) -> None:
        self.browser.close()
        self._server.shutdown()
        self._server.server_close()


def unlit_pictures(mesh: Mesh, cameras: Cameras, size: int) -> Tensor:
    """Our own pictures like those of `ThreeJs`, (B, 3, size, size) in [0, 1]."""
    colours = np.full_like(mesh.vertices, BARE) if mesh.texture is None and mesh.colours is None else mesh.colours
    return look_at(replace(framed(mesh)[0], colours=colours, unlit=True))(cameras, size).on(BACKGROUND)


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return float(-10 * (one - other).square().mean().clamp_min(1e-10).log10())


def framing(mesh: Mesh) -> tuple[np.ndarray, float]:
    """The point (3,) that `framed` moves to the origin, and the scale after that."""
    used = np.unique(mesh.faces)
    before, after = (m.vertices[used].astype(np.float64) for m in (mesh, framed(mesh)[0]))
    scale = float(np.linalg.norm(np.ptp(after, axis=0)) / np.linalg.norm(np.ptp(before, axis=0)))
    return before.mean(axis=0) - after.mean(axis=0) / scale, scale


def _pixels(url: str) -> Tensor:
    """A picture in a data URL, (3, H, W) in [0, 1]."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def _handler(folders: dict[str, Path]) -> type[SimpleHTTPRequestHandler]:
    """Serves each folder under its name."""

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            first, _, rest = path.lstrip("/").partition("/")
            self.directory = str(folders.get(first, folders["page"]))
            return super().translate_path(f"/{rest}")

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
