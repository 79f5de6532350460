"""A model's own noise levels, ComfyUI's SIGMAS, and the noise-to-signal ratios of `dreamflow_core`."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...dreamflow_core.schedule import Schedule, check_levels


class NotADenoiser(ValueError):
    """The model does not turn noised latents into clean ones."""


class NoiseLevels:
    """Noise levels of a model in its own units (a `sigma`) and as noise-to-signal ratios.

    A model noises as x = a z + b eps, where a and b are functions of its sigma: for eps and v models
    (1, sigma), for flow models (1 - sigma, sigma). They are asked for, never derived from the model's
    type, so object patches such as ModelSamplingSD3 count.

    Args:
        sampling: the model's `model_sampling`.

    Raises:
        NotADenoiser: the model's noised latents have no noise in them.
    """

    def __init__(self, sampling: Any):
        self._sampling = sampling
        self.native = cache(self._invert)
        if self._scales(float(sampling.sigma_max))[1] <= 0:
            raise NotADenoiser("this model does not add noise to its latents, so it is not a denoiser")

    @classmethod
    def of(cls, model: Any) -> NoiseLevels:
        """Those of a MODEL, its patches included."""
        return cls(model.get_model_object("model_sampling"))

    def signal(self, native: float) -> float:
        """a, what the clean latent is multiplied by at the model's own level `native`."""
        return self._scales(native)[0]

    def ratio(self, native: float) -> float:
        """b / a at the model's own level; infinite where no signal is left."""
        signal, noise = self._scales(native)
        return noise / signal if signal > 0 else math.inf

    def at(self, t: Tensor) -> Tensor:
        """Fraction of the model's timestep range in [0, 1] -> ratio, finite and above 0."""
        sampling = self._sampling
        low, high = float(sampling.sigma_min), self._highest()
        levels = [min(max(float(sampling.percent_to_sigma(1 - value)), low), high) for value in t.flatten().tolist()]
        return torch.tensor([self.ratio(level) for level in levels], dtype=t.dtype).view_as(t)

    def ratios(self, sigmas: Tensor) -> Tensor:
        """SIGMAS -> float32 ratios. Where a level is pure noise the model's next one stands for it."""
        highest = self._highest()
        levels = [level if math.isfinite(self.ratio(level)) else highest for level in sigmas.double().tolist()]
        return torch.tensor([self.ratio(level) for level in levels])

    def sigmas(self, ratios: Tensor) -> Tensor:
        """Ratios -> float32 SIGMAS."""
        return torch.tensor([self.native(ratio) for ratio in ratios.double().tolist()])

    def _highest(self) -> float:
        """The model's highest level that has signal in it."""
        return max(level for level in self._sampling.sigmas[-2:].tolist() if math.isfinite(self.ratio(level)))

    def _scales(self, native: float) -> tuple[float, float]:
        sigma = torch.tensor([native], dtype=torch.float64)

        def scaled(noise: float, latent: float) -> float:
            # The model may work in place, so each call has tensors of its own.
            noise_, latent_ = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (noise, latent))
            return float(self._sampling.noise_scaling(sigma, noise_, latent_, False))

        return scaled(0.0, 1.0), scaled(1.0, 0.0)

    def _invert(self, ratio: float) -> float:
        """The model's own level with this ratio, by bisection to the last bit: ratios grow with it."""
        if ratio == 0:
            return 0.0
        low, high = 0.0, 1.0
        while self.ratio(high) < ratio:
            low, high = high, 2 * high
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if self.ratio(middle) < ratio else (low, middle)
        return high


def native_schedule(model: Any, sigmas: Tensor, iterations: int) -> Schedule:
    """SIGMAS of `model` as a schedule of noise-to-signal ratios.

    Raises:
        ValueError: they do not decrease, are not finite or not at least two, or `iterations` is under 1.
    """
    sigmas = sigmas.detach().float().cpu()
    check_levels(sigmas)
    return Schedule(NoiseLevels.of(model).ratios(sigmas), iterations)
