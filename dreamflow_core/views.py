"""What cameras see."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class View:
    """What B cameras see of a scene, without randomness.

    Attributes:
        colour: (B, 3, H, W) in [0, 1], premultiplied by alpha.
        alpha: (B, 1, H, W) in [0, 1].
        depth: (B, 1, H, W) mean distance along the ray of what is seen; zero where alpha is.
        normal: (B, 3, H, W) unit length in world axes; zero where alpha is.
    """

    colour: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor

    def on(self, background: tuple[float, float, float]) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] on a plain colour."""
        return self.colour + (1 - self.alpha) * self.colour.new_tensor(background).view(1, 3, 1, 1)
