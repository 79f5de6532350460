"""The hash grid's two implementations against a float64 twin written as plain loops."""

from __future__ import annotations

import logging
import sys
from itertools import product

import numpy as np
import pytest
import torch

from dreamflow_core.render import backends
from dreamflow_core.render.hashgrid import HashGrid, encode
from dreamflow_core.settings.scenes import HashGridSettings

SETTINGS = HashGridSettings(levels=4, features=2, entries_log2=9, coarsest=3, finest=24)


def encode_by_warp(*arguments):
    if not backends.warp_works(arguments[0].device):
        pytest.skip("Warp does not work here: pip install warp-lang")
    from dreamflow_core.render.hashgrid_warp import encode

    return encode(*arguments)


IMPLEMENTATIONS = [encode, encode_by_warp]


def grid() -> HashGrid:
    """A grid with features of size 1, with dense and hashed levels."""
    made = HashGrid(SETTINGS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for table in made.tables:
            table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(len(table))))
    assert [len(t) == (r + 1) ** 3 for t, r in zip(made.tables, made.resolutions)] == [True, True, False, False]
    return made


def points(count: int = 40) -> torch.Tensor:
    inner = torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 1.96 - 0.98
    return torch.cat([inner, torch.tensor([[-1.0, -1, -1], [1, 1, 1], [0.123, 1, -1]])])


def twin(point, resolution, entries):
    """Table entries of the 8 vertices around a point, their weights, and the weights' derivatives."""
    lattice = (point.astype(np.float64) + 1) / 2 * resolution
    cell = np.clip(np.floor(lattice), 0, resolution - 1).astype(int)
    for corner in product((0, 1), repeat=3):
        vertex = [int(c + o) for c, o in zip(cell, corner)]
        if (resolution + 1) ** 3 <= entries:
            index = (vertex[0] * (resolution + 1) + vertex[1]) * (resolution + 1) + vertex[2]
        else:
            index = (vertex[0] ^ (vertex[1] * 2654435761 % 2**32) ^ (vertex[2] * 805459861 % 2**32)) % entries
        factors = [f if o else 1 - f for f, o in zip(lattice - cell, corner)]
        signs = [1 if o else -1 for o in corner]
        slopes = [signs[a] * resolution / 2 * np.prod([factors[b] for b in range(3) if b != a]) for a in range(3)]
        yield index, np.prod(factors), np.array(slopes)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_slopes_and_gradients_equal_the_float64_twin(implementation):
    made, at = grid(), points()
    features, jacobian = implementation(at, list(made.tables), made.resolutions, True)
    generator = torch.Generator().manual_seed(2)
    pull = torch.randn(features.shape, generator=generator)
    pull_slopes = torch.randn(jacobian.shape, generator=generator)
    gradients = torch.autograd.grad((features * pull).sum() + (jacobian * pull_slopes).sum(), list(made.tables))

    width = SETTINGS.features
    for level, (table, resolution) in enumerate(zip(made.tables, made.resolutions)):
        values, columns = table.detach().double().numpy(), slice(level * width, (level + 1) * width)
        expected = np.zeros_like(values)
        for p, point in enumerate(at.numpy()):
            feature, slope = np.zeros(width), np.zeros((3, width))
            for index, weight, slopes in twin(point, resolution, len(table)):
                feature += weight * values[index]
                slope += slopes[:, None] * values[index]
                expected[index] += weight * pull[p, columns].numpy()
                expected[index] += slopes @ pull_slopes[p, :, columns].numpy().astype(np.float64)
            np.testing.assert_allclose(features[p, columns].detach(), feature, atol=2e-5)
            np.testing.assert_allclose(jacobian[p, :, columns].detach(), slope, atol=5e-4)
        np.testing.assert_allclose(gradients[level], expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_slopes_are_the_derivatives_of_the_values(implementation):
    """Inside a cell a feature is linear along each axis, so any step gives the derivative exactly."""
    made = grid()
    middle = (torch.tensor([[5.0, 11, 17], [2, 20, 9]]) + 0.5) / 24 * 2 - 1  # cells of the finest level
    step = 0.3 / 24
    _, jacobian = implementation(middle, list(made.tables), made.resolutions, True)
    for axis in range(3):
        offset = step * torch.eye(3)[axis]
        ahead, behind = (
            implementation(middle + o, list(made.tables), made.resolutions, False)[0] for o in (offset, -offset)
        )
        torch.testing.assert_close(
            jacobian[:, axis, -2:], ((ahead - behind) / (2 * step))[:, -2:], atol=2e-3, rtol=1e-3
        )


@pytest.mark.parametrize("jacobian", [False, True])
def test_warp_equals_torch_on_many_points(jacobian):
    made, at = grid(), points(5000)
    results = []
    for implementation in IMPLEMENTATIONS:
        outputs = [o for o in implementation(at, list(made.tables), made.resolutions, jacobian) if o is not None]
        loss = sum(o.square().sum() for o in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, list(made.tables))])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(ours.detach().abs().max()), rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_points_keep_the_graph(implementation):
    made = grid()
    features, jacobian = implementation(torch.zeros(0, 3), list(made.tables), made.resolutions, True)
    assert features.shape == (0, 8) and jacobian.shape == (0, 3, 8)
    (features.sum() + jacobian.sum()).backward()
    assert all(table.grad.abs().sum() == 0 for table in made.tables)


def test_levels_join_smoothly():
    made, at = grid(), points()
    everything, slopes = made(at, None, True)
    some, some_slopes = made(at, 2.25, True)
    gain = torch.tensor([1.0, 1, 1, 1, 0.25, 0.25, 0, 0])
    torch.testing.assert_close(some, everything * gain)
    torch.testing.assert_close(some_slopes, slopes * gain)
    some.sum().backward()
    assert [t.grad is not None for t in made.tables] == [True, True, True, False]


def test_without_warp_torch_serves_and_says_so_once(monkeypatch, caplog):
    backends._warp_works.cache_clear()
    monkeypatch.setitem(sys.modules, "warp", None)
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                features, _ = grid()(points())
        assert features.shape == (43, 8)
        assert [r.getMessage() for r in caplog.records] == [
            "Warp is not used on cpu (the package warp-lang is not installed); plain torch is used, which is slower."
        ]
    finally:
        backends._warp_works.cache_clear()


def test_nerfacc_cuda_is_not_tried_on_the_cpu(monkeypatch):
    monkeypatch.setattr(backends, "_nerfacc_cuda_works", lambda device: pytest.fail("it was tried"))
    assert not backends.nerfacc_cuda_works(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a torch build for CUDA")
def test_warp_on_cuda_equals_torch_on_the_cpu():
    made, at = grid(), points(5000)
    expected = encode(at, list(made.tables), made.resolutions, True)
    if not backends.warp_works(torch.device("cuda")):
        pytest.skip("Warp does not see this GPU: its wheel wants a newer driver")
    moved = grid().cuda()
    for ours, theirs in zip(moved(at.cuda(), None, True), expected):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-3, rtol=1e-3)
