"""Strategies of the one loop: which noise level an iteration uses, and how far it moves the scene.

Each moves latents by Delta = weight * (D_p - D_phi) at z_t = z + sigma eps.

| strategy | sigma | weight | D_phi |
| --- | --- | --- | --- |
| APFO | the schedule's | (sigma_i - sigma_{i+1}) / sigma_i | phi |
| VSD | a random one of the schedule's | sigma / (1 + sigma^2) | phi |
| SDS | a random one of the schedule's | sigma / (1 + sigma^2) | z itself |

APFO: DreamFlow (arXiv 2403.14966). VSD: ProlificDreamer (arXiv 2305.16213). SDS: DreamFusion (arXiv
2209.14988). The weight of VSD and SDS is their usual
w(t) = 1 - alpha_bar = sigma^2 / (1 + sigma^2) on a difference of noises, written for denoised estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from .schedule import Schedule


class Guidance(Protocol):
    """One strategy. `trains_phi` says whether D_phi is a denoiser trained on the scene's renders."""

    trains_phi: ClassVar[bool]

    def step(self, schedule: Schedule, index: int, generator: torch.Generator) -> tuple[float, float]:
        """(sigma, weight) of iteration `index`."""
        ...


@dataclass(frozen=True)
class APFO:
    """The approximate probability flow ODE: decreasing levels, step sizes of the flow."""

    trains_phi: ClassVar[bool] = True

    def step(self, schedule: Schedule, index: int, generator: torch.Generator) -> tuple[float, float]:
        sigma, following = schedule.pair(index)
        return sigma, (sigma - following) / sigma


@dataclass(frozen=True)
class VSD:
    """Variational score distillation: random levels."""

    trains_phi: ClassVar[bool] = True

    def step(self, schedule: Schedule, index: int, generator: torch.Generator) -> tuple[float, float]:
        return _random_level(schedule, generator)


@dataclass(frozen=True)
class SDS:
    """Score distillation sampling: random levels, the plain noise in phi's place."""

    trains_phi: ClassVar[bool] = False

    def step(self, schedule: Schedule, index: int, generator: torch.Generator) -> tuple[float, float]:
        return _random_level(schedule, generator)


def _random_level(schedule: Schedule, generator: torch.Generator) -> tuple[float, float]:
    level = int(torch.randint(len(schedule.levels) - 1, (), generator=generator))
    sigma = float(schedule.levels[level])
    return sigma, sigma / (1 + sigma**2)


METHODS: dict[str, type[APFO] | type[VSD] | type[SDS]] = {"apfo": APFO, "vsd": VSD, "sds": SDS}
