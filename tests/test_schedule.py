from __future__ import annotations

import math

import pytest
import torch

from dreamflow_core import parameterisation
from dreamflow_core.schedule import Schedule, check_levels, karras, log_uniform, timestep_range


def test_log_uniform_is_a_geometric_series():
    levels = log_uniform(10, 0.1, 4)
    assert levels.tolist() == pytest.approx([10, 10**0.5, 1, 10**-0.5, 0.1], rel=1e-6)


def test_karras_is_equation_5():
    levels = karras(80, 0.002, 18)
    assert len(levels) == 19 and levels[0] == pytest.approx(80) and levels[-1] == 0
    i = 5
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert levels[i] == pytest.approx(expected, rel=1e-6)


def test_timestep_range_of_a_flow_model():
    """Evenly spaced t, and sigma = t / (1 - t)."""
    levels = timestep_range(parameterisation.flow().sigma_at, 0.9, 0.1, 4)
    t = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1])
    torch.testing.assert_close(levels, t / (1 - t))


def test_timestep_range_of_an_eps_model():
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    levels = timestep_range(parameterisation.eps(alphas).sigma_at, 1.0, 0.0, 3)
    expected = [math.sqrt((1 - alphas[i]) / alphas[i]) for i in (999, 666, 333)]
    assert levels.tolist() == pytest.approx([*expected, 0.0], rel=1e-5)


def test_iterations_per_level():
    schedule = Schedule(torch.tensor([4.0, 2.0, 0.0]), iterations=3)
    assert len(schedule) == 6
    assert [schedule.pair(i) for i in range(6)] == [(4.0, 2.0)] * 3 + [(2.0, 0.0)] * 3


@pytest.mark.parametrize(
    "levels,message",
    [
        ([3.0, 1.0, 2.0], "goes from 1 at level 2 to 2 at level 3"),
        ([3.0, 3.0], "goes from 3 at level 1 to 3 at level 2"),
        ([1.0, float("nan")], "level 2 is nan"),
        ([float("inf"), 1.0], "level 1 is inf"),
        ([1.0, -0.5], "level 2 is -0.5"),
        ([1.0], "at least 2 levels"),
        ([[2.0, 1.0]], r"shape \(1, 2\)"),
    ],
)
def test_bad_levels_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        check_levels(torch.tensor(levels))


@pytest.mark.parametrize(
    "call",
    [
        lambda: log_uniform(1, 2, 5),
        lambda: log_uniform(1, 0, 5),
        lambda: karras(1, 0.1, 0),
        lambda: timestep_range(parameterisation.flow().sigma_at, 0.2, 0.8, 5),
        lambda: timestep_range(parameterisation.flow().sigma_at, 1.2, 0.8, 5),
        lambda: Schedule(torch.tensor([1.0, 0.0]), iterations=0),
    ],
)
def test_bad_ranges_are_refused(call):
    with pytest.raises(ValueError):
        call()
