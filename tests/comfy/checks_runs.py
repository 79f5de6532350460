"""Whole optimisations through ComfyUI's models."""

from __future__ import annotations

import tiny
import torch
from helpers import optimise_image, prior


def check_phi_learns():
    """At one level its denoising loss falls well under the prior's own."""
    for family in ("sd1", "sdxl", "flux"):
        model, texts = tiny.model(family), tiny.texts(family)
        made = prior(model, *texts, vae=tiny.vae(channels=tiny.channels(family)), cfg=1.0)
        seen = []
        optimise_image(made, levels=(1.0, 0.98), iterations=30, on_progress=seen.append)
        losses = torch.tensor([progress.losses["phi"] for progress in seen])
        assert losses[-5:].mean() < 0.7 * losses[:3].mean(), (family, losses.tolist())
