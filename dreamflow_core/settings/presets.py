"""Text to 3D in all its stages: plans, and the presets for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from .scenes import MeshSettings
from .stages import ExtractSettings, MeshStage, NeRFStage, ScheduleSettings, TurntableSettings

S = TypeVar("S", NeRFStage, MeshStage)

OPTIMISED = ("nerf", "tune", "refine")
"""The stages that a prior drives, in their order; the mesh is extracted after the first."""


@dataclass(frozen=True)
class Planned(Generic[S]):
    """A stage and its schedule."""

    schedule: ScheduleSettings
    stage: S

    def at(self, size: int) -> Planned[S]:
        """The same, rendered at this size."""
        return replace(self, stage=replace(self.stage, scene=replace(self.stage.scene, size=size)))  # type: ignore


@dataclass(frozen=True)
class Plan:
    """Everything that is set about text to 3D but the models, the prompts and the seed."""

    nerf: Planned[NeRFStage]
    extract: ExtractSettings
    tune: Planned[MeshStage]
    refine: Planned[MeshStage]
    turntable: TurntableSettings = field(default_factory=TurntableSettings)


def _plan(nerf: tuple[int, int], tune: tuple[int, int], refine: tuple[int, int], extract: ExtractSettings) -> Plan:
    """A plan by the (levels, iterations per level) of its stages."""
    # The mesh is close already: gentle rates keep what the field found. The shape stays as it is: a tuned one
    # fitted the truth less well in most cases.
    gentle = MeshSettings("texture", texture_rate=0.004, geometry_rate=0.005, final_rate=0.1)
    # 2 of 255 is what is meant; the bound is on a side's mean over all cameras that train, and one sees some more.
    paint = MeshSettings("texture", texture_rate=0.01, colour_drift=1 / 255)
    return Plan(
        # The bundled model's timesteps are even in ln(sigma); above 0.75 of them it sees nothing but noise, and
        # below 0.47, a sigma of 0.5, the field's outline changed no more: that is left to the mesh.
        nerf=Planned(ScheduleSettings(0.75, 0.47, *nerf), NeRFStage()),
        extract=extract,
        tune=Planned(ScheduleSettings(0.5, 0.15, *tune), MeshStage(scene=gentle)),
        refine=Planned(
            # Of the bundled refiner: from a sigma of 0.45, above which it would make the object anew, to 0.02.
            ScheduleSettings(0.75, 0.25, *refine),
            MeshStage(scene=paint, texture_size=2 * extract.texture_size),
        ),
    )


PRESETS = {
    "draft": _plan((48, 12), (20, 3), (20, 2), ExtractSettings(faces=5000, texture_size=256)),
    "standard": _plan((80, 12), (40, 5), (40, 3), ExtractSettings(faces=10000, texture_size=512)),
    "high": _plan((160, 12), (80, 5), (80, 5), ExtractSettings(faces=30000, texture_size=1024, resolution=192)),
}
