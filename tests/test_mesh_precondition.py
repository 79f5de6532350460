from __future__ import annotations

import numpy as np
import pytest
import torch
from mesh_fields import EXTENT, soft_grid

from dreamflow_core.mesh.extract import extract, simplify
from dreamflow_core.mesh.mesh import BadMesh, Mesh
from dreamflow_core.mesh.precondition import Preconditioner

STRENGTH = 19.0


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return simplify(extract(soft_grid("torus", 32), EXTENT), 200)


@pytest.fixture(scope="module")
def system(mesh: Mesh) -> torch.Tensor:
    """I + STRENGTH * L, dense and float64, built face by face."""
    count = len(mesh.vertices)
    adjacency = torch.zeros(count, count, dtype=torch.float64)
    for face in mesh.faces.tolist():
        for corner in range(3):
            a, b = face[corner], face[(corner + 1) % 3]
            adjacency[a, b] = adjacency[b, a] = 1
    return torch.eye(count, dtype=torch.float64) + STRENGTH * (torch.diag(adjacency.sum(1)) - adjacency)


@pytest.fixture(scope="module")
def preconditioner(mesh: Mesh) -> Preconditioner:
    return Preconditioner(mesh.faces, len(mesh.vertices), STRENGTH)


def test_solves_the_dense_system(mesh: Mesh, system: torch.Tensor, preconditioner: Preconditioner):
    right = torch.randn(len(mesh.vertices), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(preconditioner.vertices(right), torch.linalg.solve(system, right), atol=1e-12)
    assert torch.allclose(preconditioner.parameters(right), system @ right, atol=1e-12)
    vertices = torch.from_numpy(mesh.vertices)
    there_and_back = preconditioner.vertices(preconditioner.parameters(vertices))
    assert there_and_back.dtype == torch.float32 and torch.allclose(there_and_back, vertices, atol=1e-5)


def test_gradient_is_the_finite_difference(mesh: Mesh, preconditioner: Preconditioner):
    generator = torch.Generator().manual_seed(1)
    start, direction, weights = torch.randn(3, len(mesh.vertices), 3, dtype=torch.float64, generator=generator)

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        return (weights * torch.sin(3 * preconditioner.vertices(parameters))).sum()

    start.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)
    step = 1e-5
    with torch.no_grad():
        slope = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_a_step_is_smooth(mesh: Mesh, preconditioner: Preconditioner):
    """Pulling at one vertex moves its neighbourhood, and moves the whole by as much as without it."""
    pull = torch.zeros(len(mesh.vertices), 3, dtype=torch.float64)
    pull[7, 1] = 1
    moved = preconditioner.solve(pull)[:, 1]
    assert moved.argmax() == 7 and moved.min() > 0
    assert moved.max() < 0.2 and moved.sum().item() == pytest.approx(1)


def test_strength_zero_changes_nothing_and_a_negative_one_is_an_error(mesh: Mesh):
    vertices = torch.from_numpy(mesh.vertices)
    assert torch.equal(Preconditioner(mesh.faces, len(vertices), 0.0).vertices(vertices), vertices)
    for strength in (-1.0, np.inf, np.nan):
        with pytest.raises(BadMesh, match="smoothing strength"):
            Preconditioner(mesh.faces, len(vertices), strength)
