"""The diffusers prior against diffusers' own pipelines: tiny random models of each family, made on the spot."""

import json
import re
import shutil
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamflow_core.apfo import optimise
from dreamflow_core.cameras import Cameras
from dreamflow_core.guidance import APFO
from dreamflow_core.lora import LoRA
from dreamflow_core.priors.diffusers import DiffusersPrior, load_pipeline
from dreamflow_core.scenes.image import ImageScene
from dreamflow_core.schedule import Schedule, timestep_range
from dreamflow_core.settings.stages import PhiSettings
from dreamflow_core.state import BadFile

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

FAMILIES = ("sd1", "sd2", "sdxl", "refiner")
PROMPT, NEGATIVE, CFG, SIZE = "a red cat", "blurry", 7.5, 16
TOKENS, PROJECTION, TIME_DIM = 40, 24, 8
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Every attempt to reach a network fails, and is counted even where a library swallows the failure."""
    attempts = []

    def refuse(*args, **_):
        attempts.append(args)
        raise OSError("no network in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        yield
    assert not attempts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved pipeline of each family."""
    root = tmp_path_factory.mktemp("pipelines")
    for seed, family in enumerate(FAMILIES):
        make_pipeline(family, seed).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture(scope="module")
def pipes(folders):
    """Each family as our loader reads it. Not to be changed by a test."""
    return {family: load_pipeline(folder) for family, folder in folders.items()}


def make_tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz,."
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def make_text_encoder(width, projected):
    config = transformers.CLIPTextConfig(
        vocab_size=58,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=PROJECTION,
        bos_token_id=56,
        eos_token_id=57,
        pad_token_id=57,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def make_unet(text_width, *, linear=False, time_ids=0, in_channels=4):
    pooled = {"addition_embed_type": "text_time", "addition_time_embed_dim": TIME_DIM} if time_ids else {}
    return diffusers.UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=in_channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=linear,
        projection_class_embeddings_input_dim=PROJECTION + TIME_DIM * time_ids if time_ids else None,
        **pooled,
    )


def make_pipeline(family, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,
        )
        parts = {"vae": vae, "scheduler": make_scheduler("v_prediction" if family == "sd2" else "epsilon")}
        if family in ("sd1", "sd2"):
            parts |= {"text_encoder": make_text_encoder(16, False), "tokenizer": make_tokenizer()}
            parts |= {"unet": make_unet(16, linear=family == "sd2")}
            absent = dict.fromkeys(("safety_checker", "feature_extractor"))
            return diffusers.StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
        parts |= {"text_encoder_2": make_text_encoder(24, True), "tokenizer_2": make_tokenizer()}
        if family == "sdxl":
            parts |= {"text_encoder": make_text_encoder(16, False), "tokenizer": make_tokenizer()}
            return diffusers.StableDiffusionXLPipeline(unet=make_unet(40, linear=True, time_ids=6), **parts)
        return diffusers.StableDiffusionXLImg2ImgPipeline(
            unet=make_unet(24, linear=True, time_ids=5),
            text_encoder=None,
            tokenizer=None,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            **parts,
        )


def make_scheduler(prediction_type="epsilon", kind="DDIMScheduler", **settings):
    clip = {"clip_sample": False} if kind == "DDIMScheduler" else {}
    return getattr(diffusers, kind)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        prediction_type=prediction_type,
        **clip,
        **settings,
    )


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pipeline_estimates(pipe, negative, size=(SIZE, SIZE)):
    """What the pipeline itself computes over a whole run: (timestep, x_t, estimate of z) of each step."""
    seen = []
    step = pipe.scheduler.step

    def spy(noise, timestep, sample, return_dict=True, **settings):
        result = step(noise, timestep, sample, **settings)
        seen.append((int(timestep), sample, result.pred_original_sample))
        return (result.prev_sample,)

    settings = {
        "prompt": PROMPT,
        "negative_prompt": negative,
        "guidance_scale": CFG,
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(1),
        "output_type": "latent",
    }
    if "Img2Img" in type(pipe).__name__:
        settings |= {"image": random(1, 3, *size, seed=2).sigmoid(), "strength": 1.0}
    else:
        settings |= {"height": size[0], "width": size[1]}
    pipe.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", spy)
        pipe(**settings)
    return seen


def assert_agrees(prior, pipe, negative, size=(SIZE, SIZE)):
    estimates = pipeline_estimates(pipe, negative, size)
    assert len(estimates) == 4
    for timestep, x_t, truth in estimates:
        alpha = pipe.scheduler.alphas_cumprod[timestep].double()
        sigma = float(((1 - alpha) / alpha).sqrt())
        with torch.no_grad():
            ours = prior.denoise(x_t / alpha.sqrt().float(), sigma, None, guided=True)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("negative", ["", NEGATIVE])
def test_estimate_is_the_pipelines_own(pipes, family, negative):
    assert_agrees(DiffusersPrior(pipes[family], PROMPT, negative, CFG), pipes[family], negative or None)


@pytest.mark.parametrize("family", ["sdxl", "refiner"])
def test_estimate_knows_its_size(pipes, family):
    assert_agrees(DiffusersPrior(pipes[family], PROMPT, "", CFG), pipes[family], None, (8, 24))


def test_zero_terminal_snr_is_respected(folders, tmp_path):
    shutil.copytree(folders["sd2"], tmp_path / "ztsnr")
    scheduler = make_scheduler("v_prediction", rescale_betas_zero_snr=True)
    scheduler.save_pretrained(tmp_path / "ztsnr" / "scheduler")
    pipe = load_pipeline(tmp_path / "ztsnr")
    prior = DiffusersPrior(pipe, PROMPT, NEGATIVE, CFG)
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    assert prior.sigma_at(torch.tensor(1.0)) > 1000
    assert_agrees(prior, pipe, NEGATIVE)


@pytest.mark.parametrize("kind", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_levels_do_not_depend_on_the_sampler(pipes, folders, kind, tmp_path):
    shutil.copytree(folders["sd1"], tmp_path / "model")
    make_scheduler(kind=kind).save_pretrained(tmp_path / "model" / "scheduler")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", kind]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    prior = DiffusersPrior(load_pipeline(tmp_path / "model"), PROMPT)
    fractions = torch.linspace(0, 1, 1000, dtype=torch.float64)
    alphas = pipes["sd1"].scheduler.alphas_cumprod.double()
    torch.testing.assert_close(prior.sigma_at(fractions), ((1 - alphas) / alphas).sqrt(), rtol=1e-6, atol=0)


def test_each_view_has_its_wording(pipes):
    views = Cameras(
        azimuth=torch.tensor([0.0, 45.0, 90.0, -135.0, 180.0, 0.0, 0.0]),
        elevation=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 60.0, -60.0]),
        radius=torch.full((7,), 2.0),
        fov=torch.full((7,), 40.0),
    )
    around = ["front view", "front left three-quarter view", "left side view", "rear right three-quarter view"]
    endings = [*around, "back view", "overhead view", "view from below"]
    z_t = random(7, 4, 8, 8)
    with torch.no_grad():
        together = DiffusersPrior(pipes["sdxl"], "cat", NEGATIVE).denoise(z_t, 2.0, views, guided=True)
        for i, ending in enumerate(endings):
            prior = DiffusersPrior(pipes["sdxl"], f"cat, {ending}", NEGATIVE)
            alone = prior.denoise(z_t[i : i + 1], 2.0, None, guided=True)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


# Prompts longer than the text encoders. The tokenizer here has a token for each letter.
LONG = "abcdefghijklmnopqrstuvwxyz" * 4


def seen_texts(pipe, denoise):
    """The hidden states and the pooled vectors that the UNet is given."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs, given: seen.append(given), with_kwargs=True)
    with torch.no_grad():
        denoise()
    hook.remove()
    return seen[0]["encoder_hidden_states"], (seen[0].get("added_cond_kwargs") or {}).get("text_embeds")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("letters", [0, 1, TOKENS - 2, TOKENS - 1, 100])
def test_long_prompts_are_encoded_in_chunks(pipes, family, letters):
    """Chunks made by hand: a start, as many letters as fit, an end, and the tokenizer's padding."""
    pipe = pipes[family]
    room = TOKENS - 2
    numbers = [ord(letter) - ord("a") for letter in LONG[:letters]]
    numbers = [n + (28 if i == letters - 1 else 0) for i, n in enumerate(numbers)]  # with </w>
    rows = [numbers[i : i + room] for i in range(0, letters, room)] or [[]]
    ids = torch.tensor([[56, *row, 57, *[57] * (room - len(row))] for row in rows])
    hidden, pooled = [], None
    for encoder in (pipe.components.get("text_encoder"), pipe.components.get("text_encoder_2")):
        if encoder is not None:
            with torch.no_grad():
                parts = [encoder(row[None], output_hidden_states=True) for row in ids]
            xl = family in ("sdxl", "refiner")
            hidden.append(torch.cat([p.hidden_states[-2] if xl else p.last_hidden_state for p in parts], dim=1))
            pooled = parts[0].text_embeds if xl and "text_embeds" in parts[0] else pooled
    prior = DiffusersPrior(pipe, LONG[:letters], cfg=1)
    seen = seen_texts(pipe, lambda: prior.denoise(random(1, 4, 8, 8), 1.0, None, guided=True))
    torch.testing.assert_close(seen[0], torch.cat(hidden, dim=-1))
    assert (seen[1] is None) == (pooled is None)
    if pooled is not None:
        torch.testing.assert_close(seen[1], pooled)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("letters", [0, 25, TOKENS - 2, 100])
def test_no_prompt_is_too_long_for_its_view(pipes, family, letters):
    """Front and back differ in the first chunk, and so in the pooled vector."""
    views = Cameras(torch.tensor([0.0, 180.0]), torch.zeros(2), torch.full((2,), 2.0), torch.full((2,), 40.0))
    prior = DiffusersPrior(pipes[family], LONG[:letters], cfg=1)
    hidden, pooled = seen_texts(pipes[family], lambda: prior.denoise(random(2, 4, 8, 8), 1.0, views, guided=False))
    assert not torch.allclose(hidden[0, :TOKENS], hidden[1, :TOKENS], atol=1e-2)
    assert pooled is None or not torch.allclose(pooled[0], pooled[1], atol=1e-2)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(("positive", "negative"), [(100, 50), (20, 100)])
def test_prompts_of_different_lengths_guide_each_other(pipes, family, positive, negative):
    texts, z_t = (LONG[:positive], LONG[:negative]), random(1, 4, 8, 8)
    with torch.no_grad():
        wanted, unwanted = (
            DiffusersPrior(pipes[family], text, cfg=1).denoise(z_t, 1.0, None, guided=True) for text in texts
        )
        guided = DiffusersPrior(pipes[family], *texts, CFG).denoise(z_t, 1.0, None, guided=True)
    torch.testing.assert_close(guided, unwanted + CFG * (wanted - unwanted), rtol=1e-4, atol=1e-4)


def test_texts_are_encoded_once_and_unguided_is_one_forward(pipes):
    pipe, calls, batches = pipes["sd1"], [], []
    encoded = pipe.text_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    prior = DiffusersPrior(pipe, PROMPT, NEGATIVE)
    z_t = random(2, 4, 8, 8)
    handle = pipe.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    with torch.no_grad():
        for _ in range(2):
            prior.denoise(z_t, 1.0, None, guided=True)
        plain = prior.denoise(z_t, 1.0, None, guided=False)
        prior.cfg = 1.0
        assert torch.equal(prior.denoise(z_t, 1.0, None, guided=True), plain)
    handle.remove()
    encoded.remove()
    assert batches == [4, 4, 2, 2]
    assert len(calls) == 2  # the positive and the negative


def test_latent_shape(pipes):
    prior = DiffusersPrior(pipes["sdxl"], PROMPT)
    assert prior.default_size == (SIZE, SIZE)
    assert prior.latent_shape(8, 24) == (4, 4, 12)
    z = prior.encode(random(2, 3, 8, 24).sigmoid())
    assert z.shape == (2, 4, 4, 12)
    image = prior.decode(z)
    assert image.shape == (2, 3, 8, 24)
    assert image.min() >= 0 and image.max() <= 1
    for height, width in ((10, 8), (8, 14), (0, 8), (-4, 8)):
        with pytest.raises(ValueError, match=rf"size {width}x{height} .*multiples of 4$"):
            prior.latent_shape(height, width)


def test_encode_is_the_scaled_posterior_mode(pipes):
    pipe = pipes["sd1"]
    images = random(1, 3, SIZE, SIZE).sigmoid()
    with torch.no_grad():
        moments = pipe.vae.encode(images * 2 - 1).latent_dist.parameters
        z = DiffusersPrior(pipe, PROMPT).encode(images)
    torch.testing.assert_close(z, moments[:, :4] * 0.5)


def directional_error(function, x, seed=3):
    """|autograd - finite difference| of a random projection of `function` along a random direction, relative."""
    x = x.clone().requires_grad_(True)
    out = function(x)
    weights, direction = random(*out.shape, seed=seed).to(x), random(*x.shape, seed=seed + 1).to(x)
    (out * weights).sum().backward()
    slope = (x.grad * direction).sum()
    h = 1e-5
    with torch.no_grad():
        rise = ((function(x + h * direction) - function(x - h * direction)) * weights).sum()
    return float((slope - rise / (2 * h)).abs() / slope.abs())


def test_encode_gradient(folders):
    pipe = load_pipeline(folders["sdxl"])
    prior = DiffusersPrior(pipe, PROMPT)
    pipe.vae.double()
    assert directional_error(prior.encode, random(1, 3, SIZE, SIZE).sigmoid().double()) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_denoise_gradients_reach_latents_and_phi(pipes, family):
    prior = DiffusersPrior(pipes[family], PROMPT, NEGATIVE)
    lora = LoRA(prior.network, 2, torch.Generator().manual_seed(0))
    z_t = random(1, 4, 8, 8).requires_grad_(True)
    with lora.attached(), lora.on():
        prior.denoise(z_t, 1.0, None, guided=False).square().sum().backward()
    assert z_t.grad is not None and z_t.grad.abs().min() > 0
    touched = [adapter.up.grad is not None and adapter.up.grad.abs().max() > 0 for adapter in lora.adapters]
    assert all(touched)
    assert all(p.grad is None and not p.requires_grad for p in prior.network.parameters())


def run_apfo(pipe, pixels=False, **options):
    prior = DiffusersPrior(pipe, PROMPT, NEGATIVE, CFG, **options)
    values = random(2, 3, SIZE, SIZE).sigmoid() if pixels else random(2, *prior.latent_shape(SIZE, SIZE))
    scene = ImageScene(values, pixels=pixels, learning_rate=0.01 if pixels else None)
    schedule = Schedule(timestep_range(prior.sigma_at, 0.9, 0.1, 3))
    optimise(scene, prior, schedule, APFO(), PhiSettings(rank=2), seed=0)
    assert not torch.equal(scene.values.detach(), values)
    return scene.values.detach()


def weights_of(pipe):
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{k}": w.clone() for name, part in modules.items() for k, w in part.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_memory_changes_nothing_else(pipes, folders, family):
    pipe, batches = load_pipeline(folders[family]), {"vae": [], "unet": []}
    blocks = {"vae": pipe.vae.encoder.down_blocks[0], "unet": pipe.unet.down_blocks[0].resnets[0]}
    for name, block in blocks.items():
        block.register_forward_pre_hook(lambda _, inputs, name=name: batches[name].append(len(inputs[0])))
    frugal, plain = run_apfo(pipe, pixels=True, save_memory=True), run_apfo(pipes[family], pixels=True)
    torch.testing.assert_close(frugal, plain, rtol=0, atol=1e-4)
    # In each of three iterations: two images, each again in the backward pass; the guided estimate, phi's, and again.
    assert batches == {"vae": 3 * [1, 1, 1, 1], "unet": 3 * [4, 2, 2]}


@pytest.mark.parametrize("family", FAMILIES)
def test_optimising_leaves_the_model_bit_equal(pipes, family):
    before, state = weights_of(pipes[family]), torch.random.get_rng_state()
    run_apfo(pipes[family], pixels=True)
    after = weights_of(pipes[family])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_half_precision_is_close(pipes, folders, family, dtype, tolerance):
    pipe = load_pipeline(folders[family], dtype)
    assert pipe.unet.dtype == dtype and pipe.vae.dtype == torch.float32
    assert torch.equal(pipe.vae.quant_conv.weight, pipes[family].vae.quant_conv.weight)
    z_t = random(1, 4, 8, 8)
    with torch.no_grad():
        exact, half = (
            DiffusersPrior(p, PROMPT, NEGATIVE, CFG).denoise(z_t, 1.0, None, guided=True) for p in (pipes[family], pipe)
        )
    assert half.dtype == torch.float32
    assert (half - exact).norm() / exact.norm() < tolerance
    assert torch.isfinite(run_apfo(pipe)).all()


def test_fp16_only_folder(pipes, folders, tmp_path):
    shutil.copytree(folders["sd1"], tmp_path / "model")
    for file in [*(tmp_path / "model").rglob("*.safetensors")]:
        file.rename(file.with_suffix(".fp16.safetensors"))
    pipe = load_pipeline(tmp_path / "model")
    assert torch.equal(pipe.unet.conv_in.weight, pipes["sd1"].unet.conv_in.weight)


# LoRA files


def make_lora(path, layout, width=32, module=ATTENTION):
    """A rank 4 LoRA file of one layer; returns the change of the layer's weight at weight 1."""
    down, up = random(4, width, seed=5), random(width, 4, seed=6)
    if layout == "peft":
        tensors, scale = {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}, 1.0
    else:
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
        scale = 0.5
    save_file(tensors, path)
    return scale * up @ down


def estimate(pipe):
    with torch.no_grad():
        return DiffusersPrior(pipe, PROMPT, NEGATIVE, CFG).denoise(random(1, 4, 8, 8), 1.0, None, guided=True)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_loras_are_added_by_weight(pipes, folders, family, layout, tmp_path):
    path = tmp_path / "style.safetensors"
    change = make_lora(path, layout)
    plain = load_pipeline(folders[family])
    plain.unet.get_submodule(ATTENTION).weight.data += (0.7 - 0.2) * change
    tuned = load_pipeline(folders[family], loras=[(path, 0.7), (path, -0.2)])
    torch.testing.assert_close(estimate(tuned), estimate(plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(estimate(tuned), estimate(pipes[family]), atol=1e-3)
    assert tuned.unet.state_dict().keys() == plain.unet.state_dict().keys()
    assert torch.isfinite(run_apfo(tuned)).all()


def test_text_encoder_lora(pipes, folders, tmp_path):
    plain, tensors = load_pipeline(folders["sd1"]), {}
    layers = dict(plain.text_encoder.named_modules())
    for i, part in enumerate(("q_proj", "k_proj", "v_proj", "out_proj")):
        name, layer = next(
            (name, layer) for name, layer in layers.items() if name.endswith(f"layers.0.self_attn.{part}")
        )
        down, up = random(4, 16, seed=10 + i), random(16, 4, seed=20 + i)
        layer.weight.data += up @ down
        key = f"lora_te_text_model_{name.removeprefix('text_model.').replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(4.0)}
    save_file(tensors, tmp_path / "te.safetensors")
    tuned = load_pipeline(folders["sd1"], loras=[(tmp_path / "te.safetensors", 1.0)])
    torch.testing.assert_close(estimate(tuned), estimate(plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(estimate(tuned), estimate(pipes["sd1"]), atol=1e-3)


def test_lora_of_weight_zero_changes_nothing(pipes, folders, tmp_path):
    path = tmp_path / "style.safetensors"
    make_lora(path, "peft")
    tuned = weights_of(load_pipeline(folders["sd1"], loras=[(path, 0.0)]))
    assert all(torch.equal(weight, tuned[name]) for name, weight in weights_of(pipes["sd1"]).items())


# Single files


UNET_NAMES = {
    r"time_embedding\.linear_1": "time_embed.0",
    r"time_embedding\.linear_2": "time_embed.2",
    r"add_embedding\.linear_1": "label_emb.0.0",
    r"add_embedding\.linear_2": "label_emb.0.2",
    r"conv_in": "input_blocks.0.0",
    r"conv_norm_out": "out.0",
    r"conv_out": "out.2",
    r"down_blocks\.0\.resnets\.0": "input_blocks.1.0",
    r"down_blocks\.0\.downsamplers\.0\.conv": "input_blocks.2.0.op",
    r"down_blocks\.1\.resnets\.0": "input_blocks.3.0",
    r"down_blocks\.1\.attentions\.0": "input_blocks.3.1",
    r"mid_block\.resnets\.0": "middle_block.0",
    r"mid_block\.attentions\.0": "middle_block.1",
    r"mid_block\.resnets\.1": "middle_block.2",
    r"up_blocks\.0\.resnets\.(\d)": r"output_blocks.\1.0",
    r"up_blocks\.0\.attentions\.(\d)": r"output_blocks.\1.1",
    r"up_blocks\.0\.upsamplers\.0": "output_blocks.1.2",
    r"up_blocks\.1\.resnets\.0": "output_blocks.2.0",
    r"up_blocks\.1\.resnets\.1": "output_blocks.3.0",
}
RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_NAMES = {
    r"coder\.down_blocks\.(\d)\.resnets": r"coder.down.\1.block",
    r"down_blocks\.(\d)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.0\.resnets": "up.1.block",
    r"up_blocks\.1\.resnets": "up.0.block",
    r"up_blocks\.0\.upsamplers\.0": "up.1.upsample",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"mid_block\.attentions\.0\.to_([qkv])": r"mid.attn_1.\1",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"conv_shortcut": "nin_shortcut",
    r"conv_norm_out": "norm_out",
}
OPEN_CLIP_NAMES = {
    r"^encoder\.layers": "transformer.resblocks",
    r"layer_norm(\d)": r"ln_\1",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"self_attn\.out_proj": "attn.out_proj",
    r"^embeddings\.token_embedding": "token_embedding",
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^final_layer_norm": "ln_final",
}


def renamed(name, names):
    for old, new in names.items():
        name = re.sub(old, new, name)
    return name


def original_unet(unet):
    def name_of(name):
        return renamed(renamed(name, RESNET_NAMES) if ".resnets." in name else name, UNET_NAMES)

    return {f"model.diffusion_model.{name_of(name)}": weight for name, weight in unet.state_dict().items()}


def original_vae(vae):
    tensors = {f"first_stage_model.{renamed(name, VAE_NAMES)}": weight for name, weight in vae.state_dict().items()}
    linear = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight")
    return {name: w[..., None, None] if linear.search(name) else w for name, w in tensors.items()}


def text_tensors(encoder):
    return {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}


def original_clip(encoder, prefix):
    return {f"{prefix}transformer.text_model.{name}": weight for name, weight in text_tensors(encoder).items()}


def original_open_clip(encoder, prefix):
    tensors = text_tensors(encoder)
    out = {}
    for name, weight in tensors.items():
        if name == "text_projection.weight":
            out["text_projection"] = weight.T.contiguous()
        elif ".q_proj." in name:
            joined = torch.cat([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            out[renamed(name, OPEN_CLIP_NAMES).replace("self_attn.q_proj.", "attn.in_proj_")] = joined
        elif not re.search(r"\.[kv]_proj\.", name):
            out[renamed(name, OPEN_CLIP_NAMES)] = weight
    return {f"{prefix}model.{name}": weight for name, weight in out.items()}


def original_text(family, pipe):
    if family == "sd1":
        return original_clip(pipe.text_encoder, "cond_stage_model.")
    if family == "sd2":
        return original_open_clip(pipe.text_encoder, "cond_stage_model.")
    if family == "sdxl":
        first = original_clip(pipe.text_encoder, "conditioner.embedders.0.")
        return first | original_open_clip(pipe.text_encoder_2, "conditioner.embedders.1.")
    return original_open_clip(pipe.text_encoder_2, "conditioner.embedders.0.")


@pytest.fixture(scope="module")
def single_files(pipes, tmp_path_factory):
    """Each family as one file in the layout of the original code."""
    root = tmp_path_factory.mktemp("files")
    for family, pipe in pipes.items():
        tensors = original_unet(pipe.unet) | original_vae(pipe.vae) | original_text(family, pipe)
        save_file(
            {name: weight.contiguous().clone() for name, weight in tensors.items()}, root / f"{family}.safetensors"
        )
    return {family: root / f"{family}.safetensors" for family in FAMILIES}


def without_weights(folder, to):
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
    return to


@pytest.mark.parametrize("family", FAMILIES)
def test_single_file_is_the_same_model(pipes, folders, single_files, family, tmp_path):
    config = without_weights(folders[family], tmp_path / "config")
    pipe = load_pipeline(single_files[family], config=config)
    expected, found = weights_of(pipes[family]), weights_of(pipe)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(estimate(pipe), estimate(pipes[family]))
    half = load_pipeline(single_files[family], torch.float16, config=config)
    assert half.unet.dtype == torch.float16 and half.vae.dtype == torch.float32


# Bad input: one line that names the file and what is wrong


def refused(pattern, *args, error=BadFile, **settings):
    with pytest.raises(error, match=pattern) as caught:
        load_pipeline(*args, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(folder, to, file, **changes):
    shutil.copytree(folder, to)
    content = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps({**content, **changes}))
    return to


def test_missing_and_foreign_folders(folders, tmp_path):
    assert str(tmp_path / "none") in refused("there is no model folder or file", tmp_path / "none")
    refused("no model_index.json", tmp_path)
    flux = edited(folders["sd1"], tmp_path / "flux", "model_index.json", _class_name="FluxPipeline")
    refused("flux is a FluxPipeline; supported are StableDiffusionPipeline, ", flux)
    inpaint = edited(folders["sd1"], tmp_path / "inpaint", "unet/config.json", in_channels=9)
    refused("inpaint is not a plain text-to-image model: its UNet takes 9 channels, not 4", inpaint)
    sample = edited(folders["sd1"], tmp_path / "x0", "scheduler/scheduler_config.json", prediction_type="sample")
    refused("x0 .*prediction type 'sample'.*epsilon and v_prediction", sample)
    flow = edited(
        folders["sd1"],
        tmp_path / "flow",
        "model_index.json",
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    )
    refused("flow .*FlowMatchEulerDiscreteScheduler.*unsupported", flow)


def test_broken_folders(folders, tmp_path):
    for name, victim in {
        "index": "model_index.json",
        "unet": "unet/diffusion_pytorch_model.safetensors",
        "text": "text_encoder/model.safetensors",
        "tokenizer": "tokenizer/tokenizer.json",
    }.items():
        shutil.copytree(folders["sd1"], tmp_path / name)
        (tmp_path / name / victim).write_bytes(b"not this")
        assert str(tmp_path / name) in refused("cannot be loaded: .", tmp_path / name)
    shutil.copytree(folders["sd1"], tmp_path / "lacking")
    (tmp_path / "lacking" / "vae" / "config.json").unlink()
    refused(r"there is no file .*vae/config\.json", tmp_path / "lacking")


def test_pickled_weights_are_never_read(folders, tmp_path):
    for part, name in {"unet": "diffusion_pytorch_model", "text_encoder": "model"}.items():
        shutil.copytree(folders["sd1"], tmp_path / part)
        weights = tmp_path / part / part / f"{name}.safetensors"
        pickled = {"model": "pytorch_model"}.get(name, name)
        torch.save(load_file(weights), weights.with_name(f"{pickled}.bin"))
        weights.unlink()
        refused("cannot be loaded: .", tmp_path / part)


def test_incomplete_weights_are_refused(folders, single_files, tmp_path):
    shutil.copytree(folders["sd1"], tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight for name, weight in load_file(weights).items() if name != "conv_in.bias"}, weights)
    refused("unet lacks weights: conv_in.bias", tmp_path / "model")
    tensors = load_file(single_files["sd1"])
    for prefix, pattern in {
        "model.diffusion_model.middle": "incomplete",
        "first_stage_model.encoder.mid": "incomplete",
        "cond_stage_model.transformer.text_model.encoder": "incomplete",
        "first_stage_model": "cannot be loaded",
        "cond_stage_model": "cannot be loaded",
    }.items():
        kept = {name: weight for name, weight in tensors.items() if not name.startswith(prefix)}
        save_file(kept, tmp_path / "file.safetensors")
        refused(f"file.safetensors .*{pattern}", tmp_path / "file.safetensors", config=folders["sd1"])


def test_bad_single_files(folders, single_files, tmp_path):
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    refused(r"old\.ckpt is not a \.safetensors file", tmp_path / "old.ckpt", config=folders["sd1"])
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    refused("broken.safetensors cannot be loaded", tmp_path / "broken.safetensors", config=folders["sd1"])
    refused("needs a config: a local diffusers folder", single_files["sd1"], error=ValueError)
    refused("not of the family .* width 16, not 40", single_files["sd1"], config=folders["sdxl"])
    refused("none is not a diffusers pipeline", single_files["sd1"], config=tmp_path / "none")
    save_file({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(2)}, tmp_path / "flux.safetensors")
    refused("flux.safetensors is not a checkpoint of the SD 1", tmp_path / "flux.safetensors", config=folders["sd1"])
    tensors = load_file(single_files["sd1"])
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(tensors, tmp_path / "inpaint.safetensors")
    refused("takes 9 channels, not 4", tmp_path / "inpaint.safetensors", config=folders["sd1"])


def test_bad_loras(folders, tmp_path):
    def refuse(pattern, path):
        assert str(path) in refused(pattern, folders["sd1"], loras=[(path, 1.0)])

    refuse("there is no LoRA file", tmp_path / "none.safetensors")
    (tmp_path / "old.pt").write_bytes(b"pickle")
    refuse("not a .safetensors file", tmp_path / "old.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    refuse("cannot be loaded", tmp_path / "broken.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors")
    refuse("not a LoRA file", tmp_path / "foreign.safetensors")
    make_lora(tmp_path / "wide.safetensors", "peft", width=48)
    refuse(r"down \(4, 48\).* does not fit \(32, 32\)", tmp_path / "wide.safetensors")
    make_lora(tmp_path / "deep.safetensors", "peft", module="down_blocks.7.attentions.0.proj_in")
    refuse("fit none of the model's: unet.down_blocks.7.att", tmp_path / "deep.safetensors")
    save_file(
        {"transformer.x.lora_A.weight": torch.ones(4, 8), "transformer.x.lora_B.weight": torch.ones(8, 4)},
        tmp_path / "flux.safetensors",
    )
    refuse("not a LoRA of this model", tmp_path / "flux.safetensors")


def test_prior_refuses_a_sampler_of_another_kind(pipes):
    pipe = diffusers.StableDiffusionPipeline(
        **{**pipes["sd1"].components, "safety_checker": None}, requires_safety_checker=False
    )
    pipe.scheduler = make_scheduler("sample")
    with pytest.raises(ValueError, match="prediction type 'sample'"):
        DiffusersPrior(pipe, PROMPT)


def test_missing_diffusers_is_said_plainly(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(r"diffusers: pip install dreamflow\[headless\]", folders["sd1"], error=ImportError)
