"""Whole optimisations through ComfyUI's models."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import tiny
import torch
from helpers import SIZE, close, optimise_image, prior, same
from pack.dreamflow_core.apfo import Cancelled, Checkpoint, optimise
from pack.dreamflow_core.cameras import orbit
from pack.dreamflow_core.demo.model import MODELS, load_model
from pack.dreamflow_core.guidance import APFO
from pack.dreamflow_core.priors.demo import DemoPrior
from pack.dreamflow_core.scenes.image import ImageScene
from pack.dreamflow_core.scenes.nerf import NeRFScene
from pack.dreamflow_core.schedule import Schedule
from pack.dreamflow_core.settings.cameras import ViewRange
from pack.dreamflow_core.settings.scenes import HashGridSettings, NeRFSettings
from pack.dreamflow_core.settings.stages import PhiSettings
from pack.nodes.adapter.controls import apply_control
from pack.nodes.demo_model import DreamFlowDemoModel
from pack.nodes.prompts import DreamFlowViewPrompt

PROMPT = "a red and blue striped duck"
SCHEDULE = Schedule(torch.tensor([5.0, 2.0, 0.7, 0.3]), 2)
FIELD = NeRFSettings(HashGridSettings(levels=4, finest=32, entries_log2=12), hidden=8, coarse_size=16, samples=16)


def check_phi_learns():
    """At one level its denoising loss falls well under the prior's own."""
    for family in ("sd1", "flux"):
        model, texts = tiny.model(family), tiny.texts(family)
        made = prior(model, *texts, vae=tiny.vae(channels=tiny.channels(family)), cfg=1.0)
        seen = []
        optimise_image(made, levels=(1.0, 0.98), iterations=30, on_progress=seen.append)
        losses = torch.tensor([progress.losses["phi"] for progress in seen])
        assert losses[-5:].mean() < 0.7 * losses[:3].mean(), (family, losses.tolist())


def check_phi_learns_where_half_precision_is_computed_with():
    """With weights and activations of 16 bits, as on a GPU, its loss falls as it does in full precision."""
    fallen = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = tiny.model("sd1", dtype).clone()
        model.set_model_compute_dtype(dtype)
        seen = []
        optimise_image(
            prior(model, *tiny.texts("sd1"), cfg=1.0), levels=(1.0, 0.98), iterations=12, on_progress=seen.append
        )
        fallen[dtype] = seen[-1].losses["phi"] / seen[0].losses["phi"]
    assert all(abs(share / fallen[torch.float32] - 1) < 0.1 for share in fallen.values()), fallen
    assert fallen[torch.float32] < 0.95, fallen


def check_a_cancelled_run_goes_on_where_it_was():
    made = prior(tiny.model("sd1"), *tiny.texts("sd1"))
    whole = optimise_image(made)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "run.safetensors", {}, resume=True)
        seen = []
        with suppress(Cancelled):
            optimise_image(made, on_progress=seen.append, cancelled=lambda: len(seen) == 3, checkpoint=checkpoint)
        same(optimise_image(made, on_progress=seen.append, checkpoint=checkpoint), whole)
    assert [progress.step for progress in seen] == [1, 2, 3, 4]


def check_images_are_those_of_the_same_model_without_comfyui():
    """The demo model as a MODEL, and headless: one algorithm, one seed, one result."""
    made, headless = demo_priors(views=2)
    results = []
    for each in (made, headless):
        with torch.inference_mode(False):
            scene = ImageScene(torch.zeros(2, 3, 64, 64), learning_rate=0.03)
            optimise(scene, each, SCHEDULE, APFO(), PhiSettings(), seed=1)
            results.append(scene.values.detach())
    close(results[0], results[1], 1e-2)
    assert results[0].std() > 0.05


def check_fields_are_those_of_the_same_model_without_comfyui():
    """Views, their prompts, encoding, gradients into a radiance field: all as headless."""
    looks = []
    for each in demo_priors(views=4):
        looks.append(field(each).view(orbit(4, 15, 3, 40), 32).colour)
    close(looks[0], looks[1], 1e-2)
    with torch.inference_mode(False):
        start = NeRFScene(FIELD, ViewRange(), seed=2).view(orbit(4, 15, 3, 40), 32).colour
    moved, apart = (looks[0] - start).norm(), (looks[0] - looks[1]).norm()
    assert moved > 100 * apart, (moved, apart)


def check_the_demo_model_needs_little_memory():
    """It was taken for a model of latents, so short of memory anywhere that every backward pass ran it twice."""
    model, _, _ = DreamFlowDemoModel.execute("demo").args
    # A forward pass of so many was measured at 25 MiB.
    assert 25 < model.model.memory_required([8, 3, 64, 64]) / (1 << 20) < 100


def check_a_field_under_a_control_net_that_sees_it():
    """Every hint is the depth of the field as it is at that iteration; it changes the result."""
    control = tiny.control_net()
    hints = []
    control.control_model.register_forward_pre_hook(
        lambda _, args, kwargs: hints.append(kwargs["hint"].clone()), with_kwargs=True
    )
    model, texts = tiny.model("sd1"), tiny.texts("sd1")
    plain = field(prior(model, *texts, views=4))
    shown = field(prior(model, *apply_control(*texts, control, "depth", 1.0, 0.0, 1.0), views=4))
    # Once for D_p, with both prompts, and once for phi.
    assert len(hints) == 2 * len(SCHEDULE)
    assert all(hint.shape[1:] == (3, SIZE, SIZE) for hint in hints)
    assert torch.equal(hints[0][:4], hints[1]) and not torch.equal(hints[1], hints[3])
    assert not torch.equal(plain.view(orbit(1, 0, 3, 40), 32).colour, shown.view(orbit(1, 0, 3, 40), 32).colour)


def field(made) -> NeRFScene:
    """A small radiance field after a short run."""
    with torch.inference_mode(False):
        scene = NeRFScene(FIELD, ViewRange(), seed=2)
        optimise(scene, made, SCHEDULE, APFO(), PhiSettings(), seed=1)
    return scene


def demo_priors(views: int):
    """The demo model through ComfyUI, and without it."""
    model, clip, vae = DreamFlowDemoModel.execute("demo").args
    (positive,) = DreamFlowViewPrompt.execute(clip, PROMPT).args
    everywhere = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    with torch.inference_mode(False):
        headless = DemoPrior(load_model(MODELS["demo"]), PROMPT, "", cfg=3.0)
    return prior(model, positive if views == 4 else everywhere, negative, cfg=3.0, vae=vae, views=views), headless
