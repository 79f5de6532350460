"""What other programs make of a GLB file: the Khronos validator, and trimesh with the Embree ray caster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor
from trimesh.visual.color import uv_to_interpolated_color

from dreamflow_core.cameras import Cameras

_VALIDATE = """
const {validateBytes} = require('gltf-validator'), {readFileSync} = require('fs');
validateBytes(new Uint8Array(readFileSync(process.argv[1]))).then(report => console.log(JSON.stringify(report.issues)));
"""


class Missing(RuntimeError):
    """A program is not on this machine; the message says how to get it."""


def validator_folder() -> str:
    """Where node finds the Khronos validator.

    Raises:
        Missing: node or the validator is not installed.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        raise Missing("node is not installed; with it, `npm install -g gltf-validator` brings the glTF validator")
    folder = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=True).stdout.strip()
    if not (Path(folder) / "gltf-validator").is_dir():
        raise Missing("the glTF validator is not installed: `npm install -g gltf-validator`")
    return folder


def khronos_complaints(path: Path) -> list[str]:
    """What the Khronos glTF validator says, hints too; nothing of a clean file. Raises `Missing`."""
    command, found = ["node", "-e", _VALIDATE, str(path)], {**os.environ, "NODE_PATH": validator_folder()}
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=True)
    return [f"{m['message']} ({m.get('pointer', '')})" for m in json.loads(done.stdout)["messages"]]


def cast(path: Path, cameras: Cameras, size: int, background: tuple[float, ...], supersample: int = 3) -> Tensor:
    """Pictures (B, 3, size, size) in [0, 1] of a textured GLB without light, by trimesh and Embree.

    Nothing of ours reads the file or finds what a pixel sees; supersample^2 rays are averaged.
    """
    mesh = trimesh.load(path, force="mesh")
    origins, directions = (r.reshape(-1, 3).numpy() for r in cameras.rays(size * supersample))
    points, rays, faces = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    corners = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    uv = np.einsum("pk,pkc->pc", corners, mesh.visual.uv[mesh.faces[faces]])
    seen = torch.tensor(background).repeat(len(origins), 1)
    texels = uv_to_interpolated_color(uv, mesh.visual.material.baseColorTexture)[:, :3]
    seen[torch.from_numpy(rays)] = torch.from_numpy(texels).float() / 255
    pictures = seen.view(len(cameras), size * supersample, size * supersample, 3).permute(0, 3, 1, 2)
    return F.avg_pool2d(pictures, supersample)
