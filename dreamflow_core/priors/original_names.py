"""What the original Stable Diffusion code, and OpenCLIP, call the weights that diffusers' models have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_FIXED = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


_IN_VAES = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"mid_block\.attentions\.0\.to_([qkv])": r"mid.attn_1.\1",
    r"(down|up)_blocks\.(\d+)\.resnets": r"\1.\2.block",
    r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0": r"\1.\2.\3sample",
    r"conv_shortcut": "nin_shortcut",
    r"conv_norm_out": "norm_out",
}
_IN_OPEN_CLIP = {
    r"^encoder\.layers": "transformer.resblocks",
    r"layer_norm(\d)": r"ln_\1",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"self_attn\.out_proj": "attn.out_proj",
    r"self_attn\.[qkv]_proj\.": "attn.in_proj_",
    r"^embeddings\.token_embedding": "token_embedding",
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^final_layer_norm": "ln_final",
    r"^text_projection\.weight": "text_projection",
}


def unet_names(unet: Any) -> dict[str, str]:
    """diffusers' name of each weight of a UNet, or of what a ControlNet has of one, by the original one."""
    blocks = _FIXED | dict(_numbered(unet))
    names = {}
    for name in unet.state_dict():
        prefix = next((p for p in _prefixes(name) if p in blocks), None)
        if prefix is not None:
            module, _, leaf = name.rpartition(".")
            rest = module.removeprefix(prefix).removeprefix(".")
            inner = _IN_RESNETS.get(rest, rest) if ".resnets." in name else rest
            names[".".join(part for part in (blocks[prefix], inner, leaf) if part)] = name
    return names


def control_names(control: Any) -> dict[str, str]:
    """diffusers' name of each weight of a ControlNet, by the original one."""
    embedding = control.controlnet_cond_embedding
    modules = {"conv_in": 0, **{f"blocks.{i}": 2 * i + 2 for i in range(len(embedding.blocks))}}
    modules["conv_out"] = 2 * len(embedding.blocks) + 2
    places = {f"controlnet_cond_embedding.{name}": f"input_hint_block.{place}" for name, place in modules.items()}
    places |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(len(control.controlnet_down_blocks))}
    places["controlnet_mid_block"] = "middle_block_out.0"
    own = {f"{place}.{leaf}": f"{name}.{leaf}" for name, place in places.items() for leaf in ("weight", "bias")}
    return unet_names(control) | own


def vae_names(vae: Any) -> dict[str, str]:
    """diffusers' name of each weight of a VAE, by the original one; attention's are 1 x 1 convolutions there."""
    last = len(vae.config.block_out_channels) - 1

    def turned(name: str) -> str:
        # The original counts the decoder's blocks from the other end.
        return re.sub(r"(?<=up_blocks\.)\d+", lambda m: str(last - int(m[0])), name)

    return {_renamed(turned(name), _IN_VAES): name for name in vae.state_dict()}


def clip_names(encoder: Any) -> set[str]:
    """The names that Transformers has, or had, for a CLIP text encoder's weights."""
    bare = {name.removeprefix("text_model.") for name in encoder.state_dict()}
    return bare | {f"text_model.{name}" for name in bare}


def open_clip_names(encoder: Any) -> set[str]:
    """OpenCLIP's names of a CLIP text encoder's weights."""
    return {_renamed(name.removeprefix("text_model."), _IN_OPEN_CLIP) for name in encoder.state_dict()}


def _renamed(name: str, patterns: dict[str, str]) -> str:
    for pattern, to in patterns.items():
        name = re.sub(pattern, to, name)
    return name


def _numbered(unet: Any) -> Iterator[tuple[str, str]]:
    """Of the blocks that the original counts through."""
    place = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{place}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{place}.1"
            place += 1
        if block.downsamplers:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{place}.0.op"
            place += 1
    place = 0
    # A ControlNet has none.
    for i, block in enumerate(getattr(unet, "up_blocks", ())):
        for j in range(len(block.resnets)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{place}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{place}.1"
            if j == len(block.resnets) - 1 and block.upsamplers:
                after = 2 if getattr(block, "attentions", None) else 1
                yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{place}.{after}"
            place += 1


def _prefixes(name: str) -> Iterator[str]:
    """A dotted name and all that it begins with, longest first."""
    while name:
        yield name
        name = name.rpartition(".")[0]
