"""LoRA files, added to the weights of a diffusers pipeline.

A file's layer changes the weight W of the module that it names by

    weight * (W' - W),  W' = W + (alpha / rank) up @ down

and, where it is weight-decomposed (DoRA, arXiv 2402.09353), by the same with

    W' = magnitude * (W + (alpha / rank) up @ down) / ||W + (alpha / rank) up @ down||.

Several files are summed, each on the model's own weights, so their order does not matter. All is computed in
float32 and rounded once. Every tensor of a file is used, or the file is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..state import BadFile
from .original_names import unet_names

# What the tensors of a layer are called after its own name, by the kohya, PEFT, diffusers and LyCORIS layouts.
_PARTS = {
    "down": r"(?:\.lora_down|\.lora_A(?:\.\w+)?|[._]lora\.down|\.lora_linear_layer\.down)\.weight",
    "up": r"(?:\.lora_up|\.lora_B(?:\.\w+)?|[._]lora\.up|\.lora_linear_layer\.up)\.weight",
    "up_bias": r"\.lora_B(?:\.\w+)?\.bias",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"(?:[._]lora|\.lora_linear_layer)?\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?",
    "diff": r"\.(?:diff|w_norm)",
    "diff_bias": r"\.(?:diff_b|b_norm)",
    **{name: rf"\.{name}" for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{name: rf"\.{name}" for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    "lokr_t2": r"\.lokr_t2",
    "oft_blocks": r"\.oft_blocks",
    "rescale": r"\.rescale",
}
_HADA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_LOKR_FIRST = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_LOKR_SECOND = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
# By kind of layer: the sets of parts of which it has to have one, and those that it may have besides.
_KINDS: dict[str, tuple[list[set[str]], set[str]]] = {
    "LoRA": ([{"down", "up"}], {"mid", "up_bias", "alpha", "diff_bias"}),
    "DoRA": ([{"down", "up", "dora_scale"}, {"down", "up", "magnitude"}], {"mid", "up_bias", "alpha", "diff_bias"}),
    "LoHa": ([_HADA, _HADA | {"hada_t1", "hada_t2"}], {"alpha", "dora_scale", "diff_bias"}),
    "LoKr": (
        [first | second for first in _LOKR_FIRST for second in _LOKR_SECOND],
        {"alpha", "dora_scale", "diff_bias"},
    ),
    "OFT": ([{"oft_blocks"}], {"rescale", "alpha", "diff_bias"}),
    "full difference": ([{"diff"}, {"diff_bias"}], {"diff_bias"}),
}
_LYCORIS = ("LoHa", "LoKr", "OFT")
_BIAS = {"up_bias", "diff_bias"}
# How tensors of other kinds of file are known.
_OTHERS = {
    "GLoRA": r"\.(?:a1|a2|b1|b2|bm)\.weight$",
    "IA3": r"\.on_input$|\.ia3_",
    "VeRA": r"\.vera_",
    "OFT of PEFT": r"\.oft_[rR]\b",
    "BOFT of PEFT": r"\.boft_",
    "textual inversion": r"^bundle_emb\.",
}
_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class LoraFile:
    """What a file holds.

    Attributes:
        path: of the file.
        weight: that its changes are multiplied by.
        layers: by the file's name of each layer its tensors, float32, by the keys of `_PARTS`.
        settings: those of PEFT, by component of the pipeline; empty for other layouts.
    """

    path: Path
    weight: float
    layers: dict[str, dict[str, Tensor]]
    settings: dict[str, dict[str, Any]]


def read_lora(path: Path, weight: float = 1.0) -> LoraFile:
    """Read a LoRA file, without a model at hand.

    Raises:
        BadFile: it is missing, broken, not a LoRA, of a kind that is not known, or holds what is no finite number.
        ValueError: the weight is not a finite number.
    """
    if not math.isfinite(weight):
        raise ValueError(f"the weight of the LoRA {path} is {weight}; it must be a finite number")
    if not path.is_file():
        raise BadFile(f"there is no LoRA file {path}")
    if path.suffix != ".safetensors":
        raise BadFile(f"{path} is not a .safetensors file; others can hold code and are not read: convert it first")
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                layer, part = _split(key, path)
                if part in layers[layer]:
                    raise BadFile(f"{path} has more than one {part} of {layer}")
                layers[layer][part] = file.get_tensor(key).float()
                if not layers[layer][part].isfinite().all():
                    raise BadFile(f"{path} is broken: {key} holds values that are no finite numbers")
            settings = _peft_settings(path, file.metadata() or {})
    except SafetensorError as error:
        raise BadFile(f"{path} cannot be loaded: {error}") from error
    if not layers:
        raise BadFile(f"{path} is not a LoRA file: it is empty")
    for layer, parts in layers.items():
        _check_parts(path, layer, parts)
    return LoraFile(path, weight, dict(layers), settings)


@torch.no_grad()
def add_loras(pipe: Any, files: Sequence[LoraFile]) -> None:
    """Add LoRA files to the weights of a pipeline.

    Raises:
        BadFile: a part of a file fits no layer of the pipeline, or what comes out fits no number of its type.
    """
    targets = _targets(pipe)
    changes: dict[nn.Module, list[tuple[LoraFile, str, float]]] = defaultdict(list)
    for file in files:
        for layer, (component, name, module) in _fit(file, targets).items():
            changes[module].append((file, layer, _scale(file, layer, component, name)))
    for module, layers in changes.items():
        for name in ("weight", "bias"):
            _add(layers, name, getattr(module, name, None))


def _add(layers: Sequence[tuple[LoraFile, str, float]], name: str, before: Tensor | None) -> None:
    """Add what some files' layers, with their scales, change of a module's "weight" or "bias" to it."""
    changes = [file.weight * _change(file, layer, scale, name, before) for file, layer, scale in layers]
    total = sum(changes)
    if before is None or not isinstance(total, Tensor):
        return
    after = (before.float() + total).to(before.dtype)
    if not after.isfinite().all():
        file, layer, _ = layers[-1]
        raise BadFile(f"{file.path} makes {layer} too large for {str(before.dtype).removeprefix('torch.')}")
    before.copy_(after)


def _split(key: str, path: Path) -> tuple[str, str]:
    """The layer that a tensor belongs to, and which of its parts it is."""
    for part, pattern in _PARTS.items():
        if match := re.fullmatch(rf"(.+?){pattern}", key):
            return match[1], part
    kind = next((kind for kind, pattern in _OTHERS.items() if re.search(pattern, key)), None)
    if kind is not None:
        raise BadFile(f"{path} is a {kind} file, which is not supported")
    raise BadFile(f"{path} is not a LoRA file of a known kind: {key} is no part of one")


def _kind(parts: dict[str, Tensor]) -> str:
    if "oft_blocks" in parts:
        return "OFT"
    for name, kind in {"hada_": "LoHa", "lokr_": "LoKr"}.items():
        if any(part.startswith(name) for part in parts):
            return kind
    if parts.keys() <= {"diff", "diff_bias"}:
        return "full difference"
    return "DoRA" if {"dora_scale", "magnitude"} & parts.keys() else "LoRA"


def _check_parts(path: Path, layer: str, parts: dict[str, Tensor]) -> None:
    """Raise BadFile unless the layer's tensors are those of its kind, all of them and no others."""
    kind = _kind(parts)
    wholes, besides = _KINDS[kind]
    if not any(whole <= parts.keys() <= whole | besides for whole in wholes):
        raise BadFile(f"{path} is broken: {layer} is no {kind} of {', '.join(sorted(parts))}")
    if kind in _LYCORIS and find_spec("lycoris") is None:
        raise BadFile(f"{path} is a {kind} file, which needs lycoris-lora: pip install lycoris-lora")
    if parts.get("alpha", torch.ones(1)).numel() != 1:
        raise BadFile(f"{path} is broken: the alpha of {layer} is not one number")


def _peft_settings(path: Path, metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's settings by component, from the file's metadata as diffusers writes them or a PEFT folder's own file."""
    beside = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            settings: dict[str, dict[str, Any]] = defaultdict(dict)
            for key, value in json.loads(metadata["lora_adapter_metadata"]).items():
                component, _, name = key.partition(".")
                settings[component][name] = value
            return dict(settings)
        if path.name == "adapter_model.safetensors" and beside.is_file():
            return dict.fromkeys(("unet", *_ENCODERS), json.loads(beside.read_text(encoding="utf-8")))
    except ValueError as error:
        raise BadFile(f"the settings of the LoRA {path} cannot be read: {error}") from error
    return {}


def _targets(pipe: Any) -> dict[str, tuple[str, str, nn.Module]]:
    """(component, name, module) of every module that has a weight, by all the names that files have for it."""
    encoders = [name for name in _ENCODERS if getattr(pipe, name, None) is not None]
    targets: dict[str, tuple[str, str, nn.Module]] = {}
    for component in ("unet", *encoders):
        root = getattr(pipe, component)
        originals = {to: name for name, to in unet_names(root).items()} if component == "unet" else {}
        for name, module in root.named_modules():
            if isinstance(getattr(module, "weight", None), nn.Parameter):
                if component == "unet":
                    original = originals.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight")
                    names = _unet_spellings(name, original)
                else:
                    names = _text_spellings(name, component, encoders)
                targets |= dict.fromkeys(names, (component, name, module))
    return targets


def _unet_spellings(name: str, original: str) -> Iterator[str]:
    # Where attention had LoRA layers of its own, its output layer was not in a list.
    for dotted in {name, re.sub(r"\.to_out\.0$", ".to_out", name)}:
        yield from (dotted, f"unet.{dotted}", f"base_model.model.{dotted}", f"unet.base_model.model.{dotted}")
    yield from (f"lora_unet_{flat.replace('.', '_')}" for flat in (name, original))
    yield from (f"lycoris_{name.replace('.', '_')}", f"diffusion_model.{original}")


def _text_spellings(name: str, component: str, encoders: Sequence[str]) -> Iterator[str]:
    alone = len(encoders) == 1
    prefixes = ["te2" if component == "text_encoder_2" else "te1", *(["te"] if component == encoders[0] else [])]
    towers = ["clip_g"] if component == "text_encoder_2" else ["clip_l", *(["clip_h"] if alone else [])]
    # Some of transformers' encoders have lost the first part of their names; files keep it.
    whole = name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"
    for given in {name, whole}:
        yield from (f"lora_{prefix}_{given.replace('.', '_')}" for prefix in prefixes)
        yield from (f"text_encoders.{tower}.transformer.{given}" for tower in towers)
        # Where attention had LoRA layers of its own, its projections were named as in the UNet.
        for dotted in {given, re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", given)}:
            yield from (f"{component}.{dotted}", f"{component}.base_model.model.{dotted}")
            if alone:
                yield from (dotted, f"base_model.model.{dotted}", f"text_encoder.{dotted}")


def _fit(file: LoraFile, targets: dict[str, tuple[str, str, nn.Module]]) -> dict[str, tuple[str, str, nn.Module]]:
    """The target of each of a file's layers."""
    fitted, strangers = {}, []
    for layer in file.layers:
        target = targets.get(layer.replace(".processor.", "."))
        if target is None:
            strangers.append(layer)
        else:
            fitted[layer] = target
    if strangers:
        some = f"{', '.join(strangers[:3])}{' and others' if len(strangers) > 3 else ''}"
        raise BadFile(
            f"{file.path} is not a LoRA of this model: {len(strangers)} of its {len(file.layers)} layers"
            f" fit none of the model's: {some}"
        )
    named: dict[nn.Module, str] = {}
    for layer, (_, _, module) in fitted.items():
        if module in named:
            raise BadFile(f"{file.path} has two layers for one of the model's: {named[module]} and {layer}")
        named[module] = layer
    return fitted


def _scale(file: LoraFile, layer: str, component: str, name: str) -> float:
    """alpha / rank of a layer; PEFT's alpha comes with its settings, and alpha is the rank where none is given."""
    parts = file.layers[layer]
    rank = _rank(parts)
    if "alpha" in parts:
        return float(parts["alpha"]) / rank
    settings = file.settings.get(component, {})
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _rank(parts: dict[str, Tensor]) -> int:
    """Of a layer; 1 for a kind that has none."""
    inner = next((parts[name] for name in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") if name in parts), None)
    return 1 if inner is None else len(inner)


def _change(file: LoraFile, layer: str, scale: float, name: str, before: Tensor | None) -> Tensor | float:
    """W' - W of a layer's "weight" or "bias", float32; 0 where the file does not change it."""
    parts = file.layers[layer]
    if not (_BIAS & parts.keys() if name == "bias" else parts.keys() - _BIAS):
        return 0.0
    if before is None:
        raise BadFile(f"{file.path} is not a LoRA of this model: what {layer} is to change has no bias")
    parts = {part: tensor.to(before.device) for part, tensor in parts.items()}
    try:
        return (_bias_change if name == "bias" else _weight_change)(parts, scale, before.float())
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items() if tensor.ndim)
        raise BadFile(
            f"{file.path} is not a LoRA of this model: {layer} ({shapes}) does not fit {tuple(before.shape)}"
        ) from error


def _bias_change(parts: dict[str, Tensor], scale: float, original: Tensor) -> Tensor:
    changes = [factor * parts[name] for name, factor in (("diff_bias", 1.0), ("up_bias", scale)) if name in parts]
    return _shaped(sum(changes[1:], changes[0]), original)


def _weight_change(parts: dict[str, Tensor], scale: float, original: Tensor) -> Tensor:
    difference = _difference(parts, scale, original)
    if not {"dora_scale", "magnitude"} & parts.keys():
        return difference
    return _decomposed(parts, original + difference) - original


def _difference(parts: dict[str, Tensor], scale: float, original: Tensor) -> Tensor:
    """What a layer adds to the weight, before any decomposition."""
    kind = _kind(parts)
    if kind in _LYCORIS:
        return _shaped(_lycoris(kind, parts, scale, original), original)
    if kind == "full difference":
        return _shaped(parts["diff"], original)
    down, up = parts["down"], parts["up"]
    if "mid" in parts:
        # A convolution in three, 1 x 1 before and after: LyCORIS calls it Tucker.
        product = torch.einsum("mn...,om,ni->oi...", parts["mid"], up.flatten(1), down.flatten(1))
    else:
        product = (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
    return scale * _shaped(product, original)


def _shaped(difference: Tensor, original: Tensor) -> Tensor:
    """In the shape of `original`: kernels may be flat, those of 1 x 1 left out."""
    same = difference.shape in (original.shape, original.flatten(1).shape if original.ndim > 1 else None)
    if not same and (difference.ndim < 2 or difference.flatten(1).shape != original.shape):
        raise ValueError("the shapes differ")
    return difference.reshape(original.shape)


def _lycoris(kind: str, parts: dict[str, Tensor], scale: float, original: Tensor) -> Tensor:
    # Of lycoris-lora's functions, not its modules: those multiply some by alpha / rank twice (4.1.3).
    from lycoris.functional import boft, diag_oft, loha, lokr

    if kind == "LoHa":
        halves = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
        return loha.diff_weight(
            *map(parts.get, halves), gamma=torch.tensor(scale, device=original.device), backend="torch"
        )
    if kind == "LoKr":
        factors = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        # Nothing is scaled where both factors are whole, whatever alpha says.
        whole = "lokr_w1" in parts and "lokr_w2" in parts
        return lokr.kron_weight(*map(parts.get, factors), scale=1.0 if whole else scale, backend="torch")
    blocks, rescale = parts["oft_blocks"], parts.get("rescale")
    # Its alpha is no factor but what bounds the rotation.
    constraint = float(parts.get("alpha", 0.0)) * len(original)
    function = diag_oft if blocks.ndim == 3 else boft
    return function.diff_weight(original, blocks, rescale, constraint=constraint, backend="torch")


def _decomposed(parts: dict[str, Tensor], weight: Tensor) -> Tensor:
    """magnitude * weight / ||weight||, the norm being of each output, or of each input where the magnitude is."""
    rows = (len(weight), *[1] * (weight.ndim - 1))
    if "magnitude" in parts:
        # PEFT's is of each output, however it is shaped.
        magnitude = parts["magnitude"].reshape(rows)
    elif len(parts["dora_scale"]) == len(weight):
        magnitude = parts["dora_scale"].reshape(rows)
    else:
        magnitude = parts["dora_scale"].reshape(1, weight.shape[1], *rows[2:])
    axes = [axis for axis in range(weight.ndim) if magnitude.shape[axis] == 1]
    norm = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    return magnitude * weight / norm.clamp_min(torch.finfo(norm.dtype).eps)
