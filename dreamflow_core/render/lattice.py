"""The lattices of a hash grid: in which cell a point is, and which entries of a table its vertices have."""

from __future__ import annotations

import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)
"""Factors of the spatial hash, one per axis (the paper's equation 4)."""


def locate(points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Lower corner (P, 3) int64 of each point's cell, and the point's place in the cell (P, 3)."""
    lattice = (points + 1) * (resolution / 2)
    cell = lattice.detach().floor().clamp(0, resolution - 1)
    return cell.long(), lattice - cell


def entry(cell: Tensor, resolution: int, entries: int) -> Tensor:
    """Table entries (P, 2, 2, 2) of a cell's vertices, axes in the order x, y, z."""
    both = torch.stack([cell, cell + 1], dim=-1)
    x, y, z = both[:, 0, :, None, None], both[:, 1, None, :, None], both[:, 2, None, None, :]
    if (resolution + 1) ** 3 <= entries:
        return x * (resolution + 1) ** 2 + y * (resolution + 1) + z
    return (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) & (entries - 1)
