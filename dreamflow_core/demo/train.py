"""Train the demo model: `python -m dreamflow_core.demo.train base` (or `refiner`).

Loss and preconditioning are EDM's (Karras et al. 2022, Table 1). Convolution and linear weights are
trained by Muon (Jordan et al. 2024), everything else by Adam. A run continues from its last
checkpoint; the same seed gives the same weights on the same machine and thread count.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..state import load_state, save_state
from .dataset import SurfaceBank
from .model import BASE, REFINER, SIGMA_DATA, DemoModel, ModelConfig, load_model, save_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How one of the two models is trained.

    Attributes:
        model: its size.
        views: traced views per shape.
        cycles: optimiser steps and highest learning rate of each cycle: the rate warms up, stays, and
            falls to 0, and then a next cycle warms up again (warm restarts, Loshchilov and Hutter 2017).
        decay: share of a cycle, at its end, over which the learning rate falls linearly to 0.
        log_sigma: mean and standard deviation of ln(sigma).
        start: name of the recipe that is trained first and whose averaged weights this one starts from.
        variety: of the patterns, as `Pattern.sample` takes it.
    """

    model: ModelConfig
    views: int
    cycles: tuple[tuple[int, float], ...]
    log_sigma: tuple[float, float]
    batch: int = 32
    warmup: int = 100
    decay: float = 1.0
    average: float = 0.998
    seed: int = 0
    start: str | None = None
    variety: float = 1.0

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.cycles)


RECIPES = {
    # First on patterns of twice the variety, then on the domain's own, nearer and nearer to the noise levels that
    # settle a pattern, and then which side of a shape is seen.
    "base-varied": Recipe(BASE, 600, cycles=((8500, 4e-3), (8000, 3e-3)), log_sigma=(0.3, 1.7), variety=2.0),
    "base-nearer": Recipe(BASE, 600, cycles=((4000, 3e-3), (3500, 3e-3)), log_sigma=(0.5, 1.3), start="base-varied"),
    "base-patterns": Recipe(BASE, 600, cycles=((6000, 3e-3), (5600, 3e-3)), log_sigma=(0.7, 1.2), start="base-nearer"),
    "base-views": Recipe(BASE, 600, cycles=((4000, 3e-3),), log_sigma=(1.5, 1.1), start="base-patterns"),
    "base": Recipe(BASE, 600, cycles=((4000, 3e-3),), log_sigma=(0.9, 1.2), start="base-views"),
    "refiner": Recipe(REFINER, 150, cycles=((2000, 4e-3),), log_sigma=(-1.6, 1.1), batch=16, decay=0.75, variety=2.0),
}


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: Muon's quintic Newton-Schulz iteration, in bfloat16 on a GPU."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    # Of CPUs few have bfloat16; it is several times slower there where they do not.
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if matrix.shape[0] <= matrix.shape[1] else x.T).to(matrix)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; convolution kernels count as (out, in * k * k).

    `torch.optim.Muon` takes only matrices. The step is scaled to the size of Adam's, so that both share
    a learning rate, and weights decay (Liu et al. 2025): a step has one size whatever the gradient's, so
    weights that grow without bound learn slower and slower.
    """

    def __init__(self, params, lr: float = 0.0, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                velocity = self.state[p].setdefault("momentum", torch.zeros_like(p))
                velocity.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(velocity, group["momentum"])
                update = orthogonalise(ahead.flatten(1))
                update = 0.2 * math.sqrt(max(update.shape)) * update
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(p), alpha=-group["lr"])


def make_optimisers(model: nn.Module, ends: Sequence[Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the weights of hidden layers, Adam for everything else, also the `ends`: first and last layers."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for p in module.parameters(recurse=False):
            hidden = isinstance(module, (nn.Conv2d, nn.Linear)) and p.ndim > 1 and not any(p is end for end in ends)
            (matrices if hidden else others).append(p)
    return [Muon(matrices), torch.optim.Adam(others, betas=(0.9, 0.99))]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Warm-up, plateau and linear decay of the cycle that `step` is in."""
    for steps, highest in recipe.cycles:
        if step < steps:
            return highest * min(1.0, (step + 1) / recipe.warmup, (steps - step) / (recipe.decay * steps))
        step -= steps
    return 0.0


def sample_sigma(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Log-normal noise levels (count,), one from each of `count` equally likely strata."""
    quantile = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    mean, std = recipe.log_sigma
    log_sigma = mean + std * math.sqrt(2) * torch.erfinv(2 * quantile.clamp(1e-4, 1 - 1e-4) - 1)
    return log_sigma.exp().clamp(recipe.model.sigma_min, recipe.model.sigma_max)


def denoising_loss(model: DemoModel, images: Tensor, words: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """EDM's loss, mean over the batch; 1 for a network that predicts nothing."""
    denoised = model(images + sigma.view(-1, 1, 1, 1) * noise, sigma, model.text_encoder(words))
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return (weight.view(-1, 1, 1, 1) * (denoised - images) ** 2).mean()


class Run:
    """Everything a training run needs to continue, saved to and loaded from one safetensors file."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device, self.step = recipe, device, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = DemoModel(recipe.model).to(device)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimisers = make_optimisers(self.model, (self.model.output.weight, self.model.input.weight))
        self.generator = torch.Generator().manual_seed(recipe.seed + 1)
        self.seconds = 0.0

    def advance(self, bank: SurfaceBank) -> float:
        """One optimiser step; returns its loss."""
        recipe, device = self.recipe, self.device
        batch = bank.batch(recipe.batch, self.generator, recipe.variety)
        sigma = sample_sigma(recipe.batch, recipe, self.generator)
        noise = torch.randn(batch.images.shape, generator=self.generator)
        # bfloat16 halves a step's time on CPUs and GPUs that have it.
        with torch.autocast(device.type, torch.bfloat16):
            loss = denoising_loss(self.model, *(t.to(device) for t in (batch.images, batch.words, sigma, noise)))
        loss.backward()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(self.step, recipe)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        decay = min(recipe.average, self.step / (self.step + 10))
        for name, p in self.model.named_parameters():
            self.average[name].lerp_(p.detach(), 1 - decay)
        return loss.item()

    def start_from(self, model: DemoModel) -> None:
        """Take over another run's weights, and nothing else of it."""
        self.model.load_state_dict(model.state_dict())
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": dict(self.model.named_parameters()),
            "average": self.average,
            "generator": self.generator.get_state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        save_state(path, state)

    def load(self, path: Path) -> None:
        state = load_state(path)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average = {name: tensor.to(self.device) for name, tensor in state["average"].items()}
        self.generator.set_state(state["generator"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)

    def export(self, path: Path) -> None:
        """Write the averaged weights as a model file."""
        self.model.load_state_dict(self.average, strict=True)
        recipe = json.dumps(asdict(self.recipe))
        save_model(self.model, path, {"recipe": recipe, "hours": f"{self.seconds / 3600:.2f}"})


def train(name: str, work: Path, out: Path, steps: int | None = None, every: int = 250) -> None:
    """Train one of `RECIPES`, keeping checkpoints and traced views in `work`, and write it to `out`.

    The recipe that it starts from is trained before it, unless `work` has its weights or this one's checkpoint.
    """
    recipe = RECIPES[name]
    if steps is not None:
        recipe = replace(recipe, cycles=((steps, recipe.cycles[0][1]),))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bank = SurfaceBank(recipe.model.size, recipe.views, "model", seed=recipe.seed, cache=work)
    run, checkpoint = Run(recipe, device), work / f"{name}.safetensors"
    if checkpoint.exists():
        run.load(checkpoint)
        log.info("continuing at step %d", run.step)
    elif recipe.start:
        start = default_out(recipe.start, work)
        if not start.exists():
            train(recipe.start, work, start, steps, every)
        run.start_from(load_model(start))
    total, started = 0.0, time.perf_counter()
    while run.step < recipe.steps:
        total += run.advance(bank)
        if run.step % every == 0 or run.step == recipe.steps:
            run.seconds += time.perf_counter() - started
            started = time.perf_counter()
            log.info("step %d of %d: loss %.4f, %.0f s", run.step, recipe.steps, total / every, run.seconds)
            total = 0.0
            run.save(checkpoint)
    run.export(out)
    log.info("wrote %s", out)


def default_out(name: str, work: Path) -> Path:
    return work / f"demo-{name}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder for checkpoints and traced views")
    parser.add_argument("--out", type=Path, help="file to write; default WORK/demo-MODEL.safetensors")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of the recipe's")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out = arguments.out or default_out(arguments.model, arguments.work)
    train(arguments.model, arguments.work, out, arguments.steps)


if __name__ == "__main__":
    main()
