"""Which family a named model is of, and the size of its images, from its small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..demo.model import MODELS, load_config
from ..settings.presets import FAMILIES, Family
from ..state import BadFile, reading

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
)
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Of the prompts that Stable Diffusion's UNets take."""


def find_family(model: str, config: str | None = None) -> tuple[Family, int]:
    """The family of a model, and the side of the images that it was made for, in pixels.

    A Stable Diffusion of another width than the published ones counts as SDXL by its pipeline, else as SD 1.x.

    Args:
        model, config: as in `load.PriorSettings`.

    Raises:
        BadFile: a folder is no pipeline of a supported kind, or a file of it cannot be read.
        ValueError: there is no such model, or it needs a config.
    """
    if model in MODELS:
        return FAMILIES["demo"], load_config(MODELS[model]).size
    path = Path(model)
    if not path.exists():
        raise ValueError(
            f"there is no model '{model}'; it must be one of {', '.join(MODELS)},"
            " a diffusers folder or a .safetensors checkpoint"
        )
    if path.is_file() and config is None:
        raise ValueError(
            f"the single file {path} needs a config: a local diffusers folder of the same family, for its"
            " settings and tokenizers"
        )
    folder = path if path.is_dir() or config is None else Path(config)
    index, path = read_index(folder), folder / "unet" / "config.json"
    unet, vae = read_json(path), read_json(folder / "vae" / "config.json")
    with reading(path):
        # diffusers takes a number, or one for each level.
        width, *_ = np.atleast_1d(unet.get("cross_attention_dim", 0)).tolist()
        family = FAMILIES[_WIDTHS.get(width, "sdxl" if "XL" in index["_class_name"] else "sd1")]
        cells = unet.get("sample_size")
        if cells is None:
            return family, family.size
        size = int(np.min(cells)) << len(vae.get("block_out_channels", [0])) - 1
        if size < 1:
            raise ValueError(f"its sample_size is {cells}")
        return family, size


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline's model_index.json.

    Raises:
        BadFile: there is none, or it is of a kind that is not supported.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise BadFile(f"{folder} is not a diffusers pipeline: it has no model_index.json")
    index = read_json(path)
    if index.get("_class_name") not in PIPELINES:
        raise BadFile(f"{folder} is a {index.get('_class_name')}; supported are {', '.join(PIPELINES)}")
    return index


def read_json(path: Path) -> dict[str, Any]:
    """A file of settings.

    Raises:
        BadFile: it is missing, broken or something else.
    """
    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    with reading(path):
        values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise BadFile(f"{path} is not a file of settings")
    return values
