from __future__ import annotations

import pytest
import torch
from torch import nn

from dreamflow_core.lora import LoRA


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    return layers.requires_grad_(False)


def adapter(root: nn.Module, rank: int = 3) -> LoRA:
    lora = LoRA(root, rank, torch.Generator().manual_seed(0))
    for layer in lora.adapters:
        nn.init.normal_(layer.up, std=0.3)
    return lora


def test_it_is_the_low_rank_change_of_the_weights():
    """The switched-on network equals one whose weights have up @ down added."""
    root = network()
    lora = adapter(root)
    x = torch.randn(2, 6, 8, 8)
    merged = network()
    for layer, low_rank in zip((merged[0], merged[2]), lora.adapters):
        change = low_rank.up.flatten(1) @ low_rank.down.flatten(1)
        layer.weight += change.view_as(layer.weight).detach()
    with lora.attached():
        off = root(x)
        with lora.on():
            on = root(x)
    assert torch.equal(off, network()(x))
    torch.testing.assert_close(on, merged(x))
    assert (on - off).abs().mean() > 0.1
    assert torch.equal(root(x), off)


def test_gradients_reach_only_the_adapter():
    root = network()
    lora = adapter(root)
    with lora.attached():
        with lora.on():
            loss = root(torch.randn(2, 6, 8, 8)).square().sum()
        loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora.parameters())
    assert all(p.grad is None for p in root.parameters())


def test_it_starts_as_nothing_and_repeats_by_seed():
    root = network()
    first, second = (LoRA(root, 2, torch.Generator().manual_seed(1)) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)
    x = torch.randn(1, 6, 8, 8)
    with first.attached(), first.on():
        assert torch.equal(root(x), network()(x))


def test_hooks_go_after_an_error():
    root = network()
    lora = adapter(root)
    with pytest.raises(RuntimeError), lora.attached(), lora.on():
        raise RuntimeError
    assert not any(module._forward_hooks for module in root.modules())
    with lora.attached():
        assert torch.equal(root(torch.ones(1, 6, 8, 8)), network()(torch.ones(1, 6, 8, 8)))


def test_half_precision_activations():
    root = network().bfloat16()
    lora = adapter(root)
    with lora.attached(), lora.on():
        assert root(torch.randn(1, 6, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("rank,root", [(0, network()), (64, network()), (2, nn.ReLU())])
def test_bad_input(rank, root):
    with pytest.raises(ValueError):
        LoRA(root, rank, torch.Generator())
