"""The pack's own sockets, and what travels through them."""

from __future__ import annotations

from dataclasses import dataclass, field

from comfy_api.latest import io

from ..dreamflow_core.settings.stages import PhiSettings, Stage

NeRF = io.Custom("NERF")
"""A radiance field: `dreamflow_core.scenes.nerf.NeRFScene`."""
CameraRange = io.Custom("DREAMFLOW_CAMERAS")
"""Where cameras are sampled from: `dreamflow_core.views.ViewRange`."""
Guidance = io.Custom("DREAMFLOW_GUIDANCE")
"""How the prior moves a scene: `GuidanceSettings`."""


@dataclass(frozen=True)
class GuidanceSettings:
    """A strategy by its name in `guidance.METHODS`, and how its phi learns."""

    method: str = Stage.method
    phi: PhiSettings = field(default_factory=lambda: Stage().phi)
