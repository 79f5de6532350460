"""A prior whose answer is known: the truth renderer's picture of a shape, from whatever view it is shown."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dreamflow_core.cameras import Cameras
from dreamflow_core.demo import truth


class TruthPrior:
    """Sees a shape of one colour, in the truth's light, on the background that the noised picture shows.

    Its latents are pixels in [-1, 1]. `calls` counts denoised pictures.
    """

    device = torch.device("cpu")

    def __init__(self, shape: str, colour: tuple[float, float, float], size: int):
        self.shape, self.colour, self.size = shape, torch.tensor(colour), size
        self.network = nn.Linear(16, 16)
        self.calls = 0

    def sigma_at(self, t: Tensor) -> Tensor:
        return 0.01 + t

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        if (height, width) != (self.size, self.size):
            raise ValueError(f"size {width}x{height} does not fit")
        return 3, height, width

    def run(self, body: Callable, look=None):
        return body(self)

    def encode(self, images: Tensor) -> Tensor:
        return images * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 2 + 0.5

    def denoise(self, z_t: Tensor, sigma: float, views: Cameras | None, *, guided: bool) -> Tensor:
        assert views is not None
        self.calls += len(z_t)
        surface = truth.trace(self.shape, views, z_t.shape[-1])
        colour = self.colour.expand(len(z_t), 3)
        corners = self.decode(z_t)[:, :, :2, [0, 1, -2, -1]].mean(dim=(2, 3))
        shown = truth.paint(surface.alpha, surface.shade(), torch.zeros_like(surface.alpha), colour, colour, corners)
        return self.encode(shown)
