"""How fast rasterising is: torch against Warp and, where it is installed, nvdiffrast; part by part.

    python benchmarks/raster.py [--device cuda] [--size 512] [--views 2]

In brackets: how many times faster than torch, from the best of several alternating rounds of one run; times
themselves mean little on a busy machine. On the CPU the plan's figures are: visibility in torch 3.4 to 8 times
Warp's, a whole step 1.35 times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dreamflow_core.cameras import Cameras, orbit
from dreamflow_core.render.raster import BackendUnavailable, footprint, interpolate, rasterize, to_clip, visible
from dreamflow_core.render.silhouette import antialias, find_edges
from dreamflow_core.render.texture import mipmaps, sample


def sphere(rings: int, segments: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """A lumpy UV sphere: vertices (V, 3), texture coordinates (V, 2), faces (F, 3)."""
    v, u = torch.meshgrid(torch.linspace(0.01, 0.99, rings), torch.linspace(0, 1, segments + 1), indexing="ij")
    polar, azimuth = v * torch.pi, u * 2 * torch.pi
    direction = torch.stack([polar.sin() * azimuth.cos(), polar.cos(), polar.sin() * azimuth.sin()], dim=-1)
    vertices = direction * (0.9 + 0.05 * torch.sin(7 * azimuth) * torch.sin(5 * polar))[..., None]
    corner = torch.arange(rings * (segments + 1)).view(rings, segments + 1)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]
    faces = torch.cat([torch.stack([a, b, c], -1).view(-1, 3), torch.stack([b, d, c], -1).view(-1, 3)])
    return vertices.view(-1, 3).to(device), torch.stack([u, v], -1).view(-1, 2).to(device), faces.to(device)


def best(jobs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of each job: the best of alternating rounds, after one that is not counted."""
    seconds = dict.fromkeys(jobs, float("inf"))
    for lap in range(rounds + 1):
        for name, job in jobs.items():
            _wait(device)
            start = time.perf_counter()
            job()
            _wait(device)
            if lap:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def works(backend: str, clip: Tensor, faces: Tensor) -> bool:
    try:
        visible(clip, faces, (8, 8), backend)
    except BackendUnavailable:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size, device = (options.size, options.size), options.device

    vertices, uv, faces = sphere(101, 100, device)
    edges = find_edges(faces, vertices)
    cameras = orbit(options.views, 15.0, 3.0, 45.0)
    cameras = Cameras(*(x.to(device) for x in (cameras.azimuth, cameras.elevation, cameras.radius, cameras.fov)))
    matrices = cameras.world_to_clip()
    texture = torch.rand(1, 1024, 1024, 3, device=device, requires_grad=True)
    vertices.requires_grad_()

    def fragments(backend: str):
        clip = to_clip(vertices, matrices)
        return clip, rasterize(clip, faces, size, backend)

    def step(backend: str) -> Tensor:
        clip, seen = fragments(backend)
        place = interpolate(uv, faces, seen)
        colour = sample(mipmaps(texture), place, seen.view, footprint(uv, faces, seen))
        image = seen.image(torch.cat([colour, torch.ones_like(seen.depth)], dim=1))
        image = antialias(image, seen, clip, edges)
        image.square().sum().backward()
        return image

    with torch.no_grad():
        clip, seen = fragments("torch")
        place = interpolate(uv, faces, seen)
        image = seen.image(torch.ones_like(seen.depth))
    covered = len(seen.pixel) / (options.views * options.size**2)
    print(f"{len(faces)} faces, {options.views} views of {options.size} px, {covered:.0%} covered, on {device}")
    backends = [name for name in ("torch", "warp", "nvdiffrast") if works(name, clip, faces)]
    with torch.no_grad():
        ids = best(
            {name: lambda name=name: visible(clip, faces, size, name) for name in backends}, options.rounds, device
        )
        forward = best({name: lambda name=name: fragments(name) for name in backends}, options.rounds, device)
        parts = best(
            {
                "interpolate": lambda: interpolate(uv, faces, seen),
                "footprint": lambda: footprint(uv, faces, seen),
                "mipmaps": lambda: mipmaps(texture),
                "sample": lambda: sample(mipmaps(texture), place, seen.view, footprint(uv, faces, seen)),
                "antialias": lambda: antialias(image, seen, clip, edges),
            },
            options.rounds,
            device,
        )
    whole = best({name: lambda name=name: step(name) for name in backends}, options.rounds, device)
    for title, times in (("visibility", ids), ("rasterize, forward", forward), ("step with backward", whole)):
        entries = [f"{name} {1e3 * t:.1f} ms ({times['torch'] / t:.2f})" for name, t in times.items()]
        print(f"{title:20} " + "  ".join(entries))
    print("shared parts, forward: " + ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in parts.items()))


if __name__ == "__main__":
    main()
