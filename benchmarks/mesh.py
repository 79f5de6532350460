"""Times of the way from a density field to a textured file.

    python benchmarks/mesh.py

Prints CPU seconds, which other work on the machine disturbs less than the clock does; ratios travel better
between machines than times do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dreamflow_core.demo.shapes import SHAPES
from dreamflow_core.mesh import unwrap
from dreamflow_core.mesh.bake import bake
from dreamflow_core.mesh.extract import extract, sample_grid, simplify
from dreamflow_core.mesh.precondition import Preconditioner
from dreamflow_core.mesh.threshold import automatic_threshold

EXTENT = 1.1
TEXTURE = 1024


def timed(what: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds that the work takes, and its result."""
    start = time.process_time()
    result = work()
    seconds = time.process_time() - start
    print(f"{what:<56}{seconds:8.2f} s", flush=True)
    return seconds, result


def density(points: np.ndarray) -> np.ndarray:
    return 100 * torch.sigmoid(-SHAPES["duck"](torch.from_numpy(points)) / 0.01).numpy()


def main() -> None:
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


if __name__ == "__main__":
    main()
