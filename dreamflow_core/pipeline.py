"""Stages: a prior, a scene and a schedule put together and run.

Text to 3D is `optimise_nerf`, `extract_mesh`, then `optimise_mesh` once or more. `settings` say what is done
and hold every default; a schedule, a seed and what a run reports to are arguments.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .apfo import Checkpoint, Progress, optimise
from .cameras import orbit
from .guidance import METHODS
from .prior import Look, Prior, Session
from .scenes.image import ImageScene, image_noise
from .scenes.scene import Scene
from .schedule import Schedule
from .settings.stages import ExtractSettings, ImageSettings, MeshStage, NeRFStage, Stage, TurntableSettings
from .state import make_generator
from .views import View

if TYPE_CHECKING:
    from .mesh.mesh import Floats, Mesh
    from .scenes.nerf import NeRFScene


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
            start = start_latents(settings, (settings.count, *shape))
        else:
            start = prior.run(lambda session: _encode(session, init, settings.count))
    latents = optimise_latents(
        prior,
        settings.schedule.build(prior.sigma_at),
        start,
        settings,
        on_progress=on_progress,
        cancelled=cancelled,
        checkpoint=checkpoint,
    )
    with torch.no_grad():
        return prior.run(lambda session: session.decode(latents))


def start_latents(settings: ImageSettings, shape: tuple[int, ...]) -> Tensor:
    """Latents (B, C, h, w) of that shape to start from, where there is no image."""
    return settings.start_noise * image_noise(shape, make_generator(settings.seed, "start"))


def optimise_latents(
    prior: Prior,
    schedule: Schedule,
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


def optimise_nerf(
    prior: Prior,
    schedule: Schedule,
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
    schedule: Schedule,
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
        mesh: any; it is moved to where cameras see it and back, and gets the texture it lacks. UVs that painting has
            trouble with are one line of the log (`uv_warning`), and so is what its file keeps or loses (`Source`).
        seed: of everything random.
        on_progress, cancelled, checkpoint: see `apfo.optimise`.

    Raises:
        ValueError: the size does not fit the model.
        BadMesh: the texture size is out of range, an atlas cannot be made, or no vertex can move.
    """
    from .mesh.prepare import framed, paintable, uv_warning
    from .scenes.mesh import MeshScene

    prior.latent_shape(stage.scene.size, stage.scene.size)
    if stage.scene.needs_atlas and not stage.unwrap and (warning := uv_warning(mesh)):
        logging.warning("the mesh: %s", warning)
    painted = stage.scene.needs_atlas or stage.unwrap
    ready = paintable(mesh, stage.texture_size, stage.unwrap) if painted else mesh
    if mesh.source is not None and (notice := mesh.source.notice(ready, stage.scene.rates())):
        logging.warning("%s", notice)
    placed, back = framed(ready)
    scene = MeshScene(placed, stage.scene, stage.views, seed=seed, device=_device(prior))
    del placed  # its texture can be large, and the scene has what it needs of it
    shape, paint = (mesh.vertices, mesh.faces, mesh.uvs), (mesh.texture, mesh.normal_map, mesh.colours)
    checkpoint = _of(checkpoint, mesh=_digest(*shape, *paint))
    _optimise(scene, prior, schedule, stage, seed, on_progress, cancelled, checkpoint)
    return back(scene.mesh())


def turntable(look: Look, settings: TurntableSettings) -> View:
    """What cameras all around see: `NeRFScene.view`, or `scenes.mesh.look_at` of a mesh."""
    cameras = orbit(settings.views, settings.elevation, settings.radius, settings.fov)
    return look(cameras, settings.size)


def _optimise(
    scene: Scene, prior: Prior, schedule: Schedule, stage: Stage | ImageSettings, seed: int, *reporting: Any
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
