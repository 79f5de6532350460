"""Radiance fields in ComfyUI's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from .sockets import NeRF

SUFFIX = ".nerf.safetensors"
PATTERN = "*nerf.safetensors"
"""Also those of the `dreamflow` command."""


class DreamFlowSaveNeRF(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowSaveNeRF",
            display_name="Save NeRF",
            category="DreamFlow/3d",
            description="Writes a radiance field with its settings to the output folder.",
            is_output_node=True,
            inputs=[
                NeRF.Input("nerf"),
                io.String.Input("filename_prefix", default="3d/DreamFlow", tooltip="May have subfolders."),
            ],
        )

    @classmethod
    def execute(cls, nerf: Any, filename_prefix: str) -> io.NodeOutput:
        from ..dreamflow_core.scenes.nerf import save_field

        output = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output)
        file = f"{name}_{counter:05}_{SUFFIX}"
        save_field(Path(folder) / file, nerf)
        return io.NodeOutput(ui={"nerf": [{"filename": file, "subfolder": subfolder, "type": "output"}]})


class DreamFlowLoadNeRF(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowLoadNeRF",
            display_name="Load NeRF",
            category="DreamFlow/loaders",
            description=f"Reads a radiance field ({PATTERN}) from the input or the output folder.",
            inputs=[io.Combo.Input("file", options=_files(), tooltip="What Save NeRF wrote.")],
            outputs=[NeRF.Output(display_name="NERF")],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        return folder_paths.exists_annotated_filepath(file) or f"there is no radiance field '{file}'"

    @classmethod
    def fingerprint_inputs(cls, file: str) -> float:
        return Path(folder_paths.get_annotated_filepath(file)).stat().st_mtime

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from ..dreamflow_core.scenes.nerf import load_field

        path = Path(folder_paths.get_annotated_filepath(file))
        # The nodes' inference mode would make a field that no stage could go on with.
        with torch.inference_mode(False):
            return io.NodeOutput(load_field(path, comfy.model_management.get_torch_device()))


def _files() -> list[str]:
    """Fields in the input and output folders, as `get_annotated_filepath` reads names."""
    folders = {
        "": Path(folder_paths.get_input_directory()),
        " [output]": Path(folder_paths.get_output_directory()),
    }
    return [
        path.relative_to(folder).as_posix() + mark
        for mark, folder in folders.items()
        for path in sorted(folder.rglob(PATTERN))
    ]
