"""The nodes: the only part of the pack that imports comfy. Thin over `dreamflow_core`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .cameras import DreamFlowCameras
from .control import DreamFlowControlNet
from .demo_model import DreamFlowDemoModel
from .fields import DreamFlowLoadNeRF, DreamFlowSaveNeRF
from .guidance import DreamFlowGuidance
from .image import DreamFlowImage
from .prompts import DreamFlowViewPrompt, DreamFlowViewRange
from .render import DreamFlowRenderNeRF, DreamFlowTurntable
from .scheduler import DreamFlowScheduler
from .stages import DreamFlowMeshExtract, DreamFlowMeshRefine, DreamFlowMeshTune, DreamFlowNeRFOptimize

NODES: list[type[io.ComfyNode]] = [
    DreamFlowCameras,
    DreamFlowControlNet,
    DreamFlowDemoModel,
    DreamFlowGuidance,
    DreamFlowImage,
    DreamFlowLoadNeRF,
    DreamFlowMeshExtract,
    DreamFlowMeshRefine,
    DreamFlowMeshTune,
    DreamFlowNeRFOptimize,
    DreamFlowRenderNeRF,
    DreamFlowSaveNeRF,
    DreamFlowScheduler,
    DreamFlowTurntable,
    DreamFlowViewPrompt,
    DreamFlowViewRange,
]


class DreamFlowExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> DreamFlowExtension:
    """ComfyUI's V3 entry point."""
    return DreamFlowExtension()
