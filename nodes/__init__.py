"""The nodes: the only part of the pack that imports comfy. Thin over `dreamflow_core`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .cameras import DreamFlowCameras
from .demo_model import DreamFlowDemoModel
from .fields import DreamFlowLoadNeRF, DreamFlowSaveNeRF
from .guidance import DreamFlowGuidance
from .prompts import DreamFlowViewPrompt, DreamFlowViewRange
from .scheduler import DreamFlowScheduler
from .stages import DreamFlowMeshExtract, DreamFlowMeshRefine, DreamFlowMeshTune, DreamFlowNeRFOptimize

NODES: list[type[io.ComfyNode]] = [
    DreamFlowCameras,
    DreamFlowDemoModel,
    DreamFlowGuidance,
    DreamFlowLoadNeRF,
    DreamFlowMeshExtract,
    DreamFlowMeshRefine,
    DreamFlowMeshTune,
    DreamFlowNeRFOptimize,
    DreamFlowSaveNeRF,
    DreamFlowScheduler,
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
