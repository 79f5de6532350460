"""A MODEL, CONDITIONING and VAE of ComfyUI as a prior.

The whole optimisation runs as the body of one sampler in one guided sampling session, so loading, hooks,
ControlNets, wrappers and clean-up are ComfyUI's own, and every estimate is the one a KSampler step would get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...dreamflow_core.prior import Look, Session, T
from ...dreamflow_core.settings.cameras import ViewRange
from .conditioning import Conditioning, check_covered, entries_anywhere
from .controls import Controls
from .levels import NoiseLevels
from .session import ComfySession, Guider


class LatentPrior:
    """A model of ComfyUI with its prompts, for scenes that are latents: it has no VAE, so it cannot encode.

    Nothing is loaded before `run`.

    Args:
        model: MODEL with whatever is patched on it.
        positive, negative: CONDITIONING; entries with view tags hold for those views (`conditioning`).
        shape: (C, h, w) of the latents.
        cfg: guidance scale; 1 evaluates the positive prompts alone.
        seed: given to nodes that hang on the model and ask for one.
        views: latents denoised at once, for which memory is set aside.

    Attributes:
        size: side of the pictures that the latents encode, in pixels; 0 if that is not known.

    Raises:
        ValueError: the model or the conditioning cannot work here; the message says why.
        NotADenoiser: likewise.
    """

    vae: Any = None
    size: int = 0

    def __init__(
        self,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        *,
        shape: tuple[int, ...],
        cfg: float,
        seed: int,
        views: int,
    ):
        _check_image_model(model)
        if self.vae is not None:
            _check_image_vae(model, self.vae)
        self.model, self.positive, self.negative, self.shape = model, positive, negative, shape
        self.cfg, self.seed, self.views = cfg, seed, views
        self.levels = NoiseLevels.of(model)
        for name, conditioning in self.conditionings():
            if not conditioning:
                raise ValueError(f"{name} is empty")
            _check_inputs(model, conditioning, name, shape)

    def conditionings(self) -> list[tuple[str, Conditioning]]:
        """Both, by the names that ComfyUI has for them."""
        return [("positive", self.positive), ("negative", self.negative)]

    def check_views(self, views: ViewRange | None) -> None:
        """Raise ValueError, saying where, unless there are prompts for every view that may be sampled.

        None stands for a scene that has no viewpoint.
        """
        for name, conditioning in self.conditionings():
            if views is not None:
                check_covered(conditioning, views, name)
            elif not entries_anywhere(conditioning):
                raise ValueError(f"every entry of {name} is for a range of views, but a bare image has no view")

    def sigma_at(self, t: Tensor) -> Tensor:
        return self.levels.at(t)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        raise ValueError("without a VAE it is not known which latents a picture of this size has")

    def run(self, body: Callable[[Session], T], look: Look | None = None) -> T:
        """See `Prior.run`. The user's MODEL, VAE and CONDITIONING are afterwards as they were, whatever happens."""
        controls = Controls()
        session = ComfySession(self, controls, look, body)
        guider = Guider(self.model)
        guider.inner_set_conds({name: controls.own(entries) for name, entries in self.conditionings()})
        latents = torch.zeros(self.views, *self.shape)
        with torch.inference_mode():
            guider.sample(latents, latents, session, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=self.seed)
        return session.result


class ComfyPrior(LatentPrior):
    """The same with a VAE, for scenes that are seen as pictures.

    Args:
        vae: the model's VAE.
        size: side of the square pictures that are denoised, in pixels.
        views: pictures denoised at once, for which memory is set aside.
        others: as for `LatentPrior`.

    Raises:
        ValueError: also where the VAE is not the model's, or the size does not fit it.
    """

    def __init__(
        self,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        vae: Any,
        *,
        cfg: float,
        size: int,
        seed: int,
        views: int = 4,
    ):
        if vae is None:
            raise ValueError("there is no VAE; if it comes from a checkpoint, the checkpoint has none: load one")
        vae.throw_exception_if_invalid()
        self.vae, self.size = vae, size
        shape = self.latent_shape(size, size)
        super().__init__(model, positive, negative, shape=shape, cfg=cfg, seed=seed, views=views)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        ratio = self.vae.spacial_compression_encode()
        if min(height, width) < ratio or height % ratio or width % ratio:
            raise ValueError(f"size {width}x{height} does not fit this VAE; both must be multiples of {ratio}")
        return self.vae.latent_channels, height // ratio, width // ratio


def _check_image_model(model: Any) -> None:
    if "bypass_lora" in model.injections:
        raise ValueError("bypass LoRAs are not supported: no gradient passes through them; load the LoRA the plain way")
    latents = model.get_model_object("latent_format")
    if latents.latent_dimensions != 2:
        kind = {1: "audio or 3D shapes", 3: "video"}.get(latents.latent_dimensions, "no images")
        raise ValueError(f"{type(model.model).__name__} is a model of {kind}; a text-to-image model is needed")


def _check_image_vae(model: Any, vae: Any) -> None:
    latents = model.get_model_object("latent_format")
    if vae.latent_dim != 2:
        raise ValueError("the VAE is not one for images; connect the VAE that belongs to the model")
    if vae.latent_channels != latents.latent_channels:
        raise ValueError(
            f"the VAE makes latents of {vae.latent_channels} channels, but the model takes {latents.latent_channels};"
            " connect the VAE that belongs to the model"
        )


def _check_inputs(model: Any, conditioning: Conditioning, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError for an inpainting or editing model whose inputs are not in the conditioning."""
    latent = torch.zeros(1, *shape)
    for _, options in conditioning:
        if "concat_latent_image" in options or "noise_concat" in options:
            continue
        if model.model.concat_cond(**{**options, "noise": latent, "latent_image": latent, "device": "cpu"}) is not None:
            raise ValueError(
                f"{type(model.model).__name__} is an inpainting or editing model and {name} has no image for it;"
                " use a plain text-to-image model"
            )
