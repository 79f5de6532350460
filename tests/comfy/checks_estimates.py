"""The loop sees what a KSampler step sees, bit for bit."""

from __future__ import annotations

from collections import Counter
from functools import partial

import comfy.hooks
import comfy.sd
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNeg
from helpers import SIGMA, cameras, close, noised, prior, same, step
from pack.nodes.adapter.conditioning import tag_view
from pack.nodes.adapter.levels import NoiseLevels
from pack.nodes.demo_model import DreamFlowDemoModel

from nodes import ConditioningSetArea, ConditioningSetTimestepRange, ControlNetApply, ControlNetApplyAdvanced


def check_estimates_of_unet_families():
    for family in ("sd1", "sd2", "sdxl", "refiner"):
        model, texts = tiny.model(family), tiny.texts(family)
        for cfg in (1.0, 7.5):
            _same(model, *texts, cfg=cfg)


def check_estimates_of_flow_models():
    """Up to rounding: a sampler computes (1 - s) z + s eps, the loop (1 - s) (z + s / (1 - s) eps)."""
    for family in ("sd3", "flux"):
        model, texts = tiny.model(family), tiny.texts(family)
        for patched in (model, ModelSamplingSD3().patch(model, 7.0)[0]):
            native = NoiseLevels.of(patched).native(SIGMA)
            expected = step(patched, *texts, 4.0, native)
            close(_estimate(patched, *texts, 4.0, SIGMA, vae=tiny.vae(channels=16)), expected, 1e-5)


def check_estimates_of_weights_in_few_bits():
    for storage in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        _same(tiny.model("sd1", storage), *tiny.texts("sd1"))


def check_estimates_of_the_demo_model():
    with torch.inference_mode():
        model, clip, vae = DreamFlowDemoModel.execute("demo").args
    positive, negative = (
        clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in ("a red cube, seen from the front", "")
    )
    z = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    eps = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = prior(model, positive, negative, cfg=3.0, vae=vae).run(
        lambda session: session.denoise(session.encode(z / 2 + 0.5) + SIGMA * eps, SIGMA, None, guided=True)
    )
    close(found, step(model, positive, negative, 3.0, latents=z, noise=eps), 1e-5)


def check_estimates_with_a_lora():
    model, _ = comfy.sd.load_lora_for_models(tiny.model("sd1"), None, tiny.lora(), 0.8, 0)
    found = _same(model, *tiny.texts("sd1"))
    _differ(found, step(tiny.model("sd1"), *tiny.texts("sd1"), 7.5))


def check_estimates_with_control_nets():
    model, (positive, negative) = tiny.model("sd1"), tiny.texts("sd1")
    plain = step(model, positive, negative, 7.5)
    hint, control = torch.rand(1, 64, 64, 3), tiny.control_net()
    both = ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, hint, 0.7, 0.0, 1.0)
    chained = ControlNetApplyAdvanced().apply_controlnet(*both, control, hint.flip(1), 0.4, 0.0, 1.0)
    # The old node puts it on the positive alone and has the sampler copy it to the negative.
    old = ControlNetApply().apply_controlnet(positive, control, hint, 0.7)[0], negative
    for texts in (both, chained, old):
        _differ(_same(model, *texts), plain)
    early = ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, hint, 0.7, 0.0, 0.1)
    same(_same(model, *early, sigma=0.5), step(model, positive, negative, 7.5, 0.5))


def check_estimates_with_areas_and_timestep_ranges():
    model, (positive, negative) = tiny.model("sd1"), tiny.texts("sd1")
    plain = step(model, positive, negative, 7.5)
    area = ConditioningSetArea().append(tiny.text(5, tokens=154), 32, 64, 16, 0, 0.8)[0]
    late = ConditioningSetTimestepRange().set_range(tiny.text(6), 0.9, 1.0)[0]
    early = ConditioningSetTimestepRange().set_range(tiny.text(7), 0.0, 0.9)[0]
    _differ(_same(model, positive + area, negative), plain)
    _differ(_same(model, positive, negative + area), plain)
    for sigma in (8.0, 0.1):
        _same(model, early + late, negative, sigma=sigma)
    _differ(step(model, early + late, negative, 7.5), step(model, late + positive, negative, 7.5))


def check_estimates_with_cfg_functions():
    model, (positive, negative) = tiny.model("sd1"), tiny.texts("sd1")
    plain = step(model, positive, negative, 7.5)
    for patched in (
        RescaleCFG().patch(model, 0.7)[0],
        PerturbedAttentionGuidance.execute(model, 3.0).args[0],
        PerpNeg.execute(model, tiny.text(9), 1.0).args[0],
    ):
        _differ(_same(patched, positive, negative), plain)
        alone = prior(patched, positive, negative).run(lambda s: s.denoise(noised(model), SIGMA, None, guided=False))
        same(alone, step(model, positive, negative, 1.0))


def check_wrappers_run_as_in_a_sampler():
    """Other packs hang on these; each is called as often as by a KSampler that takes as many steps."""
    kinds = ("OUTER_SAMPLE", "PREPARE_SAMPLING", "SAMPLER_SAMPLE", "PREDICT_NOISE", "CALC_COND_BATCH")
    kinds += ("APPLY_MODEL", "DIFFUSION_MODEL")

    def calls(evaluate) -> Counter:
        model, seen = tiny.model("sd1").clone(), Counter()

        def wrapper(kind: str, executor, *args, **kwargs):
            seen[kind] += 1
            return executor(*args, **kwargs)

        for kind in kinds:
            model.add_wrapper(getattr(WrappersMP, kind), partial(wrapper, kind))
        model.set_model_unet_function_wrapper(
            lambda apply, args: wrapper("function", apply, args["input"], args["timestep"], **args["c"])
        )
        evaluate(model, *tiny.texts("sd1"), 7.5, SIGMA)
        return seen

    expected = calls(step)
    assert set(expected) == {*kinds, "function"}
    assert calls(_estimate) == expected, (calls(_estimate), expected)


def check_estimates_with_weight_hooks_in_any_order_of_levels():
    model, (positive, negative) = tiny.model("sd1"), tiny.texts("sd1")
    hooks = comfy.hooks.create_hook_lora(tiny.lora(), 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.3, 0.5), (0.0, 0.8)):
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    plain = comfy.hooks.set_hooks_for_conditioning(positive, hooks.clone())
    hooks.set_keyframes_on_hooks(frames)
    moving = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
    levels = (8.0, 1.0, 0.1, 8.0, 0.1, 1.0)
    for texts in (plain, moving):
        expected = [step(model, texts, negative, 7.5, sigma) for sigma in levels]
        found = prior(model, texts, negative).run(
            lambda session: [session.denoise(noised(model, s), s, None, guided=True) for s in levels]
        )
        for a, b in zip(found, expected):
            same(a, b)
    _differ(expected[0], step(model, positive, negative, 7.5, 8.0))


def check_estimates_of_each_view_are_those_of_its_own_prompt():
    model, negative = tiny.model("sd1"), tiny.text(2)
    front, back, above = tiny.text(11), tiny.text(12, tokens=154), tiny.text(13)
    everywhere = tiny.text(14)
    positive = [
        *tag_view(front, (-90, 90), (-90, 40)),
        *tag_view(back, (90, 270), (-90, 40)),
        *tag_view(above, (-180, 180), (40, 90)),
        *everywhere,
    ]
    negative = [*tag_view(tiny.text(15), (90, 270), (-90, 40)), *negative]
    views = cameras((0, 0), (180, 10), (-45, 20), (-100, 0), (10, 60))
    z_t = noised(model, count=5)
    found = prior(model, positive, negative, views=5).run(lambda s: s.denoise(z_t, SIGMA, views, guided=True))
    for rows, texts in (
        ([0, 2], (front + everywhere, negative[1:])),
        ([1, 3], (back + everywhere, negative)),
        ([4], (above + everywhere, negative[1:])),
    ):
        same(found[rows], step(model, *texts, 7.5, count=5, rows=rows))


def check_views_that_differ_in_their_prompts_alone_are_one_batch():
    model = tiny.model("sd1")
    texts = [tiny.text(11), tiny.text(12), tiny.text(13, tokens=154)]
    ranges = [(-90, 0), (0, 90), (90, 270)]
    positive = [entry for text, span in zip(texts, ranges) for entry in tag_view(text, span, (-90, 90))]
    views = cameras((45, 0), (-45, 10), (180, 20), (30, 0), (-10, 60))
    z_t, negative, sizes = noised(model, count=5), tiny.text(2), []

    def run(positive, guided: bool = True) -> torch.Tensor:
        made = prior(model, positive, negative, views=5)
        return made.run(lambda s: s.denoise(z_t, SIGMA, views, guided=guided))

    network = model.model.diffusion_model
    handle = network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    found, unguided = run(positive), run(positive, guided=False)
    longer = [[embedding, {**options, "strength": 0.5 + i}] for i, (embedding, options) in enumerate(positive)]
    apart = run(longer)
    handle.remove()
    # 5 views with both prompts; 5 of phi; and those whose entries differ in more, by prompt, 2 + 2 + 1.
    assert sizes[:2] == [10, 5] and sorted(sizes[2:]) == [2, 4, 4], sizes
    for text, rows in zip(texts, ([1, 4], [0, 3], [2])):
        close(found[rows], step(model, text, negative, 7.5, count=5, rows=rows), 1e-5)
        close(unguided[rows], step(model, text, negative, 1.0, count=5, rows=rows), 1e-5)
    close(apart, found, 1e-5)


def _same(model, positive, negative, *, cfg: float = 7.5, sigma: float = SIGMA) -> torch.Tensor:
    found = _estimate(model, positive, negative, cfg, sigma)
    same(found, step(model, positive, negative, cfg, sigma))
    return found


def _estimate(model, positive, negative, cfg: float, sigma: float, vae=None) -> torch.Tensor:
    z_t = noised(model, sigma)
    return prior(model, positive, negative, cfg=cfg, vae=vae).run(lambda s: s.denoise(z_t, sigma, None, guided=True))


def _differ(a: torch.Tensor, b: torch.Tensor) -> None:
    """The setting under test has an effect at all."""
    assert (a - b).norm() / b.norm() > 1e-2
