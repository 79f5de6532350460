"""What a single-file checkpoint says of itself, and whether a pipeline uses all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..state import BadFile
from .original_names import clip_names, open_clip_names, unet_names, vae_names

_UNET = "model.diffusion_model."
_VAES = ("first_stage_model.", "vae.")
_PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
# What the file has besides the model that is run: copies, buffers that follow from the schedule, what only training
# needs, and the parts of text encoders that no family here looks at.
_HARMLESS = re.compile(
    r"model_ema\..*"
    r"|(?:betas|alphas_cumprod(?:_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|lvlb_weights)"
    r"|denoiser\.(?:sigmas|log_sigmas)"
    r"|(?:model\.diffusion_model\.)?(?:v_pred|ztsnr)"
    r"|(?:first_stage_model\.)?(?:loss|discriminator)\..*"
    r"|.*\.(?:position_ids|attn_mask|logit_scale)"
    r"|global_step"
)


def scheduler_settings(path: Path, scheduler: Any) -> dict[str, Any]:
    """Settings that the file's markers have otherwise than a diffusers scheduler; the file knows its model best.

    Raises:
        BadFile: the markers contradict each other or the scheduler, or are those of a kind that is not supported.
    """
    with safe_open(path, "pt") as file:
        names = {name.removeprefix(_UNET) for name in file.keys()}  # noqa: SIM118 (not a dict)
        said = (file.metadata() or {}).get("modelspec.prediction_type")
        alphas = _alphas(file)
    if any(name.startswith("edm_") for name in names):
        raise BadFile(f"{path} is an EDM model, whose noise levels are continuous; it is not supported here")
    scaled = next((name for name in names if re.search(r"(?:^|\.)(scaled_fp8|scale_weight|comfy_quant)$", name)), None)
    if scaled is not None:
        raise BadFile(f"{path} is quantised with scales ({scaled}), which is not supported here; use it in fp16")
    kind = "v_prediction" if "v_pred" in names else None
    if said is not None:
        if said not in _PREDICTIONS:
            raise BadFile(f"{path} predicts '{said}' by its metadata; supported are epsilon and v")
        if kind not in (None, _PREDICTIONS[said]):
            raise BadFile(f"{path} contradicts itself: its tensors say {kind}, its metadata {said}")
        kind = _PREDICTIONS[said]
    settings: dict[str, Any] = {}
    if kind not in (None, scheduler.config.get("prediction_type")):
        settings["prediction_type"] = kind
    ends_in_noise = "ztsnr" in names or (alphas is not None and float(alphas[-1]) < 1e-6)
    if ends_in_noise and not scheduler.config.get("rescale_betas_zero_snr"):
        settings["rescale_betas_zero_snr"] = True
    if alphas is not None:
        _check_schedule(path, alphas, scheduler, settings)
    return settings


def with_settings(scheduler: Any, **settings: Any) -> Any:
    """A scheduler of the same noise levels but for these settings, of a class that obeys them all."""
    import diffusers

    return diffusers.DDIMScheduler.from_config(scheduler.config, **settings)


def check_used(path: Path, names: Iterable[str], pipe: Any) -> None:
    """Raise BadFile unless each name in the file is of a tensor that went into the pipeline, or is harmless."""
    known = {f"{_UNET}{name}" for name in unet_names(pipe.unet)}
    known |= {f"{prefix}{name}" for prefix in _VAES for name in vae_names(pipe.vae)}
    spare = set()
    for place, encoder in _encoders(pipe):
        known |= {f"{place}.transformer.{name}" for name in clip_names(encoder)}
        known |= {f"{place}.model.{name}" for name in open_clip_names(encoder)}
        if not hasattr(encoder, "text_projection"):
            # Without a pooled vector; and of SD 2.x's encoder the last layer is not taken.
            spare |= {f"{place}.transformer.text_projection.weight", f"{place}.model.text_projection"}
            spare.add(f"{place}.model.transformer.resblocks.{encoder.config.num_hidden_layers}.")
    strangers = [
        name
        for name in sorted(names)
        if name not in known and not _HARMLESS.fullmatch(name) and not name.startswith(tuple(spare))
    ]
    if strangers:
        some = f"{', '.join(strangers[:3])}{' and others' if len(strangers) > 3 else ''}"
        raise BadFile(f"{path} has {len(strangers)} tensors that its family does not know: {some}")


def _encoders(pipe: Any) -> list[tuple[str, Any]]:
    """Where the original code keeps each text encoder, and the encoder."""
    names = ("text_encoder", "text_encoder_2")
    encoders = [encoder for name in names if (encoder := getattr(pipe, name, None)) is not None]
    if "XL" in type(pipe).__name__:
        return [(f"conditioner.embedders.{i}", encoder) for i, encoder in enumerate(encoders)]
    return [("cond_stage_model", encoder) for encoder in encoders]


def _alphas(file: Any) -> Tensor | None:
    """The file's own noise levels as cumulated alphas, decreasing, float32."""
    names = set(file.keys())
    if "alphas_cumprod" in names:
        return file.get_tensor("alphas_cumprod").float()
    if "denoiser.sigmas" in names:
        return 1 / (1 + file.get_tensor("denoiser.sigmas").float().sort().values ** 2)
    return None


def _check_schedule(path: Path, alphas: Tensor, scheduler: Any, settings: dict[str, Any]) -> None:
    expected = with_settings(scheduler, **settings).alphas_cumprod if settings else scheduler.alphas_cumprod
    # Files may hold theirs in half precision.
    if alphas.shape != expected.shape or not torch.allclose(alphas, expected, rtol=0, atol=2e-3):
        raise BadFile(f"{path} has noise levels (alphas_cumprod) of its own, which are not those of its config")
