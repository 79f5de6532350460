"""A demo model as ComfyUI's own MODEL, CLIP and VAE."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...dreamflow_core.demo.model import SIGMA_DATA, DemoModel, TextEncoder
from ...dreamflow_core.demo.vocabulary import SLOTS, parse

CLIP_NAME = "demo"


class Denoiser(nn.Module):
    """A demo model's network as `BaseModel` calls it; the preconditioning is ComfyUI's own EDM."""

    dtype = torch.float32

    def __init__(self, demo: DemoModel):
        super().__init__()
        self.demo = demo

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_: object) -> Tensor:
        config = self.demo.config
        height, width = x.shape[-2:]
        if (height, width) != (config.size, config.size):
            raise ValueError(
                f"this demo model makes images of {config.size} x {config.size} pixels; "
                f"the latent image is of {width} x {height}"
            )
        if context is None or context.shape[1:] != (len(SLOTS), config.token):
            raise ValueError(
                "the demo model understands prompts from its own CLIP only, and only one prompt in each conditioning"
            )
        return self.demo.network(x, timesteps, context)


class DemoBaseModel(comfy.model_base.BaseModel):
    def __init__(self, demo: DemoModel):
        config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True, "in_channels": 3})
        config.set_inference_dtype(torch.float32, None)
        # Twice what its 64 pixels a side take; ComfyUI's default is for latents, of far more channels a pixel.
        config.memory_usage_factor = 0.01
        # Core's format of latents that are pixels in [-1, 1].
        config.latent_format = comfy.latent_formats.ChromaRadiance()
        config.sampling_settings = {
            "sigma_data": SIGMA_DATA,
            "sigma_min": demo.config.sigma_min,
            "sigma_max": demo.config.sigma_max,
        }
        super().__init__(config, comfy.model_base.ModelType.EDM)
        self.diffusion_model = Denoiser(demo)


class DemoTextEncoder(nn.Module):
    """A demo text encoder as `comfy.sd.CLIP` calls it."""

    disable_offload = True

    def __init__(self, encoder: TextEncoder, **_: object):
        super().__init__()
        self.encoder = encoder
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict) -> None:
        """Of the options that ComfyUI sets none applies: there are no layers to skip."""

    def reset_clip_options(self) -> None:
        pass

    def encode_token_weights(self, tokens: dict) -> tuple[Tensor, None]:
        """Context (1, slots, token), and no pooled output."""
        device = next(self.parameters()).device
        indices = torch.tensor([[index for index, _ in tokens[CLIP_NAME][0]]], device=device)
        return self.encoder(indices).to(comfy.model_management.intermediate_device()), None

    def load_sd(self, state: dict) -> tuple[list[str], list[str]]:
        return self.load_state_dict(state, strict=False)


class DemoTokenizer:
    """The demo vocabulary as `comfy.sd.CLIP` calls a tokenizer: one token for each slot of a description."""

    def __init__(self, **_: object):
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: object) -> dict:
        """Tokens of a prompt.

        Raises:
            UnknownWord: names the word, and the words that are known.
        """
        indices = parse(text).indices()
        ids = ((slot,) for slot in range(len(indices))) if return_word_ids else ((),) * len(indices)
        return {CLIP_NAME: [[(index, 1.0, *word) for index, word in zip(indices, ids)]]}

    def state_dict(self) -> dict:
        return {}


def as_model(demo: DemoModel) -> comfy.model_patcher.ModelPatcher:
    return comfy.model_patcher.ModelPatcher(
        DemoBaseModel(demo),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def as_clip(encoder: TextEncoder) -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(DemoTokenizer, DemoTextEncoder)
    target.params = {"encoder": encoder}
    return comfy.sd.CLIP(target, model_options={"dtype": torch.float32})


def pixel_vae() -> comfy.sd.VAE:
    # The marker is the whole state of core's pixel-space VAE. Half precision would round pixels.
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
