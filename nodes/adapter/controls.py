"""ControlNets whose hint is the scene itself, seen from the very view that is denoised.

An entry of a CONDITIONING with such a ControlNet has under `HINTS` a list of (control, kind) beside its
`control`; a run renders the hints. A KSampler that is given the entry sees a black hint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dreamflow_core.cameras import Cameras
from ...dreamflow_core.hints import render_hints
from ...dreamflow_core.prior import Look
from .conditioning import Conditioning

HINTS = "dreamflow_hints"


def apply_control(
    positive: Conditioning,
    negative: Conditioning,
    control_net: Any,
    kind: str,
    strength: float,
    start: float,
    end: float,
    vae: Any = None,
) -> tuple[Conditioning, Conditioning]:
    """Both conditionings with a ControlNet that is shown the scene, on top of any they have.

    Args:
        kind: one of `hints.HINT_KINDS`.
        strength, start, end: as for ComfyUI's Apply ControlNet.
        vae: for ControlNets that take latents.
    """
    if strength == 0:
        return positive, negative
    controls: dict[Any, Any] = {}

    def applied(options: dict[str, Any]) -> dict[str, Any]:
        previous = options.get("control")
        if previous not in controls:
            black = torch.zeros(1, 3, 64, 64)
            control = control_net.copy().set_cond_hint(black, strength, (start, end), vae=vae)
            controls[previous] = control.set_previous_controlnet(previous)
        control = controls[previous]
        hints = [*options.get(HINTS, []), (control, kind)]
        return {**options, "control": control, "control_apply_to_uncond": False, HINTS: hints}

    first, second = ([[e, applied(options)] for e, options in entries] for entries in (positive, negative))
    return first, second


class Controls:
    """A run's own copies of the ControlNets in conditionings, so that the user's stay as they are.

    Copies take no part in gradients: a ControlNet sees the noised latent and the prompt, not phi.
    """

    def __init__(self) -> None:
        self._copies: dict[Any, Any] = {None: None}
        self._hinted: dict[Any, str] = {}
        self._shown: Cameras | None = None
        self._rows: Tensor | None = None
        self._hints: dict[str, Tensor] = {}

    def own(self, conditioning: Conditioning) -> Conditioning:
        """The conditioning with copies in place of its ControlNets."""
        return [[embedding, self._own(options)] for embedding, options in conditioning]

    def show(self, look: Look | None, cameras: Cameras | None, rows: Tensor, size: int) -> None:
        """Give the copies the hints of these rows of the cameras.

        Raises:
            ValueError: as `render_hints`.
        """
        if not self._hinted:
            return
        if self._shown is not cameras or cameras is None:
            self._hints = render_hints(look, cameras, size, set(self._hinted.values()))
            self._shown, self._rows = cameras, None
        if self._rows is not None and torch.equal(self._rows, rows):
            # The ControlNets still have these, resized and encoded.
            return
        self._rows = rows
        for control, kind in self._hinted.items():
            control.cond_hint_original, control.cond_hint = self._hints[kind][rows], None

    def _own(self, options: dict[str, Any]) -> dict[str, Any]:
        if "control" not in options:
            return options
        owned = {**options, "control": self._copy(options["control"])}
        for control, kind in options.get(HINTS, []):
            self._hinted[self._copy(control)] = kind
        return owned

    def _copy(self, control: Any) -> Any:
        if control not in self._copies:
            copy = control.copy().set_previous_controlnet(self._copy(control.previous_controlnet))
            copy.get_control = torch.no_grad()(copy.get_control)
            self._copies[control] = copy
        return self._copies[control]
