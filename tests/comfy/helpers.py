"""What the checks share."""

from __future__ import annotations

import comfy.samplers
import tiny
import torch
from pack.dreamflow_core.apfo import optimise
from pack.dreamflow_core.cameras import Cameras
from pack.dreamflow_core.guidance import APFO
from pack.dreamflow_core.scenes.image import ImageScene
from pack.dreamflow_core.schedule import Schedule
from pack.dreamflow_core.settings.stages import PhiSettings
from pack.nodes.adapter.prior import ComfyPrior

SIZE = 64
SIGMA = 2.5


def latents(count: int = 2, channels: int = 4) -> torch.Tensor:
    """Clean latents as a VAE gives them."""
    return torch.randn(count, channels, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(11))


def noise(count: int = 2, channels: int = 4) -> torch.Tensor:
    return torch.randn(count, channels, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(12))


def noised(model, sigma: float = SIGMA, count: int = 2) -> torch.Tensor:
    """z + sigma eps of these, z being in the model's own latent space, computed as a KSampler does."""
    channels = model.get_model_object("latent_format").latent_channels
    return sigma * noise(count, channels) + model.model.process_latent_in(latents(count, channels))


def prior(model, positive, negative=None, *, cfg: float = 7.5, vae=None, size: int = SIZE, views: int = 2):
    negative, vae = negative or tiny.text(2), vae or tiny.vae()
    return ComfyPrior(model, positive, negative, vae, cfg=cfg, size=size, seed=3, views=views)


def step(
    model, positive, negative, cfg: float, sigma: float = SIGMA, *, count: int = 2, rows=slice(None), **given
) -> torch.Tensor:
    """The denoised estimate that a KSampler's first step gets when it starts at the model's own `sigma`.

    Its batch is `rows` of `count` latents, or the `latents` and `noise` that are given.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    channels = model.get_model_object("latent_format").latent_channels
    seen = []
    guider.sample(
        given.get("noise", noise(count, channels))[rows],
        given.get("latents", latents(count, channels))[rows],
        comfy.samplers.sampler_object("euler"),
        torch.tensor([sigma, 0.0]),
        callback=lambda i, denoised, x, total: seen.append(denoised.clone()),
        disable_pbar=True,
        seed=3,
    )
    return seen[0]


def optimise_image(made: ComfyPrior, *, levels=(5.0, 2.0, 0.5), iterations: int = 2, **options) -> torch.Tensor:
    """A bare latent moved along the flow by APFO, phi learning fast; returns it."""
    schedule = Schedule(torch.tensor(levels), iterations)
    phi = PhiSettings(rank=4, learning_rate=1e-2)
    with torch.inference_mode(False):
        scene = ImageScene(torch.zeros(2, *made.shape))
        optimise(scene, made, schedule, APFO(), phi, seed=1, **options)
        return scene.values.detach()


def cameras(*directions: tuple[float, float]) -> Cameras:
    """Cameras at (azimuth, elevation) degrees."""
    azimuth, elevation = torch.tensor(directions).T
    return Cameras(azimuth, elevation, torch.full_like(azimuth, 3.0), torch.full_like(azimuth, 40.0))


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Bit-equal."""
    assert torch.equal(a, b), f"differs by {(a - b).abs().max():.3g} of {b.abs().max():.3g}"


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    """Equal up to a relative error of the norm."""
    error = (a.double() - b.double()).norm() / b.double().norm()
    assert error < tolerance, f"relative error {error:.3g}"
