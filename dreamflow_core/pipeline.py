"""Stages: a prior, a scene and a schedule put together and run.

Text to 3D is `optimise_nerf`, `extract_mesh`, then `optimise_mesh` once or more. Settings say what is done
and hold every default; a schedule, a seed and what a run reports to are arguments.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import schedule
from .apfo import Checkpoint, Progress, optimise
from .cameras import orbit
from .guidance import METHODS, PhiSettings
from .prior import Look, Prior, Session
from .scenes.image import ImageScene, image_noise
from .scenes.scene import Scene
from .scenes.settings import MeshSettings, NeRFSettings
from .state import make_generator
from .views import View, ViewRange

if TYPE_CHECKING:
    from .mesh.mesh import Floats, Mesh
    from .scenes.nerf import NeRFScene


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

    def build(self, prior: Prior) -> schedule.Schedule:
        """The schedule for a model.

        Raises:
            ValueError: a setting is out of range.
        """
        levels = schedule.timestep_range(prior.sigma_at, self.start, self.end, self.levels)
        if self.spacing not in SPACINGS:
            raise ValueError(f"there is no spacing '{self.spacing}'; it must be one of {', '.join(SPACINGS)}")
        if self.spacing != "timestep":
            # An end of 0 is sigma 0, which neither spacing reaches in ratios: they end at the lowest level.
            high, low = levels[0].item(), levels[levels > 0][-1].item()
            levels = _FUNCTIONS[self.spacing](high, low, self.levels)
        return schedule.Schedule(levels, self.iterations)


_FUNCTIONS = {"log": schedule.log_uniform, "karras": schedule.karras}
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
        if not self.start_noise >= 0:
            raise ValueError(f"the start noise is {self.start_noise}; it must not be negative")

    def start(self, shape: tuple[int, ...]) -> Tensor:
        """Latents (B, C, h, w) of that shape to start from, where there is no image."""
        return self.start_noise * image_noise(shape, make_generator(self.seed, "start"))


def images(
    prior: Prior,
    settings: ImageSettings,
    size: tuple[int, int],
    *,
    init: Tensor | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Tensor:
    """Text to image, or image to image from `init`, by the flow.

    Args:
        prior: the model and its prompts.
        size: (height, width) in pixels.
        init: (3, height, width) in [0, 1] to start from; None starts from noise.
        on_progress, cancelled, checkpoint: see `apfo.optimise`.

    Returns:
        (count, 3, height, width) in [0, 1].

    Raises:
        ValueError: the size does not fit the model, or a setting is out of range.
    """
    shape = prior.latent_shape(*size)
    with torch.no_grad():
        if init is None:
            start = settings.start((settings.count, *shape))
        else:
            start = prior.run(lambda session: _encode(session, init, settings.count))
    latents = optimise_latents(
        prior,
        settings.schedule.build(prior),
        start,
        settings,
        on_progress=on_progress,
        cancelled=cancelled,
        checkpoint=checkpoint,
    )
    with torch.no_grad():
        return prior.run(lambda session: session.decode(latents))


def optimise_latents(
    prior: Prior,
    schedule: schedule.Schedule,
    start: Tensor,
    settings: ImageSettings,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Tensor:
    """Latents (B, C, h, w) moved by the flow from `start`, which stays as it is.

    Args:
        settings: all but the count and the schedule.
        on_progress, cancelled, checkpoint: see `apfo.optimise`.
    """
    rate = None if settings.method == "apfo" else settings.learning_rate
    scene = ImageScene(start.to(_device(prior)), learning_rate=rate)
    checkpoint = _of(checkpoint, start=_digest(start.cpu().numpy()))
    _optimise(scene, prior, schedule, settings, settings.seed, on_progress, cancelled, checkpoint)
    return scene.values.detach()


def _encode(session: Session, image: Tensor, count: int) -> Tensor:
    return session.encode(image[None].to(session.device)).expand(count, -1, -1, -1)


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
        texture_size: side of the texture that a mesh without one gets; a smaller one is enlarged to it.
            None keeps a texture as it is.
    """

    scene: MeshSettings = field(default_factory=MeshSettings)
    texture_size: int | None = None


@dataclass(frozen=True)
class ExtractSettings:
    """From a radiance field to a mesh.

    Attributes:
        threshold: density at the surface, per scene unit; None finds it, and closes what only haze covers
            and holes narrower than 0.12.
        faces: at most so many.
        texture_size: side of the texture, in texels.
        resolution: nodes per axis of the grid on which the surface is found.
    """

    threshold: float | None = None
    faces: int = 10000
    texture_size: int = 512
    resolution: int = 128


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


def optimise_nerf(
    prior: Prior,
    schedule: schedule.Schedule,
    stage: NeRFStage,
    *,
    seed: int,
    start: NeRFScene | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    checkpoint: Checkpoint | None = None,
) -> NeRFScene:
    """A radiance field whose renders follow the prior.

    Args:
        prior: the model and its prompts.
        seed: of everything random.
        start: a field to start from, which is not changed. Its own sizes and ball replace those of the stage.
        on_progress, cancelled, checkpoint: see `apfo.optimise`.

    Raises:
        ValueError: the size does not fit the model.
    """
    from .scenes.nerf import NeRFScene

    prior.latent_shape(stage.scene.size, stage.scene.size)
    settings = stage.scene if start is None else stage.scene.formed_as(start.settings)
    scene = NeRFScene(settings, stage.views, seed=seed, device=_device(prior))
    if start is not None:
        scene.start_from(start)
        checkpoint = _of(checkpoint, start=_digest(*(v.cpu().numpy() for v in start.field.state_dict().values())))
    _optimise(scene, prior, schedule, stage, seed, on_progress, cancelled, checkpoint)
    scene.progress = 1.0
    return scene


def extract_mesh(field: NeRFScene, settings: ExtractSettings) -> Mesh:
    """The field's surface as one closed mesh with a texture; unlit, as the light is in the colours.

    Raises:
        BadMesh: the field is empty, nothing is denser than the threshold, or a setting is out of range.
    """
    from .mesh.bake import bake
    from .mesh.extract import extract, simplify
    from .mesh.unwrap import check_texture_size, unwrap

    check_texture_size(settings.texture_size)
    density = field.density_grid(settings.resolution).cpu().numpy()
    mesh = simplify(extract(density, 1.0, settings.threshold), settings.faces)
    flat, _ = unwrap(replace(mesh, unlit=True), settings.texture_size)
    return bake(flat, settings.texture_size, lambda *surface: _colours(field, *surface))


def _colours(field: NeRFScene, points: Floats, normals: Floats) -> Floats:
    places = (torch.from_numpy(np.asarray(values, np.float32)) for values in (points, normals))
    return field.surface_colour(*places).cpu().numpy()


def optimise_mesh(
    prior: Prior,
    schedule: schedule.Schedule,
    mesh: Mesh,
    stage: MeshStage,
    *,
    seed: int,
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Mesh:
    """The mesh with what the stage optimises changed so that its renders follow the prior.

    Args:
        prior: the model and its prompts.
        mesh: any; it is moved to where cameras see it and back, and gets the texture it lacks.
        seed: of everything random.
        on_progress, cancelled, checkpoint: see `apfo.optimise`.

    Raises:
        ValueError: the size does not fit the model.
        BadMesh: the texture size is out of range.
    """
    from .mesh.prepare import framed, paintable
    from .scenes.mesh import MeshScene

    prior.latent_shape(stage.scene.size, stage.scene.size)
    placed, back = framed(paintable(mesh, stage.texture_size) if stage.scene.needs_atlas else mesh)
    scene = MeshScene(placed, stage.scene, stage.views, seed=seed, device=_device(prior))
    shape, paint = (mesh.vertices, mesh.faces, mesh.uvs), (mesh.texture, mesh.normal_map, mesh.colours)
    checkpoint = _of(checkpoint, mesh=_digest(*shape, *paint))
    _optimise(scene, prior, schedule, stage, seed, on_progress, cancelled, checkpoint)
    return back(scene.mesh())


def turntable(look: Look, settings: TurntableSettings) -> View:
    """What cameras all around see: `NeRFScene.view`, or `scenes.mesh.look_at` of a mesh."""
    cameras = orbit(settings.views, settings.elevation, settings.radius, settings.fov)
    return look(cameras, settings.size)


def _optimise(
    scene: Scene, prior: Prior, schedule: schedule.Schedule, stage: Stage | ImageSettings, seed: int, *reporting: Any
) -> None:
    on_progress, cancelled, checkpoint = reporting
    optimise(
        scene,
        prior,
        schedule,
        METHODS[stage.method](),
        stage.phi,
        seed=seed,
        on_progress=on_progress,
        cancelled=cancelled,
        checkpoint=checkpoint,
    )


def _of(checkpoint: Checkpoint | None, **start: int) -> Checkpoint | None:
    """The checkpoint of a run from this start: one from another start is refused."""
    return checkpoint and replace(checkpoint, job={**checkpoint.job, **start})


def _digest(*arrays: np.ndarray | None) -> int:
    return zlib.crc32(b"".join(b"-" if a is None else a.tobytes() for a in arrays))


def _device(prior: Prior) -> torch.device:
    return prior.run(lambda session: session.device)


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; it must be one of {', '.join(METHODS)}")
