"""What an APFO iteration on images costs beside its denoiser calls, and how phi is best trained.

    python benchmarks/overhead.py [--steps 30] [--batch 4]

Prints, for the bundled demo model: the share of time outside denoiser calls (forward passes of the prior
and of phi, and phi's backward pass), the cost of phi's two ways of learning relative to each other, and
memory: the process's peak, and what phi adds to the model's weights.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from dreamflow_core.apfo import Phi, optimise
from dreamflow_core.demo.model import MODELS, load_model
from dreamflow_core.guidance import APFO, SDS
from dreamflow_core.lora import LoRA
from dreamflow_core.priors.demo import DemoPrior
from dreamflow_core.scenes.image import ImageScene
from dreamflow_core.schedule import Schedule, timestep_range
from dreamflow_core.settings.stages import PhiSettings


class TimedPrior(DemoPrior):
    """Adds up the seconds spent in `denoise`."""

    seconds = 0.0

    def denoise(self, *arguments, **options):
        start = time.perf_counter()
        try:
            return super().denoise(*arguments, **options)
        finally:
            self.seconds += time.perf_counter() - start


def timed_learn(prior: TimedPrior):
    """`Phi.learn` with its backward pass, which is denoiser work too, counted as such."""
    plain = Phi.learn

    def learn(self, denoised, z, sigma):
        start = time.perf_counter()
        try:
            return plain(self, denoised, z, sigma)
        finally:
            prior.seconds += time.perf_counter() - start

    return plain, learn


def run(model, guidance, settings: PhiSettings, batch: int, steps: int) -> tuple[float, float]:
    """(seconds per iteration, share of them outside the denoiser)."""
    prior = TimedPrior(model, "a red and blue striped duck", cfg=1.5)
    schedule = Schedule(timestep_range(prior.sigma_at, 1.0, 0.0, steps))
    scene = ImageScene(torch.zeros(batch, 3, 64, 64), learning_rate=None if isinstance(guidance, APFO) else 0.01)
    plain, Phi.learn = timed_learn(prior)
    try:
        start = time.perf_counter()
        optimise(scene, prior, schedule, guidance, settings, seed=0)
        total = time.perf_counter() - start
    finally:
        Phi.learn = plain
    return total / steps, 1 - prior.seconds / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    model = load_model(MODELS["demo"])
    weights = sum(p.numel() for p in model.parameters())
    adapter = sum(p.numel() for p in LoRA(model, PhiSettings().rank, torch.Generator()).parameters())
    run(model, APFO(), PhiSettings(), options.batch, 3)
    rows = {
        "APFO, phi at the current level": (APFO(), PhiSettings()),
        "APFO, phi at a random level": (APFO(), PhiSettings(level="random")),
        "SDS, no phi": (SDS(), PhiSettings()),
    }
    reference = None
    print(f"batch {options.batch}, {options.steps} iterations, {torch.get_num_threads()} threads")
    for name, (guidance, settings) in rows.items():
        seconds, outside = run(model, guidance, settings, options.batch, options.steps)
        reference = reference or seconds
        print(
            f"{name:32s} {1e3 * seconds:6.0f} ms an iteration ({seconds / reference:4.2f}),"
            f" {100 * outside:4.1f} % outside the denoiser"
        )
    print(f"phi adds {adapter} parameters to the model's {weights} ({100 * adapter / weights:.0f} %)")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
