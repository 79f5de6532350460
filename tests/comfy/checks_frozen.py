"""Every kind of layer that gradients pass through, against plain autograd on layers with normal weights."""

from __future__ import annotations

import comfy.ops
import torch
from helpers import close, same
from pack.nodes.adapter.frozen import frozen_autograd
from torch import nn

OPS = comfy.ops.manual_cast


class Packed(OPS.Linear):
    """Unpacks its weight itself, as the layers of ComfyUI-GGUF do."""

    def cast_bias_weight(self, input=None, dtype=None, device=None, bias_dtype=None):
        dtype = dtype or input.dtype
        return self.weight.to(dtype) * 0.5, None if self.bias is None else self.bias.to(dtype)

    def forward_comfy_cast_weights(self, input):
        return nn.functional.linear(input, *self.cast_bias_weight(input))


LAYERS = {
    "Linear": (lambda: OPS.Linear(6, 5), (3, 6)),
    "Linear on tokens": (lambda: OPS.Linear(6, 5, bias=False), (2, 3, 6)),
    "Conv1d": (lambda: OPS.Conv1d(4, 6, 3, padding=1, stride=2), (2, 4, 9)),
    "Conv2d": (lambda: OPS.Conv2d(4, 6, 3, padding=(1, 2), stride=2, dilation=1), (2, 4, 9, 8)),
    "Conv2d in groups": (lambda: OPS.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (2, 4, 9, 8)),
    "Conv2d that wraps round": (lambda: OPS.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 8, 8)),
    "Conv2d of the same size": (lambda: OPS.Conv2d(4, 6, 3, padding="same"), (2, 4, 8, 8)),
    "Conv3d": (lambda: OPS.Conv3d(4, 6, 3, padding=1), (1, 4, 3, 5, 5)),
    "GroupNorm": (lambda: OPS.GroupNorm(2, 4, eps=1e-3), (2, 4, 5, 5)),
    "LayerNorm": (lambda: OPS.LayerNorm(6), (2, 3, 6)),
    "LayerNorm without weights": (lambda: OPS.LayerNorm(6, elementwise_affine=False), (2, 3, 6)),
    "RMSNorm": (lambda: OPS.RMSNorm(6, eps=1e-3), (2, 3, 6)),
    "torch's own": (lambda: nn.GroupNorm(2, 4), (2, 4, 5, 5)),
    "packed": (lambda: Packed(6, 5), (3, 6)),
}


def made(make) -> nn.Module:
    layer = make()
    generator = torch.Generator().manual_seed(0)
    for weight in layer.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    return layer


def check_gradients_of_every_kind_of_layer():
    for name, (make, shape) in LAYERS.items():
        frozen = made(make)
        assert all(weight.is_inference() for weight in frozen.parameters())
        with torch.inference_mode(False):
            with torch.no_grad():
                plain = made(make)
            x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
            results = []
            for layer in (frozen, plain):
                inputs = x.clone().requires_grad_(True)
                with torch.enable_grad(), frozen_autograd(frozen):
                    y = layer(inputs)
                    (y * y).sum().backward()
                results.append((y.detach(), inputs.grad))
        same(results[0][0], results[1][0])
        close(results[0][1], results[1][1], 1e-5)
        assert "forward" not in vars(frozen), name


def check_weights_are_constants_whatever_they_ask_for():
    """Loaders leave requires_grad on VAEs and ControlNets; without an input to differentiate there is no graph."""
    layers = nn.Sequential(made(lambda: OPS.Linear(6, 6)), made(lambda: OPS.Linear(6, 6)))
    layers.scale = nn.Parameter(torch.ones(6))
    before = layers.scale
    assert all(weight.requires_grad and weight.is_inference() for weight in layers.parameters())
    with torch.inference_mode(False), torch.enable_grad():
        with frozen_autograd(layers):
            assert not layers(torch.ones(2, 6)).requires_grad
            x = torch.ones(2, 6, requires_grad=True)
            (layers(x) * layers.scale).sum().backward()
        assert x.grad is not None and all(weight.grad is None for weight in layers.parameters())
    assert layers.scale is before


def check_layers_without_a_rule_say_so():
    layer = made(lambda: OPS.ConvTranspose2d(4, 4, 3))
    with torch.inference_mode(False), torch.enable_grad(), frozen_autograd(layer):
        assert layer(torch.zeros(1, 4, 5, 5)).shape == (1, 4, 7, 7)
        try:
            layer(torch.zeros(1, 4, 5, 5, requires_grad=True))
        except NotImplementedError as error:
            assert "ConvTranspose2d" in str(error)
        else:
            raise AssertionError("a layer without a rule was differentiated")
