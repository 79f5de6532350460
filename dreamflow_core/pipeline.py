"""Stages: a prior, a scene and a schedule put together and run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import schedule
from .apfo import Checkpoint, Progress, optimise
from .guidance import METHODS, PhiSettings
from .prior import Prior, Session
from .scenes.image import ImageScene
from .state import make_generator


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


@dataclass(frozen=True)
class ImageSettings:
    """Images by the flow.

    Attributes:
        count: how many, each a particle of one distribution.
        method: "apfo", "vsd" or "sds".
        learning_rate: Adam's, for VSD and SDS; APFO moves by the flow itself.
        start_noise: standard deviation of the latents it starts from, where it does not start from an
            image. What phi has not learned of that noise stays in the images, so it is small.
        seed: of everything random.
    """

    count: int = 4
    method: str = "apfo"
    learning_rate: float = 0.02
    start_noise: float = 0.1
    seed: int = 0
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    phi: PhiSettings = field(default_factory=lambda: PhiSettings(learning_rate=1e-2))

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"there is no method '{self.method}'; it must be one of {', '.join(METHODS)}")
        if self.count < 1:
            raise ValueError(f"the count of images is {self.count}; it must be at least 1")
        if not self.start_noise >= 0:
            raise ValueError(f"the start noise is {self.start_noise}; it must not be negative")


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
    levels = settings.schedule.build(prior)
    noise = settings.start_noise * torch.randn(settings.count, *shape, generator=make_generator(settings.seed, "start"))
    with torch.no_grad():
        start = noise if init is None else prior.run(lambda session: _encode(session, init, settings.count))
        device = prior.run(lambda session: session.device)
    rate = None if settings.method == "apfo" else settings.learning_rate
    scene = ImageScene(start.to(device), learning_rate=rate)
    optimise(
        scene,
        prior,
        levels,
        METHODS[settings.method](),
        settings.phi,
        seed=settings.seed,
        on_progress=on_progress,
        cancelled=cancelled,
        checkpoint=checkpoint,
    )
    with torch.no_grad():
        return prior.run(lambda session: session.decode(scene.values.detach()))


def _encode(session: Session, image: Tensor, count: int) -> Tensor:
    return session.encode(image[None].to(session.device)).expand(count, -1, -1, -1)
