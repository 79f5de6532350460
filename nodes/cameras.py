"""From where a scene is seen while it is optimised."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamflow_core.settings.cameras import ViewRange
from .sockets import CameraRange

_LIMITS = {"azimuth": (-360.0, 360.0), "elevation": (-89.0, 89.0), "radius": (1.01, 100.0), "fov": (1.0, 179.0)}
_MEANINGS = {
    "azimuth": "Degrees around the object: 0 is its front, 90 its side on +X, 180 its back.",
    "elevation": "Degrees above the horizon.",
    "radius": "Distance from the centre; the object lies within 1 of it.",
    "fov": "Vertical field of view in degrees.",
}


class DreamFlowCameras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        ends = [
            io.Float.Input(
                f"{name}_{end}", default=getattr(ViewRange, name)[i], min=low, max=high, step=0.1, tooltip=meaning
            )
            for (name, (low, high)), meaning in zip(_LIMITS.items(), _MEANINGS.values())
            for i, end in enumerate(("from", "to"))
        ]
        return io.Schema(
            node_id="DreamFlowCameras",
            display_name="DreamFlow Cameras",
            category="DreamFlow",
            description="Ranges that a stage takes its random cameras from. Without this node they are these defaults.",
            inputs=[
                io.Int.Input(
                    "views",
                    default=ViewRange.views,
                    min=1,
                    max=64,
                    tooltip="Cameras per iteration, spread around the object.",
                ),
                *ends,
            ],
            outputs=[CameraRange.Output(display_name="cameras")],
        )

    @classmethod
    def execute(cls, views: int, **ends: float) -> io.NodeOutput:
        return io.NodeOutput(ViewRange(views, **{n: (ends[f"{n}_from"], ends[f"{n}_to"]) for n in _LIMITS}))
