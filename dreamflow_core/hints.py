"""What a ControlNet is shown of a scene: depth, normals, edges or outline of the very view that is denoised.

Hints follow the conventions that ControlNets of their kind document. Not differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras
from .prior import Look
from .views import View

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


@torch.no_grad()
def render_hints(look: Look | None, cameras: Cameras | None, size: int, kinds: Collection[str]) -> dict[str, Tensor]:
    """Hints (B, 3, size, size) in [0, 1] of what the cameras see, by kind.

    Args:
        look: what cameras see of the scene.
        kinds: of `HINT_KINDS`.

    Raises:
        ValueError: there is no scene to look at, or no view.
    """
    if look is None or cameras is None:
        raise ValueError("a ControlNet takes its hint from the scene, but a bare image has no views to render")
    view = look(cameras, size)
    return {kind: HINT_KINDS[kind](view, cameras) for kind in kinds}
