"""Density fields of the demo shapes, for the tests of meshes."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from dreamflow_core.demo.shapes import SHAPES
from dreamflow_core.mesh.extract import sample_grid

EXTENT = 1.1


def distances(shape: str, points: np.ndarray) -> np.ndarray:
    """Signed distances (P,) of points (P, 3) to a demo shape."""
    return SHAPES[shape](torch.from_numpy(np.asarray(points, np.float32))).numpy()


def soft_grid(shape: str, resolution: int, scale: float = 100.0, softness: float = 0.02) -> np.ndarray:
    """A density that rises to `scale` inside the shape over about `softness`, (R, R, R)."""
    return scale / (1 + np.exp(np.clip(distance_grid(shape, resolution) / softness, -60, 60)))


@cache
def distance_grid(shape: str, resolution: int) -> np.ndarray:
    """Signed distances (R, R, R) at the nodes of the grid over [-EXTENT, EXTENT]^3."""
    return sample_grid(lambda points: distances(shape, points), resolution, EXTENT)
