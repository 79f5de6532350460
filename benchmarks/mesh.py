"""Times of the way from a density field to a textured file, and of setting up the stages that paint on a mesh.

    python benchmarks/mesh.py
    python benchmarks/mesh.py setup [--against ../another-checkout] [--sizes 4096] [--faces 10000 1000000]

Prints CPU seconds, which other work on the machine disturbs less than the clock does; ratios travel better
between machines than times do. Memory is the most that a process of its own took beyond what it had after
loading everything.

`setup` takes spheres with UVs of their own, in 256 charts, and a survey of their colours (`colour_drift`), as `refine`
does: from the mesh to the first iteration, and an iteration without its model. `--against` alternates with another
checkout, whose figures come first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamflow_core.cli.run import peak_memory
from dreamflow_core.demo.shapes import SHAPES
from dreamflow_core.mesh import unwrap
from dreamflow_core.mesh.bake import bake
from dreamflow_core.mesh.extract import extract, sample_grid, simplify
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.mesh.precondition import Preconditioner
from dreamflow_core.mesh.prepare import paintable
from dreamflow_core.mesh.threshold import automatic_threshold
from dreamflow_core.scenes.mesh import MeshScene
from dreamflow_core.settings.scenes import MeshSettings

EXTENT = 1.1
TEXTURE = 1024
CHARTS = 16
"""Of the spheres, along each side of their atlas."""
MARGIN = 0.05
"""Of a chart's cell that is left free at each side."""


def timed(what: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds that the work takes, and its result."""
    start = time.process_time()
    result = work()
    seconds = time.process_time() - start
    print(f"{what:<56}{seconds:8.2f} s", flush=True)
    return seconds, result


def density(points: np.ndarray) -> np.ndarray:
    return 100 * torch.sigmoid(-SHAPES["duck"](torch.from_numpy(points)) / 0.01).numpy()


def from_field_to_file() -> None:
    grid = sample_grid(density, 256, EXTENT)
    _, threshold = timed("automatic threshold, 256^3", lambda: automatic_threshold(grid, EXTENT))
    _, mesh = timed("extract (marching cubes, largest component), 256^3", lambda: extract(grid, EXTENT, threshold))
    print(f"  {len(mesh.faces)} faces")
    small = simplify(mesh, 10_000)
    _, large = timed("simplify to 50k faces", lambda: simplify(mesh, 50_000))
    split, _ = timed("unwrap 10k faces, split", lambda: unwrap.unwrap(small, TEXTURE))
    piece, unwrap._PIECE_FACES = unwrap._PIECE_FACES, len(small.faces)
    whole, _ = timed("unwrap 10k faces, unsplit", lambda: unwrap.unwrap(small, TEXTURE))
    unwrap._PIECE_FACES = piece
    print(f"  split / unsplit {split / whole:.2f}")
    _, (flat, _) = timed("unwrap 50k faces, split", lambda: unwrap.unwrap(large, TEXTURE))
    timed(f"bake 50k faces, {TEXTURE} px", lambda: bake(flat, TEXTURE, lambda points, _: 0.5 + 0.4 * np.sin(points)))
    _, preconditioner = timed("factorise 50k faces", lambda: Preconditioner(large.faces, len(large.vertices), 19.0))
    vertices = torch.from_numpy(large.vertices)
    timed("solve 50k faces, 10 times", lambda: [preconditioner.solve(vertices) for _ in range(10)])


def sphere(faces: int) -> Mesh:
    """A lumpy sphere with about so many faces and an atlas: a grid of latitudes and longitudes in square charts."""
    rows = max(round(math.sqrt(faces / 4) / CHARTS), 1)
    columns = 2 * rows
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    corner = np.arange(v.size).reshape(v.shape)
    a, b, c, d = (part.reshape(-1) for part in (corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]))
    one = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    cells = np.arange(CHARTS**2)
    chart = np.stack(np.divmod(cells, CHARTS)[::-1], axis=-1)[:, None]
    grid = np.stack([u, v], axis=-1).reshape(1, -1, 2)
    azimuth, polar = np.moveaxis((chart + grid) / CHARTS, -1, 0) * [[[2 * np.pi]], [[np.pi - 0.04]]]
    polar = polar + 0.02
    radius = 0.8 + 0.04 * np.sin(7 * polar) * np.sin(9 * azimuth)
    around = np.stack([np.sin(polar) * np.sin(azimuth), np.cos(polar), np.sin(polar) * np.cos(azimuth)], axis=-1)
    uvs = (chart + MARGIN + (1 - 2 * MARGIN) * grid) / CHARTS
    vertices = (radius[..., None] * around).reshape(-1, 3)
    all_faces = (one + v.size * cells[:, None, None]).reshape(-1, 3)
    return Mesh(vertices, all_faces, uvs=uvs.reshape(-1, 2), colours=0.5 + 0.4 * np.sin(3 * vertices))


def measure(size: int, faces: int, pictures: int) -> dict[str, float]:
    """CPU seconds and MiB of setting a stage up and of an iteration."""

    def set_up(mesh: Mesh, size: int) -> MeshScene:
        return MeshScene(paintable(mesh, size), MeshSettings(size=pictures, colour_drift=1 / 255), seed=0)

    def iterate(scene: MeshScene) -> None:
        scene.optimiser.zero_grad()
        scene.render(views).values.sum().backward()
        scene.optimiser.step()

    small, mesh = set_up(sphere(1000), 64), sphere(faces)
    views = small.sample_views(torch.Generator().manual_seed(0))
    iterate(small)
    seconds, memory = [time.process_time()], [peak_memory()["cpu"]]
    scene = set_up(mesh, size)
    for work in (lambda: None, lambda: iterate(scene), lambda: iterate(scene)):
        work()
        seconds.append(time.process_time())
        memory.append(peak_memory()["cpu"])
    return {
        "set-up s": seconds[1] - seconds[0],
        "set-up MiB": memory[1] - memory[0],
        # The first iteration makes Adam's state.
        "iteration s": seconds[3] - seconds[2],
        "iteration MiB": memory[3] - memory[0],
    }


def in_a_process(checkout: Path, size: int, faces: int, pictures: int) -> dict[str, float]:
    """What `measure` gives with the code of a checkout."""
    given = ["--sizes", str(size), "--faces", str(faces), "--pictures", str(pictures)]
    command = [sys.executable, __file__, "measure", *given]
    paths = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def set_ups(options: argparse.Namespace) -> None:
    """A row for each size and number of faces."""
    checkouts = [Path(__file__).resolve().parent.parent]
    if options.against:
        checkouts.insert(0, options.against.resolve())
    names = ("set-up s", "set-up MiB", "iteration s", "iteration MiB")
    print("| texels | faces | " + " | ".join(names) + " |\n" + "| --- " * (2 + len(names)) + "|", flush=True)
    for size in options.sizes:
        for faces in options.faces:
            found = [in_a_process(checkout, size, faces, options.pictures) for checkout in checkouts]
            cells = (
                ", ".join(f"{figures[name]:.{1 if name.endswith(' s') else 0}f}" for figures in found) for name in names
            )
            print(f"| {size} | {faces} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="file", choices=("file", "setup", "measure"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--faces", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--pictures", type=int, default=64, help="side of a picture, of which an iteration has four")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    options = parser.parse_args()
    if options.what == "measure":  # the process that `setup` starts
        print(json.dumps(measure(options.sizes[0], options.faces[0], options.pictures)))
    elif options.what == "setup":
        set_ups(options)
    else:
        from_field_to_file()


if __name__ == "__main__":
    main()
