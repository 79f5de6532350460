"""Priors whose every quantity is known in closed form, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamflow_core.guidance import APFO


class PointAPFO(APFO):
    """APFO for a scene that is its one render: D_phi(z_t) = z exactly, nothing is learned."""

    trains_phi = False


class GaussianPrior:
    """Latents follow N(mean, std^2); `scene` (mean, std) is what its phi is taken to have learned.

    The scene's denoiser is exact, so `network` contributes nothing: it is there to be hooked.
    """

    device = torch.device("cpu")

    def __init__(self, mean: float, std: float, scene: tuple[float, float] = (0.0, 1.0)):
        self.mean, self.std, self.scene = mean, std, scene
        self.network = nn.Linear(8, 8).double().requires_grad_(False)

    def run(self, body, look=None):
        return body(self)

    def encode(self, images: Tensor) -> Tensor:
        return images

    decode = encode

    def denoise(self, z_t: Tensor, sigma: float, views, *, guided: bool) -> Tensor:
        if guided:
            return posterior_mean(z_t, sigma, self.mean, self.std)
        nothing = 0 * self.network(torch.ones(8, dtype=z_t.dtype)).sum()
        return posterior_mean(z_t, sigma, *self.scene) + nothing


def posterior_mean(z_t: Tensor, sigma: Tensor | float, mean: float, std: float) -> Tensor:
    """E[z | z + sigma eps = z_t] for z ~ N(mean, std^2)."""
    return (std**2 * z_t + sigma**2 * mean) / (std**2 + sigma**2)
