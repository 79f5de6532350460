"""Prompts by view and prompts that are longer than the encoders, with ComfyUI's own text encoders."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip as sd2_clip
import tiny
import torch
import transformers
from helpers import close
from pack.dreamflow_core.cameras import VIEW_WORDING
from pack.dreamflow_core.priors.text import encode_text
from pack.nodes.adapter.conditioning import entries_for
from pack.nodes.prompts import DreamFlowViewPrompt

LONG = "an old clockwork owl of brass and green enamel, " * 12
CHUNK = 77
_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
_ENCODERS = {
    "sd1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
    "sd2": (sd2_clip.SD2Tokenizer, sd2_clip.SD2ClipModel),
    "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    "refiner": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLRefinerClipModel),
}


def clip(family: str) -> comfy.sd.CLIP:
    """A CLIP of the family's kind with small encoders of random weights."""
    target = comfy.supported_models_base.ClipTarget(*_ENCODERS[family])
    sizes = {f"clip_{tower}_model_config": _SIZES for tower in "lgh"}
    made = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    tiny.randomised(made.cond_stage_model)
    return made


def conditioning(made: comfy.sd.CLIP, text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    ((hidden, options),) = made.encode_from_tokens_scheduled(made.tokenize(text))
    return hidden, options["pooled_output"]


def check_long_prompts_are_the_headless_ones():
    for family in _ENCODERS:
        made = clip(family)
        towers = [tower for tower in "lgh" if hasattr(made.cond_stage_model, f"clip_{tower}")]
        encoders = [ours(made, tower) for tower in towers]
        for text in ("", "a red cat", LONG, "cat " * 75, "cat " * 76):
            hidden, pooled = conditioning(made, text)
            own, own_pooled = encode_text(encoders, text, penultimate=family in ("sdxl", "refiner"))
            assert hidden.shape == own.shape, (family, hidden.shape, own.shape)
            close(own, hidden, 1e-4)
            if family in ("sdxl", "refiner"):
                close(own_pooled, pooled, 1e-4)


def ours(made: comfy.sd.CLIP, tower: str):
    """A tokenizer and a model of Transformers with the weights of one of ComfyUI's encoders."""
    encoder = getattr(made.cond_stage_model, f"clip_{tower}")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")
    if tower != "l":
        tokenizer.pad_token = "!"
    # ComfyUI takes the layer below the last of SD 2.x's; diffusers' model ends there.
    layers = _SIZES["num_hidden_layers"] - (1 if tower == "h" else 0)
    config = transformers.CLIPTextConfig(
        **{**_SIZES, "num_hidden_layers": layers},
        projection_dim=16,
        hidden_act="quick_gelu" if tower == "l" else "gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    kind = transformers.CLIPTextModelWithProjection if tower == "g" else transformers.CLIPTextModel
    model = kind(config).eval()
    state = encoder.transformer.state_dict()
    names = {name: name if name in state else f"text_model.{name}" for name in model.state_dict()}
    model.load_state_dict({name: state[theirs] for name, theirs in names.items()})
    return tokenizer, model


def check_no_prompt_is_too_long_for_its_view():
    """Front and back differ in the first chunk and in the pooled vector, which is that chunk's."""
    for family in _ENCODERS:
        made = clip(family)
        for text in ("", "a red cat", "cat " * 70, "cat " * 75, LONG):
            (entries,) = DreamFlowViewPrompt.execute(made, text).args
            front, back = (entries[entries_for(entries, azimuth, 0.0)[0]] for azimuth in (0.0, 180.0))
            assert not torch.allclose(front[0][:, :CHUNK], back[0][:, :CHUNK], atol=1e-2), (family, text)
            pooled = [options["pooled_output"] for _, options in (front, back)]
            assert not torch.allclose(*pooled, atol=1e-2), (family, text)


def check_words_of_a_view_come_behind_a_text_that_leaves_them_room():
    made = clip("sdxl")
    for text, whole in (("a cat", "a cat, {}"), (LONG, "{}, " + LONG)):
        (entries,) = DreamFlowViewPrompt.execute(made, text).args
        for entry, view in zip(entries, VIEW_WORDING.values()):
            hidden, pooled = conditioning(made, whole.format(view))
            close(entry[0], hidden, 1e-6)
            close(entry[1]["pooled_output"], pooled, 1e-6)
