"""Whole optimisations through ComfyUI's models."""

from __future__ import annotations

import tiny
import torch
from helpers import SIZE, prior
from pack.dreamflow_core.apfo import optimise
from pack.dreamflow_core.guidance import APFO, PhiSettings
from pack.dreamflow_core.scenes.image import ImageScene
from pack.nodes.levels import native_schedule


def check_an_image_scene_runs_and_phi_learns():
    model = tiny.model("sd1")
    sampling = model.get_model_object("model_sampling")
    schedule = native_schedule(model, torch.tensor([10.0, 5.0, 2.0, 0.0]), 4)
    with torch.inference_mode(False):
        scene = ImageScene(torch.zeros(2, 4, SIZE // 8, SIZE // 8))
        seen = []
        optimise(
            scene,
            prior(model, tiny.text(1)),
            schedule,
            APFO(),
            PhiSettings(learning_rate=1e-2),
            seed=1,
            on_progress=seen.append,
        )
    assert len(seen) == 12 and torch.isfinite(scene.values).all()
    print([round(p.losses["phi"], 4) for p in seen])
