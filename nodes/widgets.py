"""Widgets that take their defaults from settings dataclasses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..dreamflow_core.apfo import Checkpoint
from ..dreamflow_core.settings.stages import ScheduleSettings
from .sockets import CameraRange, Guidance


def number(
    settings: type,
    name: str,
    low: float,
    high: float,
    tooltip: str,
    *,
    id: str | None = None,
    step: float | None = None,
    advanced: bool = True,
) -> io.Int.Input | io.Float.Input:
    """A widget for a numeric setting, an integer if its default is one.

    An advanced one may be left out of a workflow, which then gets the default.

    Args:
        settings: dataclass whose default it takes.
        id: the widget's, where it is not the setting's name.
        step: of a float; a tenth of the default's size if left out.
    """
    default = getattr(settings, name)
    options: dict[str, Any] = {
        "default": default,
        "min": low,
        "max": high,
        "tooltip": tooltip,
        "advanced": advanced,
        "optional": advanced,
    }
    if isinstance(default, int):
        return io.Int.Input(id or name, **options)
    if step is None:
        step = 10.0 ** (math.floor(math.log10(default)) - 1) if default > 0 else 0.01
    return io.Float.Input(id or name, step=step, round=False, **options)


def choice(settings: type, name: str, options: Sequence[str], tooltip: str, advanced: bool = True) -> io.Combo.Input:
    """A widget for a setting with a fixed set of values; an advanced one may be left out."""
    default = getattr(settings, name)
    return io.Combo.Input(
        name, options=list(options), default=default, tooltip=tooltip, advanced=advanced, optional=advanced
    )


def prior_inputs() -> list[io.Input]:
    """What every stage needs of a model."""
    return [
        io.Model.Input("model", tooltip="Any text-to-image model, with whatever is patched on it."),
        io.Conditioning.Input("positive", tooltip="What to make. Entries with a view range hold for those views."),
        io.Conditioning.Input("negative", tooltip="What to keep away from."),
    ]


def flow_inputs() -> list[io.Input]:
    """How the flow runs."""
    return [
        io.Sigmas.Input("sigmas", tooltip="Decreasing noise levels, from APFO Scheduler or any other scheduler."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Of everything random in this stage.",
        ),
        io.Float.Input(
            "cfg", default=7.5, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale. The demo models want 2."
        ),
        number(ScheduleSettings, "iterations", 1, 10000, "Iterations at each noise level.", advanced=False),
    ]


def stage_inputs() -> list[io.Input]:
    """What is optional in every stage in three dimensions."""
    return [
        CameraRange.Input("cameras", optional=True, tooltip="From DreamFlow Cameras; its defaults if left out."),
        guidance_input(),
    ]


def guidance_input() -> io.Input:
    return Guidance.Input("guidance", optional=True, tooltip="From DreamFlow Guidance; APFO if left out.")


def checkpoint_input() -> io.Input:
    return number(
        Checkpoint,
        "every",
        1.0,
        86400.0,
        "Seconds between checkpoints that a stopped run continues from.",
        id="save_every",
    )
