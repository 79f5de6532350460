"""The transfer function of sRGB, of NumPy's arrays and torch's tensors."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from .mesh import Floats

Values = TypeVar("Values", np.ndarray, Floats, Tensor)

_TINY = 1e-9
"""Added where a power's slope would be infinite."""


def to_linear(colours: Values) -> Values:
    """Linear light of display-referred (sRGB) values in [0, 1]. Differentiable."""
    dark = colours <= 0.04045
    return dark * (colours / 12.92) + ~dark * ((abs(colours) + 0.055) / 1.055) ** 2.4


def to_display(colours: Values) -> Values:
    """Display-referred (sRGB) values of linear light in [0, 1]. Differentiable."""
    dark = colours <= 0.0031308
    return dark * (colours * 12.92) + ~dark * (1.055 * (abs(colours) + _TINY) ** (1 / 2.4) - 0.055)
