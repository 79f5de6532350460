"""The small Stable Diffusion's words, and how its parts are trained."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from dreamflow_core.demo import truth
from dreamflow_core.demo.dataset import SurfaceBank
from dreamflow_core.demo.vocabulary import SLOTS, Description, all_descriptions, parse
from dreamflow_core.lora import LoRA
from dreamflow_core.mini import models, words
from dreamflow_core.priors.lora_files import add_loras, read_lora
from dreamflow_core.state import load_state

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from dreamflow_core.mini import train


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words.write_tokenizer(folder)
    return words.load_tokenizer(folder)


@pytest.fixture(scope="module")
def bank():
    return SurfaceBank(32, 3, "model", seed=0)


def test_every_word_is_one_token(tokenizer):
    assert all(len(tokenizer(word).input_ids) == 3 for word in words.WORDS)
    assert tokenizer("A Red cube").input_ids == tokenizer("a red cube").input_ids


def test_what_the_tokenizer_knows_is_text_again(tokenizer):
    assert tokenizer.decode(tokenizer("teapot").input_ids, skip_special_tokens=True).strip() == "teapot"


def test_prompts_say_what_is_shown(tokenizer):
    """The demo's own reader, which knows nothing of how they were made, reads them back."""
    generator = torch.Generator().manual_seed(0)
    for what in all_descriptions(SLOTS)[::997]:
        text = words.phrase(what, generator)
        read = parse(text.replace("three-quarter view", "quarter view"))
        assert read == what, text
        assert set(tokenizer.tokenize(text)) <= {f"{word}</w>" for word in words.WORDS}
    assert words.phrase(Description(), generator) == ""


def test_an_open_pattern_is_no_plain_shape():
    """A shape without a pattern is plain; so where the pattern is open, the shape must not be named."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert "cube" not in words.phrase(Description(shape="cube", colour="red"), generator)
        assert "plain" not in words.phrase(Description(shape="cube", colour="red", pattern="plain"), generator)


def test_prompts_take_the_length_that_stable_diffusion_takes(tokenizer):
    tokens = words.tokens(tokenizer, ["", "a red cube"])
    assert tokens.shape == (2, 77)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokens[0].tolist() == [start] + [end] * 76 and tokens[1, 4:].tolist() == [end] * 73


def test_the_denoiser_starts_as_one_that_passes_noise_through():
    torch.manual_seed(0)
    unet = models.make_unet()
    train.pass_noise_through(unet)
    offset = torch.tensor([0.5, 0.0, -0.5, 0.2]).view(1, 4, 1, 1)
    x = torch.randn(2, 4, 32, 32) + offset
    with torch.no_grad():
        made = unet(x, torch.tensor([999, 0]), torch.randn(2, models.LENGTH, models.TEXT_WIDTH)).sample
    assert (made - x).square().mean().sqrt() < 0.1
    assert (made.mean((2, 3)) - x.mean((2, 3))).abs().max() < 0.1


def test_noise_levels_are_those_of_stable_diffusion():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    torch.testing.assert_close(train.noise_levels().double(), ((1 - kept) / kept).sqrt(), rtol=1e-4, atol=0)


def test_the_loss_weighs_all_noise_levels_alike():
    """A network that returns its input: its error is known, and the same at every level but for the image's share."""
    z, noise = torch.zeros(1, 4, 32, 32), torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    for t in (5, 400, 999):
        sigma = train.noise_levels()[t].item()
        loss = train.noise_loss(lambda x, _: x, z, torch.tensor([t]), noise)
        expected = (1 + sigma**2) * (1 - sigma / math.hypot(1, sigma)) ** 2 * noise.square().mean()
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-6)
        assert train.noise_loss(lambda x, _: noise, z, torch.tensor([t]), noise) == 0


def test_timesteps_follow_their_distribution():
    recipe = replace(train.RECIPES["base"], log_sigma=(0.2, 0.8))
    t = train.sample_timesteps(4000, recipe, torch.Generator().manual_seed(0))
    logs = train.noise_levels()[t].log()
    assert abs(logs.mean() - 0.2) < 0.02 and abs(logs.std() - 0.8) < 0.02


def test_latents_are_standardised_and_the_vae_stays_the_same():
    torch.manual_seed(0)
    vae = models.make_vae()
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mode()).sample
        spread = vae.encode(images).latent_dist.logvar
        train.standardise(vae, images)
        posterior = vae.encode(images).latent_dist
        torch.testing.assert_close(vae.decode(posterior.mode()).sample, before, atol=1e-4, rtol=1e-4)
    flat = posterior.mode().transpose(0, 1).flatten(1) * vae.config.scaling_factor
    assert flat.mean(1).abs().max() < 1e-3 and (flat.std(1) - 1).abs().max() < 1e-3
    # The deviation that the encoder is sure of goes with the latents.
    assert not torch.equal(posterior.logvar, spread)


def test_crops_and_mixed_colours():
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(3, 3, 16, 16)
    cut = train.crops(rows, 4, generator)
    assert cut.shape == (3, 3, 4, 4) and torch.equal(cut[:, :, 1:] - cut[:, :, :-1], torch.ones(3, 3, 3, 4))
    grey = torch.full((64, 3, 2, 2), 0.25)
    torch.testing.assert_close(train.mix_colours(grey, generator), grey)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(64, 3, 2, 2)
    kept = (train.mix_colours(red, generator) == red).all(dim=(1, 2, 3)).float().mean()
    assert 0.3 < kept < 0.7


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(bank, tmp_path: Path):
    recipe = train.Recipe(32, 3, cycles=((4, 1e-3),), batch=8, warmup=2)

    def run(steps: int, name: str):
        torch.manual_seed(0)
        vae = models.make_vae(block_out_channels=[32, 32, 32])
        made = train.Run(vae, (vae.encoder.conv_in.weight,), recipe)

        def loss_of(generator):
            if made.step == steps:
                made.save(tmp_path / f"{name}.safetensors")
                raise KeyboardInterrupt
            return train.vae_loss(vae, bank.batch(8, generator).images, generator)

        with suppress(KeyboardInterrupt):
            made.complete(loss_of, name, tmp_path)
        return made

    straight = run(99, "a")
    run(2, "b")
    assert load_state(tmp_path / "b.safetensors")["step"] == 2
    resumed = run(99, "b")
    for name, tensor in straight.average.items():
        assert torch.equal(tensor, resumed.average[name]), name


def test_hints_of_renders_are_those_of_the_scene(bank):
    """The depth of a batch is the tracer's own, from the very cameras."""
    batch = bank.batch(8, torch.Generator().manual_seed(1))
    names = list(SLOTS["shape"])
    for i in range(8):
        surface = truth.trace(names[batch.truth[i, 0] - 1], batch.cameras[i : i + 1], 32)
        inside = surface.alpha > 0.99
        # Positions are kept in half precision.
        torch.testing.assert_close(batch.view().depth[i : i + 1][inside], surface.depth[inside], atol=5e-3, rtol=0)


@pytest.mark.parametrize("look", truth.LOOKS)
def test_looks_change_the_object_and_nothing_else(bank, look):
    paints = (truth.paint, truth.LOOKS[look])
    plain, other = (bank.batch(8, torch.Generator().manual_seed(1), paint=paint).images for paint in paints)
    alpha = bank.batch(8, torch.Generator().manual_seed(1)).alpha
    assert torch.equal(plain[(alpha == 0).expand_as(plain)], other[(alpha == 0).expand_as(other)])
    assert (plain - other)[(alpha == 1).expand_as(plain)].abs().mean() > 0.05


def test_a_cartoon_has_two_tones():
    shade = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    white = torch.ones(1, 3)
    tones = truth.paint_flat(torch.ones_like(shade), shade, torch.zeros_like(shade), white, white, white)[
        :, 0
    ].flatten()
    assert ((tones == 1) | (tones - 0.55).abs().lt(1e-6)).float().mean() > 0.95


@pytest.mark.parametrize("naming", [train.kohya_names, train.peft_names])
def test_lora_files_of_either_layout_do_what_was_trained(tmp_path, naming, tokenizer):
    """Read as any user's file is, and added to the weights."""
    torch.manual_seed(0)
    model = train.new_denoiser(train.RECIPES["base"], tokenizer)
    lora = LoRA(model.unet, 4, torch.Generator().manual_seed(0))
    for _, adapter in lora.pairs():
        torch.nn.init.normal_(adapter.up, std=0.05)
    names = {id(module): name for name, module in model.unet.named_modules()}
    save_file(
        {n: t.detach().contiguous() for n, t in naming({names[id(a)]: b for a, b in lora.pairs()}).items()},
        tmp_path / "lora.safetensors",
    )
    x, t, prompt = torch.randn(1, 4, 32, 32), torch.tensor([500]), words.tokens(tokenizer, ["a red cube"])
    with torch.no_grad():
        plain = model(x, t, prompt)
        with lora.attached(), lora.on():
            hooked = model(x, t, prompt)
        pipe = SimpleNamespace(unet=model.unet, text_encoder=model.text_encoder, components={})
        add_loras(pipe, [read_lora(tmp_path / "lora.safetensors", 1.0)])
        torch.testing.assert_close(model(x, t, prompt), hooked, atol=1e-4, rtol=1e-4)
    assert (hooked - plain).abs().max() > 0.01
