"""From what a user names as a model to a prior."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..demo.model import MODELS, load_model
from ..job import of_file
from ..prior import Prior, Session
from .demo import DemoPrior
from .families import find_family


class HeadlessPrior(Prior, Session, Protocol):
    """A prior that is its own session."""

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images the model was made for."""
        ...


_log = logging.getLogger(__name__)
_DISTILLED = re.compile(r"(?<![a-z])(?:turbo|lightning|lcm|tcd|dmd2?|hyper[-_ ]?sdx?l?\d*)(?![a-z])", re.IGNORECASE)
"""Of a model's file name: few-step models that were distilled from a guided one, and burn if they are guided again."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class PriorSettings:
    """A model and what it is asked for.

    Attributes:
        model: "demo", a local diffusers folder or a single-file checkpoint.
        positive: prompt.
        negative: prompt; None is the kind of model's own default.
        cfg: classifier-free guidance scale; None is the family's, or 1 for a model that is distilled by its name
            (Turbo, Lightning, LCM, TCD, DMD, Hyper-SD).
        loras: files, each FILE or FILE:WEIGHT.
        controlnets: files or folders, likewise; each is shown the scene, so they are for stages in 3D.
        hints: what each of them is shown: depth, normal, edges or mask.
        dtype: weights of a diffusers model: fp32, fp16 or bf16. The demo models are fp32.
        config: diffusers folder that supplies a single-file checkpoint's configuration and tokenizer.
        vae: file or folder of a VAE to use instead of a diffusers model's own.
        save_memory: whether a diffusers model computes parts twice instead of keeping them.
        device: cpu, cuda, mps, xpu, or one of several (cuda:1); None is the accelerator that torch finds, or the CPU.
    """

    model: str
    positive: str
    negative: str | None = None
    cfg: float | None = None
    loras: Sequence[str] = ()
    controlnets: Sequence[str] = ()
    hints: Sequence[str] = ()
    dtype: str = "fp32"
    config: str | None = None
    vae: str | None = None
    save_memory: bool = False
    device: str | None = None


def job_of(settings: PriorSettings) -> dict[str, Any]:
    """The settings in a run's job: files stand for their contents, and it may go on on another device.

    Raises:
        BadFile: a file cannot be read.
    """
    job = asdict(settings)
    del job["device"]
    if settings.model in MODELS:
        return job
    files: dict[str, Any] = {"model": of_file(Path(settings.model))}
    for name in ("loras", "controlnets"):
        weighted = ((text, *_weighted(text)) for text in getattr(settings, name))
        files[name] = [of_file(file, text, weight=weight) for text, file, weight in weighted]
    for name in ("config", "vae"):
        if job[name] is not None:
            files[name] = of_file(Path(job[name]))
    return {**job, **files}


def load_prior(settings: PriorSettings) -> HeadlessPrior:
    """Load a prior from local files.

    Raises:
        BadFile: the model or a LoRA is missing, broken or of a kind that cannot be used.
        ValueError: a prompt or a setting does not fit the model.
    """
    device, path = find_device(settings.device), Path(settings.model)
    family, _ = find_family(settings.model, settings.config)
    guided: dict[str, Any] = {
        name: value for name in ("negative", "cfg") if (value := getattr(settings, name)) is not None
    }
    if settings.model in MODELS:
        shown = (*settings.controlnets, *settings.hints)
        others = (("LoRA files", settings.loras), ("ControlNets", shown), ("VAE", settings.vae))
        for name, value in others:
            if value:
                raise ValueError(f"the demo models take no {name}")
        return DemoPrior(load_model(MODELS[settings.model]).to(device), settings.positive, **guided)
    from .controls import ControlFile, load_control
    from .diffusers import DiffusersPrior, load_pipeline

    if len(settings.controlnets) != len(settings.hints):
        raise ValueError(
            f"there are {len(settings.controlnets)} ControlNets and {len(settings.hints)} hints; each ControlNet needs"
            " the one that it was trained on: depth, normal, edges or mask"
        )
    loras = [_weighted(text) for text in settings.loras]
    controls = [ControlFile(*_weighted(text), kind) for text, kind in zip(settings.controlnets, settings.hints)]
    config, vae = (None if name is None else Path(name) for name in (settings.config, settings.vae))
    pipeline = load_pipeline(path, DTYPES[settings.dtype], loras, device, config, vae)
    if "cfg" not in guided and pipeline.unet.config.get("time_cond_proj_dim") is None:
        named = _DISTILLED.search(path.stem if path.is_file() else path.resolve().name)
        if named is not None:
            _log.warning("%s is a distilled model by its name (%s): guidance scale 1", path, named[0])
            guided["cfg"] = 1.0
    guided.setdefault("cfg", family.cfg)
    nets = [load_control(control, pipeline.unet) for control in controls]
    return DiffusersPrior(pipeline, settings.positive, save_memory=settings.save_memory, controls=nets, **guided)


def find_device(name: str | None = None) -> torch.device:
    """The device of this name, or the one that torch would take.

    Raises:
        ValueError: there is no such device here.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"there is no device '{name}' here: cpu, cuda, mps or xpu, where torch has it") from error
    if device.type == "meta":
        raise ValueError("the device 'meta' computes nothing: cpu, cuda, mps or xpu, where torch has it")
    return device


def _weighted(text: str) -> tuple[Path, float]:
    """FILE or FILE:WEIGHT."""
    file, colon, weight = text.rpartition(":")
    try:
        return (Path(file), float(weight)) if colon else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0
