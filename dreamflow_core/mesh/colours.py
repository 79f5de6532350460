"""The transfer function of sRGB."""

from __future__ import annotations

import numpy as np

from .mesh import Floats


def to_linear(colours: Floats) -> Floats:
    """Linear light of display-referred (sRGB) values in [0, 1]."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def to_display(colours: Floats) -> Floats:
    """Display-referred (sRGB) values of linear light in [0, 1]."""
    return np.where(colours <= 0.0031308, colours * 12.92, 1.055 * colours ** (1 / 2.4) - 0.055)
