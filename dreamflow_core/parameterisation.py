"""How a network's output becomes a denoised estimate, whatever the network predicts.

Everything is in noise-to-signal form. A model that noises as x_t = a z + b eps sees a (z + sigma eps)
with sigma = b / a, so with z_t = z + sigma eps its denoised estimate of z is always

    D(z_t; sigma) = c_skip z_t + c_out F(c_in z_t; time)

and the kinds of model differ only in these four functions of sigma (EDM, arXiv 2206.00364, Table 1,
extended to v-prediction and rectified flow). Nothing else in the project asks for a model's kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coefficients:
    """The four functions of sigma, each of sigma's shape."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    time: Tensor


@dataclass(frozen=True)
class Parameterisation:
    """Kind of a model.

    Attributes:
        coefficients: sigma (any shape) -> `Coefficients`.
        sigma_at: fraction of the model's timestep range in [0, 1] (any shape) -> sigma; increasing.
    """

    coefficients: Callable[[Tensor], Coefficients]
    sigma_at: Callable[[Tensor], Tensor]

    def denoise(self, network: Callable[[Tensor, Tensor], Tensor], z_t: Tensor, sigma: Tensor) -> Tensor:
        """D(z_t; sigma) for z_t (B, ...) and sigma (B,); `network(input, time)` is F."""
        c = self.coefficients(sigma)
        c_in, c_skip, c_out = (k.view(-1, *[1] * (z_t.ndim - 1)) for k in (c.c_in, c.c_skip, c.c_out))
        return c_skip * z_t + c_out * network(c_in * z_t, c.time)


def edm(sigma_data: float, sigma_min: float, sigma_max: float) -> Parameterisation:
    """EDM preconditioning; its time is ln(sigma) / 4. Fractions are log-uniform in sigma."""

    def coefficients(sigma: Tensor) -> Coefficients:
        scale = (sigma**2 + sigma_data**2).rsqrt()
        return Coefficients(scale, (sigma_data * scale) ** 2, sigma * sigma_data * scale, sigma.log() / 4)

    def sigma_at(t: Tensor) -> Tensor:
        return sigma_min * (sigma_max / sigma_min) ** t

    return Parameterisation(coefficients, sigma_at)


def eps(alphas_cumprod: Tensor) -> Parameterisation:
    """A variance-preserving model that predicts the noise; time is a (fractional) timestep index."""
    time_of, sigma_at = _discrete(alphas_cumprod)

    def coefficients(sigma: Tensor) -> Coefficients:
        return Coefficients((1 + sigma**2).rsqrt(), torch.ones_like(sigma), -sigma, time_of(sigma))

    return Parameterisation(coefficients, sigma_at)


def v(alphas_cumprod: Tensor) -> Parameterisation:
    """A variance-preserving model that predicts v (Salimans and Ho 2022, arXiv 2202.00512)."""
    time_of, sigma_at = _discrete(alphas_cumprod)

    def coefficients(sigma: Tensor) -> Coefficients:
        scale = (1 + sigma**2).rsqrt()
        return Coefficients(scale, scale**2, -sigma * scale, time_of(sigma))

    return Parameterisation(coefficients, sigma_at)


def flow(shift: float = 1.0, times: float = 1000.0) -> Parameterisation:
    """Rectified flow, x_t = (1 - t) z + t eps, predicting eps - z; the network's time is t * `times`."""

    def coefficients(sigma: Tensor) -> Coefficients:
        t = sigma / (1 + sigma)
        return Coefficients(1 - t, 1 - t, -t, times * t)

    def sigma_at(t: Tensor) -> Tensor:
        shifted = shift * t / (1 + (shift - 1) * t)
        # t = 1 is all noise, an infinite ratio: the last of `times` steps stands for it.
        shifted = shifted.clamp(1 / times, 1 - 1 / times)
        return shifted / (1 - shifted)

    return Parameterisation(coefficients, sigma_at)


def _discrete(alphas_cumprod: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """sigma -> timestep index and fraction -> sigma, both linear in ln(sigma) between timesteps."""
    # On the CPU throughout: not every device has float64.
    alphas = alphas_cumprod.cpu().double()
    # A zero-terminal-SNR model ends in pure noise; ratios stay finite by stopping just short of it.
    log_sigmas = ((1 - alphas) / alphas.clamp_min(1e-8)).log() / 2
    last = len(log_sigmas) - 1

    def time_of(sigma: Tensor) -> Tensor:
        wanted = sigma.cpu().double().log().clamp(log_sigmas[0], log_sigmas[-1])
        above = torch.searchsorted(log_sigmas, wanted).clamp(1, last)
        low, high = log_sigmas[above - 1], log_sigmas[above]
        return (above - 1 + (wanted - low) / (high - low)).to(sigma)

    def sigma_at(t: Tensor) -> Tensor:
        position = t.cpu().double().clamp(0, 1) * last
        below = position.floor().long().clamp(0, last - 1)
        return torch.lerp(log_sigmas[below], log_sigmas[below + 1], position - below).exp().to(t)

    return time_of, sigma_at
