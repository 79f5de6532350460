"""SIGMAS and noise-to-signal ratios are the same levels in other units."""

from __future__ import annotations

import math

import comfy.samplers
import tiny
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingSD3
from helpers import close, same
from pack.nodes.adapter.levels import NoiseLevels, native_schedule


def models():
    yield from (tiny.model(family) for family in ("sd1", "sd2", "sd3", "flux"))
    yield ModelSamplingSD3().patch(tiny.model("sd3"), 9.0)[0]
    yield ModelSamplingContinuousEDM().patch(tiny.model("sd1"), "edm", 80.0, 0.002)[0]


def check_levels_come_back_from_ratios():
    for model in models():
        levels = NoiseLevels.of(model)
        for scheduler in ("simple", "karras", "beta"):
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, 12)
            ratios = levels.ratios(sigmas)
            assert torch.isfinite(ratios).all() and (ratios.diff() < 0).all() and ratios[-1] == 0
            # All but a first level of pure noise come back.
            pure = not math.isfinite(levels.ratio(float(sigmas[0])))
            close(levels.sigmas(ratios)[pure:], sigmas[pure:], 1e-6)


def check_ratios_are_those_of_the_model_families():
    sigmas = torch.tensor([7.0, 3.0, 0.5, 0.0])
    same(native_schedule(tiny.model("sd1"), sigmas, 2).levels, sigmas)
    t = torch.tensor([0.9, 0.5, 0.1])
    close(native_schedule(tiny.model("flux"), t, 2).levels, t / (1 - t), 1e-6)
    first = native_schedule(tiny.model("sd3"), torch.tensor([1.0, 0.5, 0.0]), 1).levels[0]
    assert 100 < first < 1e5


def check_timesteps_are_comfyuis():
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    for model in models():
        levels, sampling = NoiseLevels.of(model), model.get_model_object("model_sampling")
        ratios = levels.at(t)
        assert ratios.dtype == t.dtype and torch.isfinite(ratios).all() and ratios[0] > 0 and (ratios.diff() > 0).all()
        middle = float(sampling.percent_to_sigma(1 - 0.35))
        assert abs(levels.native(float(ratios[7])) / middle - 1) < 1e-6


def check_bad_sigmas_are_refused():
    model = tiny.model("sd1")
    for sigmas in ([1.0], [1.0, 2.0], [1.0, float("nan")], [1.0, -1.0]):
        try:
            native_schedule(model, torch.tensor(sigmas), 1)
        except ValueError:
            continue
        raise AssertionError(sigmas)
