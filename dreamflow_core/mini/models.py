"""The parts of the small Stable Diffusion, as diffusers' and transformers' own classes.

Sizes are what ComfyUI's classes of the same models can hold too: groups of norms are 32, a level's channels are
whole multiples of the first level's, and the VAE has its attention in the middle.
"""

from __future__ import annotations

from typing import Any

SIZE = 128
"""Images are this many pixels a side; latents a quarter of it."""
REFINED = 256
"""Likewise the refiner's."""
FACTOR = 4
"""Pixels of a latent's cell, a side."""
CHANNELS = 4
TEXT_WIDTH = 128
LENGTH = 77
"""Tokens of an encoded prompt, with its start and end."""

# Without residual blocks on the way down an image is encoded in a tenth of the time that one block a level takes:
# the gradient of every iteration passes there. What they could add is left to the blocks in the middle.
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [64, 64, 64],
    "layers_per_block": 0,
    "latent_channels": CHANNELS,
    "norm_num_groups": 32,
    "sample_size": SIZE,
}
UNET: dict[str, Any] = {
    "sample_size": SIZE // FACTOR,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": [64, 64, 128],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    # diffusers' name for the number of heads.
    "attention_head_dim": 4,
    "cross_attention_dim": TEXT_WIDTH,
}
REFINER: dict[str, Any] = {
    "sample_size": REFINED // FACTOR,
    "block_out_channels": [64, 64, 64],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
}
"""What the refiner has otherwise."""
TEXT: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "projection_dim": TEXT_WIDTH,
    "hidden_act": "quick_gelu",
}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Stable Diffusion 1.x's own."""


def make_vae(**changes: Any) -> Any:
    """An untrained AutoencoderKL."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**{**VAE, **changes})


def make_unet(**changes: Any) -> Any:
    """An untrained UNet2DConditionModel."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{**UNET, **changes})


def make_text_encoder(tokenizer: Any) -> Any:
    """An untrained CLIPTextModel for a tokenizer's words."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"vocab_size": len(tokenizer), **{f"{name}_token_id": token for name, token in tokens.items()}}
    return CLIPTextModel(CLIPTextConfig(**TEXT, **sizes))
