"""What suits which family of models, and how much work is done: plans of text to 3D in all its stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from .scenes import HashGridSettings, MeshSettings, NeRFSettings
from .stages import STAGE_RANGES, ExtractSettings, MeshStage, NeRFStage, ScheduleSettings, TurntableSettings

S = TypeVar("S", NeRFStage, MeshStage)

OPTIMISED = ("nerf", "tune", "refine")
"""The stages that a prior drives, in their order; the mesh is extracted after the first."""
PRESETS = ("draft", "standard", "high")
"""How much work is done, in that order."""


@dataclass(frozen=True)
class Planned(Generic[S]):
    """A stage and its schedule."""

    schedule: ScheduleSettings
    stage: S


@dataclass(frozen=True)
class Plan:
    """Everything that is set about text to 3D but the models, the prompts and the seed."""

    nerf: Planned[NeRFStage]
    extract: ExtractSettings
    tune: Planned[MeshStage]
    refine: Planned[MeshStage]
    turntable: TurntableSettings = field(default_factory=TurntableSettings)


@dataclass(frozen=True)
class Work:
    """What a preset does with a family's models.

    Attributes:
        nerf, tune, refine: levels, and iterations at each.
        extract: from field to mesh. A refined texture has twice its side.
    """

    nerf: tuple[int, int]
    tune: tuple[int, int]
    refine: tuple[int, int]
    extract: ExtractSettings


@dataclass(frozen=True)
class Family:
    """Models of one kind, and what suits them.

    Attributes:
        name: as `run.json` has it.
        size: side of the images that they were made for, where a model does not say, in pixels.
        cfg: guidance scale.
        ranges: of each stage's schedule, as fractions of the model's timesteps.
        work: by preset.
    """

    name: str
    size: int
    cfg: float
    ranges: Mapping[str, tuple[float, float]]
    work: Mapping[str, Work]


def field_of(size: int) -> NeRFSettings:
    """A radiance field for images of `size` pixels a side (ours).

    The finest cells are about a pixel wide at the origin. Levels, entries and samples grow with the logarithm or a
    root of the size: each octave gets two levels more; most of space is empty and skipped.

    Raises:
        ValueError: the size is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1")
    defaults = NeRFSettings()
    octaves = math.log2(size / defaults.size)
    grid = HashGridSettings(
        levels=max(round(defaults.grid.levels + 2 * octaves), 2),
        entries_log2=min(max(round(defaults.grid.entries_log2 + octaves), 8), 19),
        coarsest=min(defaults.grid.coarsest, size),
        finest=size,
    )
    return replace(
        defaults,
        grid=grid,
        size=size,
        coarse_size=min(max(defaults.coarse_size, size // 8), size),
        coarse_levels=grid.levels / 2,
        samples=max(round(defaults.samples * 2 ** (octaves * 2 / 3)), 16),
    )


_SCHEDULE_RANGES = {"nerf": STAGE_RANGES["nerf"], "tune": STAGE_RANGES["mesh"], "refine": STAGE_RANGES["refine"]}


def _work(nerf: tuple[int, int], tune: tuple[int, int], refine: tuple[int, int], **extract: int) -> Work:
    return Work(nerf, tune, refine, ExtractSettings(**extract))


# Of real models nothing was tuned: no weights can be had where this is built. Iterations are in the range of what
# public systems take, at several views each; what was tuned is the demo's.
_LATENT = {
    "draft": _work((100, 10), (40, 5), (40, 5), faces=20000, texture_size=1024),
    "standard": _work((200, 12), (80, 5), (80, 5), faces=40000, texture_size=1024, resolution=192),
    "high": _work((400, 15), (160, 5), (160, 5), faces=80000, texture_size=2048, resolution=256),
}

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "demo",
            size=64,
            cfg=2.0,
            # The bundled model's timesteps are even in ln(sigma); above 0.75 of them it sees nothing but noise, and
            # below 0.47, a sigma of 0.5, the field's outline changed no more: that is left to the mesh. Of the bundled
            # refiner: from a sigma of 0.45, above which it would make the object anew, to 0.02.
            ranges={"nerf": (0.75, 0.47), "tune": (0.5, 0.15), "refine": (0.75, 0.25)},
            work={
                "draft": _work((48, 12), (20, 3), (20, 2), faces=5000, texture_size=256),
                "standard": _work((80, 12), (40, 5), (40, 3), faces=10000, texture_size=512),
                "high": _work((160, 12), (80, 5), (80, 5), faces=30000, texture_size=1024, resolution=192),
            },
        ),
        Family("sd1", size=512, cfg=7.5, ranges=_SCHEDULE_RANGES, work=_LATENT),
        Family("sd2", size=512, cfg=7.5, ranges=_SCHEDULE_RANGES, work=_LATENT),
        Family("sdxl", size=1024, cfg=7.5, ranges=_SCHEDULE_RANGES, work=_LATENT),
        Family("sdxl-refiner", size=1024, cfg=7.5, ranges=_SCHEDULE_RANGES, work=_LATENT),
    )
}


def planned(stage: str, family: Family, preset: str, size: int) -> Planned:
    """One of `OPTIMISED`, for images of so many pixels a side."""
    work = family.work[preset]
    schedule = ScheduleSettings(*family.ranges[stage], *getattr(work, stage))
    return Planned(schedule, NeRFStage(scene=field_of(size)) if stage == "nerf" else _MESH[stage](size, work))


def _tune(size: int, work: Work) -> MeshStage:
    # The mesh is close already: gentle rates keep what the field found. The shape stays as it is: a tuned one
    # fitted the truth less well in most cases.
    return MeshStage(scene=MeshSettings("texture", size=size, texture_rate=0.004, geometry_rate=0.005, final_rate=0.1))


def _refine(size: int, work: Work) -> MeshStage:
    # 2 of 255 is what is meant; the bound is on a side's mean over all cameras that train, and one sees some more.
    paint = MeshSettings("texture", size=size, texture_rate=0.01, colour_drift=1 / 255)
    return MeshStage(scene=paint, texture_size=2 * work.extract.texture_size)


_MESH = {"tune": _tune, "refine": _refine}


def make_plan(preset: str, base: Family, refiner: Family, sizes: Mapping[str, int]) -> Plan:
    """A preset's plan for two models.

    Args:
        preset: one of `PRESETS`.
        base: of the first stages.
        refiner: of the last.
        sizes: by stage, of images in pixels.
    """
    return Plan(
        nerf=planned("nerf", base, preset, sizes["nerf"]),
        extract=base.work[preset].extract,
        tune=planned("tune", base, preset, sizes["tune"]),
        refine=planned("refine", refiner, preset, sizes["refine"]),
    )
