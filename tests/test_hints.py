"""What ControlNets are shown of a scene, on shapes whose pictures are known."""

from __future__ import annotations

import pytest
import torch
from sphere import sphere_from

from dreamflow_core.cameras import Cameras
from dreamflow_core.hints import FARTHEST, HINT_KINDS, render_hints
from dreamflow_core.views import View

SIZE = 64
AZIMUTH, ELEVATION = torch.tensor([[0.0, 0.0], [90, 20], [-60, -10], [180, 0]]).T
VIEWS = Cameras(AZIMUTH, ELEVATION, torch.full((4,), 3.0), torch.full((4,), 40.0))


def test_hints_are_what_control_nets_expect():
    view = View(*sphere_from(VIEWS, SIZE))
    depth, normal, edges, mask = (HINT_KINDS[kind](view, VIEWS) for kind in ("depth", "normal", "edges", "mask"))
    for hint in (depth, normal, edges, mask):
        assert hint.shape == (4, 3, SIZE, SIZE) and hint.min() >= 0 and hint.max() <= 1
    for i in range(4):
        seen = view.alpha[i, 0] > 0
        distance, grey = view.depth[i, 0][seen], depth[i, 0][seen]
        order = distance.argsort()
        assert (grey[order].diff() <= 1e-6).all(), "nearer is not whiter"
        assert grey.max() == 1 and abs(grey.min() - FARTHEST) < 1e-6 and depth[i, 0][~seen].max() == 0
        assert torch.equal(mask[i, 0] > 0, seen)
        # Colours of the normals by where on the disc they are: its right end is red, its top green.
        rows, columns = seen.nonzero().T
        middle = normal[i, :, int(rows.float().mean().round()), int(columns.float().mean().round())]
        right = normal[i, :, rows[columns.argmax()], columns.max()]
        top = normal[i, :, rows.min(), columns[rows.argmin()]]
        assert middle[2] > 0.95 and right[0] > 0.85 and top[1] > 0.85, (middle, right, top)
        assert normal[i, 2][~seen].min() == 1
        # The only edge is the outline.
        outline = (torch.nn.functional.max_pool2d(seen[None, None].float(), 5, 1, 2)[0, 0] > 0) & ~(
            -torch.nn.functional.max_pool2d(-seen[None, None].float(), 5, 1, 2)[0, 0] > 0
        )
        lines = edges[i, 0] > 0
        assert lines.sum() > 20 and (lines & outline).sum() > 0.9 * lines.sum()


def test_edges_show_creases_inside_the_outline():
    """Two half planes that meet in a ridge, and nothing else."""
    normal = torch.zeros(1, 3, SIZE, SIZE)
    normal[:, 0, :, : SIZE // 2], normal[:, 0, :, SIZE // 2 :] = -0.6, 0.6
    normal[:, 2] = 0.8
    one = torch.ones(1, 1, SIZE, SIZE)
    lines = HINT_KINDS["edges"](View(one.expand(-1, 3, -1, -1), one, 3 * one, normal), VIEWS[:1])[0, 0]
    columns = lines[8:-8, 8:-8].nonzero()[:, 1].unique() + 8
    assert len(columns) and all(abs(c - SIZE // 2) <= 2 for c in columns.tolist()), columns


def test_hints_of_several_kinds_are_of_one_look():
    looks = []

    def look(cameras: Cameras, size: int) -> View:
        looks.append(size)
        return View(*sphere_from(cameras, size))

    hints = render_hints(look, VIEWS, SIZE, ("mask", "depth"))
    assert looks == [SIZE] and set(hints) == {"mask", "depth"}
    assert torch.equal(hints["depth"], HINT_KINDS["depth"](View(*sphere_from(VIEWS, SIZE)), VIEWS))


def test_a_hint_needs_a_scene_with_views():
    with pytest.raises(ValueError, match="no views"):
        render_hints(None, None, SIZE, ("depth",))
