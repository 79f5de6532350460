"""What single-file checkpoints and folders say of themselves: obeyed, or refused in one line that names it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamflow_core.priors.load import PriorSettings, load_prior
from dreamflow_core.state import BadFile

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from test_diffusers_prior import (  # noqa: E402
    CFG,
    NEGATIVE,
    PROMPT,
    SIZE,
    DiffusersPrior,
    assert_agrees,
    estimate,
    folders,
    load_pipeline,
    make_scheduler,
    pipes,
    random,
    refused,
    single_files,
    weights_of,
)

__all__ = ["folders", "pipes", "single_files"]
V, ZERO = {"v_pred": torch.tensor([])}, {"ztsnr": torch.tensor([])}


def altered(file, to, tensors=(), metadata=None):
    """A copy of a file with more tensors and metadata."""
    save_file({**load_file(file), **dict(tensors)}, to, metadata)
    return to


def alphas(**settings):
    return make_scheduler(**settings).alphas_cumprod.clone()


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction", "zero"),
    [
        (V, None, "v_prediction", False),
        (V | ZERO, None, "v_prediction", True),
        ({"model.diffusion_model.v_pred": torch.tensor([])}, None, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
        (V, {"modelspec.prediction_type": "v"}, "v_prediction", False),
        (V | {"alphas_cumprod": alphas(rescale_betas_zero_snr=True)}, None, "v_prediction", True),
        ({"alphas_cumprod": alphas().half()}, None, "epsilon", False),
        ({"denoiser.sigmas": ((1 - alphas()) / alphas()).sqrt()}, None, "epsilon", False),
    ],
)
@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_markers_count(folders, single_files, tensors, metadata, prediction, zero, kind, tmp_path):
    """The model is that of a folder which has the settings that the file's markers stand for."""
    for name, settings in {"config": {}, "same": {"prediction_type": prediction}}.items():
        shutil.copytree(folders["sdxl"], tmp_path / name)
        used = "DDIMScheduler" if name == "same" else kind
        zeros = {"rescale_betas_zero_snr": True} if name == "same" and zero else {}
        make_scheduler(kind=used, **settings, **zeros).save_pretrained(tmp_path / name / "scheduler")
        index = json.loads((tmp_path / name / "model_index.json").read_text())
        (tmp_path / name / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", used]}))
    path = altered(single_files["sdxl"], tmp_path / "model.safetensors", tensors, metadata)
    pipe, same = load_pipeline(path, config=tmp_path / "config"), load_pipeline(tmp_path / "same")
    torch.testing.assert_close(estimate(pipe), estimate(same))
    ends = [DiffusersPrior(p, PROMPT).sigma_at(torch.tensor(1.0)) for p in (pipe, same)]
    torch.testing.assert_close(*ends)
    assert (ends[0] > 1000) == zero


def test_zero_terminal_snr_with_a_scheduler_that_does_not_know_it(folders, tmp_path):
    shutil.copytree(folders["sd2"], tmp_path / "model")
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True}))
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    levels = DiffusersPrior(load_pipeline(tmp_path / "model"), PROMPT).sigma_at(torch.linspace(0, 0.9, 7))
    expected = alphas(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    positions = torch.linspace(0, 0.9, 7) * 999
    exact = ((1 - expected) / expected).sqrt()
    assert all(
        exact[int(p)] <= level * 1.0001 and level <= exact[int(p) + 1] * 1.0001 for p, level in zip(positions, levels)
    )


@pytest.mark.parametrize(
    ("tensors", "metadata", "pattern"),
    [
        (V, {"modelspec.prediction_type": "epsilon"}, "its tensors say v_prediction, its metadata epsilon"),
        ({}, {"modelspec.prediction_type": "flow"}, "predicts 'flow' by its metadata"),
        ({"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, None, "is an EDM model"),
        ({"edm_vpred.sigma_max": torch.tensor(120.0)}, None, "is an EDM model"),
        ({"model.diffusion_model.scaled_fp8": torch.tensor([])}, None, r"quantised with scales \(scaled_fp8\)"),
        ({"model.diffusion_model.out.2.scale_weight": torch.tensor(1.0)}, None, r"quantised with scales \(out.2.sc"),
        ({"model.diffusion_model.out.2.comfy_quant": torch.zeros(2)}, None, "quantised with scales"),
        ({"alphas_cumprod": alphas() ** 1.2}, None, "noise levels .* not those of its config"),
        ({"alphas_cumprod": alphas()[:500].clone()}, None, "noise levels .* not those of its config"),
        (
            {f"control_model.{i}.weight": torch.ones(1) for i in range(4)},
            None,
            r"4 tensors that its family does not know: control_model.0.weight, .*control_model.2.weight and others$",
        ),
        (
            {"model.diffusion_model.time_embed.cond_proj.weight": torch.ones(1)},
            None,
            "not know: .*time_embed.cond_proj",
        ),
        ({"model.diffusion_model.input_blocks.9.0.bias": torch.ones(1)}, None, "not know: .*input_blocks.9.0.bias$"),
        ({"first_stage_model.encoder.mid.attn_2.q.bias": torch.ones(1)}, None, "not know: .*mid.attn_2.q.bias$"),
        ({"conditioner.embedders.1.model.ln_pre.bias": torch.ones(1)}, None, "not know: .*1.model.ln_pre.bias$"),
    ],
)
def test_what_a_file_says_otherwise_is_refused(folders, single_files, tensors, metadata, pattern, tmp_path):
    path = altered(single_files["sdxl"], tmp_path / "model.safetensors", tensors, metadata)
    assert str(path) in refused(pattern, path, config=folders["sdxl"])


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_harmless_tensors_are_left_alone(pipes, folders, single_files, family, tmp_path):
    text = {
        "sd1": "cond_stage_model.transformer",
        "sd2": "cond_stage_model.model",
        "sdxl": "conditioner.embedders.1.model",
    }
    extra = {
        "model_ema.diffusion_modelinput_blocks00bias": torch.ones(3),
        "betas": torch.ones(1000),
        "sqrt_alphas_cumprod": torch.ones(1000),
        "posterior_variance": torch.ones(1000),
        "first_stage_model.loss.logvar": torch.ones(1),
        f"{text[family]}.logit_scale": torch.ones(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(40)[None],
    }
    if family == "sd2":
        extra["cond_stage_model.model.transformer.resblocks.2.ln_1.bias"] = torch.ones(16)
        extra["cond_stage_model.model.text_projection"] = torch.ones(16, 16)
    path = altered(single_files[family], tmp_path / "model.safetensors", extra)
    found, expected = weights_of(load_pipeline(path, config=folders[family])), weights_of(pipes[family])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Folders


def renamed(folder, name, variant):
    for file in (folder / name).glob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def sharded(folder, name, variant=None):
    """The weights of one of the pipeline's parts in pieces, as its library writes them."""
    pipe = load_pipeline(folder)
    for file in (folder / name).glob("*.safetensors"):
        file.unlink()
    getattr(pipe, name).save_pretrained(folder / name, max_shard_size="20KB", variant=variant)
    assert len(list((folder / name).glob("*-of-*"))) > 1


@pytest.mark.parametrize(
    "mixture",
    [
        {"unet": "fp16"},
        {"text_encoder": "fp16", "vae": "bf16"},
        {"unet": "bf16", "text_encoder_2": "fp16"},
        {"unet": "fp16", "text_encoder": "fp16", "text_encoder_2": "fp16", "vae": "fp16"},
    ],
)
@pytest.mark.parametrize("shards", [(), ("unet",), ("text_encoder_2", "vae")])
def test_mixtures_of_precisions_and_shards(pipes, folders, mixture, shards, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["sdxl"], folder)
    for name in shards:
        sharded(folder, name, mixture.get(name))
    for name, variant in mixture.items():
        if name not in shards:
            renamed(folder, name, variant)
    found, expected = weights_of(load_pipeline(folder)), weights_of(pipes["sdxl"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_that_a_folder_does_not_know_are_refused(folders, tmp_path):
    for name, file in {"unet": "diffusion_pytorch_model", "text_encoder": "model"}.items():
        folder = tmp_path / name
        shutil.copytree(folders["sd1"], folder)
        path = folder / name / f"{file}.safetensors"
        altered(path, path, {"strange.weight": torch.ones(1)}, {"format": "pt"})
        refused(f"{name} has tensors that it does not know: strange.weight", folder)
    shutil.copytree(folders["sd1"], tmp_path / "foreign")
    index = json.loads((tmp_path / "foreign" / "model_index.json").read_text())
    index["unet"] = ["somewhere", "UNet"]
    (tmp_path / "foreign" / "model_index.json").write_text(json.dumps(index))
    refused("unet is a UNet of somewhere, which is not read", tmp_path / "foreign")


# VAEs


@pytest.mark.parametrize(
    ("settings", "mean", "scale"),
    [
        ({"shift_factor": 0.25}, [0.25] * 4, [0.5] * 4),
        (
            {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5, 1.0, 2.0, 4.0]},
            [1, 2, 3, 4],
            [1, 0.5, 0.25, 0.125],
        ),
    ],
)
def test_latents_are_shifted_and_scaled_as_the_vae_says(folders, settings, mean, scale, tmp_path):
    shutil.copytree(folders["sdxl"], tmp_path / "model")
    config = tmp_path / "model" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    prior = DiffusersPrior(load_pipeline(tmp_path / "model"), PROMPT)
    images = random(1, 3, SIZE, SIZE).sigmoid()
    with torch.no_grad():
        moments = prior._pipe.vae.encode(images * 2 - 1).latent_dist.parameters[:, :4]
        expected = (moments - torch.tensor(mean).view(1, 4, 1, 1)) * torch.tensor(scale).view(1, 4, 1, 1)
        torch.testing.assert_close(prior.encode(images), expected)
        image = (prior._pipe.vae.decode(moments).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(prior.decode(expected), image, rtol=1e-4, atol=1e-4)


def test_a_vae_in_place_of_the_models(pipes, folders, single_files, tmp_path):
    other = pipes["sd2"].vae.state_dict()
    bare = {name.removeprefix("first_stage_model."): tensor for name, tensor in load_file(single_files["sd2"]).items()}
    bare = {
        name: tensor
        for name, tensor in bare.items()
        if name.split(".")[0] in ("encoder", "decoder", "quant_conv", "post_quant_conv")
    }
    save_file(bare, tmp_path / "bare.safetensors")
    for vae in (folders["sd2"], folders["sd2"] / "vae", single_files["sd2"], tmp_path / "bare.safetensors"):
        for model in ((folders["sdxl"], None), (single_files["sdxl"], folders["sdxl"])):
            pipe = load_pipeline(model[0], config=model[1], vae=vae)
            assert all(torch.equal(tensor, other[name]) for name, tensor in pipe.vae.state_dict().items())
            assert torch.equal(pipe.unet.conv_in.weight, pipes["sdxl"].unet.conv_in.weight)
    refused("there is no VAE .*none", folders["sdxl"], vae=tmp_path / "none")
    diffusers.AutoencoderKL(latent_channels=16, norm_num_groups=4, block_out_channels=(8,)).save_pretrained(
        tmp_path / "wide"
    )
    refused("wide has latents of 16 channels; the model takes 4", folders["sdxl"], vae=tmp_path / "wide")


# Distilled models


def test_a_latent_consistency_model_takes_the_scale_as_an_input(folders, tmp_path):
    """As diffusers' own pipeline for them computes it, over a whole run."""
    shutil.copytree(folders["sd1"], tmp_path / "lcm")
    config = tmp_path / "lcm" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": 8}))
    weights = tmp_path / "lcm" / "unet" / "diffusion_pytorch_model.safetensors"
    altered(weights, weights, {"time_embedding.cond_proj.weight": random(16, 8)}, {"format": "pt"})
    pipe = load_pipeline(tmp_path / "lcm")
    prior = DiffusersPrior(pipe, PROMPT, NEGATIVE, CFG)
    assert_agrees(prior, pipe, NEGATIVE)
    z_t = random(1, 4, 8, 8)
    with torch.no_grad():
        plain = prior.denoise(z_t, 1.0, None, guided=False)
        assert torch.equal(plain, DiffusersPrior(pipe, PROMPT, cfg=1).denoise(z_t, 1.0, None, guided=True))
        assert not torch.allclose(plain, prior.denoise(z_t, 1.0, None, guided=True), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "distilled"),
    [
        ("sdxl_lightning_4step", True),
        ("sd-turbo", True),
        ("DreamShaperXL_Turbo-v2", True),
        ("Hyper-SDXL-8steps", True),
        ("juggernautXL_v9Rdphoto2Lightning", True),
        ("hyperrealistic", False),
        ("turbocharged", False),
    ],
)
def test_models_that_are_distilled_by_name_are_not_guided(folders, name, distilled, tmp_path, caplog):
    shutil.copytree(folders["sd1"], tmp_path / "copies" / name)
    model = str(tmp_path / "copies" / name)
    with caplog.at_level("WARNING"):
        prior = load_prior(PriorSettings(model=model, positive=PROMPT, device="cpu"))
    assert prior.cfg == (1.0 if distilled else 7.5)
    assert ("distilled model by its name" in caplog.text) == distilled
    assert load_prior(PriorSettings(model=model, positive=PROMPT, cfg=3.0, device="cpu")).cfg == 3.0


# Devices


def test_devices_are_known_by_name(folders):
    prior = load_prior(PriorSettings(model=str(folders["sd1"]), positive=PROMPT, device="cpu"))
    assert prior.device == torch.device("cpu")
    found = load_prior(PriorSettings(model="demo", positive="a red cube"))
    assert found.device.type == (torch.accelerator.current_accelerator(True) or torch.device("cpu")).type
    absent = "xpu" if not torch.xpu.is_available() else "mps"
    for name in (absent, "tpu", "meta", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{name}'"):
            load_prior(PriorSettings(model="demo", positive="a red cube", device=name))
    with pytest.raises(ValueError, match="demo models take no VAE"):
        load_prior(PriorSettings(model="demo", positive="a red cube", vae="x"))
    for weight in ("nan", "inf", "-inf", "1e999"):
        with pytest.raises((ValueError, BadFile), match=r"x\.safetensors is -?(nan|inf); it must be a finite number"):
            load_prior(
                PriorSettings(
                    model=str(folders["sd1"]), positive=PROMPT, loras=[f"x.safetensors:{weight}"], device="cpu"
                )
            )
