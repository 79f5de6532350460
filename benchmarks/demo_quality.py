"""How well the demo model follows its prompts, by the judge and by colour statistics.

    python benchmarks/demo_quality.py [--prompts 500] [--cfg 2] [--steps 18] [--seed 0] [--out evaluation/demo]

Prompts are drawn evenly from all combinations of shape, colours, pattern, view and background. Prints a
table, the same table for true renders (the judge's own ceiling), and writes the worst cases as a picture
with their prompts. Samples by Heun's method, 2 * steps - 1 evaluations.

Then where the model goes wrong: about 100 true renders are noised to a level and brought back by the model's flow.
What is still as prompted from a level on is settled above it.

Then the refiner: about 100 samples of all patterns are enlarged to its size and taken through its flow from a noise of
0.3 down. Prints what the judge says of them and how sharp they are, against true renders of that size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamflow_core.demo import truth
from dreamflow_core.demo.dataset import in_half
from dreamflow_core.demo.judge import Judge, Verdict, grade, load_judge, sharpness
from dreamflow_core.demo.model import MODELS, DemoModel, load_model
from dreamflow_core.demo.truth import BACKGROUNDS, COLOURS, PATTERNS, Pattern
from dreamflow_core.demo.vocabulary import SLOTS, Description, all_descriptions, without_side
from dreamflow_core.pictures import contact_sheet, save_picture
from dreamflow_core.prior import guide
from dreamflow_core.priors.demo import CFG
from dreamflow_core.sampler import heun
from dreamflow_core.schedule import karras
from dreamflow_core.state import make_generator, write_bytes

GRADES = ("shape", "pattern", "colour", "view")
BROUGHT_BACK, LEVELS = 100, (0.5, 1.0, 2.0, 4.0, 8.0)
"""About how many images are noised and brought back, and from where."""
REFINE_SIGMA = 0.3
"""Likewise for the refiner."""


class PromptPerSample:
    """A session of the demo model in which every latent has a prompt of its own."""

    device = torch.device("cpu")

    def __init__(self, model: DemoModel, descriptions: Sequence[Description], cfg: float):
        self.model, self.cfg = model, cfg
        self.positive = model.text_encoder.encode(descriptions)
        self.negative = model.text_encoder.encode([Description()]).expand_as(self.positive)

    def denoise(self, z_t: Tensor, sigma: float, views: None, *, guided: bool) -> Tensor:
        levels = torch.full((len(z_t),), sigma)
        conditional = self.model(z_t, levels, self.positive)
        return conditional if self.cfg == 1 else guide(conditional, self.model(z_t, levels, self.negative), self.cfg)


def draw_prompts(count: int, seed: int) -> list[Description]:
    """`count` descriptions with every slot said, each pattern equally often."""
    generator = make_generator(seed, "prompts")
    chosen: list[Description] = []
    for i, kind in enumerate(PATTERNS):
        pool = [d for d in all_descriptions(SLOTS) if d.pattern == kind]
        share = (count + i) // len(PATTERNS)
        chosen += [pool[j] for j in torch.randperm(len(pool), generator=generator)[:share].tolist()]
    return chosen


@torch.no_grad()
def sample(model: DemoModel, descriptions: Sequence[Description], cfg: float, steps: int, seed: int) -> Tensor:
    """(B, 3, size, size) in [0, 1]."""
    generator, size = make_generator(seed, "samples"), model.config.size
    levels = karras(model.config.sigma_max, 2 * model.config.sigma_min, steps)
    made = []
    for start in range(0, len(descriptions), 50):
        part = descriptions[start : start + 50]
        noise = torch.randn(len(part), 3, size, size, generator=generator)
        made.append(heun(PromptPerSample(model, part, cfg), noise, levels))
    return (torch.cat(made) / 2 + 0.5).clamp(0, 1)


def enlarge(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, (size, size), mode="bilinear")


@torch.no_grad()
def bring_back(
    model: DemoModel, images: Tensor, descriptions: Sequence[Description], sigma: float, options: argparse.Namespace
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], noised to `sigma` and brought back by the model's flow."""
    generator = make_generator(options.seed, "noise")
    levels = karras(sigma, 2 * model.config.sigma_min, 8)
    made = []
    for part, texts in zip(images.split(20), (descriptions[i : i + 20] for i in range(0, len(images), 20))):
        # Heun's start is pure noise of the first level; the image rides on it.
        noise = torch.randn(part.shape, generator=generator) + (part * 2 - 1) / sigma
        made.append(heun(PromptPerSample(model, texts, options.cfg), noise, levels))
    return (torch.cat(made) / 2 + 0.5).clamp(0, 1)


def true_renders(descriptions: Sequence[Description], size: int, seed: int) -> Tensor:
    """A true render of each description, from views the model never saw."""
    generator = make_generator(seed, "truth")
    images = []
    for d in descriptions:
        while True:
            cameras = truth.random_cameras(1, generator)
            (name,) = cameras.view_names()
            if d.view in (name, without_side(name)) and in_half(cameras.azimuth, cameras.elevation, "judge"):
                break
        surface = truth.trace(d.shape, cameras, size)
        mask = Pattern.sample(d.pattern, 1, generator).mask(surface)
        colours = [COLOURS[d.colour], COLOURS[d.second or d.colour], BACKGROUNDS[d.background]]
        images.append(truth.paint(surface.alpha, surface.shade(), mask, *(torch.tensor([c]) for c in colours)))
    return torch.cat(images)


def table(verdict: Verdict, descriptions: Sequence[Description]) -> dict[str, dict[str, float]]:
    """Percentages met: overall, and by shape, by pattern and by view."""
    rows = {"all": torch.ones(len(descriptions), dtype=torch.bool)}
    for slot in ("shape", "pattern", "view"):
        for value in SLOTS[slot]:
            rows[value] = torch.tensor([getattr(d, slot) == value for d in descriptions])
    met = {name: getattr(verdict, name).float() for name in GRADES}
    return {row: {name: 100 * met[name][which].mean().item() for name in GRADES} for row, which in rows.items()}


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'':12s}" + "".join(f"{name:>10s}" for name in GRADES))
    for row, values in rows.items():
        print(f"{row:12s}" + "".join(f"{values[name]:9.1f}%" for name in GRADES))


def write_failures(images: Tensor, descriptions: Sequence[Description], verdict: Verdict, out: Path) -> None:
    """The failed images side by side, and what each was asked for and failed in."""
    failed = [i for i in range(len(images)) if not all(getattr(verdict, g)[i] for g in GRADES[:3])][:48]
    if not failed:
        return
    sheet = contact_sheet(images[failed], columns=8)
    save_picture(out / "failures.png", sheet)
    lines = [
        f"{n}: {descriptions[i].prompt()}: {', '.join(g for g in GRADES[:3] if not getattr(verdict, g)[i])}"
        for n, i in enumerate(failed)
    ]
    write_bytes(out / "failures.txt", "\n".join(lines).encode())


def evaluate_levels(
    model: DemoModel, judge: Judge, images: Tensor, descriptions: Sequence[Description], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Grades of true renders that were noised to each of `LEVELS` and brought back."""
    rows = {}
    for sigma in LEVELS:
        back = bring_back(model, images, descriptions, sigma, options)
        rows[f"from {sigma:g}"] = table(grade(judge, back, descriptions), descriptions)["all"]
    return rows


def evaluate_refiner(
    model: DemoModel, judge: Judge, images: Tensor, descriptions: Sequence[Description], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Sharpness and grades of enlarged, refined and true images."""
    size = model.config.size
    enlarged = enlarge(images, size)
    refined = bring_back(model, enlarged, descriptions, REFINE_SIGMA, options)
    true = true_renders(descriptions, size, options.seed)
    shown = torch.cat([enlarged[::12], refined[::12]])
    save_picture(options.out / "refined.png", contact_sheet(shown, columns=len(shown) // 2))
    rows = {}
    for name, batch in (("enlarged", enlarged), ("refined", refined), ("true", true)):
        grades = table(grade(judge, batch, descriptions), descriptions)["all"]
        rows[name] = {**grades, "sharpness": sharpness(batch) / sharpness(true)}
    print(f"\nrefiner, {len(refined)} images of {size} px from noise {REFINE_SIGMA}; sharpness over the truth's")
    print(f"{'':12s}" + "".join(f"{name:>10s}" for name in rows["true"]))
    for name, row in rows.items():
        print(f"{name:12s}" + "".join(f"{value:10.2f}" for value in row.values()))
    return rows


def evaluate(model: DemoModel, judge: Judge, options: argparse.Namespace) -> None:
    descriptions = draw_prompts(options.prompts, options.seed)
    images = sample(model, descriptions, options.cfg, options.steps, options.seed)
    verdict = grade(judge, images, descriptions)
    true = true_renders(descriptions, model.config.size, options.seed)
    tables = {"model": table(verdict, descriptions), "truth": table(grade(judge, true, descriptions), descriptions)}
    print_table(
        f"demo model, {options.prompts} prompts, cfg {options.cfg}, {2 * options.steps - 1} steps", tables["model"]
    )
    print_table("true renders, judged the same way", tables["truth"])
    write_failures(images, descriptions, verdict, options.out)
    save_picture(options.out / "samples.png", contact_sheet(images[:: max(1, len(images) // 64)][:64], columns=8))
    some = range(0, len(images), max(1, len(images) // BROUGHT_BACK))
    fewer = [descriptions[i] for i in some]
    tables["levels"] = evaluate_levels(model, judge, true[list(some)], fewer, options)
    print_table(f"{len(some)} true renders, noised and brought back", tables["levels"])
    tables["refiner"] = evaluate_refiner(load_model(options.refiner), judge, images[list(some)], fewer, options)
    write_bytes(options.out / "quality.json", json.dumps(tables, indent=2).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODELS["demo"])
    parser.add_argument("--refiner", type=Path, default=MODELS["demo-refiner"])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--cfg", type=float, default=CFG)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("evaluation/demo"))
    options = parser.parse_args()
    evaluate(load_model(options.model), load_judge(), options)


if __name__ == "__main__":
    main()
