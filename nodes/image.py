"""Images by the flow: what the stages do, where its result is easiest to see."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import comfy.sample
import torch
from comfy_api.latest import io
from torch import Tensor

from ..dreamflow_core.apfo import Checkpoint
from ..dreamflow_core.pipeline import optimise_latents, start_latents
from ..dreamflow_core.settings.stages import ImageSettings
from .adapter.conditioning import Conditioning
from .adapter.levels import native_schedule
from .adapter.prior import LatentPrior
from .adapter.running import HIDDEN, run
from .sockets import GuidanceSettings
from .widgets import checkpoint_input, flow_inputs, guidance_input, number, prior_inputs


class DreamFlowImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowImage",
            display_name="APFO Image",
            category="DreamFlow",
            description="Latents moved along the model's probability flow: the algorithm of the stages on plain "
            "images. A batch is one distribution, so its images come out different.",
            search_aliases=["sampler", "apfo", "vsd", "sds"],
            inputs=[
                *prior_inputs(),
                io.Latent.Input(
                    "latent_image", tooltip="Empty for text to image; else it is what the flow starts from."
                ),
                *flow_inputs(),
                number(ImageSettings, "start_noise", 0.0, 10.0, "Deviation of the noise that empty latents become."),
                number(ImageSettings, "learning_rate", 1e-6, 10.0, "Adam's, for vsd and sds; apfo needs none."),
                checkpoint_input(),
                guidance_input(),
            ],
            outputs=[io.Latent.Output()],
            hidden=HIDDEN,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        sigmas: Tensor,
        seed: int,
        cfg: float,
        iterations: int,
        start_noise: float = ImageSettings.start_noise,
        learning_rate: float = ImageSettings.learning_rate,
        save_every: float = Checkpoint.every,
        guidance: GuidanceSettings | None = None,
    ) -> io.NodeOutput:
        if "noise_mask" in latent_image:
            raise ValueError("the latent image has a mask; this node changes whole images")
        samples = _fitting(model, latent_image)
        settings = ImageSettings(len(samples), learning_rate=learning_rate, start_noise=start_noise, seed=seed)
        if guidance is not None:
            settings = replace(settings, method=guidance.method, phi=guidance.phi)
        # The nodes' inference mode would make latents that cannot be trained.
        with torch.inference_mode(False), torch.no_grad():
            schedule = native_schedule(model, sigmas, iterations)
            shape = tuple(samples.shape[1:])
            prior = LatentPrior(model, positive, negative, shape=shape, cfg=cfg, seed=seed, views=len(samples))
            prior.check_views(None)
            work = partial(optimise_latents, prior, schedule, _start(model, samples, settings), settings)
            latents = run(cls, work, asdict(settings), save_every)
            made = model.model.process_latent_out(latents).cpu()
        kept = {name: value for name, value in latent_image.items() if not name.startswith("downscale_ratio")}
        return io.NodeOutput({**kept, "samples": made})


def _fitting(model: Any, latent_image: dict[str, Any]) -> Tensor:
    """The samples; empty ones are given the model's channels and size, as a KSampler does."""
    ratios = (latent_image.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal"))
    return comfy.sample.fix_empty_latent_channels(model, latent_image["samples"], *ratios)


def _start(model: Any, samples: Tensor, settings: ImageSettings) -> Tensor:
    """Where the flow starts, in the model's own latent space."""
    if torch.count_nonzero(samples) > 0:
        return model.model.process_latent_in(samples.clone())
    return start_latents(settings, tuple(samples.shape))
