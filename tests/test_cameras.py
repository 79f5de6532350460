"""The conventions: right-handed, Y up, azimuth 0 on +Z and growing towards +X."""

from __future__ import annotations

import math

import pytest
import torch

from dreamflow_core.cameras import Cameras, orbit, view_name


def camera(azimuth: float, elevation: float, radius: float = 2.0, fov: float = 90.0) -> Cameras:
    return Cameras(*(torch.tensor([x]) for x in (azimuth, elevation, radius, fov)))


@pytest.mark.parametrize(
    "azimuth,elevation,position",
    [(0, 0, (0, 0, 2)), (90, 0, (2, 0, 0)), (180, 0, (0, 0, -2)), (0, 30, (0, 1, math.sqrt(3)))],
)
def test_positions(azimuth, elevation, position):
    torch.testing.assert_close(
        camera(azimuth, elevation).position()[0], torch.tensor(position, dtype=torch.float32), atol=1e-6, rtol=0
    )


def test_axes_are_right_handed_and_upright():
    right, up, backward = (axis[0] for axis in camera(40, 25).axes())
    torch.testing.assert_close(torch.linalg.cross(right, up), backward)
    assert up[1] > 0 and abs(right[1]) < 1e-6
    torch.testing.assert_close(right @ backward, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_rays_from_the_front():
    """From the front +X is on the right of the picture and +Y at its top; 90 degrees span twice the radius."""
    origins, directions = camera(0, 0).rays(4)
    at_plane = origins + directions * (2.0 / -directions[..., 2:])
    torch.testing.assert_close(at_plane[0, 0, 0], torch.tensor([-1.5, 1.5, 0.0]))
    torch.testing.assert_close(at_plane[0, 3, 2], torch.tensor([0.5, -1.5, 0.0]))
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(1, 4, 4))


@pytest.mark.parametrize(
    "azimuth,elevation,name",
    [
        (0, 0, "front"),
        (-22, 0, "front"),
        (-44, 0, "front-right"),
        (400, 0, "front-left"),
        (359, 10, "front"),
        (90, 0, "left"),
        (-90, 0, "right"),
        (180, 0, "back"),
        (-140, 0, "back-right"),
        (495, 0, "back-left"),
        (200, 49, "back"),
        (0, 51, "overhead"),
        (180, -31, "below"),
    ],
)
def test_view_names(azimuth, elevation, name):
    assert view_name(azimuth, elevation) == name
    assert camera(float(azimuth), float(elevation)).view_names() == [name]


def test_orbit():
    views = orbit(4, 20.0, 3.0, 40.0)
    assert views.azimuth.tolist() == [0, 90, 180, 270]
    assert len(views[1:3]) == 2 and views[1:3].radius.tolist() == [3, 3]
