"""Tiny models with random weights that go through ComfyUI's real loaders."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import comfy.controlnet
import comfy.ops
import comfy.quant_ops
import comfy.sd
import comfy.supported_models as supported
import comfy.utils
import torch
from comfy.cldm.cldm import ControlNet
from comfy.cldm.dit_embedder import ControlNetEmbedder
from comfy.ldm.flux.model import Flux
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

WIDTH = 64
"""Of the embedded prompts of the UNets here."""

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": WIDTH,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
}
_VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
# What tells a tiny checkpoint's family from another's; real families differ in their sizes.
_FAMILIES = {
    "sd1": ({"num_heads": 4, "num_head_channels": -1}, {"use_linear_in_transformer": False, "adm_in_channels": None}),
    "sd2": ({"num_head_channels": 16}, {"use_linear_in_transformer": True, "adm_in_channels": None}),
    "sdxl": ({"num_head_channels": 16}, {"use_linear_in_transformer": True, "adm_in_channels": 2816}),
    "refiner": ({"num_head_channels": 16}, {"use_linear_in_transformer": True, "adm_in_channels": 2560}),
}
_BASES = {"sd1": supported.SD15, "sd2": supported.SD20, "sdxl": supported.SDXL, "refiner": supported.SDXLRefiner}


def register() -> None:
    """Make ComfyUI's model detection know the tiny UNets."""
    for family, (heads, marks) in _FAMILIES.items():
        base = _BASES[family]
        sizes = {"model_channels": 32, "context_dim": WIDTH, "use_temporal_attention": False}
        unet = {**sizes, **marks}
        methods = {"unet_config": unet, "unet_extra_config": {**base.unet_extra_config, **heads}}
        if family == "sd2":
            methods["model_type"] = lambda self, state_dict, prefix="": comfy.model_base.ModelType.V_PREDICTION
        supported.models.insert(0, type(f"Tiny{base.__name__}", (base,), methods))


def model(family: str, dtype: torch.dtype | None = None):
    """A MODEL of "sd1", "sd2", "sdxl", "refiner", "sd3", "flux" or "inpaint", stored as `dtype`."""
    state = {name: weight.clone() for name, weight in _weights(family).items()}
    return comfy.sd.load_diffusion_model_state_dict(state, {} if dtype is None else {"dtype": dtype})


def quantised(family: str, algorithm: str):
    """A MODEL whose blocks' linear layers are stored in one of ComfyUI's quantised formats."""
    state = {name: weight.clone() for name, weight in _weights(family).items()}
    generator = torch.Generator().manual_seed(7)
    layout = comfy.quant_ops.QUANT_ALGOS[algorithm]
    for name in [name for name in state if "blocks." in name and name.endswith("weight") and state[name].ndim == 2]:
        layer = name.removesuffix(".weight")
        weight = state.pop(name).to(torch.bfloat16)
        if "pre_quant_scale" in layout["parameters"]:
            state[f"{layer}.pre_quant_scale"] = torch.rand(weight.shape[1], generator=generator) + 0.5
        stored = comfy.quant_ops.QuantizedTensor.from_float(weight, layout["comfy_tensor_layout"], scale="recalculate")
        state.update(stored.state_dict(name))
        state[f"{layer}.comfy_quant"] = torch.tensor(
            list(json.dumps({"format": algorithm}).encode()), dtype=torch.uint8
        )
    return comfy.sd.load_diffusion_model_state_dict(state)


@cache
def _weights(family: str) -> dict[str, torch.Tensor]:
    common = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    if family == "sd3":
        text = {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}}
        sizes = {"input_size": None, "in_channels": 16, "depth": 2, "adm_in_channels": 2048, "num_patches": 4096}
        network = MMDiT(**sizes, context_embedder_config=text, pos_embed_max_size=64, **common)
    elif family == "flux":
        sizes = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": WIDTH, "hidden_size": 128}
        shape = {"mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56]}
        rest = {"theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}
        network = Flux(**sizes, **shape, **rest, **common)
    else:
        heads, marks = _FAMILIES["sd1" if family == "inpaint" else family]
        sizes = {**_UNET, **marks, **heads}
        if family == "inpaint":
            sizes["in_channels"] = 9
        if marks["adm_in_channels"]:
            sizes["num_classes"] = "sequential"
        network = UNetModel(**sizes, **common)
    return randomised(network).state_dict()


def vae(dtype: torch.dtype | None = None, channels: int = 4):
    """A VAE with an encoder of Stable Diffusion's kind, computed in `dtype`."""
    sizes = {**_VAE, "z_channels": channels}
    network = randomised(AutoencoderKL(ddconfig=sizes, embed_dim=channels))
    made = comfy.sd.VAE(
        sd=network.state_dict(), config={"params": {"ddconfig": sizes, "embed_dim": channels}}, dtype=dtype
    )
    made.latent_channels = channels
    return made


def pixel_vae():
    """ComfyUI's own VAE for models whose latents are pixels."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def control_net(family: str = "sd1"):
    """A CONTROL_NET for the "sd1" model, or one of SD 3.5's kind, which takes latents, for "sd3"."""
    common = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    if family == "sd3":
        sizes = {"img_size": None, "patch_size": 2, "in_chans": 16, "num_layers": 1, "main_model_double": 2}
        heads = {"double_y_emb": False, "attention_head_dim": 64, "num_attention_heads": 2, "adm_in_channels": 2048}
        network = ControlNetEmbedder(**sizes, **heads, **common)
    else:
        heads, marks = _FAMILIES[family]
        sizes = {**_UNET, **marks, **heads, "hint_channels": 3}
        del sizes["out_channels"], sizes["transformer_depth_output"]
        network = ControlNet(**sizes, **common)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "control.safetensors"
        comfy.utils.save_torch_file(randomised(network).state_dict(), str(path))
        return comfy.controlnet.load_controlnet(str(path))


def lora(family: str = "sd1", rank: int = 4) -> dict[str, torch.Tensor]:
    """The weights of a LoRA file for the attention layers of a UNet."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, weight in _weights(family).items():
        if ".attn" in name and name.endswith("weight") and weight.ndim == 2:
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            out, into = weight.shape
            state[f"{layer}.lora_up.weight"] = torch.randn(out, rank, generator=generator) * 0.2
            state[f"{layer}.lora_down.weight"] = torch.randn(rank, into, generator=generator) * 0.2
            state[f"{layer}.alpha"] = torch.tensor(float(rank))
    return state


def text(seed: int, *, tokens: int = 77, pooled: int | None = None, **options) -> list:
    """CONDITIONING with one random embedded prompt."""
    generator = torch.Generator().manual_seed(seed)
    vector = None if pooled is None else torch.randn(1, pooled, generator=generator)
    return [[torch.randn(1, tokens, WIDTH, generator=generator), {"pooled_output": vector, **options}]]


def texts(family: str) -> tuple[list, list]:
    """Positive and negative CONDITIONING for the model of a family."""
    pooled = {"sdxl": 1280, "refiner": 1280, "sd3": 2048, "flux": 768}.get(family)
    return text(1, pooled=pooled), text(2, pooled=pooled)


def channels(family: str) -> int:
    """Of the latents of a family."""
    return 16 if family in ("sd3", "flux") else 4


def randomised(network: nn.Module) -> nn.Module:
    """With weights that keep activations of order 1; comfy's layers come without any."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.7 / weight[0].numel() ** 0.5)
            else:
                weight.fill_(1.0 if name.endswith(("weight", "scale")) else 0.0)
        for buffer in network.buffers():
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return network
