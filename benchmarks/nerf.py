"""Time of the hash grid by backend, and of a render by part: python benchmarks/nerf.py [cpu | cuda]

Best of a few repetitions in milliseconds. On a busy machine trust the ratios only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreamflow_core.cameras import orbit
from dreamflow_core.render.backends import warp_works
from dreamflow_core.render.hashgrid import HashGrid, encode
from dreamflow_core.render.volume import composite, march
from dreamflow_core.scenes.nerf import NeRFScene
from dreamflow_core.settings.scenes import HashGridSettings, NeRFSettings

POINTS = 1 << 17
GRIDS = {
    "default": HashGridSettings(),
    "8 x 2, T 2^16": HashGridSettings(8, 2, 16, 16, 256),
    "16 x 2, T 2^19": HashGridSettings(16, 2, 19, 16, 2048),
}


def milliseconds(function: Callable[[], object], device: torch.device, repetitions: int = 5) -> float:
    """The shortest of some runs, after one that warms up."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


def time_encodings(device: torch.device) -> None:
    print(f"hash grid, {POINTS} points, forward + backward, ms: torch, Warp, torch / Warp")
    if not warp_works(device):
        return
    from dreamflow_core.render.hashgrid_warp import encode as encode_warp

    points = torch.rand(POINTS, 3, device=device) * 2 - 1
    for name, settings in GRIDS.items():
        grid = HashGrid(settings, torch.Generator().manual_seed(0)).to(device)
        for jacobian in (False, True):

            def run(implementation, grid=grid, jacobian=jacobian):
                grid.zero_grad(set_to_none=True)
                outputs = implementation(points, list(grid.tables), grid.resolutions, jacobian)
                sum(o.sum() for o in outputs if o is not None).backward()

            torch_time, warp_time = (milliseconds(lambda f=f: run(f), device) for f in (encode, encode_warp))
            label = name + (" with slopes" if jacobian else "")
            print(f"  {label:28} {torch_time:8.1f} {warp_time:8.1f} {torch_time / warp_time:6.2f}")


def time_render(device: torch.device, size: int) -> None:
    scene = NeRFScene(NeRFSettings(size=size), seed=0, device=device)
    views = orbit(4, 20.0, 3.0, 40.0)
    origins, directions = scene._rays(views, size)
    jitter = torch.full((len(origins),), 0.5, device=device)
    step = 2 / scene.settings.samples

    def march_all():
        return march(origins, directions, scene.occupancy, step, jitter)

    samples = march_all()
    points = samples.positions(origins, directions)
    density, colour, _ = (None if o is None else o.detach() for o in scene.field(points, 6.0))
    parts = {
        "march": march_all,
        "encode": lambda: scene.field.grid(points),
        "field (encode + heads)": lambda: scene.field(points, 6.0),
        "field with normals": lambda: scene.field(points, 6.0, True),
        "composite": lambda: composite(samples, density, colour),
        "render": lambda: scene.render(views),
        "render + backward": lambda: scene.render(views).values.sum().backward(),
        "occupancy update": lambda: _update(scene),
        "optimiser": scene.optimiser.step,
    }
    share = len(points) / (len(origins) * scene.settings.samples)
    print(f"4 views at {size} px, {len(points)} samples ({100 * share:.0f} % of all), ms")
    for name, part in parts.items():
        print(f"  {name:28} {milliseconds(part, device):8.1f}")


def _update(scene: NeRFScene) -> None:
    scene.iteration = 0
    scene._update_occupancy()


if __name__ == "__main__":
    chosen = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    time_encodings(chosen)
    time_render(chosen, 64)
