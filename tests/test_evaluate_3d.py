"""The measures of text to 3D on objects whose grades are known: the truth itself, turned, filled or another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evaluate_3d import Truth, choose_prompts, measure, refine_row, summary

from dreamflow_core.cameras import Cameras
from dreamflow_core.demo import truth
from dreamflow_core.demo.judge import load_judge
from dreamflow_core.demo.truth import COLOURS, PATTERNS, Pattern
from dreamflow_core.demo.vocabulary import SLOTS, Description
from dreamflow_core.state import make_generator
from dreamflow_core.views import View

DUCK = Description("duck", "yellow", None, "plain")


def look_at_truth(shape: str, colour: str, *, turned: float = 0.0, brighter: float = 0.0):
    """What cameras see of a plain true object, turned about its vertical axis by degrees."""

    def look(cameras: Cameras, size: int) -> View:
        seen = replace(cameras, azimuth=cameras.azimuth - turned)
        surface = truth.trace(shape, seen, size)
        plain = Pattern.sample("plain", len(cameras), make_generator(0, "pattern")).mask(surface)
        paint = torch.tensor(COLOURS[colour]).expand(len(cameras), 3)
        black = torch.zeros(len(cameras), 3)
        picture = truth.paint(surface.alpha, surface.shade(), plain, paint, paint, black) + brighter * surface.alpha
        return View(picture, surface.alpha, surface.depth, surface.normal)

    return look


@pytest.fixture(scope="module")
def duck() -> Truth:
    return Truth.of(DUCK)


def test_the_truth_gets_full_marks(duck):
    row = measure(look_at_truth("duck", "yellow"), duck, load_judge())
    assert row["turned"] == 0 and row["facing"] == 1
    assert row["least_iou"] > 0.999 and row["psnr"] > 50
    assert row["shape"] > 0.95 and row["colour"] > 0.98 and row["pattern"] > 0.95


@pytest.mark.parametrize("turned", [-90.0, 45.0, 180.0])
def test_a_turned_object_is_found_out(duck, turned):
    row = measure(look_at_truth("duck", "yellow", turned=turned), duck, None)
    assert abs(row["turned"]) == abs(turned)
    assert row["facing"] == (abs(turned) <= 45)
    assert row["least_iou"] > 0.99


def test_another_object_falls_short(duck):
    row = measure(look_at_truth("cone", "blue"), duck, load_judge())
    assert row["iou"] < 0.75 and row["psnr"] < 15
    assert row["shape"] < 0.2 and row["colour"] < 0.2


def test_a_hole_is_open_or_not():
    torus = Truth.of(Description("torus", "red", None, "plain"))
    assert measure(look_at_truth("torus", "red"), torus, None)["hole"] == 1
    assert measure(look_at_truth("sphere", "red"), torus, None)["hole"] == 0


def test_colour_drift_counts_what_goes_beyond_the_truth(duck):
    """5/255 too bright after, 2/255 too bright before: 3/255 further off, and back the other way."""
    rows: list[dict] = [measure(look_at_truth("duck", "yellow", brighter=b / 255), duck, None) for b in (2.0, 5.0, 0.0)]
    assert refine_row(rows[0], rows[1], duck)["drift"] == pytest.approx(3, abs=0.3)
    assert refine_row(rows[1], rows[2], duck)["drift"] == pytest.approx(-5, abs=0.3)
    assert refine_row(rows[0], rows[1], duck)["closer"] < 0


def test_prompts_cover_everything():
    prompts = choose_prompts(24)
    assert len({p.prompt() for p in prompts}) == 24
    for slot, values in (("shape", SLOTS["shape"]), ("colour", SLOTS["colour"]), ("pattern", PATTERNS)):
        counts = [sum(getattr(p, slot) == value for p in prompts) for value in values]
        assert min(counts) >= 2, (slot, counts)


def test_a_run_without_a_mesh_fails_and_leaves_the_other_measures():
    stages = {"nerf": {"cpu_seconds": 2.0, "iou": 0.9}, "extract": {"cpu_seconds": 1.0, "iou": 0.96}}
    whole = {"made": 1.0, "iou": 0.96, "least_iou": 0.8, "stages": stages}
    broken = {"made": 0.0, "error": "empty", "stages": {"nerf": stages["nerf"]}}
    lines = {line[:20]: line for line in summary([broken, whole])}
    assert "mean  0.500" in lines["runs that end with a"] and "FAILS" in lines["runs that end with a"]
    assert "worst  0.800  holds  nerf 0.9  extract 0.96" in lines["silhouette IoU, mean"]
