"""The nodes: the only part of the pack that imports comfy. Thin over `dreamflow_core`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .demo_model import DreamFlowDemoModel

NODES: list[type[io.ComfyNode]] = [DreamFlowDemoModel]


class DreamFlowExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> DreamFlowExtension:
    """ComfyUI's V3 entry point."""
    return DreamFlowExtension()
