"""The demo denoiser: a small text-conditional U-Net on pixels with EDM preconditioning.

Latents are RGB pixels in [-1, 1]. Preconditioning: Karras et al. 2022 (arXiv 2206.00364), Table 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ..parameterisation import edm
from ..state import open_tensors, write_bytes
from .vocabulary import SLOTS, Description

SIGMA_DATA = 0.5
_FORMAT, _KIND = "dreamflow-demo", "a demo model"
WEIGHTS = Path(__file__).with_name("weights")
MODELS = {"demo": WEIGHTS / "demo-base.safetensors", "demo-refiner": WEIGHTS / "demo-refiner.safetensors"}
"""Weights of the bundled models by the name that `--model` takes."""


@dataclass(frozen=True)
class ModelConfig:
    """Size of a demo model.

    Attributes:
        size: images are size x size pixels.
        patch: pixels per cell of the finest feature grid.
        channels: feature channels at the finest grid and at each halving below it.
        encoder_blocks: residual blocks on the way down, per level above the coarsest.
        decoder_blocks: residual blocks on the way up, likewise.
        attention: per level above the coarsest, whether every block ends with self-attention.
        layers: transformer layers on the coarsest grid.
        embedding: width of the conditioning vector.
        token: width of a word embedding.
        sigma_min, sigma_max: the noise levels it was trained for.
    """

    size: int
    patch: int
    channels: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    embedding: int
    token: int
    sigma_min: float
    sigma_max: float


def _start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _modulate(x: Tensor, modulation: Tensor) -> Tensor:
    """Features (B, C, h, w) scaled and shifted, channel by channel, by a modulation (B, 2 C)."""
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    return torch.addcmul(shift, x, 1 + scale)


class TextEncoder(nn.Module):
    """One learned vector per slot value: descriptions -> (B, slots, token)."""

    def __init__(self, token: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(1 + len(values), token) for values in SLOTS.values())

    def forward(self, indices: Tensor) -> Tensor:
        """`indices` (B, slots) as `Description.indices` gives them."""
        return torch.stack([table(index) for table, index in zip(self.tables, indices.unbind(1))], dim=1)

    def encode(self, descriptions: Sequence[Description]) -> Tensor:
        device = next(self.parameters()).device
        return self(torch.tensor([d.indices() for d in descriptions], device=device))


class Attention(nn.Module):
    """Self-attention over the cells of a feature grid; scores know how far cells lie apart.

    Positions enter as rotations of queries and keys (RoFormer, arXiv 2104.09864), half of a head's
    channels for rows and half for columns: a repeating pattern is a matter of distances.
    """

    def __init__(self, channels: int, head: int = 32):
        super().__init__()
        self.heads = channels // head
        self.norm = nn.GroupNorm(8, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.frequencies: Tensor
        # From half a turn a cell, for neighbours, to a fortieth of a turn, for the whole grid.
        self.register_buffer("frequencies", math.pi * torch.logspace(0, -math.log10(20), head // 4), persistent=False)
        _start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        angles = self._angles(*x.shape[2:])
        # Written out: on CPUs the fused kernel's backward pass is several times slower at a few hundred cells.
        scores = _rotate(q, angles) @ _rotate(k, angles).transpose(-1, -2) / math.sqrt(q.shape[-1])
        mixed = scores.softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(batch, -1, channels)).transpose(1, 2).reshape(x.shape)

    def _angles(self, rows: int, columns: int) -> Tensor:
        """(rows * columns, head / 2) radians."""
        y, x = (torch.arange(n, device=self.frequencies.device)[:, None] * self.frequencies for n in (rows, columns))
        grid = (rows, columns, len(self.frequencies))
        return torch.cat([y[:, None].expand(grid), x[None].expand(grid)], dim=-1).flatten(0, 1)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of channels of `x` (..., cells, head) by its angle."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions, the second's input modulated by the conditioning vector; then, if asked, attention."""

    def __init__(self, inputs: int, outputs: int, embedding: int, attention: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attention else nn.Identity()
        _start_at_zero(self.conv2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        h = self.conv2(F.silu(_modulate(h, self.modulation(embedding))))
        return self.attention(self.skip(x) + h)


class Layer(nn.Module):
    """A transformer layer over the cells of a feature grid: attention, then a modulated feed-forward part."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.attention = Attention(width)
        self.norm = nn.GroupNorm(8, width)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.wide, self.out = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        _start_at_zero(self.out)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.attention(x)
        return x + self.out(F.silu(self.wide(_modulate(self.norm(x), self.modulation(embedding)))))


class Trunk(nn.Module):
    """The coarsest grid: transformer layers, where what the whole picture shows is settled."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.layers = nn.ModuleList(Layer(config.channels[-1], config.embedding) for _ in range(config.layers))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, embedding)
        return x


class Level(nn.Module):
    """One resolution of the U-Net with everything coarser inside it."""

    def __init__(self, config: ModelConfig, depth: int):
        super().__init__()
        width, below, embedding = config.channels[depth], config.channels[depth + 1], config.embedding

        def block(inputs: int) -> ResBlock:
            return ResBlock(inputs, width, embedding, config.attention[depth])

        self.encoder = nn.ModuleList(block(width) for _ in range(config.encoder_blocks[depth]))
        self.down = nn.Conv2d(width, below, 3, stride=2, padding=1)
        self.inner = Level(config, depth + 1) if depth + 2 < len(config.channels) else Trunk(config)
        self.up = nn.Conv2d(below, width, 1)
        inputs = [2 * width] + [width] * (config.decoder_blocks[depth] - 1)
        self.decoder = nn.ModuleList(block(i) for i in inputs)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.encoder:
            x = block(x, embedding)
        coarse = self.up(F.interpolate(self.inner(self.down(x), embedding), scale_factor=2.0))
        x = torch.cat([coarse, x], dim=1)
        for block in self.decoder:
            x = block(x, embedding)
        return x


class DemoModel(nn.Module):
    """D(x; sigma, words): the denoised estimate of noised pixels."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.parameterisation = edm(SIGMA_DATA, config.sigma_min, config.sigma_max)
        pixels, width, grid = 3 * config.patch**2, config.channels[0], config.size // config.patch
        self.text_encoder = TextEncoder(config.token)
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.linspace(0, math.log(64.0), 16).exp(), persistent=False)
        self.embed_noise = nn.Linear(32, config.embedding)
        self.embed_words = nn.Linear(config.token * len(SLOTS), config.embedding)
        self.embed = nn.Linear(config.embedding, config.embedding)
        self.input = nn.Conv2d(pixels, width, 3, padding=1)
        # Where in the frame a cell lies: objects are centred and cameras have one radius.
        self.position = nn.Parameter(torch.zeros(1, width, grid, grid))
        self.body = Level(config, 0)
        self.norm = nn.GroupNorm(8, width)
        self.output = nn.Conv2d(width, pixels, 3, padding=1)
        _start_at_zero(self.output)

    def forward(self, z_t: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Denoised pixels (B, 3, size, size).

        Args:
            z_t: (B, 3, size, size) clean pixels plus sigma times unit noise.
            sigma: (B,) noise levels.
            context: (B, slots, token) from the text encoder.
        """
        return self.parameterisation.denoise(lambda x, time: self.network(x, time, context), z_t, sigma)

    def network(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """The preconditioned network F of EDM's equation 7; `time` (B,) is ln(sigma) / 4."""
        angles = time[:, None] * self.frequencies
        embedding = self.embed_noise(torch.cat([angles.cos(), angles.sin()], dim=1))
        embedding = F.silu(self.embed(F.silu(embedding + self.embed_words(context.flatten(1)))))
        h = self.input(F.pixel_unshuffle(x, self.config.patch)) + self.position
        h = F.silu(self.norm(self.body(h, embedding)))
        return F.pixel_shuffle(self.output(h), self.config.patch)


BASE = ModelConfig(64, 2, (48, 96, 192), (1, 1), (1, 1), (False, True), 6, 256, 32, sigma_min=0.01, sigma_max=40.0)
REFINER = ModelConfig(128, 2, (24, 48, 96), (1, 1), (1, 1), (False, False), 3, 192, 32, sigma_min=0.005, sigma_max=2.0)


def save_model(model: DemoModel, path: Path, metadata: dict[str, str]) -> None:
    """Write a model in half precision, its config and the given strings in the file's metadata."""
    write_tensors(model, path, _FORMAT, {"config": json.dumps(asdict(model.config)), **metadata})


def load_model(path: Path) -> DemoModel:
    """Read a model that `save_model` wrote, in float32 on the CPU, ready for evaluation.

    Raises:
        BadFile: the file is missing, broken, or not a demo model.
    """
    tensors, metadata = load_tensors(path, _FORMAT, _KIND)
    model = DemoModel(_config(metadata))
    model.load_state_dict(tensors)
    return model.requires_grad_(False).eval()


def load_config(path: Path) -> ModelConfig:
    """The size of a model that `save_model` wrote.

    Raises:
        BadFile: as `load_model`.
    """
    with open_tensors(path, _FORMAT, _KIND) as (_, metadata):
        return _config(metadata)


def _config(metadata: dict[str, str]) -> ModelConfig:
    config = json.loads(metadata["config"])
    lists = {name: tuple(value) for name, value in config.items() if isinstance(value, list)}
    return ModelConfig(**{**config, **lists})


def write_tensors(module: nn.Module, path: Path, format_: str, metadata: dict[str, str]) -> None:
    """Write a module's state in half precision; `format_` says what it is."""
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in module.state_dict().items()}
    write_bytes(path, save(tensors, {"format": format_, **metadata}))


def load_tensors(path: Path, format_: str, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state in float32 and the metadata of what `write_tensors` wrote.

    Raises:
        BadFile: the file is missing, broken, or not of this format; `kind` says what it should be.
    """
    with open_tensors(path, format_, kind) as (file, metadata):
        names = file.keys()
        return {name: file.get_tensor(name).float() for name in names}, metadata
