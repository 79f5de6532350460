"""Pictures of finished scenes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..dreamflow_core.cameras import Cameras, orbit
from ..dreamflow_core.hints import HINT_KINDS
from ..dreamflow_core.prior import Look
from ..dreamflow_core.settings.stages import TurntableSettings
from .adapter import meshes
from .adapter.cameras import from_viewer
from .sockets import NeRF
from .widgets import number

if TYPE_CHECKING:
    from ..dreamflow_core.scenes.nerf import NeRFScene

OUTPUTS = [
    io.Image.Output(display_name="IMAGE"),
    io.Mask.Output(display_name="MASK", tooltip="Where the object is."),
    io.Image.Output(display_name="depth", tooltip="Near is white, as depth ControlNets expect it."),
    io.Image.Output(display_name="normal", tooltip="In the camera's axes, as normal ControlNets expect it."),
]


class DreamFlowRenderNeRF(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowRenderNeRF",
            display_name="Render NeRF",
            category="DreamFlow/3d",
            description="One picture of a radiance field, with its depth and normals. "
            "For a mesh use Render Mesh, which comes with ComfyUI.",
            inputs=[
                NeRF.Input("nerf"),
                *_frame_inputs(),
                io.Float.Input(
                    "azimuth", default=0.0, min=-360.0, max=360.0, step=1.0, tooltip="Degrees; 0 is the front."
                ),
                *_camera_inputs(),
                io.Load3DCamera.Input(
                    "camera_info", optional=True, tooltip="A camera from a 3D viewer or Create Camera Info, instead."
                ),
            ],
            outputs=OUTPUTS,
        )

    @classmethod
    def execute(
        cls,
        nerf: NeRFScene,
        size: int,
        background: str,
        azimuth: float,
        camera_info: dict[str, Any] | None = None,
        **camera: float,
    ) -> io.NodeOutput:
        if camera_info is not None:
            cameras: Cameras = from_viewer(camera_info)
        else:
            front = orbit(1, **_camera(camera))
            cameras = replace(front, azimuth=front.azimuth + azimuth)
        return _pictures(nerf.view, cameras, size, background)


class DreamFlowTurntable(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowTurntable",
            display_name="Turntable",
            category="DreamFlow/3d",
            description="Pictures of a radiance field or a mesh from all around, with depth and normals.",
            inputs=[
                io.MultiType.Input(
                    "scene", types=[NeRF, io.Mesh, *meshes.FILES], tooltip="A radiance field, a mesh or a 3D file."
                ),
                number(
                    TurntableSettings, "views", 1, 10000, "How many pictures; the first is the front.", advanced=False
                ),
                *_frame_inputs(),
                *_camera_inputs(),
            ],
            outputs=OUTPUTS,
        )

    @classmethod
    def execute(cls, scene: Any, views: int, size: int, background: str, **camera: float) -> io.NodeOutput:
        look = scene.view if hasattr(scene, "view") else meshes.look(meshes.read(scene))
        return _pictures(look, orbit(views, **_camera(camera)), size, background)


def _frame_inputs() -> list[io.Input]:
    return [
        number(TurntableSettings, "size", 8, 8192, "Side of a picture, in pixels.", advanced=False),
        io.Color.Input("background", default="#ffffff"),
    ]


def _camera_inputs() -> list[io.Input]:
    return [
        number(TurntableSettings, "elevation", -89.0, 89.0, "Degrees above the horizon."),
        number(TurntableSettings, "radius", 1.01, 100.0, "Distance from the centre; the object lies within 1 of it."),
        number(TurntableSettings, "fov", 1.0, 179.0, "Vertical field of view in degrees."),
    ]


def _camera(given: dict[str, float]) -> dict[str, float]:
    """What `orbit` needs besides a count, with defaults for what is not given."""
    return {name: given.get(name, getattr(TurntableSettings, name)) for name in ("elevation", "radius", "fov")}


def _pictures(look: Look, cameras: Cameras, size: int, background: str) -> io.NodeOutput:
    """The outputs in `OUTPUTS`."""
    with torch.inference_mode(False), torch.no_grad():
        view = look(cameras, size)
        images = [view.on(_colour(background)), *(HINT_KINDS[kind](view, cameras) for kind in ("depth", "normal"))]
    colour, depth, normal = (image.movedim(1, -1).cpu() for image in images)
    return io.NodeOutput(colour, view.alpha[:, 0].cpu(), depth, normal)


def _colour(text: str) -> tuple[float, float, float]:
    """A colour "#rrggbb" in [0, 1]."""
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError as error:
        raise ValueError(f"background is '{text}'; it must be a colour such as #ffffff") from error
    return red / 255, green / 255, blue / 255
