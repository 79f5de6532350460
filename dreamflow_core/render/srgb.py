"""The transfer function of sRGB. Both directions are differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def to_linear(colours: Tensor) -> Tensor:
    """Linear light of display-referred values in [0, 1]."""
    return torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def to_display(light: Tensor) -> Tensor:
    """Display-referred values of linear light; what is outside of [0, 1] by a rounding error is cut."""
    light = light.clamp(0, 1)
    # The power's slope is infinite at 0, and would make that of `where` NaN.
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)
