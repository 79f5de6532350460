"""Stable Diffusion checkpoints as priors, through diffusers: SD 1.x and 2.x, SDXL and its refiner.

Everything is read from local files; nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..cameras import VIEW_WORDING, Cameras
from ..parameterisation import Parameterisation, eps, v
from ..prior import Look, Session, T, guide
from ..quiet import bars_on_terminals, without_messages
from ..settings.presets import FAMILIES
from ..state import BadFile
from .checkpoints import check_used, scheduler_settings, with_settings
from .controls import Control, Controls
from .families import read_index, read_json
from .lora_files import add_loras, read_lora
from .parts import OF_NO_CONCERN, load_part, reading_weights
from .text import batched, chunked, encode_text

_VOCABULARIES = ("tokenizer.json", "vocab.json")
_KINDS = {"epsilon": eps, "v_prediction": v}
# What diffusers tells the refiner about pictures that are wanted, and about those that are not.
_WANTED_SCORE, _UNWANTED_SCORE = 6.0, 2.5
# A single file's first UNet layer, (channels, latent channels, 3, 3); other families have none.
_STEM = "model.diffusion_model.input_blocks.0.0.weight"


@dataclass(frozen=True)
class _Text:
    """An encoded prompt.

    Attributes:
        hidden: (1, tokens, width) from the text encoders; a long prompt has more tokens (`text.py`).
        pooled: (1, width), or None for models that take none.
        score: aesthetic score that goes with it where the model takes one.
    """

    hidden: Tensor
    pooled: Tensor | None
    score: float


class DiffusersPrior:
    """A diffusers pipeline with its prompts.

    Args:
        pipe: from `load_pipeline`, on its device; its weights are frozen here, and its VAE becomes
            float32: gradients pass through it, and SDXL's overflows in half precision.
        positive: prompt of any length; a view's name is added to it where views are given, in front of one that
            the text encoders do not take at once: what comes first counts most.
        negative: prompt; where it is empty the pipeline's own unconditional embedding is used.
        cfg: guidance scale; 1 evaluates the positive prompt alone. A latent consistency model takes it as an input,
            and no negative prompt.
        save_memory: keep less for backward passes: the VAE sees one image at a time, and its blocks and the
            UNet's run again instead of being kept. The same result but for rounding.
        controls: ControlNets that are shown the scene; they count in every evaluation, phi's too.

    Raises:
        ValueError: the pipeline's scheduler belongs to a model that predicts neither noise nor v.
    """

    def __init__(
        self,
        pipe: Any,
        positive: str,
        negative: str = "",
        cfg: float = FAMILIES["sd1"].cfg,
        save_memory: bool = False,
        controls: Sequence[Control] = (),
    ):
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
        pipe.vae.float()
        if save_memory:
            pipe.vae.enable_slicing()
            for module in (pipe.vae, pipe.unet):
                module.enable_gradient_checkpointing()
        self.network: nn.Module = pipe.unet
        self.device: torch.device = pipe.unet.device
        self.positive, self.negative, self.cfg = positive, negative, cfg
        self._pipe = pipe
        self._parameterisation = _parameterisation(pipe.scheduler)
        self._scored = pipe.config.get("requires_aesthetics_score", False)
        self._guides_itself = pipe.unet.config.get("time_cond_proj_dim") is not None
        self._xl = "XL" in type(pipe).__name__
        parts = [(getattr(pipe, f"tokenizer{n}", None), getattr(pipe, f"text_encoder{n}", None)) for n in ("", "_2")]
        self._encoders = [(tokenizer, encoder) for tokenizer, encoder in parts if encoder is not None]
        self._encoded: dict[tuple[str, float], _Text] = {}
        self._controls = Controls(controls)

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images the model was made for."""
        sides = self._pipe.unet.config.sample_size
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return height * self._pipe.vae_scale_factor, width * self._pipe.vae_scale_factor

    def sigma_at(self, t: Tensor) -> Tensor:
        return self._parameterisation.sigma_at(t)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor, unet = self._pipe.vae_scale_factor, self._pipe.unet.config
        multiple = factor * 2 ** (len(unet.block_out_channels) - 1)
        if height < 1 or width < 1 or height % multiple or width % multiple:
            raise ValueError(f"size {width}x{height} does not fit this model; both must be multiples of {multiple}")
        return unet.in_channels, height // factor, width // factor

    def run(self, body: Callable[[Session], T], look: Look | None = None) -> T:
        self._controls.look_through(look)
        return body(self)

    def encode(self, images: Tensor) -> Tensor:
        vae = self._pipe.vae
        mean, scale = self._latent_statistics()
        return (vae.encode((images * 2 - 1).to(vae.dtype)).latent_dist.mode() - mean) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._pipe.vae
        mean, scale = self._latent_statistics()
        return (vae.decode(latents.to(vae.dtype) / scale + mean).sample / 2 + 0.5).clamp(0, 1)

    def _latent_statistics(self) -> tuple[Tensor | float, Tensor | float]:
        """What is taken off the VAE's latents, and what they are then multiplied by."""
        config = self._pipe.vae.config
        mean, scale = config.get("shift_factor") or 0.0, config.scaling_factor
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            means, deviations = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
            return means.to(self.device), (scale / deviations).to(self.device)
        return mean, scale

    def denoise(self, z_t: Tensor, sigma: float, views: Cameras | None, *, guided: bool) -> Tensor:
        """See `Session.denoise`; computes in the UNet's type and returns float32."""
        positive = self._positive(views, len(z_t))
        self._controls.show(views, z_t.shape[-1])
        if not guided or self.cfg == 1 or self._guides_itself:
            return self._estimate(z_t, sigma, positive, self.cfg if guided else 1.0)
        texts = positive + [self._negative()] * len(z_t)
        conditional, unconditional = self._estimate(z_t.repeat(2, 1, 1, 1), sigma, texts).chunk(2)
        return guide(conditional, unconditional, self.cfg)

    def _estimate(self, z_t: Tensor, sigma: float, texts: list[_Text], cfg: float = 1.0) -> Tensor:
        """Denoised estimates of z_t (B, C, h, w), each under its own of B texts.

        `cfg` is for a model that was distilled from a guided one and takes the scale as an input.
        """
        unet = self._pipe.unet
        conditioning = self._conditioning(texts, z_t)
        # ControlNets know nothing of it.
        scale = {"timestep_cond": self._embedded(cfg).expand(len(z_t), -1)} if self._guides_itself else {}

        def network(x: Tensor, time: Tensor) -> Tensor:
            shown = self._controls.residuals(x, time, **conditioning)
            return unet(x.to(unet.dtype), time, **conditioning, **scale, **shown).sample.float()

        levels = torch.full((len(z_t),), sigma, device=z_t.device)
        return self._parameterisation.denoise(network, z_t.float(), levels)

    def _embedded(self, cfg: float) -> Tensor:
        """The guidance scale as latent consistency models take it (Luo et al. 2023, arXiv 2310.04378): less one."""
        unet = self._pipe.unet
        scale = torch.tensor([cfg - 1.0])
        return self._pipe.get_guidance_scale_embedding(scale, unet.config.time_cond_proj_dim).to(
            self.device, unet.dtype
        )

    def _conditioning(self, texts: list[_Text], z_t: Tensor) -> dict[str, Any]:
        """What the UNet takes besides its input and time."""
        dtype = self._pipe.unet.dtype
        hidden = batched([text.hidden for text in texts]).to(dtype)
        pooled = [text.pooled for text in texts if text.pooled is not None]
        if not pooled:
            return {"encoder_hidden_states": hidden}
        size = [side * self._pipe.vae_scale_factor for side in z_t.shape[-2:]]
        # Original size, crop corner, and target size or, for a refiner, aesthetic score.
        ids = [[*size, 0, 0, *([text.score] if self._scored else size)] for text in texts]
        added = {
            "text_embeds": torch.cat(pooled).to(dtype),
            "time_ids": torch.tensor(ids, dtype=torch.float32, device=z_t.device),
        }
        return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}

    def _positive(self, views: Cameras | None, count: int) -> list[_Text]:
        if views is None:
            return [self._encode(self.positive)] * count
        return [self._encode(self._seen_as(VIEW_WORDING[name])) for name in views.view_names()]

    def _seen_as(self, view: str) -> str:
        """The positive prompt for a view."""
        whole = f"{self.positive}, {view}"
        if all(len(chunked(*encoder, whole)) == 1 for encoder in self._encoders):
            return whole
        return f"{view}, {self.positive}"

    def _encode(self, text: str, score: float = _WANTED_SCORE) -> _Text:
        if (text, score) not in self._encoded:
            hidden, pooled = encode_text(self._encoders, text, penultimate=self._xl)
            self._encoded[text, score] = _Text(hidden, pooled, score)
        return self._encoded[text, score]

    def _negative(self) -> _Text:
        if self.negative or not self._pipe.config.get("force_zeros_for_empty_prompt", False):
            return self._encode(self.negative, _UNWANTED_SCORE)
        # SDXL was trained with zeros in place of an encoded empty text.
        like = self._encode("")
        pooled = None if like.pooled is None else torch.zeros_like(like.pooled)
        return _Text(torch.zeros_like(like.hidden), pooled, _UNWANTED_SCORE)


def load_pipeline(
    path: Path,
    dtype: torch.dtype = torch.float32,
    loras: Sequence[tuple[Path, float]] = (),
    device: torch.device | str = "cpu",
    config: Path | None = None,
    vae: Path | None = None,
) -> Any:
    """Read a text-to-image pipeline from local files.

    Args:
        path: a diffusers folder with safetensors weights, or a single-file .safetensors checkpoint in
            the layout of the original Stable Diffusion code.
        dtype: of the UNet and the text encoders: float32, float16 or bfloat16. The VAE is float32.
        loras: safetensors files with their weights; they are added to the model's own weights (`lora_files`).
        device: where the pipeline goes.
        config: for a single file, and only then: a local diffusers folder of the same family, whose
            settings (VAE scale among them) and tokenizers are used; it needs no weights. What the file itself says
            of its prediction type and noise levels counts (`checkpoints`).
        vae: a folder or a safetensors file of a VAE to use instead of the model's.

    Returns:
        A diffusers pipeline for `DiffusersPrior`.

    Raises:
        BadFile: a file or folder is missing, broken, or not of a supported family.
        ValueError: `config` is missing, or a LoRA's weight is not a finite number.
        ImportError: diffusers or transformers is not installed.
    """
    _require_packages()
    files = [read_lora(lora, weight) for lora, weight in loras]
    if not path.exists():
        raise BadFile(f"there is no model folder or file {path}")
    if vae is not None and not vae.exists():
        raise BadFile(f"there is no VAE {vae}")
    with without_messages(OF_NO_CONCERN), bars_on_terminals("diffusers", "transformers"):
        if path.is_dir():
            pipe = _load_folder(path, dtype, vae and _load_vae(vae, path))
        else:
            _check_safetensors(path)
            if config is None:
                raise ValueError(
                    f"the single file {path} needs a config: a local diffusers folder of the same family, for its"
                    " settings and tokenizers"
                )
            pipe = _load_file(path, dtype, config, vae and _load_vae(vae, config))
        with reading_weights(path):
            pipe.to(device, silence_dtype_warnings=True)
    add_loras(pipe, files)
    return pipe


def _require_packages() -> None:
    missing = [name for name in ("diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise ImportError(f"diffusers models need {', '.join(missing)}: pip install dreamflow[headless]")


def _parameterisation(scheduler: Any) -> Parameterisation:
    kind = _KINDS.get(scheduler.config.get("prediction_type"))
    if kind is None or not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{type(scheduler).__name__} with prediction type '{scheduler.config.get('prediction_type')}' is of an"
            f" unsupported kind of model; supported are {' and '.join(_KINDS)} on a discrete schedule"
        )
    if scheduler.config.get("rescale_betas_zero_snr") and float(scheduler.alphas_cumprod[-1]) > 1e-6:
        # Not every class of scheduler obeys it.
        scheduler = with_settings(scheduler)
    return kind(scheduler.alphas_cumprod)


def _load_folder(folder: Path, dtype: torch.dtype, vae: Any) -> Any:
    import diffusers

    index = _check_folder(folder)
    with reading_weights(folder):
        parts = {name: load_part(folder, name, kind, dtype) for name, kind in _parts(index) if name != "vae"}
        parts["vae"] = vae or load_part(folder, "vae", ("diffusers", "AutoencoderKL"), torch.float32)
        return getattr(diffusers, index["_class_name"]).from_pretrained(
            str(folder), local_files_only=True, **parts, **_without_checker(index)
        )


def _parts(index: dict[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """The pipeline's networks, each with its library and class."""
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return [(name, tuple(index[name])) for name in names if index.get(name, (None,))[0] is not None]


def _load_vae(path: Path, config: Path) -> Any:
    """A VAE in place of the model's: a folder, or a file of the family that the model's folder describes."""
    import diffusers

    with reading_weights(path):
        if path.is_dir():
            place, name = (path, "vae") if (path / "vae").is_dir() else (path.parent, path.name)
            vae = load_part(place, name, ("diffusers", "AutoencoderKL"), torch.float32)
        else:
            _check_safetensors(path)
            source: dict[str, Any] = {"config": str(config), "subfolder": "vae", "local_files_only": True}
            vae = diffusers.AutoencoderKL.from_single_file(str(path), dtype=torch.float32, **source)
    channels = read_json(config / "unet" / "config.json").get("in_channels")
    if vae.config.latent_channels != channels:
        raise BadFile(
            f"the VAE {path} has latents of {vae.config.latent_channels} channels; the model takes {channels}"
        )
    return vae


def _load_file(path: Path, dtype: torch.dtype, config: Path, vae: Any) -> Any:
    import diffusers

    index = _check_folder(config)
    _check_family(path, config)
    source: dict[str, Any] = {"config": str(config), "local_files_only": True}
    with reading_weights(path):
        scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(
            str(config), subfolder="scheduler", local_files_only=True
        )
        settings = scheduler_settings(path, scheduler)
        vae = vae or diffusers.AutoencoderKL.from_single_file(str(path), subfolder="vae", dtype=torch.float32, **source)
        pipe = getattr(diffusers, index["_class_name"]).from_single_file(
            str(path), vae=vae, dtype=dtype, **source, **_without_checker(index)
        )
        if settings:
            pipe.scheduler = with_settings(scheduler, **settings)
        with safe_open(path, "pt") as file:
            check_used(path, file.keys(), pipe)
    return pipe


def _check_folder(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json, once its small files show that it is of a supported family."""
    import diffusers

    index = read_index(folder)
    # A pipeline that goes without one of its tokenizers has [null, null] there.
    for name in (name for name in index if name.startswith("tokenizer") and index[name] != [None, None]):
        # transformers makes a tokenizer that knows no word of a folder without one.
        if not any((folder / name / vocabulary).is_file() for vocabulary in _VOCABULARIES):
            raise BadFile(f"{folder / name} holds no tokenizer: it has none of {', '.join(_VOCABULARIES)}")
    channels = read_json(folder / "unet" / "config.json").get("in_channels")
    latent_channels = read_json(folder / "vae" / "config.json").get("latent_channels")
    if channels != latent_channels:
        raise BadFile(_not_text_to_image(folder, channels, latent_channels))
    with reading_weights(folder):
        scheduler = getattr(diffusers, index["scheduler"][1])
        _parameterisation(scheduler.from_pretrained(str(folder), subfolder="scheduler", local_files_only=True))
    return index


def _check_family(path: Path, config: Path) -> None:
    """Raise BadFile unless the single file's shapes are those that `config` describes."""
    unet = read_json(config / "unet" / "config.json")
    with safe_open(path, "pt") as file:
        keys = list(file.keys())
        attention = next((key for key in keys if key.endswith("attn2.to_k.weight")), None)
        if _STEM not in keys or attention is None:
            raise BadFile(f"{path} is not a checkpoint of the SD 1.x, SD 2.x, SDXL or SDXL refiner family")
        channels = file.get_slice(_STEM).get_shape()[1]
        width = file.get_slice(attention).get_shape()[1]
    if channels != unet["in_channels"]:
        raise BadFile(_not_text_to_image(path, channels, unet["in_channels"]))
    if width != unet["cross_attention_dim"]:
        raise BadFile(
            f"{path} is not of the family of {config}: its UNet takes texts of width {width},"
            f" not {unet['cross_attention_dim']}"
        )


def _not_text_to_image(path: Path, channels: int | None, latent_channels: int | None) -> str:
    return (
        f"{path} is not a plain text-to-image model: its UNet takes {channels} channels, not {latent_channels}"
        " (inpainting and editing models are not supported)"
    )


def _check_safetensors(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise BadFile(f"{path} is not a .safetensors file; others can hold code and are not read: convert it first")
    with reading_weights(path), safe_open(path, "pt"):
        pass


def _without_checker(index: dict[str, Any]) -> dict[str, Any]:
    """Arguments that leave out the safety checker, which only serves finished pictures."""
    if "safety_checker" not in index:
        return {}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
