"""Train the demo model: `python -m dreamflow_core.demo.train base` (or `refiner`).

Loss and preconditioning are EDM's (Karras et al. 2022, Table 1); the optimisers are those of `training`.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..training import Training, cyclic_rate, log_normal
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


def learning_rate(step: int, recipe: Recipe) -> float:
    """Of the cycle that `step` is in."""
    return cyclic_rate(step, recipe.cycles, recipe.warmup, recipe.decay)


def sample_sigma(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Log-normal noise levels (count,) within the model's range."""
    return log_normal(count, *recipe.log_sigma, generator).clamp(recipe.model.sigma_min, recipe.model.sigma_max)


def denoising_loss(model: DemoModel, images: Tensor, words: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """EDM's loss, mean over the batch; 1 for a network that predicts nothing."""
    denoised = model(images + sigma.view(-1, 1, 1, 1) * noise, sigma, model.text_encoder(words))
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return (weight.view(-1, 1, 1, 1) * (denoised - images) ** 2).mean()


class Run(Training):
    """A demo model in training."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device = recipe, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = DemoModel(recipe.model).to(device)
        ends = (self.model.output.weight, self.model.input.weight)
        super().__init__(self.model, ends, recipe.seed, recipe.average)

    def advance(self, bank: SurfaceBank) -> float:
        """One optimiser step; returns its loss."""
        recipe, device = self.recipe, self.device
        batch = bank.batch(recipe.batch, self.generator, recipe.variety)
        sigma = sample_sigma(recipe.batch, recipe, self.generator)
        noise = torch.randn(batch.images.shape, generator=self.generator)
        # bfloat16 halves a step's time on CPUs and GPUs that have it.
        with torch.autocast(device.type, torch.bfloat16):
            loss = denoising_loss(self.model, *(t.to(device) for t in (batch.images, batch.words, sigma, noise)))
        return self.descend(loss, learning_rate(self.step, recipe))

    def export(self, path: Path) -> None:
        """Write the averaged weights as a model file."""
        self.hold_average()
        recipe = json.dumps(asdict(self.recipe))
        save_model(self.model, path, {"recipe": recipe, "hours": f"{self.seconds / 3600:.2f}"})


def train(name: str, work: Path, out: Path, steps: int | None = None) -> None:
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
            train(recipe.start, work, start, steps)
        run.take_over(load_model(start).state_dict())
    run.run(recipe.steps, lambda: run.advance(bank), checkpoint)
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
