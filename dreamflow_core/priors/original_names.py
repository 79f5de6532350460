"""What the original Stable Diffusion code calls the modules that diffusers has."""

from __future__ import annotations

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


def unet_names(unet: Any) -> dict[str, str]:
    """The original name of each module of a UNet that has one, by diffusers' name."""
    blocks = _FIXED | dict(_numbered(unet))
    names = {}
    for name, _ in unet.named_modules():
        prefix = next((p for p in _prefixes(name) if p in blocks), None)
        if prefix is not None:
            rest = name.removeprefix(prefix).removeprefix(".")
            inner = _IN_RESNETS.get(rest, rest) if ".resnets." in name else rest
            names[name] = ".".join(part for part in (blocks[prefix], inner) if part)
    return names


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
    for i, block in enumerate(unet.up_blocks):
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
