"""Write the trained parts as files that everybody's programs read: `python -m dreamflow_core.mini.export`.

A diffusers folder of the base and one of the refiner; the base as a single file in the layout of the original Stable
Diffusion code, and so the ControlNets; LoRAs as they were trained. All in half precision.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..priors.original_names import control_names, unet_names, vae_names
from ..state import write_bytes
from . import models

_TEXT = "cond_stage_model.transformer.text_model."


def original_checkpoint(unet: Any, vae: Any, text_encoder: Any) -> dict[str, Tensor]:
    """The weights of a model of SD 1.x's kind by their names in the original code."""
    parts = ((unet, unet_names(unet), "model.diffusion_model."), (vae, vae_names(vae), "first_stage_model."))
    tensors: dict[str, Tensor] = {}
    for module, names, prefix in parts:
        weights = module.state_dict()
        tensors |= {f"{prefix}{original}": weights[name] for original, name in names.items()}
    for name, weight in tensors.items():
        if ".mid.attn_1." in name and weight.ndim == 2:
            tensors[name] = weight[:, :, None, None]
    text = text_encoder.state_dict()
    return tensors | {f"{_TEXT}{name.removeprefix('text_model.')}": weight for name, weight in text.items()}


def original_control(control: Any) -> dict[str, Tensor]:
    """The weights of a ControlNet by their names in the original code."""
    weights = control.state_dict()
    return {f"control_model.{original}": weights[name] for original, name in control_names(control).items()}


def write_halves(path: Path, tensors: dict[str, Tensor]) -> None:
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(halves, {"format": "pt"}))


def write_folder(folder: Path, work: Path, unet: Any, vae: Any, text_encoder: Any) -> None:
    """A StableDiffusionPipeline, without a safety checker."""
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        part.half().save_pretrained(folder / name)
    shutil.copytree(work / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    scheduler = {"_class_name": "DDIMScheduler", **models.SCHEDULE}
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    for path, values in (("scheduler/scheduler_config.json", scheduler), ("model_index.json", index)):
        write_bytes(folder / path, json.dumps(values, indent=2).encode())


def export(work: Path, out: Path) -> None:
    """Everything in `work` that is trained.

    Args:
        work: where `train` put it.
        out: folder to write to.
    """
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel

    vae = AutoencoderKL.from_pretrained(work / "vae")
    text_encoder = CLIPTextModel.from_pretrained(work / "text_encoder")
    for name, part in (("mini", "unet"), ("mini-refiner", "refiner")):
        if (work / part).is_dir():
            unet = UNet2DConditionModel.from_pretrained(work / part)
            write_halves(out / f"{name}.safetensors", original_checkpoint(unet, vae, text_encoder))
            write_folder(out / name, work, unet, vae, text_encoder)
    for folder in sorted((work / "controls").glob("*")):
        control = ControlNetModel.from_pretrained(folder)
        write_halves(out / f"mini-{folder.name}.safetensors", original_control(control))
    for path in sorted((work / "loras").glob("*.safetensors")):
        shutil.copy(path, out / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder with what was trained")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    with torch.no_grad():
        export(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
