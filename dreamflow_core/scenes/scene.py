"""What the loop needs of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import View


@dataclass(frozen=True)
class Render:
    """B views of a scene, as images for the prior to encode or as latents already.

    Attributes:
        values: (B, 3, H, W) images in [0, 1], or (B, C, h, w) clean latents.
        encoded: whether `values` are latents.
    """

    values: Tensor
    encoded: bool = False


@dataclass(frozen=True, kw_only=True)
class ObjectRender(Render):
    """A training render of an object in space.

    Attributes:
        background: (B, 3, H, W) what is behind the object in `values`.
        losses: the regularisers in use, weighted.
    """

    background: Tensor
    losses: dict[str, Tensor]


class Scene(Protocol):
    """Parameters theta, their optimiser, and how they are rendered."""

    optimiser: torch.optim.Optimizer

    def begin(self, progress: float) -> None:
        """Told before every iteration how much of the run is done, in [0, 1): for coarse to fine."""
        ...

    def sample_views(self, generator: torch.Generator) -> Cameras | None:
        """Views of the next iteration; None for a scene that has no viewpoint."""
        ...

    def render(self, views: Any) -> Render:
        """g(theta, c), differentiable in theta; `views` are of `sample_views`."""
        ...

    def view(self, cameras: Cameras, size: int) -> View:
        """What cameras see, (size, size) pixels each, without randomness.

        Raises:
            ValueError: the scene is not in three dimensions.
        """
        ...

    def regularise(self, render: Render) -> dict[str, Tensor]:
        """Named scalar losses to add to the flow's, already weighted."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimiser's state that continuing needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
