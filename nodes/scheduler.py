"""Noise levels as native SIGMAS."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dreamflow_core.settings.stages import SPACINGS, STAGE_RANGES, ScheduleSettings
from .adapter.levels import NoiseLevels

OWN_RANGE = "own"


class DreamFlowScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        own = [
            io.Float.Input(
                name,
                default=getattr(ScheduleSettings, name),
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip=f"Where the schedule {name}s, as a fraction of the model's timesteps: 1 is noise, 0 is clean.",
            )
            for name in ("start", "end")
        ]
        return io.Schema(
            node_id="DreamFlowScheduler",
            display_name="APFO Scheduler",
            category="DreamFlow",
            description="A fixed, decreasing noise schedule for a DreamFlow stage. Any other SIGMAS work as well.",
            inputs=[
                io.Model.Input("model"),
                io.DynamicCombo.Input(
                    "range",
                    options=[
                        *(io.DynamicCombo.Option(stage, []) for stage in STAGE_RANGES),
                        io.DynamicCombo.Option(OWN_RANGE, own),
                    ],
                    tooltip="Part of the model's timesteps: that of a stage ("
                    + ", ".join(f"{stage} {start:g} to {end:g}" for stage, (start, end) in STAGE_RANGES.items())
                    + "), or your own.",
                ),
                io.Int.Input(
                    "levels", default=ScheduleSettings.levels, min=1, max=10000, tooltip="How many noise levels."
                ),
                io.Combo.Input(
                    "spacing",
                    options=list(SPACINGS),
                    default=ScheduleSettings.spacing,
                    advanced=True,
                    optional=True,
                    tooltip="timestep: even in the model's timesteps, as in the paper. "
                    "log: equal ratios of noise to signal. karras: EDM's.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="The model's own noise levels, the last is where the flow ends.")],
        )

    @classmethod
    def execute(
        cls, model: Any, range: dict[str, Any], levels: int, spacing: str = ScheduleSettings.spacing
    ) -> io.NodeOutput:
        start, end = STAGE_RANGES.get(range["range"]) or (range["start"], range["end"])
        noise = NoiseLevels.of(model)
        schedule = ScheduleSettings(start, end, levels, spacing=spacing).build(noise.at)
        return io.NodeOutput(noise.sigmas(schedule.levels))
