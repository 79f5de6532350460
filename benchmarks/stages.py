"""What the stages cost beside their denoiser calls, and how cost grows.

    python benchmarks/stages.py [--iterations 12]

With the bundled demo model, per stage: seconds an iteration and the share of them outside denoiser calls
(forward passes of the prior and of phi, and phi's backward pass). Then seconds of whole runs of more and
more iterations, and of renders with their backward pass at larger and larger sizes: both should grow
linearly, in iterations and in pixels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from overhead import TimedPrior, timed_learn

from dreamflow_core.apfo import Phi
from dreamflow_core.cameras import orbit
from dreamflow_core.demo.model import MODELS, load_model
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.pipeline import extract_mesh, optimise_mesh, optimise_nerf
from dreamflow_core.scenes.mesh import MeshScene
from dreamflow_core.scenes.nerf import NeRFScene
from dreamflow_core.schedule import Schedule, log_uniform
from dreamflow_core.settings.scenes import MeshSettings, NeRFSettings
from dreamflow_core.settings.stages import ExtractSettings, MeshStage, NeRFStage


def clocked(function: Callable[[], Any]) -> float:
    """Seconds of processor time over all threads, which others' work on the machine does not add to."""
    start = time.process_time()
    function()
    return time.process_time() - start


def schedule(iterations: int) -> Schedule:
    return Schedule(log_uniform(2.0, 0.3, iterations))


def outside(stage: Callable[[TimedPrior, int], Any], prior: TimedPrior, iterations: int) -> tuple[float, float]:
    """(seconds an iteration, share of them outside the denoiser); wall time, as the parts are measured in it."""
    stage(prior, 2)
    prior.seconds = 0.0
    plain, Phi.learn = timed_learn(prior)
    try:
        start = time.perf_counter()
        stage(prior, iterations)
        total = time.perf_counter() - start
    finally:
        Phi.learn = plain
    return total / iterations, 1 - prior.seconds / total


def stages(mesh: Mesh) -> dict[str, Callable[[TimedPrior, int], Any]]:
    def nerf(prior: TimedPrior, iterations: int) -> NeRFScene:
        # At its full size from the first iteration on.
        return optimise_nerf(prior, schedule(iterations), NeRFStage(scene=NeRFSettings(refine_until=0)), seed=0)

    def tune(target: str, prior: TimedPrior, iterations: int) -> Mesh:
        return optimise_mesh(prior, schedule(iterations), mesh, MeshStage(scene=MeshSettings(target)), seed=0)

    return {
        "radiance field": nerf,
        "mesh, texture and vertices": lambda *arguments: tune("both", *arguments),
        "mesh, texture": lambda *arguments: tune("texture", *arguments),
    }


def backward(scene: NeRFScene | MeshScene) -> None:
    scene.render(orbit(4, 20.0, 3.0, 40.0)).values.sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=12)
    options = parser.parse_args()
    prior = TimedPrior(load_model(MODELS["demo"]), "a red cube", cfg=1.5)
    mesh = extract_mesh(NeRFScene(NeRFSettings(), seed=0), ExtractSettings())
    functions = stages(mesh)
    print(f"{torch.get_num_threads()} threads; 4 views at 64 px; mesh of {len(mesh.faces)} faces")
    for name, stage in functions.items():
        seconds, share = outside(stage, prior, options.iterations)
        print(f"{name:28s} {1e3 * seconds:6.0f} ms an iteration, {100 * share:4.1f} % outside the denoiser")
    print("processor seconds by iterations")
    for name, stage in functions.items():
        counts = [options.iterations * factor for factor in (1, 2, 4)]
        times = [clocked(lambda stage=stage, count=count: stage(prior, count)) for count in counts]
        print(f"{name:28s} " + "  ".join(f"{n}: {t:.2f} ({t / n:.3f} each)" for n, t in zip(counts, times)))
    print("processor seconds of a render and its backward pass by size")
    makers = {
        "radiance field": lambda size: NeRFScene(replace(NeRFSettings(), size=size), seed=0),
        "mesh, texture and vertices": lambda size: MeshScene(mesh, MeshSettings("both", size=size), seed=0),
    }
    for name, make in makers.items():
        entries = []
        for size in (64, 128, 256):
            scene = make(size)
            backward(scene)
            seconds = min(clocked(lambda scene=scene: backward(scene)) for _ in range(2))
            entries.append(f"{size}: {seconds:.2f} ({1e6 * seconds / (4 * size * size):.1f} us a pixel)")
        print(f"{name:28s} " + "  ".join(entries))


if __name__ == "__main__":
    main()
