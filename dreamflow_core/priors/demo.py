"""The bundled demo model as a prior. Latents are RGB pixels in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..demo.model import DemoModel
from ..demo.vocabulary import Description, parse
from ..prior import Look, Session, T, guide
from ..settings.presets import FAMILIES

CFG = FAMILIES["demo"].cfg


class DemoPrior:
    """A demo model with its prompts.

    Args:
        model: from `demo.model.load_model`; its weights are frozen here.
        positive, negative: prompts in the demo vocabulary; an empty negative is the unconditional model.
            None is the unconditional model for pictures, and for views of a scene the positive without a view's
            name: guidance then brings out what tells the views apart (ours).
        cfg: guidance scale; 1 evaluates the positive prompt alone.

    Raises:
        UnknownWord: a prompt uses a word the model does not know.
    """

    def __init__(self, model: DemoModel, positive: str, negative: str | None = None, cfg: float = CFG):
        self.network = model.requires_grad_(False).eval()
        self.device = next(model.parameters()).device
        self.positive, self.cfg = parse(positive), cfg
        self.negative = None if negative is None else parse(negative)

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images the model makes."""
        return self.network.config.size, self.network.config.size

    def sigma_at(self, t: Tensor) -> Tensor:
        return self.network.parameterisation.sigma_at(t)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        size = self.network.config.size
        if (height, width) != (size, size):
            raise ValueError(f"size {width}x{height} does not fit this demo model, which makes {size}x{size} images")
        return 3, size, size

    def run(self, body: Callable[[Session], T], look: Look | None = None) -> T:
        return body(self)

    def encode(self, images: Tensor) -> Tensor:
        return images * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (latents / 2 + 0.5).clamp(0, 1)

    def denoise(self, z_t: Tensor, sigma: float, views: Cameras | None, *, guided: bool) -> Tensor:
        levels = torch.full((len(z_t),), sigma, device=z_t.device)
        positive = self._context(self.positive, views, len(z_t))
        if not guided or self.cfg == 1:
            return self.network(z_t, levels, positive)
        context = torch.cat([positive, self._context(self._away(views), None, len(z_t))])
        conditional, unconditional = self.network(z_t.repeat(2, 1, 1, 1), levels.repeat(2), context).chunk(2)
        return guide(conditional, unconditional, self.cfg)

    def _away(self, views: Cameras | None) -> Description:
        """What guidance keeps away from."""
        if self.negative is not None:
            return self.negative
        return Description() if views is None else replace(self.positive, view=None)

    def _context(self, description: Description, views: Cameras | None, count: int) -> Tensor:
        """(B, slots, token): the description, with each view's name where it names no view itself."""
        if views is None or description.view is not None:
            return self.network.text_encoder.encode([description]).expand(count, -1, -1)
        return self.network.text_encoder.encode([replace(description, view=name) for name in views.view_names()])
