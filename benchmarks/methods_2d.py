"""APFO, VSD, SDS and the model's own sampler in 2D, at equal numbers of network evaluations.

    python benchmarks/methods_2d.py [--count 16] [--seeds 3] [--evaluations 50 200 1000] [--methods apfo vsd]
                                    [--sweep] [--out evaluation/methods-2d]

Every method makes `count` images from noise under one prompt with many modes (view, background, phase,
scale and direction of the pattern are open). What is printed, mean and spread over seeds:

- distance: squared energy distance to 256 samples of the model's own sampler (Heun, 71 evaluations of each
  network) in the judge's feature space, unbiased: 0 for the same distribution, and negative by chance;
- diversity: mean distance between two images of a run over that of the reference;
- sharpness: mean squared Laplacian over that of the reference;
- shape, pattern, colour: share that the judge grades as prompted.

An evaluation is one image through the network once: guidance takes 2, phi 1 where its score and its loss
share one forward pass, else 2. `--sweep` prints instead the settings that the baselines were chosen from.
The reference samples are kept in the output folder for the next run with the same weights. Beside them
lies a picture for each number of evaluations: a row per method, of the first seed.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dreamflow_core.demo.judge import Judge, grade, load_judge, sharpness
from dreamflow_core.demo.model import MODELS, DemoModel, load_model
from dreamflow_core.demo.vocabulary import parse
from dreamflow_core.guidance import METHODS
from dreamflow_core.pictures import contact_sheet, save_picture
from dreamflow_core.pipeline import images
from dreamflow_core.priors.demo import DemoPrior
from dreamflow_core.sampler import heun
from dreamflow_core.schedule import karras
from dreamflow_core.settings.stages import PHI_LEVELS, ImageSettings, PhiSettings, ScheduleSettings
from dreamflow_core.state import load_state, make_generator, save_state

PROMPT = "a red and blue striped duck"
CFG = 1.5
SIZE = (64, 64)
REFERENCE = 256
SHOWN = 8
BEST = {
    "apfo": ImageSettings(method="apfo"),
    "vsd": ImageSettings(method="vsd", learning_rate=0.1, schedule=ScheduleSettings(start=0.9, end=0.2)),
    "sds": ImageSettings(method="sds", learning_rate=1.0, schedule=ScheduleSettings(start=0.9, end=0.2)),
}
"""APFO's are the defaults; those of VSD and SDS have the least distance in `--sweep` at 200 evaluations among the
ones that give at least three images in four the prompted colours."""


@dataclass(frozen=True)
class Scores:
    """What is measured of one run; see the module's docstring."""

    distance: float
    diversity: float
    sharpness: float
    shape: float
    pattern: float
    colour: float


class Reference:
    """Samples of the model's own sampler, and what runs are compared with."""

    def __init__(self, model: DemoModel, judge: Judge, folder: Path):
        self.judge = judge
        samples = reference_samples(model, folder / "reference.safetensors")
        self.features = judge.features(samples)
        self.spread = mean_distance(self.features)
        self.sharpness = sharpness(samples)

    def score(self, made: Tensor) -> Scores:
        features = self.judge.features(made)
        across = torch.cdist(features, self.features).mean().item()
        within = mean_distance(features)
        verdict = grade(self.judge, made, [parse(PROMPT)] * len(made))
        met = (getattr(verdict, name).float().mean().item() for name in ("shape", "pattern", "colour"))
        distance = 2 * across - within - self.spread
        return Scores(distance, within / self.spread, sharpness(made) / self.sharpness, *met)


def reference_samples(model: DemoModel, path: Path) -> Tensor:
    """(REFERENCE, 3, 64, 64) in [0, 1] by the model's own sampler, read from `path` if made from these weights."""
    weights = zlib.crc32(MODELS["demo"].read_bytes())
    if path.exists() and (kept := load_state(path))["weights"] == weights:
        return kept["samples"]
    samples = torch.cat([own_sampler(model, 32, 142, seed) for seed in range(1000, 1000 + REFERENCE // 32)])
    save_state(path, {"weights": weights, "samples": samples})
    return samples


def mean_distance(features: Tensor) -> float:
    """Mean Euclidean distance between two different rows."""
    count = len(features)
    return (torch.cdist(features, features).sum() / (count * (count - 1))).item()


@torch.no_grad()
def own_sampler(model: DemoModel, count: int, evaluations: int, seed: int) -> Tensor:
    """Heun's method with as many levels as the evaluations allow, two networks each."""
    prior = DemoPrior(model, PROMPT, cfg=CFG)
    steps = max(2, (evaluations // 2 + 1) // 2)
    levels = karras(model.config.sigma_max, 2 * model.config.sigma_min, steps)
    noise = torch.randn(count, 3, *SIZE, generator=make_generator(seed, "start"))
    return prior.decode(heun(prior, noise, levels))


def evaluations_per_iteration(settings: ImageSettings) -> int:
    phi = {"current": 1, "random": 2}[settings.phi.level] if METHODS[settings.method].trains_phi else 0
    return 2 + phi


def optimised(settings: ImageSettings) -> Callable[[DemoModel, int, int, int], Tensor]:
    def run(model: DemoModel, count: int, evaluations: int, seed: int) -> Tensor:
        levels = replace(settings.schedule, levels=evaluations // evaluations_per_iteration(settings))
        chosen = replace(settings, count=count, seed=seed, schedule=levels)
        return images(DemoPrior(model, PROMPT, cfg=CFG), chosen, SIZE)

    return run


def print_row(name: str, evaluations: int, scores: list[Scores]) -> None:
    values = torch.tensor([list(vars(s).values()) for s in scores])
    mean, spread = values.mean(0), values.std(0, correction=0)
    cells = "".join(f"{m:8.3f} ±{s:5.3f}" for m, s in zip(mean.tolist(), spread.tolist()))
    print(f"{name:28s}{evaluations:6d}{cells}", flush=True)


def sweep_settings() -> Iterable[tuple[str, ImageSettings]]:
    """Settings to choose `BEST` from; names begin with the method's."""
    for method in ("vsd", "sds"):
        for rate in (0.03, 0.1, 0.3, 1.0):
            for end in (0.02, 0.2):
                schedule = ScheduleSettings(start=0.9, end=end)
                chosen = ImageSettings(method=method, learning_rate=rate, schedule=schedule)
                yield f"{method} lr {rate} end {end}", chosen
    for level in PHI_LEVELS:
        for rate in (1e-3, 3e-3, 1e-2, 3e-2):
            yield f"apfo phi {level} lr {rate}", ImageSettings(phi=PhiSettings(learning_rate=rate, level=level))
    for noise in (0.1, 0.5):
        yield f"apfo start noise {noise}", ImageSettings(start_noise=noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--methods", nargs="+", choices=["own", *BEST], default=["own", *BEST])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("evaluation/methods-2d"))
    options = parser.parse_args()
    model, judge = load_model(MODELS["demo"]), load_judge()
    reference = Reference(model, judge, options.out)
    if options.sweep:
        tried = sweep_settings()
        methods = {name: optimised(settings) for name, settings in tried if name.split()[0] in options.methods}
    else:
        known = {"own": own_sampler} | {name: optimised(settings) for name, settings in BEST.items()}
        methods = {name: known[name] for name in options.methods}
    print(f"'{PROMPT}', {options.count} images, {options.seeds} seeds, mean ± spread over seeds")
    print(f"two images of the reference are {reference.spread:.1f} apart on average")
    print(f"{'':28s}{'NFE':>6s}" + "".join(f"{name:>15s}" for name in Scores.__dataclass_fields__))
    for evaluations in options.evaluations:
        shown = []
        for name, method in methods.items():
            made = [method(model, options.count, evaluations, seed) for seed in range(options.seeds)]
            print_row(name, evaluations, [reference.score(batch) for batch in made])
            shown.append(made[0][:SHOWN])
        save_picture(options.out / f"{evaluations}.png", contact_sheet(torch.cat(shown), columns=len(shown[0])))


if __name__ == "__main__":
    main()
