"""The stages, and what they are made of: schedules, phi, extraction, turntables; images, too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..guidance import METHODS
from ..schedule import Schedule, karras, log_uniform, timestep_range
from .cameras import ViewRange
from .scenes import MeshSettings, NeRFSettings

PHI_LEVELS = ("current", "random")


@dataclass(frozen=True)
class PhiSettings:
    """How the scene's denoiser phi is trained.

    Attributes:
        rank: of its LoRA.
        learning_rate: of Adam.
        level: at which noise it learns. "current" takes its forward pass at the current level for both
            its score and its loss, one forward saved; "random" is the paper's separate step, at a
            level log-uniform over the schedule.
    """

    rank: int = 8
    learning_rate: float = 1e-3
    level: str = "current"

    def __post_init__(self) -> None:
        if self.level not in PHI_LEVELS:
            raise ValueError(f"phi's level is '{self.level}'; it must be one of {', '.join(PHI_LEVELS)}")
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"phi's learning rate is {self.learning_rate}; it must be 0 or more")


@dataclass(frozen=True)
class ScheduleSettings:
    """A schedule by its range.

    Attributes:
        start, end: fractions of the model's timestep range, 1 >= start > end >= 0.
        levels: noise levels.
        iterations: iterations per level.
        spacing: "timestep" is even in the model's timesteps as in the paper, "log" in ln(sigma),
            "karras" is EDM's.
    """

    start: float = 1.0
    end: float = 0.0
    levels: int = 200
    iterations: int = 1
    spacing: str = "timestep"

    def build(self, sigma_at: Callable[[Tensor], Tensor]) -> Schedule:
        """The schedule for a model.

        Args:
            sigma_at: the model's, as `Prior.sigma_at`.

        Raises:
            ValueError: a setting is out of range.
        """
        levels = timestep_range(sigma_at, self.start, self.end, self.levels)
        if self.spacing not in SPACINGS:
            raise ValueError(f"there is no spacing '{self.spacing}'; it must be one of {', '.join(SPACINGS)}")
        if self.spacing != "timestep":
            # An end of 0 is sigma 0, which neither spacing reaches in ratios: they end at the lowest level.
            high, low = levels[0].item(), levels[levels > 0][-1].item()
            levels = _FUNCTIONS[self.spacing](high, low, self.levels)
        return Schedule(levels, self.iterations)


_FUNCTIONS = {"log": log_uniform, "karras": karras}
SPACINGS = ("timestep", *_FUNCTIONS)

STAGE_RANGES = {"nerf": (1.0, 0.2), "mesh": (0.5, 0.1), "refine": (0.3, 0.0)}
"""`start` and `end` of a stage's schedule, after the paper's description of its three stages."""


@dataclass(frozen=True)
class ImageSettings:
    """Images by the flow.

    Attributes:
        count: how many, each a particle of one distribution.
        method: "apfo", "vsd" or "sds".
        learning_rate: Adam's, for VSD and SDS; APFO moves by the flow itself.
        start_noise: standard deviation of the latents it starts from, where it does not start from an
            image. At least the deviation of the model's latents; see `image_noise`.
        seed: of everything random.
    """

    count: int = 4
    method: str = "apfo"
    learning_rate: float = 0.02
    start_noise: float = 1.0
    seed: int = 0
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    phi: PhiSettings = field(default_factory=lambda: PhiSettings(learning_rate=1e-2))

    def __post_init__(self) -> None:
        _check_method(self.method)
        if self.count < 1:
            raise ValueError(f"the count of images is {self.count}; it must be at least 1")
        if not 0 <= self.start_noise < math.inf:
            raise ValueError(f"the start noise is {self.start_noise}; it must be 0 or more")
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"the learning rate is {self.learning_rate}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Optimising a scene in three dimensions, whichever it is.

    Attributes:
        views: cameras.
        method: "apfo", "vsd" or "sds".
        phi: how the scene's denoiser learns.
    """

    views: ViewRange = field(default_factory=ViewRange)
    method: str = "apfo"
    # There are few iterations to learn in, and what phi has not learned blurs fields and swells meshes. Random levels:
    # steadier, so that less of phi's own noise reaches the scene, for an evaluation more.
    phi: PhiSettings = field(default_factory=lambda: PhiSettings(learning_rate=5e-3, level="random"))

    def __post_init__(self) -> None:
        _check_method(self.method)


@dataclass(frozen=True, kw_only=True)
class NeRFStage(Stage):
    """Optimising a radiance field."""

    scene: NeRFSettings = field(default_factory=NeRFSettings)


@dataclass(frozen=True, kw_only=True)
class MeshStage(Stage):
    """Optimising a mesh: its texture, its vertices, both, or its normal map; tuning and refining alike.

    Attributes:
        texture_size: side of the texture that a mesh without one gets, and of a new atlas; a smaller texture is
            enlarged to it. None keeps a texture as it is.
        unwrap: give the mesh new UVs, on which no texel shows two places, and bake its texture and normal map into
            them. Otherwise it keeps those that it has, to the bit.
    """

    scene: MeshSettings = field(default_factory=MeshSettings)
    texture_size: int | None = None
    unwrap: bool = False


@dataclass(frozen=True)
class ExtractSettings:
    """From a radiance field to a mesh.

    Attributes:
        threshold: density at the surface, per scene unit; None finds it, and closes what only haze covers
            and holes narrower than 0.12.
        faces: at most so many.
        texture_size: side of the texture, in texels.
        resolution: nodes per axis of the grid on which the surface is found.

    Raises:
        ValueError: the resolution is out of range.
    """

    threshold: float | None = None
    faces: int = 10000
    texture_size: int = 512
    resolution: int = 128

    def __post_init__(self) -> None:
        if self.resolution < 3:
            raise ValueError(f"resolution is {self.resolution}; a surface is found between at least 3 nodes per axis")


@dataclass(frozen=True)
class TurntableSettings:
    """Pictures from all around.

    Attributes:
        views: how many, evenly around; the first is the front.
        size: side of a picture, in pixels.
        elevation, radius, fov: of the cameras, as in `ViewRange`.

    Raises:
        ValueError: a value is out of its range.
    """

    views: int = 24
    size: int = 256
    elevation: float = 20.0
    radius: float = 3.0
    fov: float = 40.0

    def __post_init__(self) -> None:
        for name in ("views", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        # Its checks are the ones that hold here.
        ViewRange(elevation=2 * (self.elevation,), radius=2 * (self.radius,), fov=2 * (self.fov,))


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; it must be one of {', '.join(METHODS)}")
