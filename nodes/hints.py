"""ControlNets whose hint is the scene itself, seen from the very view that is denoised.

An entry of a CONDITIONING with such a ControlNet has under `HINTS` a list of (control, kind) beside its
`control`; a run renders the hints. A KSampler that is given the entry sees a black hint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dreamflow_core.cameras import Cameras
from ..dreamflow_core.prior import Look
from ..dreamflow_core.views import View
from .conditioning import Conditioning

HINTS = "dreamflow_hints"

FARTHEST = 0.2
"""Grey of the farthest visible point in a depth hint, so that it stands out from the black background."""
EDGE_THRESHOLDS = (0.04, 0.08)
"""Canny's, where black to white is 1."""


def _depth(view: View, cameras: Cameras) -> Tensor:
    """Inverse depth as MiDaS gives it: near is white; scaled to each view."""
    seen = view.alpha > 0.5
    inverse = torch.where(seen, 1 / view.depth.clamp_min(1e-6), torch.nan)
    near = inverse.nan_to_num(-torch.inf).amax((1, 2, 3), keepdim=True)
    far = inverse.nan_to_num(torch.inf).amin((1, 2, 3), keepdim=True)
    closeness = (inverse - far) / (near - far).clamp_min(1e-6)
    grey = torch.where(seen, FARTHEST + (1 - FARTHEST) * closeness, 0)
    return grey.expand(-1, 3, -1, -1)


def _normal(view: View, cameras: Cameras) -> Tensor:
    """Normals in camera axes as colours: right red, up green, towards the viewer blue."""
    return (_camera_normals(view, cameras) + 1) / 2


def _edges(view: View, cameras: Cameras) -> Tensor:
    """Canny's white lines on the surface in grey clay, lit from the upper left; its texture makes none."""
    from kornia.filters import canny

    light = F.normalize(view.normal.new_tensor([-0.5, 0.6, 0.6]), dim=0)
    clay = 0.6 + 0.4 * torch.einsum("bihw,i->bhw", _camera_normals(view, cameras), light)
    _, lines = canny(clay[:, None] * view.alpha, *EDGE_THRESHOLDS)
    return lines.expand(-1, 3, -1, -1)


def _mask(view: View, cameras: Cameras) -> Tensor:
    """White where there is something."""
    return view.alpha.expand(-1, 3, -1, -1)


def _camera_normals(view: View, cameras: Cameras) -> Tensor:
    """(B, 3, H, W); the background faces the camera."""
    axes = torch.stack(cameras.axes(), dim=1).to(view.normal)
    normals = torch.einsum("bij,bjhw->bihw", axes, view.normal)
    towards_viewer = normals.new_tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    return torch.where(view.alpha > 0.5, normals, towards_viewer)


HINT_KINDS: dict[str, Callable[[View, Cameras], Tensor]] = {
    "depth": _depth,
    "normal": _normal,
    "edges": _edges,
    "mask": _mask,
}
"""Each makes hints (B, 3, H, W) in [0, 1] of what the cameras see, as ControlNets of that kind expect them."""


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
        kind: one of `HINT_KINDS`.
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
            ValueError: a hint is asked for, but there is no view to render.
        """
        if not self._hinted:
            return
        if look is None or cameras is None:
            raise ValueError("a ControlNet takes its hint from the scene, but a bare image has no views to render")
        if self._shown is not cameras:
            with torch.no_grad():
                view = look(cameras, size)
                self._hints = {kind: HINT_KINDS[kind](view, cameras) for kind in set(self._hinted.values())}
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
