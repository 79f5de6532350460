"""ComfyUI's LOAD3D_CAMERA as a camera of `dreamflow_core`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...dreamflow_core.cameras import PosedCameras

_LENS_FOV = 35.0
"""The field of view that ComfyUI takes for a camera that names none."""


def from_viewer(info: dict[str, Any]) -> PosedCameras:
    """The camera of a LOAD3D_CAMERA; pictures are square, so its width is not used.

    Raises:
        ValueError: it is not a perspective camera.
    """
    if str(info.get("cameraType", "perspective")).startswith("ortho"):
        raise ValueError("camera_info is an orthographic camera; only perspective cameras can render a NeRF")
    position = _vector(info["position"])
    if info.get("quaternion"):
        rotation = _rotation(info["quaternion"])
    else:
        rotation = _looking(position, _vector(info.get("target", {})))
    fov = math.radians(float(info.get("fov") or _LENS_FOV))
    zoomed = 2 * math.atan(math.tan(fov / 2) / float(info.get("zoom") or 1.0))
    return PosedCameras.at(position[None], rotation[None], torch.tensor([math.degrees(zoomed)]))


def _vector(point: dict[str, float]) -> Tensor:
    return torch.tensor([float(point.get(axis, 0.0)) for axis in "xyz"])


def _looking(position: Tensor, target: Tensor) -> Tensor:
    """Rows right, up and backward of a camera at a position that looks at a target, +Y up."""
    backward = torch.nn.functional.normalize(position - target, dim=0)
    up = torch.tensor([0.0, 1.0, 0.0])
    right = torch.nn.functional.normalize(torch.linalg.cross(up, backward), dim=0)
    return torch.stack([right, torch.linalg.cross(backward, right), backward])


def _rotation(quaternion: dict[str, float]) -> Tensor:
    """Rows right, up and backward of a camera with this rotation in the world."""
    w, x, y, z = torch.nn.functional.normalize(
        torch.tensor([float(quaternion.get(axis, 0.0)) for axis in "wxyz"]), dim=0
    ).tolist()
    right = [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)]
    up = [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)]
    backward = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]
    return torch.tensor([right, up, backward])
