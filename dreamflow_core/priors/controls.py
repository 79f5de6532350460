"""ControlNets through diffusers, shown the scene from the very view that is denoised.

Zhang, Rao and Agrawala 2023, arXiv 2302.05543.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..cameras import Cameras
from ..hints import HINT_KINDS, render_hints
from ..prior import Look
from ..quiet import without_messages
from ..state import BadFile
from .families import read_json
from .original_names import control_names
from .parts import OF_NO_CONCERN, load_part, reading_weights

_ORIGINAL = "control_model."


@dataclass(frozen=True)
class ControlFile:
    """A ControlNet that a user named.

    Attributes:
        path: a diffusers folder, or a safetensors file in diffusers' or the original layout.
        weight: its residuals are multiplied by it.
        kind: of `hints.HINT_KINDS`, what it is shown.

    Raises:
        ValueError: there is no such kind, or the weight is no finite number.
    """

    path: Path
    weight: float
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in HINT_KINDS:
            raise ValueError(f"there is no hint '{self.kind}'; it must be one of {', '.join(HINT_KINDS)}")
        if not abs(self.weight) < float("inf"):
            raise ValueError(f"the weight of the ControlNet {self.path} is {self.weight}; it must be a finite number")


@dataclass(frozen=True)
class Control:
    """A ControlNet ready to be evaluated, frozen; see `ControlFile`."""

    net: Any
    weight: float
    kind: str

    @property
    def cell(self) -> int:
        """Pixels of the hint, a side, that a latent cell has: what the network divides hints by."""
        return 1 << len(self.net.controlnet_cond_embedding.blocks) // 2


class Controls:
    """The ControlNets of a prior, and what they are shown of the scene.

    Take no part in gradients: they see the noised latent and the prompt, not phi.
    """

    def __init__(self, controls: Sequence[Control]):
        self._controls = controls
        self._look: Look | None = None
        self._shown: Cameras | None = None
        self._hints: dict[tuple[int, str], Tensor] = {}

    def look_through(self, look: Look | None) -> None:
        """Be shown this scene from now on."""
        self._look, self._shown = look, None

    def show(self, cameras: Cameras | None, cells: int) -> None:
        """What these cameras see, for square latents of `cells` a side.

        Raises:
            ValueError: there is no scene to look at, or no view.
        """
        if not self._controls or (cameras is not None and self._shown is cameras):
            return
        wanted: dict[int, set[str]] = {}
        for control in self._controls:
            wanted.setdefault(cells * control.cell, set()).add(control.kind)
        self._hints = {
            (size, kind): hint
            for size, kinds in wanted.items()
            for kind, hint in render_hints(self._look, cameras, size, kinds).items()
        }
        self._shown = cameras

    @torch.no_grad()
    def residuals(self, x: Tensor, time: Tensor, **conditioning: Any) -> dict[str, Any]:
        """What the UNet takes of the ControlNets for its input (B, C, h, w), whose rows are the views over and over."""
        total: list[Tensor] = []
        for control in self._controls:
            net, hint = control.net, self._hints[x.shape[-1] * control.cell, control.kind]
            hint = hint.repeat(len(x) // len(hint), 1, 1, 1)
            down, middle = net(
                x.to(net.dtype),
                time,
                controlnet_cond=hint.to(x.device, net.dtype),
                conditioning_scale=control.weight,
                return_dict=False,
                **conditioning,
            )
            total = [a + b for a, b in zip(total, (*down, middle))] if total else [*down, middle]
        if not total:
            return {}
        return {"down_block_additional_residuals": total[:-1], "mid_block_additional_residual": total[-1]}


def load_control(file: ControlFile, unet: Any) -> Control:
    """Read a ControlNet for a UNet, in its type and on its device.

    Raises:
        BadFile: the file is missing, broken, of another kind of control or of another family of models.
    """
    path = file.path
    if not path.exists():
        raise BadFile(f"there is no ControlNet {path}")
    with reading_weights(path), without_messages(OF_NO_CONCERN):
        net = _from_folder(path, unet) if path.is_dir() else _from_file(path, unet)
        net.to(unet.device, unet.dtype).requires_grad_(False).eval()
    for name, tensor in net.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise BadFile(f"the ControlNet {path} has weights that are no finite numbers: {name}")
    return Control(net, file.weight, file.kind)


def _from_folder(path: Path, unet: Any) -> Any:
    kind = read_json(path / "config.json").get("_class_name")
    if kind != "ControlNetModel":
        raise BadFile(f"{path} is a {kind}, not a ControlNetModel")
    net = load_part(path.absolute().parent, path.absolute().name, ("diffusers", kind), unet.dtype)
    if net.config.conditioning_channels != 3:
        raise BadFile(f"the ControlNet {path} takes hints of {net.config.conditioning_channels} channels; ours have 3")
    for name in ("in_channels", "cross_attention_dim", "block_out_channels", "addition_embed_type"):
        theirs, ours = (str(model.config.get(name)).strip("[]()") for model in (net, unet))
        if theirs != ours:
            raise BadFile(f"the ControlNet {path} is for another family of models: its {name} is {theirs}, not {ours}")
    return net


def _from_file(path: Path, unet: Any) -> Any:
    """A ControlNet with the UNet's own sizes and the file's weights."""
    import diffusers

    if path.suffix != ".safetensors":
        raise BadFile(f"{path} is not a .safetensors file; others can hold code and are not read: convert it first")
    with safe_open(path, "pt") as opened:
        weights = {name.removeprefix(_ORIGINAL): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if "lora_controlnet" in weights:
        raise BadFile(f"{path} is a Control-LoRA, which is not read here: use a whole ControlNet")
    if not any(name.startswith(("zero_convs.0.", "controlnet_down_blocks.0.")) for name in weights):
        raise BadFile(f"{path} is not a ControlNet of Stable Diffusion's kind: it has no zero convolutions")
    net = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    names = control_names(net)
    if "zero_convs.0.0.weight" in weights:
        weights = {names.get(name, name): tensor for name, tensor in weights.items()}
    own = {name: tensor.shape for name, tensor in net.state_dict().items()}
    strangers = [name for name in weights if name not in own]
    missing = [name for name in own if name not in weights]
    for what, which in (("has weights that the model's kind does not know", strangers), ("lacks weights", missing)):
        if which:
            raise BadFile(f"{path} {what}: {', '.join(which[:3])}")
    for name, tensor in weights.items():
        if tensor.shape != own[name]:
            raise BadFile(
                f"{path} is for another family of models: {name} is {tuple(tensor.shape)}, not {tuple(own[name])}"
            )
    net.load_state_dict(weights)
    return net
