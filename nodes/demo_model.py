"""The bundled demo model as ComfyUI's own MODEL, CLIP and VAE."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..dreamflow_core.demo.model import MODELS, load_model
from ..dreamflow_core.demo.vocabulary import known_words
from .adapter.demo import as_clip, as_model, pixel_vae


class DreamFlowDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowDemoModel",
            display_name="DreamFlow Demo Model",
            category="DreamFlow/loaders",
            description=(
                "A tiny text-to-image model that comes with the pack: simple coloured shapes seen from all sides. "
                f"It knows few words. {known_words()}."
            ),
            search_aliases=["demo checkpoint", "load demo"],
            inputs=[
                io.Combo.Input("model", options=list(MODELS), tooltip="Which of the bundled models."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP", tooltip="Reads the demo vocabulary only."),
                io.Vae.Output(display_name="VAE", tooltip="ComfyUI's own pixel-space VAE."),
            ],
        )

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        # Weights loaded in inference mode could never take part in a gradient.
        with torch.inference_mode(False):
            demo = load_model(MODELS[model])
            return io.NodeOutput(as_model(demo), as_clip(demo.text_encoder), pixel_vae())
