"""The simplest scene: bare images or latents, without a camera."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import View
from .scene import Render

SPECTRUM = 1.5
"""How fast the amplitude of images falls with spatial frequency: 1 for photographs (Field 1987), 1.5 for flat
areas with edges."""


def image_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise (B, C, h, w) of deviation 1 with the spectrum of images, for a flow to start from; ours.

    The flow keeps the spread of a batch where it equals the prior's, but does not make up for spread that is
    missing: where both are Gaussian, phi is exact and levels are many, a spread s0 far under the prior's s ends
    near sqrt(s0 s). White noise has next to none in large areas such as a background.
    """
    height, width = shape[-2:]
    rows, columns = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    # Half a period to an image stands for its mean.
    cycles = (rows[:, None] ** 2 + columns**2).sqrt().clamp_min(0.5)
    amplitude = cycles**-SPECTRUM
    white = torch.randn(shape, generator=generator)
    return torch.fft.ifft2(torch.fft.fft2(white) * amplitude / amplitude.square().mean().sqrt()).real


class ImageScene:
    """A batch of images, each a scene of its own under the same prompt.

    Args:
        values: (B, C, h, w) latents, or (B, 3, H, W) pixels in [0, 1] if `pixels`.
        pixels: whether the prior has to encode the values.
        learning_rate: None moves the values by Delta itself (plain gradient descent with step 1), which
            is the flow; a number uses Adam with that rate, which is what VSD and SDS are used with.
    """

    def __init__(self, values: Tensor, *, pixels: bool = False, learning_rate: float | None = None):
        self.values = values.clone().requires_grad_(True)
        self.pixels = pixels
        self.optimiser: torch.optim.Optimizer
        if learning_rate is None:
            self.optimiser = torch.optim.SGD([self.values], lr=1.0)
        else:
            self.optimiser = torch.optim.Adam([self.values], lr=learning_rate, betas=(0.9, 0.99))

    def begin(self, progress: float) -> None:
        pass

    def sample_views(self, generator: torch.Generator) -> None:
        return None

    def render(self, views: Cameras | None) -> Render:
        return Render(self.values, encoded=not self.pixels)

    def view(self, cameras: Cameras, size: int) -> View:
        raise ValueError("a bare image has no views: hints from the scene need a radiance field or a mesh")

    def regularise(self, render: Render) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.values.copy_(state["values"])
