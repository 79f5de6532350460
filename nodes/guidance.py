"""How the prior moves a scene."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamflow_core.guidance import METHODS
from ..dreamflow_core.settings.stages import PHI_LEVELS, PhiSettings
from .sockets import Guidance, GuidanceSettings

_PHI = GuidanceSettings().phi


class DreamFlowGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowGuidance",
            display_name="DreamFlow Guidance",
            category="DreamFlow",
            description="Which algorithm a stage uses. Without this node it is APFO.",
            search_aliases=["APFO", "VSD", "SDS", "score distillation"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=GuidanceSettings.method,
                    tooltip="apfo: DreamFlow, the schedule in its order. vsd: ProlificDreamer, levels at random. "
                    "sds: DreamFusion, levels at random and no phi.",
                ),
                io.Int.Input(
                    "phi_rank",
                    default=_PHI.rank,
                    min=1,
                    max=1024,
                    tooltip="Rank of phi, the LoRA that learns what the scene looks like. sds has none.",
                ),
                io.Float.Input(
                    "phi_learning_rate",
                    default=_PHI.learning_rate,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="How fast phi learns.",
                ),
                io.Combo.Input(
                    "phi_level",
                    options=list(PHI_LEVELS),
                    default=_PHI.level,
                    advanced=True,
                    optional=True,
                    tooltip="At which noise phi learns. current: at that of the iteration, which saves an "
                    "evaluation of the model. random: at one of its own, as in the paper.",
                ),
            ],
            outputs=[Guidance.Output(display_name="guidance")],
        )

    @classmethod
    def execute(
        cls, method: str, phi_rank: int, phi_learning_rate: float, phi_level: str = _PHI.level
    ) -> io.NodeOutput:
        return io.NodeOutput(GuidanceSettings(method, PhiSettings(phi_rank, phi_learning_rate, phi_level)))
