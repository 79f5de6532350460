"""ControlNets that are shown the scene."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dreamflow_core.hints import HINT_KINDS
from .adapter.conditioning import Conditioning
from .adapter.controls import apply_control


class DreamFlowControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowControlNet",
            display_name="Apply ControlNet (per view)",
            category="DreamFlow/conditioning",
            description="A ControlNet whose hint is the scene itself, rendered from the very view that is denoised. "
            "For a fixed picture use Apply ControlNet, which comes with ComfyUI.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.ControlNet.Input("control_net"),
                io.Combo.Input("hint", options=list(HINT_KINDS), tooltip="What of the view the ControlNet expects."),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.01),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where in the model's timesteps it begins: 0 is noise, 1 is clean.",
                ),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip="Where it ends."),
                io.Vae.Input("vae", optional=True, tooltip="For ControlNets that take latents, such as those of Flux."),
            ],
            outputs=[io.Conditioning.Output(display_name="positive"), io.Conditioning.Output(display_name="negative")],
        )

    @classmethod
    def execute(
        cls,
        positive: Conditioning,
        negative: Conditioning,
        control_net: Any,
        hint: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        vae: Any = None,
    ) -> io.NodeOutput:
        if start_percent >= end_percent:
            raise ValueError(f"start_percent {start_percent:g} must be below end_percent {end_percent:g}")
        return io.NodeOutput(
            *apply_control(positive, negative, control_net, hint, strength, start_percent, end_percent, vae)
        )
