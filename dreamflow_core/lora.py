"""A low-rank adapter that can be switched on and off on a frozen module.

phi, the denoiser of the scene's own renders, is the prior's network with this adapter on: one copy of
the weights serves both. It hangs on forward hooks, so no module is replaced and nothing of it remains
when it is taken off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _LowRank(nn.Module):
    """x -> up(down(x)) for one linear or 2D convolution layer; zero at first.

    Weights are float32 and are cast to the activation's type.
    """

    def __init__(self, layer: Any, rank: int, generator: torch.Generator):
        super().__init__()
        outputs, inputs = _widths(layer)
        kernel = layer.kernel_size if isinstance(layer, nn.Conv2d) else ()
        down = torch.empty(rank, inputs, *kernel)
        bound = 1 / math.sqrt(down[0].numel())
        self.down = nn.Parameter(down.uniform_(-bound, bound, generator=generator))
        self.up = nn.Parameter(torch.zeros(outputs, rank, *[1] * len(kernel)))
        self._project = F.linear
        if isinstance(layer, nn.Conv2d):
            self._project = partial(F.conv2d, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
        self._expand = F.conv2d if kernel else F.linear

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            # Saved as a copy: UNets add a ControlNet's residuals to their feature maps in place.
            x = x.clone()
        return self._expand(self._project(x, self.down.to(x.dtype)), self.up.to(x.dtype))


class LoRA(nn.Module):
    """A low-rank adapter for every linear and ungrouped 2D convolution layer of a module.

    Args:
        root: the frozen module. It is not registered here: `parameters()` are the adapter's alone.
        rank: of each layer's adapter; layers no wider than it are left out.
        generator: CPU generator of the initial weights.

    Raises:
        ValueError: `rank` is under 1, or the module has no layer to adapt.
    """

    def __init__(self, root: nn.Module, rank: int, generator: torch.Generator):
        super().__init__()
        if rank < 1:
            raise ValueError(f"phi's LoRA rank is {rank}; it must be at least 1")
        self._layers = list(_adaptable(root, rank))
        if not self._layers:
            raise ValueError(f"{type(root).__name__} has no linear or convolution layer for a LoRA of rank {rank}")
        self.adapters = nn.ModuleList(_LowRank(layer, rank, generator) for layer in self._layers)
        self._on = False

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Each layer with its adapter, whose `down` and `up` are the low-rank weights; alpha is the rank."""
        return zip(self._layers, self.adapters)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hang the adapter on the module, switched off; taken off again on leaving."""
        with ExitStack() as stack:
            for layer, adapter in self.pairs():
                handle = layer.register_forward_hook(self._hook(adapter))
                stack.callback(handle.remove)
            yield

    @contextmanager
    def on(self) -> Iterator[None]:
        """Switch the attached adapter on inside the block. The backward pass may come after it."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _hook(self, adapter: nn.Module):
        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + adapter(inputs[0]) if self._on else output

        return add


def _adaptable(root: nn.Module, rank: int) -> Iterator[Any]:
    for module in root.modules():
        if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
            continue
        if (isinstance(module, nn.Conv2d) or is_linear(module)) and min(_widths(module)) > rank:
            yield module


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer; a quantised one, such as ComfyUI's, need not be an nn.Linear."""
    return isinstance(module, nn.Linear) or (type(module).__name__ == "Linear" and hasattr(module, "in_features"))


def _widths(layer: Any) -> tuple[int, int]:
    """Outputs and inputs; the weight itself may be packed."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels
    return layer.out_features, layer.in_features
