"""What cannot work is refused before anything is loaded, with the reason."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_sampling
import comfy.sd
import tiny
import torch
from helpers import cameras, noised, optimise_image, prior
from pack.dreamflow_core.settings.cameras import ViewRange
from pack.nodes.adapter.conditioning import check_covered, tag_view


def check_models_that_do_not_make_images_from_text():
    texts = tiny.texts("sd1")
    for name, dimensions in (("Wan21", 3), ("StableAudio1", 1)):
        model = tiny.model("sd1").clone()
        model.add_object_patch("latent_format", getattr(comfy.latent_formats, name)())
        assert model.get_model_object("latent_format").latent_dimensions == dimensions
        _refused("a text-to-image model is needed", model, *texts)
    _refused("inpainting or editing model", tiny.model("inpaint"), *texts)
    given = [
        [embedding, {**options, "concat_latent_image": torch.zeros(1, 4, 8, 8)}] for embedding, options in texts[0]
    ]
    _refused("negative has no image", tiny.model("inpaint"), given, texts[1])
    restorer = tiny.model("sd1").clone()

    class Restorer(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG_FLOW):
        pass

    restorer.add_object_patch("model_sampling", Restorer())
    _refused("not a denoiser", restorer, *texts)


def check_bypass_loras_are_refused_by_name():
    plain = tiny.model("sd1")
    model, _ = comfy.sd.load_bypass_lora_for_models(plain, None, tiny.lora(), 0.8, 0)
    _refused("bypass", model, *tiny.texts("sd1"))


def check_a_vae_of_another_model():
    _refused("channels", tiny.model("sd1"), *tiny.texts("sd1"), vae=tiny.vae(channels=16))
    _refused("channels", tiny.model("sd1"), *tiny.texts("sd1"), vae=tiny.pixel_vae())


def check_sizes_and_empty_prompts():
    _refused("multiples of 8", tiny.model("sd1"), *tiny.texts("sd1"), size=60)
    _refused("positive is empty", tiny.model("sd1"), [], tiny.text(2))
    made = prior(tiny.model("sd1"), tiny.text(1))
    larger = torch.zeros(1, 4, 16, 16)
    _raises("(4, 16, 16)", lambda: made.run(lambda s: s.denoise(larger, 1.0, None, guided=True)))


def check_views_without_a_prompt():
    front = tag_view(tiny.text(1), (-45, 45), (-90, 90))
    rest = tag_view(tiny.text(2), (45, 315), (-90, 35))
    above = tag_view(tiny.text(3), (45, 315), (35, 90))
    wide = ViewRange(elevation=(-30, 60))
    check_covered(front + rest + above, wide, "positive")
    check_covered(front, ViewRange(azimuth=(-40, 40)), "positive")
    check_covered(front, ViewRange(azimuth=(320, 400)), "positive")
    for entries, views, where in (
        (front + rest, wide, "elevation 35 to 60"),
        (front + above, wide, "azimuth -180 to -45 and elevation -30 to 35"),
        (rest + above, ViewRange(azimuth=(10, 10), elevation=(0, 0)), "azimuth 10 to 10"),
    ):
        try:
            check_covered(entries, views, "positive")
        except ValueError as error:
            assert where in str(error), error
        else:
            raise AssertionError(where)
    model = tiny.model("sd1")
    made = prior(model, front)
    made.check_views(ViewRange(azimuth=(-40, 40)))
    _raises("azimuth -180 to -45", lambda: made.check_views(ViewRange()))
    _raises("a bare image has no view", lambda: made.check_views(None))
    _raises("no entry of positive holds", lambda: optimise_image(made))
    z_t, behind = noised(model), cameras((0, 0), (180, 0))
    _raises("no entry of positive holds", lambda: made.run(lambda s: s.denoise(z_t, 1.0, behind, guided=True)))
    _raises("is empty", lambda: tag_view(front, (45, -45), (0, 1)))


def _refused(reason: str, model, positive, negative, **options) -> None:
    _raises(reason, lambda: prior(model, positive, negative, **options))


def _raises(reason: str, call) -> None:
    try:
        call()
    except ValueError as error:
        assert reason in str(error), error
    else:
        raise AssertionError(f"nothing was refused; expected: {reason}")
