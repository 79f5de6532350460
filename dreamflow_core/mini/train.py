"""Train the small Stable Diffusion: `python -m dreamflow_core.mini.train all`, or one of `RECIPES`.

A part that was stopped goes on from its last checkpoint, and one that is complete takes no time (`training`).
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..demo import truth
from ..demo.dataset import Batch, SurfaceBank
from ..demo.truth import LOOKS
from ..hints import HINT_KINDS
from ..lora import LoRA
from ..state import load_state, make_generator
from ..training import Training, cyclic_rate, log_normal
from . import models, words

log = logging.getLogger(__name__)

MIXED = 0.5
"""Share of the VAE's pictures whose colours are mixed at random: it has to know others than the domain's."""
KL = 1e-6
"""Weight of the latents' divergence from a normal distribution, as in Stable Diffusion's VAE."""
STANDARD = 64
"""Renders by which latents are standardised."""
LORA_RANK = 4


@dataclass(frozen=True)
class Recipe:
    """How one part is trained.

    Attributes:
        size: pixels a side of the renders.
        views: traced views per shape.
        crop: pixels a side of what the VAE sees of them; None is all.
        cycles: optimiser steps and highest learning rate of each cycle: the rate warms up, stays, and falls to 0.
        decay: share of a cycle, at its end, over which the rate falls.
        log_sigma: mean and standard deviation of ln(sigma), of denoisers.
        start: the recipe whose averaged weights this one starts from.
        variety: of the patterns, as `Pattern.sample` takes it.
    """

    size: int
    views: int
    cycles: tuple[tuple[int, float], ...]
    batch: int = 32
    warmup: int = 100
    decay: float = 0.5
    average: float = 0.998
    seed: int = 0
    log_sigma: tuple[float, float] = (0.3, 1.5)
    crop: int | None = None
    start: str | None = None
    variety: float = 1.0

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.cycles)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return cyclic_rate(step, self.cycles, self.warmup, self.decay)


RECIPES = {
    # Cut squares are cheaper; whole pictures teach it their borders, and what norms see of a whole picture.
    "vae-cropped": Recipe(models.SIZE, 100, cycles=((600, 3e-3),), batch=16, crop=64, variety=2.0),
    "vae": Recipe(models.SIZE, 100, cycles=((500, 2e-3),), batch=8, start="vae-cropped", variety=2.0),
    # First what words mean, at half the size and a quarter of the cost.
    "base-small": Recipe(models.SIZE // 2, 600, cycles=((4000, 3e-3),), batch=64, variety=2.0),
    "base": Recipe(models.SIZE, 300, cycles=((8000, 3e-3),), start="base-small"),
    "refiner": Recipe(models.REFINED, 100, cycles=((2000, 3e-3),), batch=16, log_sigma=(-1.4, 1.0), variety=2.0),
    # Hints are 8 pixels a cell, which renders of twice the size have; what they say is settled at much noise.
    "depth": Recipe(models.REFINED, 100, cycles=((1500, 2e-3),), log_sigma=(0.9, 1.2)),
    "mask": Recipe(models.REFINED, 100, cycles=((1000, 2e-3),), log_sigma=(0.9, 1.2)),
    "cartoon": Recipe(models.SIZE, 300, cycles=((800, 2e-3),), log_sigma=(0.3, 1.4)),
    "pastel": Recipe(models.SIZE, 300, cycles=((500, 2e-3),), log_sigma=(0.9, 1.4)),
}


class Run(Training):
    """One part in training."""

    def __init__(self, module: nn.Module, ends: Sequence[Tensor], recipe: Recipe):
        super().__init__(module, ends, recipe.seed, recipe.average)
        self.recipe = recipe

    def complete(self, loss_of: Callable[[torch.Generator], Tensor], name: str, work: Path) -> None:
        """Train to the recipe's end, going on from the checkpoint if there is one; then hold the averaged weights.

        Raises:
            BadFile: the recipe that this one starts from was not trained yet.
        """
        checkpoint = work / f"{name}.safetensors"
        if checkpoint.exists():
            self.load(checkpoint)
            log.info("continuing at step %d", self.step)
        elif self.recipe.start:
            self.take_over(load_state(work / f"{self.recipe.start}.safetensors")["average"])
        rate = self.recipe.rate
        self.run(self.recipe.steps, lambda: self.descend(loss_of(self.generator), rate(self.step)), checkpoint)
        self.hold_average()


def mix_colours(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], of which a share `MIXED` has its channels mixed, each its own way."""
    count = len(images)
    mixes = torch.rand(count, 3, 3, generator=generator) ** 2
    mixes = mixes / mixes.sum(dim=2, keepdim=True)
    keep = torch.rand(count, 1, 1, generator=generator) >= MIXED
    mixes = torch.where(keep, torch.eye(3), mixes).to(images)
    return torch.einsum("bij,bjhw->bihw", mixes, images)


def crops(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square of each image, `side` pixels wide."""
    last = images.shape[-1] - side + 1
    corners = torch.randint(last, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, corners)])


def vae_loss(vae: Any, images: Tensor, generator: torch.Generator) -> Tensor:
    """Squared and absolute errors of reconstruction, in units of [-1, 1], and a little of the divergence."""
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(images)
    made = vae.decode(posterior.mean + posterior.std * noise).sample
    error = made - images
    return 4 * error.square().mean() + error.abs().mean() + KL * posterior.kl().mean()


def standardise(vae: Any, images: Tensor) -> None:
    """Centre the latents of typical images and give their channels one deviation, and note the scaling factor.

    The encoder's last layer and the decoder's first, both 1 x 1, take it up; the VAE as a whole stays the same.
    """
    with torch.no_grad():
        mean, deviation = (
            statistic(vae.encode(images).latent_dist.mode().transpose(0, 1).flatten(1), dim=1)
            for statistic in (torch.mean, torch.std)
        )
        common = deviation.square().mean().sqrt()
        scale = common / deviation
        # Mean and log variance are the two halves of the encoder's output.
        vae.quant_conv.weight[: len(mean)] *= scale.view(-1, 1, 1, 1)
        vae.quant_conv.bias[: len(mean)] = (vae.quant_conv.bias[: len(mean)] - mean) * scale
        vae.quant_conv.bias[len(mean) :] += 2 * scale.log()
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
        vae.post_quant_conv.weight /= scale.view(1, -1, 1, 1)
        vae.register_to_config(scaling_factor=round(1 / common.item(), 5))


def train_vae(name: str, work: Path, device: torch.device) -> None:
    recipe = RECIPES[name]
    bank = SurfaceBank(recipe.size, recipe.views, "model", recipe.seed, work, device)
    torch.manual_seed(recipe.seed)
    vae = models.make_vae().to(device)
    run = Run(vae, (vae.encoder.conv_in.weight, vae.encoder.conv_out.weight, vae.decoder.conv_out.weight), recipe)

    def loss_of(generator: torch.Generator) -> Tensor:
        images = mix_colours(bank.batch(recipe.batch, generator, recipe.variety).images, generator)
        return vae_loss(vae, crops(images, recipe.crop or recipe.size, generator), generator)

    run.complete(loss_of, name, work)
    if name == "vae":
        standardise(vae, bank.batch(STANDARD, make_generator(recipe.seed, "latents")).images)
        vae.save_pretrained(work / "vae")


def pass_noise_through(unet: Any) -> None:
    """Start as a network that returns its input: at much noise that is the noise, nearly, which is what it predicts.

    Norms have 32 groups, so at the first level two channels share one, and what a group says of its level is how the
    one lies to the other. Four groups get the input beside an empty channel, and four its negative: silu(x) less
    silu(-x) is x. They go by the outermost skip connection to the last layer, which is empty otherwise.
    """
    last = unet.up_blocks[-1].resnets[-1]
    width, group = last.out_channels, last.out_channels // unet.conv_norm_out.num_groups
    special = torch.arange(2 * models.CHANNELS * group)
    with torch.no_grad():
        for layer, rows in ((unet.conv_in, special), (last.conv_shortcut, special), (last.conv2, special)):
            layer.weight[rows] = 0.0
            layer.bias[rows] = 0.0
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.zero_()
        for sign, first in ((1.0, 0), (-1.0, models.CHANNELS)):
            for channel in range(models.CHANNELS):
                row = (first + channel) * group
                unet.conv_in.weight[row, channel, 1, 1] = sign
                last.conv_shortcut.weight[row, width + row] = 1.0
                # A group of a standard normal channel and empty ones is divided by the root of its share.
                unet.conv_out.weight[channel, row, 1, 1] = sign / math.sqrt(group)
                unet.conv_out.weight[channel, row + 1, 1, 1] = -sign / math.sqrt(group)


@cache
def noise_levels() -> Tensor:
    """(1000,) sigma of each timestep."""
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler(**models.SCHEDULE)
    kept = scheduler.alphas_cumprod
    return ((1 - kept) / kept).sqrt()


def sample_timesteps(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """(count,) timesteps whose ln(sigma) is normal."""
    levels = noise_levels()
    return torch.searchsorted(levels, log_normal(count, *recipe.log_sigma, generator)).clamp_max(len(levels) - 1)


def noise_loss(predict: Callable[[Tensor, Tensor], Tensor], z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Squared error of predicted noise, weighted so that every noise level counts about alike (EDM's weights).

    Args:
        predict: (noised latents of variance 1, timesteps) -> noise.
        z: (B, 4, h, w) scaled latents.
        t: (B,) timesteps.
        noise: like `z`.
    """
    sigma = noise_levels().to(z)[t].view(-1, 1, 1, 1)
    z_t = (z + sigma * noise) / (1 + sigma**2).sqrt()
    error = (predict(z_t, t.to(z.device)) - noise).square().mean(dim=(1, 2, 3), keepdim=True)
    return ((1 + sigma**2) * error).mean()


Shown = Callable[[Batch, Tensor, Tensor, Tensor], dict[str, Any]]
"""From a batch, the noised latents, the timesteps and the tokens to what else a UNet is called with."""


class TextToLatents(nn.Module):
    """The UNet and its text encoder, trained together."""

    def __init__(self, unet: Any, text_encoder: Any):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, z_t: Tensor, t: Tensor, tokens: Tensor, **shown: Any) -> Tensor:
        hidden = self.text_encoder(tokens.to(z_t.device)).last_hidden_state
        return self.unet(z_t, t, hidden, **shown).sample


class Pupil:
    """What all denoisers are trained with: renders, a frozen VAE, words.

    Args:
        recipe: of the one that is trained.
        paint: renders, as `SurfaceBank.batch` takes it.
    """

    def __init__(self, recipe: Recipe, work: Path, device: torch.device, paint: Callable[..., Tensor] = truth.paint):
        self.recipe, self.device, self.paint = recipe, device, paint
        self.bank = SurfaceBank(recipe.size, recipe.views, "model", recipe.seed, work, device)
        self.vae = load_vae(work, device)
        words.write_tokenizer(work / "tokenizer")
        self.tokenizer = words.load_tokenizer(work / "tokenizer")

    def loss(self, model: Callable[..., Tensor], generator: torch.Generator, shown: Shown | None = None) -> Tensor:
        """Of a model that is called as `TextToLatents` is.

        Args:
            shown: what is shown besides the prompt; renders are then of twice the images' size.
        """
        recipe = self.recipe
        batch = self.bank.batch(recipe.batch, generator, recipe.variety, self.paint)
        z = latents(self.vae, F.avg_pool2d(batch.images, 2) if shown else batch.images)
        t = sample_timesteps(recipe.batch, recipe, generator)
        noise = torch.randn(z.shape, generator=generator).to(z)
        tokens = words.tokens(self.tokenizer, words.phrases(batch.words, generator))

        def predict(z_t: Tensor, at: Tensor) -> Tensor:
            more = shown(batch, z_t, at, tokens) if shown else {}
            return model(z_t, at, tokens, **more).float()

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return noise_loss(predict, z, t, noise)


def load_vae(work: Path, device: torch.device) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(work / "vae").to(device).requires_grad_(False).eval()


@torch.no_grad()
def latents(vae: Any, images: Tensor) -> Tensor:
    return vae.encode(images).latent_dist.mode() * vae.config.scaling_factor


def new_denoiser(recipe: Recipe, tokenizer: Any, **sizes: Any) -> TextToLatents:
    torch.manual_seed(recipe.seed)
    unet = models.make_unet(**sizes)
    pass_noise_through(unet)
    return TextToLatents(unet, models.make_text_encoder(tokenizer))


def load_denoiser(work: Path, device: torch.device) -> TextToLatents:
    """The trained base, frozen."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    parts = UNet2DConditionModel.from_pretrained(work / "unet"), CLIPTextModel.from_pretrained(work / "text_encoder")
    return TextToLatents(*parts).to(device).requires_grad_(False).eval()


def train_base(name: str, work: Path, device: torch.device) -> None:
    recipe = RECIPES[name]
    pupil = Pupil(recipe, work, device)
    model = new_denoiser(recipe, pupil.tokenizer).to(device)
    run = Run(model, (model.unet.conv_in.weight, model.unet.conv_out.weight), recipe)
    run.complete(lambda generator: pupil.loss(model, generator), name, work)
    if name == "base":
        model.unet.save_pretrained(work / "unet")
        model.text_encoder.save_pretrained(work / "text_encoder")


def train_refiner(work: Path, device: torch.device) -> None:
    """The low-noise end at twice the size; it reads prompts with the base's text encoder."""
    recipe = RECIPES["refiner"]
    pupil = Pupil(recipe, work, device)
    model = new_denoiser(recipe, pupil.tokenizer, **models.REFINER).to(device)
    model.text_encoder = load_denoiser(work, device).text_encoder
    run = Run(model, (model.unet.conv_in.weight, model.unet.conv_out.weight), recipe)
    run.complete(lambda generator: pupil.loss(model, generator), "refiner", work)
    model.unet.save_pretrained(work / "refiner")


def train_control(kind: str, work: Path, device: torch.device) -> None:
    """A ControlNet for one of `hints.HINT_KINDS`, as they are rendered: eight pixels of a hint are a latent's cell."""
    from diffusers import ControlNetModel

    recipe = RECIPES[kind]
    pupil, model = Pupil(recipe, work, device), load_denoiser(work, device)
    torch.manual_seed(recipe.seed)
    net = ControlNetModel.from_unet(model.unet).to(device).requires_grad_(True)
    run = Run(net, (net.conv_in.weight,), recipe)

    def shown(batch: Batch, z_t: Tensor, t: Tensor, tokens: Tensor) -> dict[str, Any]:
        hint = HINT_KINDS[kind](batch.view(), batch.cameras)
        hidden = model.text_encoder(tokens.to(device)).last_hidden_state
        down, middle = net(z_t, t, hidden, controlnet_cond=hint, return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    run.complete(lambda generator: pupil.loss(model, generator, shown), kind, work)
    net.save_pretrained(work / "controls" / kind)


def train_lora(look: str, work: Path, device: torch.device) -> None:
    """A LoRA that teaches one of `truth.LOOKS`; the words stay as they are."""
    recipe = RECIPES[look]
    pupil, model = Pupil(recipe, work, device, LOOKS[look]), load_denoiser(work, device)
    lora = LoRA(model.unet, LORA_RANK, torch.Generator().manual_seed(recipe.seed)).to(device)
    run = Run(lora, (), recipe)
    with lora.attached(), lora.on():
        run.complete(lambda generator: pupil.loss(model, generator), look, work)
    names = {id(module): name for name, module in model.unet.named_modules()}
    layers = {names[id(layer)]: adapter for layer, adapter in lora.pairs()}
    tensors = kohya_names(layers) if look == "cartoon" else peft_names(layers)
    (work / "loras").mkdir(exist_ok=True)
    save_file(
        {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()},
        work / "loras" / f"mini-{look}.safetensors",
    )


def kohya_names(layers: dict[str, Any]) -> dict[str, Tensor]:
    """A LoRA of a UNet as kohya's scripts name it, by the layers' names in diffusers."""
    tensors: dict[str, Tensor] = {}
    for name, adapter in layers.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": adapter.down, f"{key}.lora_up.weight": adapter.up}
        tensors[f"{key}.alpha"] = torch.tensor(float(len(adapter.down)))
    return tensors


def peft_names(layers: dict[str, Any]) -> dict[str, Tensor]:
    """Likewise as PEFT and diffusers do."""
    return {
        f"unet.{name}.lora_{letter}.weight": weight
        for name, adapter in layers.items()
        for letter, weight in (("A", adapter.down), ("B", adapter.up))
    }


def train(part: str, work: Path, device: torch.device) -> None:
    """One of `RECIPES`, with checkpoints and results in `work`."""
    log.info("%s", part)
    if part.startswith("vae"):
        train_vae(part, work, device)
    elif part == "refiner":
        train_refiner(work, device)
    elif part in HINT_KINDS:
        train_control(part, work, device)
    elif part in LOOKS:
        train_lora(part, work, device)
    else:
        train_base(part, work, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*RECIPES, "all"], help="what is trained; all of it in this order")
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder for checkpoints and traced views")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for part in RECIPES if arguments.part == "all" else [arguments.part]:
        train(part, arguments.work, device)


if __name__ == "__main__":
    main()
