"""The loop sees what a KSampler step sees."""

from __future__ import annotations

import tiny
from helpers import SIGMA, noised, prior, same, step


def check_eps_v_and_sdxl_estimates_are_a_samplers():
    for family, pooled in (("sd1", None), ("sd2", None), ("sdxl", 1280), ("refiner", 1280)):
        model = tiny.model(family)
        positive, negative = tiny.text(1, pooled=pooled), tiny.text(2, pooled=pooled)
        for cfg in (1.0, 7.5):
            expected = step(model, positive, negative, cfg)
            z_t = noised(model)
            estimate = prior(model, positive, negative, cfg=cfg).run(lambda s: s.denoise(z_t, SIGMA, None, guided=True))
            same(estimate, expected)
