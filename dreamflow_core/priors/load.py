"""From what a user names as a model to a prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..demo.model import MODELS, load_model
from ..job import of_file
from ..prior import Prior, Session
from .demo import DemoPrior


class HeadlessPrior(Prior, Session, Protocol):
    """A prior that is its own session."""

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images the model was made for."""
        ...


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class PriorSettings:
    """A model and what it is asked for.

    Attributes:
        model: "demo", a local diffusers folder or a single-file checkpoint.
        positive: prompt.
        negative: prompt; None is the kind of model's own default.
        cfg: classifier-free guidance scale; None is the kind of model's own default.
        loras: files, each FILE or FILE:WEIGHT.
        dtype: weights of a diffusers model: fp32, fp16 or bf16. The demo models are fp32.
        config: diffusers folder that supplies a single-file checkpoint's configuration and tokenizer.
        save_memory: whether a diffusers model computes parts twice instead of keeping them.
    """

    model: str
    positive: str
    negative: str | None = None
    cfg: float | None = None
    loras: Sequence[str] = ()
    dtype: str = "fp32"
    config: str | None = None
    save_memory: bool = False


def job_of(settings: PriorSettings) -> dict[str, Any]:
    """The settings in a run's job: files stand for their contents.

    Raises:
        BadFile: a file cannot be read.
    """
    if settings.model in MODELS:
        return asdict(settings)
    loras = [of_file(file, text, weight=weight) for text in settings.loras for file, weight in [_lora(text)]]
    files = {"model": of_file(Path(settings.model)), "loras": loras}
    if settings.config is not None:
        files["config"] = of_file(Path(settings.config))
    return {**asdict(settings), **files}


def load_prior(settings: PriorSettings) -> HeadlessPrior:
    """Load a prior from local files.

    Raises:
        BadFile: the model or a LoRA is missing, broken or of a kind that cannot be used.
        ValueError: a prompt or a setting does not fit the model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    guided = {name: value for name in ("negative", "cfg") if (value := getattr(settings, name)) is not None}
    if settings.model in MODELS:
        if settings.loras:
            raise ValueError("the demo models take no LoRA files")
        return DemoPrior(load_model(MODELS[settings.model]).to(device), settings.positive, **guided)
    path = Path(settings.model)
    if not path.exists():
        raise ValueError(
            f"there is no model '{settings.model}'; it must be one of {', '.join(MODELS)},"
            " a diffusers folder or a .safetensors checkpoint"
        )
    from .diffusers import DiffusersPrior, load_pipeline

    loras = [_lora(text) for text in settings.loras]
    config = None if settings.config is None else Path(settings.config)
    pipeline = load_pipeline(path, DTYPES[settings.dtype], loras, device, config)
    return DiffusersPrior(pipeline, settings.positive, save_memory=settings.save_memory, **guided)


def _lora(text: str) -> tuple[Path, float]:
    """FILE or FILE:WEIGHT."""
    file, colon, weight = text.rpartition(":")
    try:
        return (Path(file), float(weight)) if colon else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0
