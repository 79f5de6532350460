"""Large-steps preconditioning of vertex positions.

Nicolet, Jacobson and Jakob, "Large Steps in Inverse Rendering of Geometry", 2021: instead of the vertices
v, optimise u = (I + strength * L) v, where L is the mesh's combinatorial Laplacian. A gradient step on u
moves the vertices by a smooth field, so that images can move a mesh far without crumpling it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csc_array, diags_array, eye_array
from scipy.sparse.linalg import splu
from torch import Tensor

from . import topology
from .mesh import BadMesh, Ints


class Preconditioner:
    """The map between the vertices of a mesh and their preconditioned parameters.

    The vertices must be welded (`topology.weld`), otherwise the surface opens at its seams.
    """

    def __init__(self, faces: Ints, vertices: int, strength: float):
        """Factorise the system of `vertices` vertices once.

        Args:
            faces: (F, 3).
            strength: the paper's lambda; 0 leaves the vertices as they are, 10 to 50 is usual.

        Raises:
            BadMesh: the strength is negative or not finite.
        """
        if not 0 <= strength < np.inf:
            raise BadMesh(f"the smoothing strength is {strength}; it must be 0 or more")
        self._system = system_matrix(faces, vertices, strength)
        # Symmetric positive definite: this ordering keeps the factors sparse, and no pivoting is needed.
        self._factors = splu(
            self._system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )

    def parameters(self, vertices: Tensor) -> Tensor:
        """u = (I + strength * L) v of vertices (V, 3). Not differentiable."""
        product = self._system @ vertices.detach().cpu().double().numpy()
        return torch.from_numpy(product).to(vertices)

    def vertices(self, parameters: Tensor) -> Tensor:
        """The vertices (V, 3) of parameters u (V, 3); differentiable. The solve runs on the CPU in float64."""
        return _Solve.apply(parameters, self)

    def solve(self, right: Tensor) -> Tensor:
        """(I + strength * L)^-1 right, for (V, C)."""
        solution = self._factors.solve(right.detach().cpu().double().numpy())
        return torch.from_numpy(solution).to(right)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameters: Tensor, preconditioner: Preconditioner) -> Tensor:
        ctx.preconditioner = preconditioner
        return preconditioner.solve(parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # The system is symmetric, so its transposed inverse is its inverse.
        return ctx.preconditioner.solve(gradients[0]), None


def system_matrix(faces: Ints, vertices: int, strength: float) -> csc_array:
    """I + strength * L, (V, V) float64; L has each vertex's number of edges on its diagonal and -1 per edge."""
    start, end = topology.edges(faces).T
    ones = np.ones(2 * len(start))
    adjacency = coo_array((ones, (np.append(start, end), np.append(end, start))), shape=(vertices, vertices))
    laplacian = diags_array(adjacency.sum(axis=1)) - adjacency
    return csc_array(eye_array(vertices) + strength * laplacian)
