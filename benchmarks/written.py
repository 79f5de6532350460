"""GLB files that the product writes, as three.js and Blender show them.

    python benchmarks/written.py --blender PYTHON

Every small file of tests/test_mesh_features.py is painted, all its colours turned round, and written back as a GLB;
so are meshes that come from no file. Each is drawn here and by three.js (tests/threejs.py), and by Blender where PYTHON
has its module (`pip install bpy`), base colours without light. Prints a Markdown table of the peak signal-to-noise
ratios of the worst view in dB.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_mesh_features import FEATURES, SIZE, VIEWS
from threejs import BACKGROUND, ThreeJs, framing, psnr, unlit_pictures

from dreamflow_core.demo.shapes import SHAPES
from dreamflow_core.mesh.bake import bake
from dreamflow_core.mesh.extract import extract, sample_grid, simplify
from dreamflow_core.mesh.files import load_mesh, save_mesh
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.mesh.prepare import paintable
from dreamflow_core.mesh.unwrap import unwrap

NOT_COMPARED = ("KHR_node_visibility",)
"""Neither program hides what it hides."""


def made(folder: Path) -> Iterator[tuple[str, Mesh, Path]]:
    """Names, meshes and the GLB files that they are written to."""
    grid = sample_grid(
        lambda points: 100 * torch.sigmoid(-SHAPES["duck"](torch.from_numpy(points)) / 0.02).numpy(), 48, 1.1
    )
    duck = replace(simplify(extract(grid, 1.1, 50.0), 800), unlit=True)
    own = {
        "extracted, a texture": bake(unwrap(duck, 128)[0], 128, lambda points, _: 0.5 + 0.4 * np.sin(3 * points)),
        "extracted, vertex colours": replace(duck, colours=0.5 + 0.4 * np.sin(3 * duck.vertices)),
    }
    for number, (name, mesh) in enumerate(own.items()):
        yield name, mesh, folder / f"own-{number}.glb"
    for name, build in FEATURES.items():
        if name not in NOT_COMPARED:
            place = folder / name
            place.mkdir()
            files = build(place)
            mesh = paintable(load_mesh(files[0] if isinstance(files, tuple) else files, kept_in="the GLB"), 64)
            yield name, replace(mesh, texture=1 - mesh.texture), folder / f"{name}.glb"


def by_blender(python: str, meshes: dict[Path, Mesh], folder: Path) -> dict[Path, Tensor]:
    """Pictures (B, 3, SIZE, SIZE) of GLB files by Blender."""
    axes = torch.stack(VIEWS.axes(), dim=1).tolist()
    cameras = [
        {"axes": of, "position": position, "fov": fov}
        for of, position, fov in zip(axes, VIEWS.position().tolist(), VIEWS.fov.tolist())
    ]
    files = []
    for path, mesh in meshes.items():
        centre, scale = framing(mesh)
        files.append(
            {"path": str(path), "pictures": str(path.with_suffix("")), "centre": centre.tolist(), "scale": scale}
        )
    job = folder / "job.json"
    job.write_text(json.dumps({"files": files, "cameras": cameras, "size": SIZE}))
    script = Path(__file__).with_name("blender_pictures.py")
    subprocess.run([python, script, job], check=True, stdout=subprocess.DEVNULL)
    return {
        path: torch.stack([picture(f"{path.with_suffix('')}-{n}.png") for n in range(len(VIEWS))]) for path in meshes
    }


def picture(path: str) -> Tensor:
    """A picture with alpha on the background, (3, H, W)."""
    with Image.open(path) as file:
        values = torch.from_numpy(np.asarray(file.convert("RGBA")).copy()).permute(2, 0, 1).float() / 255
    return values[:3] * values[3:] + (1 - values[3:]) * torch.tensor(BACKGROUND).view(3, 1, 1)


def worst(ours: Tensor, theirs: Tensor) -> str:
    return f"{min(psnr(one, other) for one, other in zip(ours, theirs)):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blender", metavar="PYTHON", help="a Python with the module bpy")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        meshes, names = {}, {}
        for what, mesh, path in made(folder):
            save_mesh(path, mesh)
            meshes[path], names[path] = mesh, what
        blender = by_blender(options.blender, meshes, folder) if options.blender else {}
        three = ThreeJs(folder / "browser")
        print("| file | three.js | Blender |\n| --- | --- | --- |")
        try:
            for path, mesh in meshes.items():
                ours = unlit_pictures(mesh, VIEWS, SIZE)
                theirs = worst(ours, three.pictures(path, mesh, VIEWS, SIZE))
                print(f"| {names[path]} | {theirs} | {worst(ours, blender[path]) if blender else ''} |", flush=True)
        finally:
            three.close()


if __name__ == "__main__":
    main()
