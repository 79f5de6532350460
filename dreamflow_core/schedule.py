"""Predetermined noise schedules: decreasing noise-to-signal levels.

Each function returns a (levels + 1,) float32 tensor sigma_1 > ... > sigma_N > sigma_{N+1} on the CPU:
`levels` intervals, the last value being where the flow ends. That is also the form of ComfyUI's SIGMAS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Levels and how many iterations are spent at each.

    Attributes:
        levels: (N + 1,) decreasing noise-to-signal ratios, the last may be 0.
        iterations: iterations per level, l in the paper.

    Raises:
        ValueError: the levels do not decrease, or `iterations` is under 1.
    """

    levels: Tensor
    iterations: int = 1

    def __post_init__(self) -> None:
        check_levels(self.levels)
        if self.iterations < 1:
            raise ValueError(f"iterations per level is {self.iterations}; it must be at least 1")

    def __len__(self) -> int:
        """Iterations in all."""
        return (len(self.levels) - 1) * self.iterations

    def pair(self, index: int) -> tuple[float, float]:
        """(sigma_i, sigma_{i+1}) of iteration `index`."""
        level = self.level(index)
        return float(self.levels[level]), float(self.levels[level + 1])

    def level(self, index: int) -> int:
        """The level, from 0, that iteration `index` belongs to."""
        return index // self.iterations


def check_levels(levels: Tensor) -> None:
    """Raise ValueError, naming the place, unless `levels` is a valid decreasing schedule."""
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(f"a schedule is a list of at least 2 levels; this one has shape {tuple(levels.shape)}")
    values = levels.tolist()
    for i, value in enumerate(values):
        if not torch.isfinite(levels[i]) or value < 0:
            raise ValueError(f"schedule level {i + 1} is {value:g}; levels must be finite and not negative")
    for i, (sigma, following) in enumerate(pairwise(values)):
        if following >= sigma:
            raise ValueError(
                f"the schedule must decrease, but it goes from {sigma:g} at level {i + 1}"
                f" to {following:g} at level {i + 2}"
            )


def timestep_range(sigma_at: Callable[[Tensor], Tensor], start: float, end: float, levels: int) -> Tensor:
    """Evenly spaced timesteps of a model, as the paper spaces them.

    Args:
        sigma_at: the model's map from a fraction of its timestep range to sigma
            (`Parameterisation.sigma_at`).
        start, end: fractions in [0, 1], start > end. An end of 0 ends at sigma 0.
        levels: intervals, at least 1.
    """
    _check_count(levels)
    if not 0 <= end < start <= 1:
        raise ValueError(f"the timestep range {start:g} to {end:g} must satisfy 1 >= start > end >= 0")
    sigmas = sigma_at(torch.linspace(start, end, levels + 1, dtype=torch.float64)).float()
    if end == 0:
        sigmas[-1] = 0
    return sigmas


def log_uniform(high: float, low: float, levels: int) -> Tensor:
    """Levels in equal ratios from `high` to `low`, high > low > 0."""
    _check_ends(high, low, levels)
    return torch.logspace(math.log10(high), math.log10(low), levels + 1, dtype=torch.float64).float()


def karras(high: float, low: float, levels: int, rho: float = 7.0) -> Tensor:
    """EDM's levels (arXiv 2206.00364, equation 5), `levels` of them from `high` to `low`, then 0."""
    _check_ends(high, low, levels)
    ramp = torch.linspace(0, 1, levels, dtype=torch.float64)
    sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def _check_count(levels: int) -> None:
    if levels < 1:
        raise ValueError(f"a schedule of {levels} levels is empty; it needs at least 1")


def _check_ends(high: float, low: float, levels: int) -> None:
    _check_count(levels)
    if not high > low > 0:
        raise ValueError(f"the schedule from {high:g} to {low:g} must satisfy high > low > 0")
