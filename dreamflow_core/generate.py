"""Text to 3D in one go: the stages of `pipeline` chained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .pipeline import extract_mesh, optimise_mesh, optimise_nerf
from .prior import Prior
from .settings.presets import OPTIMISED, Plan

if TYPE_CHECKING:
    from .mesh.mesh import Mesh


def generate(
    plan: Plan, priors: Mapping[str, Prior], *, seed: int, run: Callable[[str, Callable[..., Any]], Any] | None = None
) -> Mesh:
    """Text to a textured mesh.

    Args:
        plan: of all stages.
        priors: by stage: "nerf", "tune", and "refine" if the mesh is to be refined.
        seed: of everything random.
        run: called as `run(stage, function)` for "nerf", "extract" and those that follow; it returns the
            function's result. To those of `OPTIMISED` it may give `on_progress`, `cancelled` and
            `checkpoint` as keywords.

    Raises:
        ValueError: a size does not fit a model, or a setting is out of range; before any long work.
    """
    run = run or (lambda _, function: function())
    schedules = {name: getattr(plan, name).schedule.build(prior.sigma_at) for name, prior in priors.items()}
    for name, prior in priors.items():
        size = getattr(plan, name).stage.scene.size
        prior.latent_shape(size, size)
    field = run("nerf", partial(optimise_nerf, priors["nerf"], schedules["nerf"], plan.nerf.stage, seed=seed))
    mesh = run("extract", partial(extract_mesh, field, plan.extract))
    for number, name in enumerate(OPTIMISED[1:], start=1):
        if name in priors:
            stage = getattr(plan, name).stage
            # Stages draw the same kinds of random numbers, which should not be the same numbers.
            optimise = partial(optimise_mesh, priors[name], schedules[name], mesh, stage, seed=seed + number)
            mesh = run(name, optimise)
    return mesh
