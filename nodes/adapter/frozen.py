"""Autograd through ComfyUI modules whose weights are constants.

ComfyUI's weights cannot be saved for the backward pass: they are inference tensors, and where weights are
offloaded or stored in fewer bits than they are used in, the tensor that a layer computes with is a cast that
is overwritten by the next layer's. Saving it would raise, or give wrong gradients without a word. So every
layer runs its own forward, saves at most its input, and the backward pass casts the weights again. No weight
gets a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import comfy.model_management as mm
import comfy.ops
import comfy.quant_ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...dreamflow_core.lora import is_linear

Restore = Callable[[], Any]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@contextmanager
def frozen_autograd(root: nn.Module, remember: Callable[[], Restore] | None = None) -> Iterator[None]:
    """Gradients pass through `root` to its inputs inside this context; everything is put back after it.

    Args:
        root: a module of ComfyUI; contexts of modules that share layers may be nested.
        remember: called in every layer's forward; what it returns is called before that layer's backward,
            to bring back the weights of that time where they change (hooks).

    Raises:
        ValueError: another node has replaced a layer's forward, so its gradient is not known.
    """
    with ExitStack() as undo:
        for name, module in root.named_modules():
            if _is_layer(module):
                _route(name, module, remember, undo)
            else:
                _clone_weights(module, undo)
        yield


@contextmanager
def recomputed_blocks(root: nn.Module, remember: Callable[[], Restore]) -> Iterator[None]:
    """The network's blocks keep no more than their inputs for the backward pass, and run again in it.

    Takes a fraction of the memory, and the time of one more forward pass. What changes a block's result (an
    adapter that is switched on) has to be as it was in the forward pass; `remember` as in `frozen_autograd`.
    """
    with ExitStack() as undo:
        for block in _blocks(root):
            _set_forward(block, partial(_recomputed, block.forward, remember), undo)
        yield


@contextmanager
def training_kernels() -> Iterator[None]:
    """ComfyUI uses only kernels that have a backward pass."""
    before = mm.in_training
    mm.in_training = True
    try:
        yield
    finally:
        mm.in_training = before


class _Frozen(torch.autograd.Function):
    """A layer as a function of its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, forward: Callable, restore: Restore | None) -> Tensor:
        ctx.layer, ctx.restore, ctx.shape, ctx.dtype = layer, restore, x.shape, x.dtype
        if not (is_linear(layer) or _is_plain_convolution(layer)):
            # A copy: transformers add to their residual stream in place after normalising it.
            ctx.save_for_backward(x.detach().clone())
        # A copy here as well: layers in 8 bits clamp their input in place.
        return forward(x.detach().clone() if is_linear(layer) and layer.weight.dtype.itemsize == 1 else x.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        layer = ctx.layer
        if ctx.restore is not None:
            ctx.restore()
        with _weights(layer, gradient) as (weight, bias):
            if is_linear(layer):
                to_input = gradient @ weight
                # Some quantised layers scale their input first.
                if (scale := getattr(layer, "pre_quant_scale", None)) is not None:
                    to_input = to_input * scale.to(to_input)
            elif _is_plain_convolution(layer):
                to_input = _convolution_gradient(layer, gradient, weight, ctx.shape)
            else:
                to_input = _recomputed_gradient(layer, gradient, weight, bias, *ctx.saved_tensors)
        return to_input.to(ctx.dtype), None, None, None


def _is_layer(module: nn.Module) -> bool:
    """Whether its weights are cast where it is used, or have a rule here."""
    return hasattr(module, "comfy_cast_weights") or _has_rule(module)


def _has_rule(module: nn.Module) -> bool:
    return is_linear(module) or isinstance(module, (*_CONVOLUTIONS, *_NORMS))


def _is_plain_convolution(module: nn.Module) -> bool:
    return isinstance(module, _CONVOLUTIONS) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _route(name: str, layer: Any, remember: Callable[[], Restore] | None, undo: ExitStack) -> None:
    """Put a forward on the layer that keeps its weights out of the graph."""
    before = layer.__dict__.get("forward")
    if isinstance(before, _Routed):
        return
    if before is not None and getattr(before, "__func__", None) is not type(layer).forward:
        raise ValueError(
            f"another node has replaced the forward of the layer {name or type(layer).__name__}, so no gradient can"
            " pass through it; bypass LoRAs do so: load the LoRA without bypass"
        )
    _set_forward(layer, _Routed(layer, layer.forward, remember), undo)


def _set_forward(module: Any, forward: Callable, undo: ExitStack) -> None:
    before = vars(module).get("forward")
    module.forward = forward
    undo.callback(
        partial(delattr, module, "forward") if before is None else partial(setattr, module, "forward", before)
    )


class _Routed:
    """The forward that `_route` puts on a layer."""

    def __init__(self, layer: Any, forward: Callable, remember: Callable[[], Restore] | None):
        self.layer, self.original, self.remember = layer, forward, remember

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.original(x, *args, **kwargs)
        if not x.requires_grad:
            # Nothing to differentiate: the weights are constants, whatever their requires_grad says.
            with torch.no_grad():
                return self.original(x, *args, **kwargs)
        if args or kwargs or not _has_rule(self.layer):
            raise NotImplementedError(f"no gradient rule for {type(self.layer).__name__}{tuple(kwargs)}")
        return _Frozen.apply(x, self.layer, self.original, self.remember() if self.remember else None)


def _blocks(root: nn.Module) -> list[nn.Module]:
    """The innermost members of the network's lists of modules that have parts."""
    members = {
        child
        for module in root.modules()
        if _is_list(module)
        for child in module.children()
        if any(child.children()) and not _is_list(child)
    }
    return [block for block in members if members.isdisjoint(list(block.modules())[1:])]


def _is_list(module: nn.Module) -> bool:
    """Sequences of a class of their own (a UNet's) call their members one by one, as lists do."""
    return isinstance(module, nn.ModuleList) or (
        isinstance(module, nn.Sequential) and type(module) is not nn.Sequential
    )


def _recomputed(forward: Callable, remember: Callable[[], Restore], *args: Any, **kwargs: Any) -> Any:
    """A block's forward in a checkpoint, with inputs of its own: blocks and their callers work in place."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    restore = remember()

    def run(args: list[Any], kwargs: dict[str, Any]) -> Any:
        restore()
        with training_kernels():
            return forward(*map(_own, args), **{name: _own(value) for name, value in kwargs.items()})

    inputs = [_own(value) for value in args], {name: _own(value) for name, value in kwargs.items()}
    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)


def _own(value: Any) -> Any:
    if isinstance(value, Tensor) and value.requires_grad:
        return value.clone()
    return dict(value) if isinstance(value, dict) else value


def _clone_weights(module: nn.Module, undo: ExitStack) -> None:
    """Stand copies in for a module's own weights that autograd refuses or would train."""
    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for weights in tables:
        for name, weight in weights.items():
            if weight is not None and (weight.is_inference() or weight.requires_grad):
                copy = weight.detach().clone()
                weights[name] = nn.Parameter(copy, requires_grad=False) if weights is module._parameters else copy
                undo.callback(weights.__setitem__, name, weight)


@contextmanager
def _weights(layer: Any, like: Tensor) -> Iterator[tuple[Any, Any]]:
    """The layer's weight and bias as it computes with them, in the gradient's type and place."""
    if getattr(layer, "weight", None) is None:
        yield None, None
    elif hasattr(layer, "cast_bias_weight"):
        # Layers of other packs that unpack their weights themselves (GGUF).
        weight, bias = layer.cast_bias_weight(dtype=like.dtype, device=like.device, bias_dtype=like.dtype)
        yield _plain(weight, like), _plain(bias, like)
    elif hasattr(layer, "comfy_cast_weights"):
        weight, bias, stream = comfy.ops.cast_bias_weight(
            layer, dtype=like.dtype, device=like.device, bias_dtype=like.dtype, offloadable=True
        )
        try:
            yield _plain(weight, like), _plain(bias, like)
        finally:
            comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    else:
        yield _plain(layer.weight, like), _plain(getattr(layer, "bias", None), like)


def _plain(weight: Tensor | None, like: Tensor) -> Tensor | None:
    if isinstance(weight, comfy.quant_ops.QuantizedTensor):
        weight = weight.dequantize()
    return None if weight is None else weight.to(like)


def _convolution_gradient(layer: Any, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    # The gradient with respect to the input needs the input's shape only.
    x = gradient.new_empty(1).expand(shape)
    no_output_padding = [0] * (weight.ndim - 2)
    return torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        no_output_padding,
        layer.groups,
        (True, False, False),
    )[0]


def _recomputed_gradient(layer: Any, gradient: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        # Copies, because inference tensors cannot be saved; these weights are small.
        weight, bias = (None if w is None else w.detach().clone() for w in (weight, bias))
        if isinstance(layer, nn.GroupNorm):
            y = F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        elif isinstance(layer, nn.LayerNorm):
            y = F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
        elif isinstance(layer, nn.RMSNorm):
            y = F.rms_norm(x, layer.normalized_shape, weight, layer.eps)
        else:
            y = layer._conv_forward(x, weight, bias)
        return torch.autograd.grad(y, x, gradient)[0]
