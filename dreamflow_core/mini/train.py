"""Train the small Stable Diffusion: `python -m dreamflow_core.mini.train vae` (then `base` ...).

Hidden layers are trained by Muon, everything else by Adam, as the demo model is. A run continues from its last
checkpoint, written every few minutes; the same seed gives the same weights on the same machine and thread count.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo.dataset import SurfaceBank
from ..demo.train import make_optimisers
from ..state import load_state, save_state
from . import models, words

log = logging.getLogger(__name__)

SAVE_EVERY = 120.0
"""Seconds between checkpoints."""
CROP = 64
"""The VAE sees squares of so many pixels a side, cut from renders."""
MIXED = 0.5
"""Share of the VAE's pictures whose colours are mixed at random: it has to know others than the domain's."""
KL = 1e-6
"""Weight of the latents' divergence from a normal distribution, as in Stable Diffusion's VAE."""
VARIETY = 2.0


@dataclass(frozen=True)
class Recipe:
    """How one part is trained.

    Attributes:
        size: pixels a side of the renders.
        cycles: optimiser steps and highest learning rate of each cycle: the rate warms up, stays, and falls to 0.
        decay: share of a cycle, at its end, over which the rate falls.
        log_sigma: mean and standard deviation of ln(sigma), of denoisers.
        start: the recipe whose averaged weights this one starts from.
    """

    size: int
    cycles: tuple[tuple[int, float], ...]
    batch: int = 32
    warmup: int = 100
    decay: float = 0.5
    average: float = 0.998
    seed: int = 0
    log_sigma: tuple[float, float] = (0.3, 1.5)
    start: str | None = None

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.cycles)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        for steps, highest in self.cycles:
            if step < steps:
                return highest * min(1.0, (step + 1) / self.warmup, (steps - step) / (self.decay * steps))
            step -= steps
        return 0.0


RECIPES = {
    "vae": Recipe(models.SIZE, cycles=((1200, 3e-3),), batch=16),
    # First what words mean, at half the size and a quarter of the cost.
    "base-small": Recipe(models.SIZE // 2, cycles=((4000, 3e-3),), batch=64, start="vae"),
    "base": Recipe(models.SIZE, cycles=((8000, 3e-3),), start="base-small"),
}


class Run:
    """Everything that a training run needs to continue, saved to and loaded from one safetensors file."""

    def __init__(self, module: nn.Module, ends: Sequence[nn.Parameter], recipe: Recipe):
        self.module, self.recipe, self.step, self.seconds = module, recipe, 0, 0.0
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.optimisers = make_optimisers(module, ends)
        self.generator = torch.Generator().manual_seed(recipe.seed + 1)

    def advance(self, loss_of: Callable[[torch.Generator], Tensor]) -> float:
        """One optimiser step; returns its loss."""
        loss = loss_of(self.generator)
        loss.backward()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.recipe.rate(self.step)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        decay = min(self.recipe.average, self.step / (self.step + 10))
        for name, p in self.trained.items():
            self.average[name].lerp_(p.detach(), 1 - decay)
        return loss.item()

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "weights": self.trained,
            "average": self.average,
            "generator": self.generator.get_state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        save_state(path, state)

    def load(self, path: Path) -> None:
        state = load_state(path)
        self.step, self.seconds = state["step"], state["seconds"]
        self.module.load_state_dict(state["weights"], strict=False)
        self.average = {name: tensor.to(self.average[name]) for name, tensor in state["average"].items()}
        self.generator.set_state(state["generator"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)

    def run(self, loss_of: Callable[[torch.Generator], Tensor], checkpoint: Path) -> None:
        """Train to the recipe's end, going on from the checkpoint if there is one; then hold the averaged weights."""
        if checkpoint.exists():
            self.load(checkpoint)
            log.info("continuing at step %d", self.step)
        total, since, saved = 0.0, self.step, time.perf_counter()
        while self.step < self.recipe.steps:
            total += self.advance(loss_of)
            now = time.perf_counter()
            if now - saved > SAVE_EVERY or self.step == self.recipe.steps:
                self.seconds += now - saved
                mean = total / (self.step - since)
                log.info("step %d of %d: loss %.5f, %.0f s", self.step, self.recipe.steps, mean, self.seconds)
                self.save(checkpoint)
                total, since, saved = 0.0, self.step, time.perf_counter()
        self.module.load_state_dict(self.average, strict=False)


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


def vae_loss(vae: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    """Squared and absolute errors of reconstruction, in units of [-1, 1], and a little of the divergence."""
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(images)
    made = vae.decode(posterior.mean + posterior.std * noise).sample
    error = made - images
    return 4 * error.square().mean() + error.abs().mean() + KL * posterior.kl().mean()


def train_vae(recipe: Recipe, work: Path, device: torch.device) -> nn.Module:
    bank = SurfaceBank(recipe.size, 600, "model", recipe.seed, work, device)
    torch.manual_seed(recipe.seed)
    vae = models.make_vae().to(device)
    run = Run(vae, (vae.encoder.conv_in.weight, vae.encoder.conv_out.weight, vae.decoder.conv_out.weight), recipe)

    def loss_of(generator: torch.Generator) -> Tensor:
        images = bank.batch(recipe.batch, generator, VARIETY).images
        return vae_loss(vae, crops(mix_colours(images, generator), CROP, generator), generator)

    run.run(loss_of, work / "vae.safetensors")
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=RECIPES)
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder for checkpoints and traced views")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.part == "vae":
        train_vae(RECIPES["vae"], arguments.work, device)


if __name__ == "__main__":
    main()
