"""What the loop needs of a diffusion model.

A `Prior` is a model with its prompts; it hands out a `Session` by running a body inside it, because
ComfyUI loads, hooks and cleans up models around a sampling session. Headless, `run` calls the body.

All noise levels are noise-to-signal ratios sigma, all noised latents are z + sigma eps, whatever the
model itself was trained on (`parameterisation.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from .cameras import Cameras
from .views import View

T = TypeVar("T")

Look = Callable[[Cameras, int], View]
"""What cameras see of a scene, at a size in pixels."""


class Session(Protocol):
    """A model ready to be evaluated.

    Attributes:
        network: the module that phi's LoRA is put on; its weights are frozen.
        device: where latents and images live.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> clean latents (B, C, h, w). Differentiable."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images in [0, 1]. Not meant to be differentiated."""
        ...

    def denoise(self, z_t: Tensor, sigma: float, views: Cameras | None, *, guided: bool) -> Tensor:
        """Denoised estimate of z from z_t = z + sigma eps, (B, C, h, w).

        With `views` every latent is denoised with its own view's prompt. `guided` applies the prior's
        classifier-free guidance; without it the positive prompt alone is evaluated, which is what phi
        uses. Differentiable in `z_t` and in what is hooked onto `network` unless grad mode is off.
        """
        ...


class Prior(Protocol):
    """A model with its prompts and guidance scale."""

    def sigma_at(self, t: Tensor) -> Tensor:
        """Fraction of the model's timestep range in [0, 1] -> noise-to-signal ratio."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of images of this size.

        Raises:
            ValueError: the size does not fit the model.
        """
        ...

    def run(self, body: Callable[[Session], T], look: Look | None = None) -> T:
        """Call `body` with a session that is good until it returns, and return its result.

        `look` shows the scene that is being optimised, for a prior that conditions on it.
        """
        ...


def guide(conditional: Tensor, unconditional: Tensor, cfg: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""
    return unconditional + cfg * (conditional - unconditional)
