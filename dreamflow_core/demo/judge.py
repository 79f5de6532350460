"""The judge of demo images: a classifier for shape, pattern and view, and statistics for colour.

It is trained on the truth renderer with views that the demo model never saw (`dataset.HALVES`):
`python -m dreamflow_core.demo.judge`. It only grades; nothing is ever optimised against it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dataset import Batch, SurfaceBank
from .model import WEIGHTS, load_tensors, write_tensors
from .truth import COLOURS
from .vocabulary import SLOTS, Description, without_side

log = logging.getLogger(__name__)

SIZE = 64
"""The judge looks at images of this many pixels a side; larger ones are averaged down."""
CLASSES = {
    "shape": SLOTS["shape"],
    "pattern": SLOTS["pattern"],
    "view": tuple(dict.fromkeys(without_side(name) for name in SLOTS["view"])),
}
"""What is graded and its classes. Which side a view is from is not: many shapes look alike from both."""
_FORMAT = "dreamflow-judge"
VARIETY = 2.0
"""Of the patterns that it is trained on: a pattern counts as such at other scales than the domain's too."""
_SHARE = {1: 0.6, 2: 0.08}
"""Least share of the object that each prompted colour covers, for one and for two colours."""


class Judge(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> logits of each of `CLASSES` and 128 features."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * (SIZE // 16) ** 2, 128)
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in CLASSES.items()})

    def features(self, images: Tensor) -> Tensor:
        """(B, 128): the space in which distributions of images are compared."""
        small = F.adaptive_avg_pool2d(images, SIZE) if images.shape[-1] > SIZE else images
        return F.silu(self.hidden(self.body(small * 2 - 1).flatten(1)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Verdict:
    """Per image, whether it has what its prompt asked for; each a bool (B,) tensor.

    A slot that the prompt leaves open counts as met.
    """

    shape: Tensor
    pattern: Tensor
    view: Tensor
    colour: Tensor


@torch.no_grad()
def grade(judge: Judge, images: Tensor, descriptions: Sequence[Description]) -> Verdict:
    """Grade images (B, 3, H, W) in [0, 1], each against its description."""
    logits = judge(images)
    met = {}
    for name, values in CLASSES.items():
        found = logits[name].argmax(1).tolist()
        asked = [getattr(d, name) for d in descriptions]
        met[name] = torch.tensor([a is None or values[f] == without_side(a) for f, a in zip(found, asked)])
    colour = torch.tensor([_has_colours(image, d) for image, d in zip(images, descriptions)])
    return Verdict(colour=colour, **met)


def colour_shares(image: Tensor) -> dict[str, float]:
    """Share of the object that each colour covers.

    The object is what differs from the border's median colour, less its outermost pixel. A pixel
    counts for the palette colour it is closest to at any brightness the light can give it.
    """
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    background = border.median(dim=1).values
    differs = ((image - background[:, None, None]).abs().amax(0) > 0.15).float()[None]
    inside = -F.max_pool2d(-differs, 3, stride=1, padding=1)[0] > 0
    pixels = image[:, inside].T
    if len(pixels) == 0:
        return dict.fromkeys(COLOURS, 0.0)
    palette = torch.tensor(list(COLOURS.values()))
    brightness = (pixels @ palette.T / palette.square().sum(1)).clamp(0.4, 1.05)
    nearest = (pixels[:, None] - brightness[..., None] * palette).norm(dim=-1).argmin(1)
    counts = torch.bincount(nearest, minlength=len(COLOURS)) / len(pixels)
    return dict(zip(COLOURS, counts.tolist()))


def _has_colours(image: Tensor, description: Description) -> bool:
    """Whether the prompted colours are the commonest on the object, each covering enough of it."""
    asked = [c for c in (description.colour, description.second) if c is not None]
    if not asked:
        return True
    shares = colour_shares(image)
    commonest = sorted(shares, key=lambda name: -shares[name])[: len(asked)]
    return set(commonest) == set(asked) and all(shares[c] >= _SHARE[len(asked)] for c in asked)


def sharpness(images: Tensor) -> float:
    """Mean squared Laplacian of images (B, 3, H, W): the energy of their fine detail, noise included."""
    kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    return F.conv2d(images, kernel, groups=3).square().mean().item()


def load_judge(path: Path = WEIGHTS / "judge.safetensors") -> Judge:
    """The trained judge. Raises BadFile if the file is missing, broken or something else."""
    tensors, _ = load_tensors(path, _FORMAT, "a judge")
    judge = Judge()
    judge.load_state_dict(tensors)
    return judge.requires_grad_(False).eval()


def train(work: Path, out: Path, steps: int = 2500, count: int = 64, learning_rate: float = 2e-3) -> None:
    """Train the judge and write it to `out`; traced views are kept in `work`."""
    bank = SurfaceBank(SIZE, views=600, half="judge", seed=1, cache=work)
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        judge = Judge()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.02)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    for step in range(1, steps + 1):
        batch = bank.batch(count, generator, variety=VARIETY)
        loss = _loss(judge, _roughen(batch.images / 2 + 0.5, generator), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        if step % 250 == 0:
            log.info("step %d of %d: loss %.4f", step, steps, loss.item())
    write_tensors(judge, out, _FORMAT, {"steps": json.dumps(steps)})


def _roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur or noise a part of the images a little, so that the judge looks at the object, not at pixels."""
    noise = 0.08 * torch.rand(len(images), 1, 1, 1, generator=generator)
    rough = images + noise * torch.randn(images.shape, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blur = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.3
    return torch.where(blur, blurred, rough)


def _loss(judge: Judge, images: Tensor, batch: Batch) -> Tensor:
    logits = judge(images)
    losses = []
    for name, values in CLASSES.items():
        classes = torch.tensor([values.index(without_side(value)) for value in SLOTS[name]])
        losses.append(F.cross_entropy(logits[name], classes[batch.truth[:, list(SLOTS).index(name)] - 1]))
    return torch.stack(losses).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the judge of demo images.")
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder for traced views")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "judge.safetensors", help="file to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
