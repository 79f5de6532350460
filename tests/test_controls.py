"""ControlNets of the diffusers prior, against diffusers' own networks: tiny random models, made on the spot."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import dreamflow

from dreamflow_core.cameras import Cameras
from dreamflow_core.hints import render_hints
from dreamflow_core.priors.controls import ControlFile, load_control
from dreamflow_core.priors.diffusers import DiffusersPrior, load_pipeline
from dreamflow_core.priors.original_names import control_names
from dreamflow_core.state import BadFile
from dreamflow_core.views import View

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from test_diffusers_prior import make_pipeline  # noqa: E402

SIZE, TIMESTEP, WEIGHT = 32, 400, 0.7
VIEWS = Cameras(*(torch.tensor(v) for v in ([0.0, 90.0], [10.0, 60.0], [3.0, 3.0], [40.0, 40.0])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline, and beside it a ControlNet in three forms."""
    root = tmp_path_factory.mktemp("control")
    make_pipeline("sd1").save_pretrained(root / "sd1")
    make_pipeline("sdxl").save_pretrained(root / "sdxl")
    unet = diffusers.UNet2DConditionModel.from_pretrained(root / "sd1", subfolder="unet")
    net = control_net(unet)
    net.save_pretrained(root / "depth")
    weights = net.state_dict()
    save_file(weights, root / "diffusers.safetensors")
    original = {f"control_model.{name}": weights[own].clone() for name, own in control_names(net).items()}
    assert len(original) == len(weights)
    save_file(original, root / "original.safetensors")
    return root


def control_net(unet):
    """One whose zero convolutions are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = diffusers.ControlNetModel.from_unet(unet)
        for name, parameter in net.named_parameters():
            if "controlnet" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return net


def look(cameras, size):
    """A slanted square."""
    count = len(cameras)
    ramp = torch.linspace(2, 4, size).expand(count, 1, size, size) + torch.arange(count).view(-1, 1, 1, 1)
    alpha = torch.zeros(count, 1, size, size)
    alpha[..., size // 4 : -size // 4, size // 4 : -size // 4] = 1
    normal = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(count, 3, size, size)
    return View(alpha.expand(-1, 3, -1, -1), alpha, ramp, normal)


def prior(folder, *controls, cfg=1.0):
    pipe = load_pipeline(folder / "sd1")
    loaded = [load_control(ControlFile(folder / name, weight, kind), pipe.unet) for name, weight, kind in controls]
    return DiffusersPrior(pipe, "a red cat", "blurry", cfg=cfg, controls=loaded)


def sigma(pipe):
    kept = pipe.scheduler.alphas_cumprod[TIMESTEP].item()
    return ((1 - kept) / kept) ** 0.5


def denoise(made, views=VIEWS, *, guided=True):
    level = sigma(made._pipe)
    z_t = level * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return made.run(lambda session: session.denoise(z_t, level, views, guided=guided), look)


def expected(folder, views_text, unweighted=False):
    """Estimates at the same noise by diffusers' networks, called as its ControlNet pipeline calls them."""
    pipe = load_pipeline(folder / "sd1")
    net = diffusers.ControlNetModel.from_pretrained(folder / "depth")
    hint = render_hints(look, VIEWS, 16 * 8, ["depth"])["depth"]
    z_t = sigma(pipe) * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    time = torch.full((2,), TIMESTEP)
    with torch.no_grad():
        hidden = torch.cat([pipe.encode_prompt(text, "cpu", 1, False)[0] for text in views_text])
        x = pipe.scheduler.alphas_cumprod[TIMESTEP].sqrt() * z_t
        weight = 0.0 if unweighted else WEIGHT
        down, middle = net(x, time, hidden, hint, conditioning_scale=weight, return_dict=False)
        shown = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return z_t - sigma(pipe) * pipe.unet(x, time, hidden, **shown).sample


SEEN = [f"a red cat, {view}" for view in ("front view", "overhead view")]


def test_estimates_are_those_of_diffusers_own_networks(folder):
    got = denoise(prior(folder, ("depth", WEIGHT, "depth")))
    torch.testing.assert_close(got, expected(folder, SEEN), atol=1e-5, rtol=1e-5)
    assert (got - expected(folder, SEEN, unweighted=True)).abs().max() > 0.01


def test_guidance_shows_it_to_both_prompts(folder):
    guided = denoise(prior(folder, ("depth", WEIGHT, "depth"), cfg=3.0))
    wanted, unwanted = expected(folder, SEEN), expected(folder, ["blurry"] * 2)
    torch.testing.assert_close(guided, unwanted + 3 * (wanted - unwanted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["diffusers.safetensors", "original.safetensors"])
def test_forms_of_one_control_net_are_one(folder, form):
    got, same = (denoise(prior(folder, (name, WEIGHT, "depth"))) for name in (form, "depth"))
    assert torch.equal(got, same)


def test_several_add_up(folder):
    half, two = ("depth", WEIGHT / 2, "depth"), ("depth", WEIGHT, "depth")
    got, same = denoise(prior(folder, half, half)), denoise(prior(folder, two))
    torch.testing.assert_close(got, same, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(denoise(prior(folder, half, ("depth", 1.0, "normal"))), same, atol=1e-3)


def test_phi_sees_it_and_its_gradients_pass(folder):
    """ControlNets take no part in gradients; the UNet beside them does."""
    made = prior(folder, ("depth", WEIGHT, "depth"))
    z_t = torch.randn(2, 4, 16, 16, requires_grad=True)
    made.run(lambda session: session.denoise(z_t, 1.0, VIEWS, guided=False).square().sum().backward(), look)
    assert z_t.grad.abs().max() > 0
    assert all(p.grad is None for control in made._controls._controls for p in control.net.parameters())


def test_a_bare_image_has_nothing_to_show(folder):
    made = prior(folder, ("depth", WEIGHT, "depth"))
    with pytest.raises(ValueError, match="a bare image has no views"):
        made.run(lambda session: session.denoise(torch.zeros(1, 4, 16, 16), 1.0, None, guided=True))


def changed(folder, path, change):
    weights = load_file(folder / "original.safetensors")
    change(weights)
    save_file(weights, path)
    return path


REFUSED = {
    "has weights that the model's kind does not know: control_add_embedding": lambda w: w.update(
        {"control_model.control_add_embedding.linear_1.weight": torch.zeros(2, 2)}
    ),
    "lacks weights: mid_block": lambda w: [w.pop(n) for n in list(w) if ".middle_block.1." in n],
    "is a Control-LoRA": lambda w: w.update({"lora_controlnet": torch.zeros(1)}),
    "is not a ControlNet of Stable Diffusion's kind": lambda w: [w.pop(n) for n in list(w) if "zero_convs.0." in n],
    "is for another family of models: time_embedding": lambda w: w.update(
        {"control_model.time_embed.0.weight": torch.zeros(4, 4)}
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_by_name(folder, tmp_path, message):
    path = changed(folder, tmp_path / "bad.safetensors", REFUSED[message])
    with pytest.raises(BadFile, match=f"bad.safetensors {message}"):
        load_control(ControlFile(path, 1.0, "depth"), load_pipeline(folder / "sd1").unet)


def test_a_folder_of_another_family_is_refused(folder):
    with pytest.raises(BadFile, match="for another family of models: its cross_attention_dim is 16, not 40"):
        load_control(ControlFile(folder / "depth", 1.0, "depth"), load_pipeline(folder / "sdxl").unet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--controlnet", "x.safetensors"], "1 ControlNets and 0 hints"),
        (["--controlnet", "x.safetensors", "--hint", "depth"], "there is no ControlNet x.safetensors"),
        (["--controlnet", "x.safetensors:nan", "--hint", "depth"], "must be a finite number"),
    ],
)
def test_command_refuses_before_any_work(folder, tmp_path, options, message):
    done = dreamflow("nerf", "a cat", "--model", folder / "sd1", "--out", tmp_path / "out", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def broken(folder, path, change=None, config=None):
    """The folder of the ControlNet with something wrong."""
    shutil.copytree(folder / "depth", path)
    tensors = load_file(path / WEIGHTS)
    if change:
        change(tensors)
    save_file(tensors, path / WEIGHTS)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | (config or {})))
    return path


WEIGHTS = "diffusion_pytorch_model.safetensors"
FOLDERS = {
    "lacks weights: controlnet_mid_block": {"change": lambda w: [w.pop(n) for n in list(w) if "mid_block" in n]},
    "has tensors that it does not know: foo.bar": {"change": lambda w: w.update({"foo.bar": torch.zeros(1)})},
    "is a ControlNetUnionModel, not a ControlNetModel": {"config": {"_class_name": "ControlNetUnionModel"}},
    "has weights that are no finite numbers: conv_in.bias": {"change": lambda w: w["conv_in.bias"].fill_(torch.nan)},
}


@pytest.mark.parametrize("message", FOLDERS)
def test_folders_are_read_whole_or_refused(folder, tmp_path, message):
    path = broken(folder, tmp_path / "bad", **FOLDERS[message])
    with pytest.raises(BadFile, match=f"bad {message}"):
        load_control(ControlFile(path, 1.0, "depth"), load_pipeline(folder / "sd1").unet)


def test_a_folder_for_other_hints_is_refused(folder, tmp_path):
    unet = load_pipeline(folder / "sd1").unet
    diffusers.ControlNetModel.from_unet(unet, conditioning_channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(BadFile, match="takes hints of 1 channels"):
        load_control(ControlFile(tmp_path / "grey", 1.0, "depth"), unet)


def test_a_folder_with_half_precision_alone_is_read(folder, tmp_path, caplog):
    unet = load_pipeline(folder / "sd1").unet
    control_net(unet).half().save_pretrained(tmp_path / "half", variant="fp16")
    half, whole = (
        load_control(ControlFile(path, 1.0, "depth"), unet) for path in (tmp_path / "half", folder / "depth")
    )
    assert half.net.dtype == torch.float32 and "float32" not in caplog.text
    for name, weight in whole.net.state_dict().items():
        assert torch.equal(half.net.state_dict()[name], weight.half().float()), name


def test_a_latent_consistency_model_takes_one(folder):
    """Its guidance scale is an input of the UNet's alone."""
    pipe = make_pipeline("sd1")
    torch.manual_seed(0)
    pipe.unet = diffusers.UNet2DConditionModel.from_config({**pipe.unet.config, "time_cond_proj_dim": 8})
    control = load_control(ControlFile(folder / "depth", 1.0, "depth"), pipe.unet)
    with_it, without = (DiffusersPrior(pipe, "a cat", controls=nets) for nets in ([control], []))
    assert (denoise(with_it) - denoise(without)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--refine-controlnet", "x", "--refine-hint", "depth"], "--refine-controlnet is for the last stage"),
        (["--refine-lora", "x"], "--refine-lora is for the last stage, which is left out without a --refiner"),
        (["--refiner-cfg", "2"], "--refiner-cfg is for the last stage"),
        (["--hint", "depth"], "the demo models take no ControlNets"),
    ],
)
def test_options_without_use_are_refused(tmp_path, options, message):
    done = dreamflow("generate", "a red cube", "--out", tmp_path / "out", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
