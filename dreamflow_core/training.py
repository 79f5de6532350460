"""What the bundled models are trained with: optimisers, rates, noise levels, and a run that can be stopped.

Hidden layers are trained by Muon (Jordan et al. 2024), everything else by Adam. A run continues from its last
checkpoint; the same seed gives the same weights on the same machine and thread count.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .state import load_state, save_state

log = logging.getLogger(__name__)

SAVE_EVERY = 120.0
"""Seconds between checkpoints."""


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
    """Muon for the weights of hidden layers, Adam for all else that is not frozen.

    Args:
        ends: weights of first and last layers, which are Adam's.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if p.requires_grad:
                hidden = isinstance(module, (nn.Conv2d, nn.Linear)) and p.ndim > 1 and not any(p is e for e in ends)
                (matrices if hidden else others).append(p)
    optimisers: list[torch.optim.Optimizer] = [torch.optim.Adam(others, betas=(0.9, 0.99))]
    # A LoRA's weights are no layers.
    return [Muon(matrices), *optimisers] if matrices else optimisers


def cyclic_rate(step: int, cycles: Sequence[tuple[int, float]], warmup: int, decay: float) -> float:
    """The learning rate of a step, in cycles of warm-up, plateau and linear decay (Loshchilov and Hutter 2017).

    Args:
        cycles: steps and highest rate of each.
        warmup: steps in which it rises.
        decay: share of a cycle, at its end, over which it falls to 0.
    """
    for steps, highest in cycles:
        if step < steps:
            return highest * min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))
        step -= steps
    return 0.0


def log_normal(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Noise levels (count,) whose logarithm is normal, one from each of `count` equally likely strata."""
    quantile = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return (mean + std * math.sqrt(2) * torch.erfinv(2 * quantile.clamp(1e-4, 1 - 1e-4) - 1)).exp()


class Training:
    """Everything that a run needs to continue, saved to and loaded from one safetensors file.

    Args:
        module: what of it is not frozen is trained.
        ends: as `make_optimisers` takes them.
        seed: of everything random from here on.
        average: how much of the weights' moving average stays in a step.
    """

    def __init__(self, module: nn.Module, ends: Sequence[Tensor], seed: int, average: float):
        self.module, self.step, self.seconds, self._keep = module, 0, 0.0, average
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.optimisers = make_optimisers(module, ends)
        self.generator = torch.Generator().manual_seed(seed + 1)

    def descend(self, loss: Tensor, rate: float) -> float:
        """One step of the optimisers along a loss; returns it."""
        loss.backward()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        keep = min(self._keep, self.step / (self.step + 10))
        for name, p in self.trained.items():
            self.average[name].lerp_(p.detach(), 1 - keep)
        return loss.item()

    def take_over(self, weights: dict[str, Tensor]) -> None:
        """Another run's weights, and nothing else of it."""
        self._set(weights)
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}

    def hold_average(self) -> None:
        """Put the averaged weights in place of the last ones."""
        self._set(self.average)

    def _set(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(weights[name])

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.trained,
            "average": self.average,
            "generator": self.generator.get_state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        save_state(path, state)

    def load(self, path: Path) -> None:
        state = load_state(path)
        self.step, self.seconds = state["step"], state["seconds"]
        self._set(state["model"])
        self.average = {name: tensor.to(self.average[name]) for name, tensor in state["average"].items()}
        self.generator.set_state(state["generator"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)

    def run(self, steps: int, advance: Callable[[], float], checkpoint: Path) -> None:
        """Go on to so many steps in all, each a call of `advance`, which gives its loss; checkpoints on the way."""
        total, since, saved = 0.0, self.step, time.perf_counter()
        while self.step < steps:
            total += advance()
            now = time.perf_counter()
            if now - saved > SAVE_EVERY or self.step == steps:
                self.seconds += now - saved
                mean = total / (self.step - since)
                log.info("step %d of %d: loss %.5f, %.0f s", self.step, steps, mean, self.seconds)
                self.save(checkpoint)
                total, since, saved = 0.0, self.step, time.perf_counter()
