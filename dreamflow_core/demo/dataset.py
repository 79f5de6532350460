"""Training images of the demo domain, painted anew for every batch.

Tracing a shape is slow and painting it is fast, so a `SurfaceBank` holds traced views and every batch
gives them random patterns, colours and backgrounds together with the words that describe them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..cameras import Cameras
from ..views import View
from . import truth
from .shapes import SHAPES, WITH_FRONT
from .truth import BACKGROUNDS, COLOURS, PATTERNS, Pattern, Surface
from .vocabulary import SLOTS, without_side

HALVES = ("model", "judge")
"""The views are split in cells of a chequerboard over azimuth and elevation: the model trains on the
one colour, the judge on the other, so the judge never grades by views the model has memorised."""
_CELL = (10.0, 5.0)

DROP = {"shape": 0.05, "colour": 0.08, "second": 0.08, "pattern": 0.05, "view": 0.1, "background": 0.0}
"""How often a slot is left open although the image has it, so that partial prompts work."""
DROP_ALL = 0.1
"""How often everything is left open: what classifier-free guidance needs."""
OPEN_BACKGROUND = 0.4
"""How often the background is any colour at all and its slot open."""
EITHER_SIDE_CHANCE = 0.25
"""How often the words leave open which side a view is from."""

EIGHTHS = {"plain": 1, "striped": 1, "checkered": 3, "spotted": 3}
"""Share of a batch that has each pattern, in eighths: what is hard to learn is shown more often."""


@dataclass(frozen=True)
class Batch:
    """Images and their descriptions.

    Attributes:
        images: (B, 3, H, W) in [-1, 1].
        truth: (B, slots) what the image shows, as `Description.indices`; 0 where it has no word.
        words: (B, slots) what the prompt says of it: `truth` with some slots left open.
        alpha: (B, 1, H, W) coverage in [0, 1].
        position: (B, 3, H, W) of the surface, as in `Surface`.
        cameras: B of them, on the CPU.
    """

    images: Tensor
    truth: Tensor
    words: Tensor
    alpha: Tensor
    position: Tensor
    cameras: Cameras

    def view(self) -> View:
        """What the cameras see, without colours and normals."""
        eyes = self.cameras.position().to(self.position)[:, :, None, None]
        depth = (self.position - eyes).norm(dim=1, keepdim=True) * (self.alpha > 0)
        return View(torch.zeros_like(self.position), self.alpha, depth, torch.zeros_like(self.position))


def in_half(azimuth: Tensor, elevation: Tensor, half: str) -> Tensor:
    """Whether views (degrees) belong to one of `HALVES`; bool of the inputs' shape."""
    cell = (azimuth / _CELL[0]).floor() + (elevation / _CELL[1]).floor()
    return (cell % 2).long() == HALVES.index(half)


def _half_cameras(count: int, half: str, generator: torch.Generator) -> Cameras:
    cameras = truth.random_cameras(3 * count + 64, generator)
    return cameras[in_half(cameras.azimuth, cameras.elevation, half)][:count]


class SurfaceBank:
    """Traced views of every shape, kept in half precision.

    Args:
        size: image size in pixels.
        views: views per shape.
        half: which of `HALVES` the views come from.
        seed: of the cameras.
        cache: folder to keep traced banks in, or None.
        device: where they are kept and painted.

    Memory: 9 bytes a pixel.
    """

    def __init__(
        self, size: int, views: int, half: str, seed: int, cache: Path | None = None, device: torch.device | None = None
    ):
        self.views, self.pixel, self.device = views, 0.0, device or torch.device("cpu")
        path = cache and cache / f"surfaces-{size}px-{views}-{half}-{seed}.safetensors"
        stored = load_file(path) if path and path.exists() else self._trace(size, views, half, seed)
        if path and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(stored, path)
        self.alpha, self.shade, self.position = (stored[n].to(self.device) for n in ("alpha", "shade", "position"))
        self.cameras = truth.demo_cameras(stored["azimuth"], stored["elevation"])
        names = self.cameras.view_names()
        self.view, self.pixel = torch.tensor([_VIEW.index(name) for name in names]), float(stored["pixel"])

    @staticmethod
    def _trace(size: int, views: int, half: str, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        parts: dict[str, list[Tensor]] = {n: [] for n in ("alpha", "shade", "position", "azimuth", "elevation")}
        for shape in SHAPES:
            cameras = _half_cameras(views, half, generator)
            for start in range(0, views, 50):
                chunk = cameras[slice(start, start + 50)]
                surface = truth.trace(shape, chunk, size)
                parts["alpha"].append((surface.alpha * 255).round().byte())
                parts["shade"].append((surface.shade() * 255).round().byte())
                parts["position"].append(surface.position.half())
                parts["azimuth"].append(chunk.azimuth)
                parts["elevation"].append(chunk.elevation)
        stored = {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}
        return {**stored, "pixel": torch.tensor(surface.pixel)}

    def batch(
        self,
        count: int,
        generator: torch.Generator,
        variety: float = 1.0,
        paint: Callable[..., Tensor] = truth.paint,
    ) -> Batch:
        """`count` random images, a multiple of 8.

        Args:
            variety: of their patterns, as `Pattern.sample` takes it.
            paint: `truth.paint`, or one of `truth.LOOKS`.
        """
        parts = [
            self._paint(kind, count * eighths // 8, generator, variety, paint) for kind, eighths in EIGHTHS.items()
        ]
        images, shown, alpha, position, index = (torch.cat(part) for part in zip(*parts))
        words = _leave_open(shown, generator)
        return Batch(images * 2 - 1, shown, words, alpha, position, self.cameras[index])

    def _paint(
        self, kind: str, count: int, generator: torch.Generator, variety: float, paint: Callable[..., Tensor]
    ) -> tuple[Tensor, ...]:
        def draw(limit: int) -> Tensor:
            return torch.randint(limit, (count,), generator=generator)

        # There is more to learn of a shape that has a front.
        shares = torch.tensor([2.0 if name in WITH_FRONT else 1.0 for name in SHAPES])
        shape = torch.multinomial(shares, count, replacement=True, generator=generator)
        index = shape * self.views + draw(self.views)
        colour = draw(len(COLOURS))
        second = (colour + 1 + draw(len(COLOURS) - 1)) % len(COLOURS)
        background = draw(len(BACKGROUNDS))
        is_open = torch.rand(count, generator=generator) < OPEN_BACKGROUND
        palette, backdrops = torch.tensor(list(COLOURS.values())), torch.tensor(list(BACKGROUNDS.values()))
        any_colour = torch.rand(count, 3, generator=generator)
        behind = torch.where(is_open[:, None], any_colour, backdrops[background])

        alpha, shade = self.alpha[index].float() / 255, self.shade[index].float() / 255
        position = self.position[index].float()
        surface = Surface(alpha, position, torch.zeros_like(position), torch.zeros_like(alpha), self.pixel)
        mask = Pattern.sample(kind, count, generator, variety).mask(surface)
        colours = (c.to(self.device) for c in (palette[colour], palette[second], behind))
        images = paint(alpha, shade, mask, *colours)
        shown = torch.stack(
            [
                1 + shape,
                1 + colour,
                torch.zeros_like(second) if kind == "plain" else 1 + second,
                torch.full_like(index, 1 + PATTERNS.index(kind)),
                1 + self.view[index],
                torch.where(is_open, 0, 1 + background),
            ],
            dim=1,
        )
        return images, shown, alpha, position, index


_VIEW = SLOTS["view"]
_WITHOUT_SIDE = torch.tensor([0, *(1 + _VIEW.index(without_side(name)) for name in _VIEW)])
"""The index of each value of the view's slot, less which side it is from."""


def _leave_open(shown: Tensor, generator: torch.Generator) -> Tensor:
    """Words (B, slots) that say what is shown, but not all of it."""
    shown, views = shown.clone(), list(SLOTS).index("view")
    either = torch.rand(len(shown), generator=generator) < EITHER_SIDE_CHANCE
    shown[either, views] = _WITHOUT_SIDE[shown[either, views]]
    chance = torch.tensor([DROP[name] for name in SLOTS])
    dropped = torch.rand(shown.shape, generator=generator) < chance
    dropped |= torch.rand(len(shown), 1, generator=generator) < DROP_ALL
    return shown.masked_fill(dropped, 0)
