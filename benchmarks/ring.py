"""APFO, VSD and SDS on a distribution that can be drawn: eight Gaussians on a ring in the plane.

    python benchmarks/ring.py [--count 64] [--seeds 3] [--iterations 25 100 500]

A small network is trained on the ring (seconds), then every method moves `count` points from noise. Prints,
mean and spread over seeds: the squared energy distance to true samples (0 for the same distribution, negative
by chance), diversity (mean distance between two points over the truth's), and the share of points that lie on
none of the eight modes. "frozen phi" never trains phi; "exact point phi" takes every point for a scene of its
own, so that D_phi is the point itself.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dreamflow_core.apfo import optimise
from dreamflow_core.guidance import APFO, SDS, VSD, Guidance
from dreamflow_core.parameterisation import edm
from dreamflow_core.sampler import heun
from dreamflow_core.scenes.image import ImageScene
from dreamflow_core.schedule import Schedule, karras, log_uniform
from dreamflow_core.settings.stages import PhiSettings

MODES, RADIUS, WIDTH = 8, 0.8, 0.05
HIGH, LOW = 10.0, 0.02
KIND = edm(0.5, 0.01, HIGH)
START_STD = 0.5


def ring(count: int, generator: torch.Generator) -> Tensor:
    """True samples (count, 2)."""
    angle = torch.randint(MODES, (count,), generator=generator) * (2 * math.pi / MODES)
    centre = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centre + WIDTH * torch.randn(count, 2, generator=generator)


class Network(nn.Module):
    """F(x; time) for points (B, 2)."""

    def __init__(self, width: int = 128):
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(2 + 32, width), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.linspace(0, 3, 16).exp()
        return self.layers(torch.cat([x, angles.cos(), angles.sin()], dim=1))


class RingPrior:
    """The trained network as a prior; latents are (B, 2, 1, 1)."""

    device = torch.device("cpu")

    def __init__(self, network: Network):
        self.network = network.requires_grad_(False)

    def run(self, body, look=None):
        return body(self)

    def denoise(self, z_t: Tensor, sigma: float, views: None, *, guided: bool) -> Tensor:
        levels = torch.full((len(z_t),), sigma)
        return KIND.denoise(lambda x, time: self.network(x.flatten(1), time)[..., None, None], z_t, levels)


def train(steps: int = 3000, seed: int = 0) -> RingPrior:
    """A prior of the ring, by denoising score matching."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        points, noise = ring(256, generator), torch.randn(256, 2, generator=generator)
        sigma = (-0.7 + 1.4 * torch.randn(256, generator=generator)).exp().clamp(0.01, HIGH)
        denoised = KIND.denoise(network, points + sigma[:, None] * noise, sigma)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        loss = (weight[:, None] * (denoised - points) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return RingPrior(network)


class PointAPFO(APFO):
    """APFO whose D_phi is the point itself."""

    trains_phi = False


def move(guidance: Guidance, phi: PhiSettings, rate: float | None) -> Callable[[RingPrior, int, int, int], Tensor]:
    def run(prior: RingPrior, count: int, iterations: int, seed: int) -> Tensor:
        start = START_STD * torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(seed))
        scene = ImageScene(start, learning_rate=rate)
        optimise(scene, prior, Schedule(log_uniform(HIGH, LOW, iterations)), guidance, phi, seed=seed)
        return scene.values.detach().flatten(1)

    return run


def own_sampler(prior: RingPrior, count: int, iterations: int, seed: int) -> Tensor:
    noise = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(seed))
    return heun(prior, noise, karras(HIGH, LOW, max(2, iterations // 2))).flatten(1)


METHODS: dict[str, Callable[[RingPrior, int, int, int], Tensor]] = {
    "own sampler": own_sampler,
    "APFO": move(APFO(), PhiSettings(learning_rate=1e-2), None),
    "APFO, phi at random levels": move(APFO(), PhiSettings(learning_rate=1e-2, level="random"), None),
    "APFO, frozen phi": move(APFO(), PhiSettings(learning_rate=0.0), None),
    "APFO, exact point phi": move(PointAPFO(), PhiSettings(), None),
    "VSD": move(VSD(), PhiSettings(learning_rate=1e-2), 0.02),
    "SDS": move(SDS(), PhiSettings(), 0.02),
}


def scores(points: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """(distance, diversity, share off the modes)."""
    within, spread = mean_distance(points), mean_distance(truth)
    distance = 2 * torch.cdist(points, truth).mean().item() - within - spread
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    modes = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    off = (torch.cdist(points, modes).amin(1) > 4 * WIDTH).float().mean().item()
    return distance, within / spread, off


def mean_distance(points: Tensor) -> float:
    """Mean Euclidean distance between two different rows."""
    return (torch.cdist(points, points).sum() / (len(points) * (len(points) - 1))).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, nargs="+", default=[25, 100, 500])
    options = parser.parse_args()
    prior, truth = train(), ring(2000, torch.Generator().manual_seed(1))
    print(f"{'':28s}{'iterations':>10s}{'distance':>18s}{'diversity':>18s}{'off the modes':>18s}")
    for iterations in options.iterations:
        for name, method in METHODS.items():
            rows = [scores(method(prior, options.count, iterations, s), truth) for s in range(options.seeds)]
            values = torch.tensor(rows)
            cells = zip(values.mean(0).tolist(), values.std(0, correction=0).tolist())
            print(f"{name:28s}{iterations:10d}" + "".join(f"{m:10.4f} ±{s:6.4f}" for m, s in cells), flush=True)


if __name__ == "__main__":
    main()
