"""ControlNets that are shown the scene see the very view that is denoised."""

from __future__ import annotations

import tiny
import torch
from helpers import SIGMA, SIZE, cameras, close, noised, optimise_image, prior, step
from pack.dreamflow_core.hints import HINT_KINDS
from pack.dreamflow_core.views import View
from pack.nodes.adapter.conditioning import tag_view
from pack.nodes.adapter.controls import apply_control
from sphere import sphere_from

from nodes import ControlNetApplyAdvanced


def sphere(views, size: int) -> View:
    return View(*sphere_from(views, size))


VIEWS = cameras((0, 0), (90, 20), (-60, -10), (180, 0))


def check_a_hint_is_that_of_the_very_view():
    """The control network's own input is watched, and the estimates are those of ControlNets with fixed hints."""
    model, control = tiny.model("sd1"), tiny.control_net()
    positive = [*tag_view(tiny.text(1), (-90, 90), (-90, 90)), *tag_view(tiny.text(4), (90, 270), (-90, 90))]
    negative = tiny.text(2)
    z_t = noised(model, count=4)
    view = sphere(VIEWS, SIZE)
    for kind, picture in HINT_KINDS.items():
        seen = []
        handle = control.control_model.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(kwargs["hint"].clone()), with_kwargs=True
        )
        texts = apply_control(positive, negative, control, kind, 0.7, 0.0, 1.0)
        made = prior(model, *texts, views=4)
        found = made.run(lambda s: s.denoise(z_t, SIGMA, VIEWS, guided=True), sphere)
        handle.remove()
        expected = picture(view, VIEWS)
        # All views in one batch, by their prompts; once for the positive prompt and once for the negative one.
        (hints,) = seen
        close(hints, expected[[0, 2, 1, 3]].repeat(2, 1, 1, 1), 1e-6)
        for rows, entry in (([0, 2], 0), ([1, 3], 1)):
            for row in rows:
                fixed = ControlNetApplyAdvanced().apply_controlnet(
                    [positive[entry]], negative, control, expected[row].movedim(0, -1)[None], 0.7, 0.0, 1.0
                )
                close(found[[row]], step(model, *fixed, 7.5, count=4, rows=[row]), 1e-5)


def check_a_hint_of_a_control_net_that_takes_latents():
    """One for a flow model: it encodes the hint by its own VAE and copies layers of the model as a run starts."""
    model, control, (positive, negative) = tiny.model("sd3"), tiny.control_net("sd3"), tiny.texts("sd3")
    vae = tiny.vae(channels=16)
    texts = apply_control(positive, negative, control, "depth", 0.7, 0.0, 1.0, vae)
    made = prior(model, *texts, vae=vae, views=4)
    z_t = noised(model, count=4)

    def body(session) -> torch.Tensor:
        found = session.denoise(z_t, SIGMA, VIEWS, guided=True)
        with torch.enable_grad():
            x = z_t.clone().requires_grad_(True)
            session.denoise(x, SIGMA, VIEWS, guided=False).sum().backward()
        assert torch.isfinite(x.grad).all()
        return found

    found = made.run(body, sphere)
    hints = HINT_KINDS["depth"](sphere(VIEWS, SIZE), VIEWS)
    native = made.levels.native(SIGMA)
    for row in range(4):
        picture = hints[row].movedim(0, -1)[None]
        fixed = ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, picture, 0.7, 0.0, 1.0, vae)
        close(found[[row]], step(model, *fixed, 7.5, native, count=4, rows=[row]), 1e-5)
    plain = step(model, positive, negative, 7.5, native, count=4, rows=[0])
    assert (found[[0]] - plain).norm() > 1e-2 * plain.norm()


def check_a_hint_needs_a_scene_with_views():
    texts = apply_control(*tiny.texts("sd1"), tiny.control_net(), "depth", 1.0, 0.0, 1.0)
    try:
        optimise_image(prior(tiny.model("sd1"), *texts))
    except ValueError as error:
        assert "no views" in str(error), error
    else:
        raise AssertionError("a hint without a scene was accepted")


def check_the_users_control_net_stays_as_it_is():
    control = tiny.control_net()
    kept = dict(vars(control))
    texts = apply_control(*tiny.texts("sd1"), control, "mask", 1.0, 0.0, 1.0)
    applied = texts[0][0][1]["control"]
    state = dict(vars(applied))
    model = tiny.model("sd1")
    z_t = noised(model, count=4)
    prior(model, *texts, views=4).run(lambda s: s.denoise(z_t, SIGMA, VIEWS, guided=True), sphere)
    assert vars(control) == kept and vars(applied) == state
