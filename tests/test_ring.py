"""The flow on a distribution that can be drawn: eight Gaussians on a ring (benchmarks/ring.py)."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ring import METHODS, ring, scores, train


@pytest.fixture(scope="module")
def prior():
    return train(steps=2000)


@pytest.fixture(scope="module")
def truth():
    return ring(2000, torch.Generator().manual_seed(1))


def test_apfo_reaches_the_prior_and_its_controls_do_not(prior, truth):
    """With phi trained the points spread over the ring; with a frozen or a point phi they do not."""
    made = {name: scores(METHODS[name](prior, 64, 150, 0), truth) for name in METHODS if name != "own sampler"}
    distance, diversity, off = made["APFO"]
    assert distance < 0.02 and diversity == pytest.approx(1, abs=0.1) and off < 0.3, made
    assert made["APFO, phi at random levels"][0] < 0.05, made
    for control in ("APFO, frozen phi", "APFO, exact point phi", "SDS"):
        assert made[control][2] > 0.4, made


def test_its_own_sampler_reaches_it(prior, truth):
    distance, diversity, off = scores(METHODS["own sampler"](prior, 64, 60, 0), truth)
    assert distance < 0.03 and diversity == pytest.approx(1, abs=0.1) and off < 0.05
