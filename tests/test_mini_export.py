"""Files of the small Stable Diffusion: one model in every layout. Untrained weights, which lay out alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dreamflow_core.mini import export, models, words
from dreamflow_core.priors.controls import ControlFile, load_control

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import ControlNetModel

from dreamflow_core.mini import train
from dreamflow_core.priors.diffusers import DiffusersPrior, load_pipeline
from dreamflow_core.priors.families import find_family


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Work as `train` leaves it, and what is exported of it."""
    work, out = (tmp_path_factory.mktemp(name) for name in ("work", "out"))
    words.write_tokenizer(work / "tokenizer")
    model = train.new_denoiser(train.RECIPES["base"], words.load_tokenizer(work / "tokenizer"))
    vae = models.make_vae(scaling_factor=0.7)
    control = ControlNetModel.from_unet(model.unet)
    parts = {"unet": model.unet, "vae": vae, "text_encoder": model.text_encoder, "controls/depth": control}
    for name, part in parts.items():
        # Halves are what files hold, so that nothing differs by rounding.
        part.half().float().save_pretrained(work / name)
    export.export(work, out)
    return out


def estimate(pipe):
    prior = DiffusersPrior(pipe, "a red cube", cfg=2.0)
    z = torch.randn(1, *prior.latent_shape(128, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return prior.denoise(z, 1.0, None, guided=True), prior.encode(prior.decode(z))


def test_the_single_file_and_the_folder_are_one_model(files):
    folder, single = load_pipeline(files / "mini"), load_pipeline(files / "mini.safetensors", config=files / "mini")
    for one, other in zip(estimate(folder), estimate(single)):
        assert torch.equal(one, other)


def test_its_images_have_128_pixels(files):
    _, size = find_family(str(files / "mini"))
    assert size == 128 and DiffusersPrior(load_pipeline(files / "mini"), "a cube").default_size == (128, 128)


def test_the_control_net_is_read_as_any_other(files):
    unet = load_pipeline(files / "mini").unet
    control = load_control(ControlFile(files / "mini-depth.safetensors", 1.0, "depth"), unet)
    assert control.cell == 8
    for name, weight in control.net.controlnet_cond_embedding.state_dict().items():
        assert weight.abs().sum() > 0 or name.startswith("conv_out") or name.endswith("bias"), name


@pytest.mark.slow
def test_every_part_is_trained_and_its_files_are_read(tmp_path, monkeypatch):
    """One step of each recipe, one after the other, as `all` does; a second time nothing is left to do."""
    few = {name: replace(recipe, views=1, cycles=((1, 1e-3),), batch=8) for name, recipe in train.RECIPES.items()}
    monkeypatch.setattr(train, "RECIPES", few)
    monkeypatch.setattr(train, "STANDARD", 8)
    work, out = tmp_path / "work", tmp_path / "out"
    for part in few:
        train.train(part, work, torch.device("cpu"))
    before = {path: path.read_bytes() for path in sorted(work.rglob("*.safetensors"))}
    train.train("base", work, torch.device("cpu"))
    assert all(path.read_bytes() == data for path, data in before.items())
    export.export(work, out)
    plain = load_pipeline(out / "mini").unet.state_dict()
    for look in ("cartoon", "pastel"):
        changed = load_pipeline(out / "mini", loras=[(out / f"mini-{look}.safetensors", 1.0)]).unet.state_dict()
        assert any(not torch.equal(changed[name], weight) for name, weight in plain.items())
    for kind in ("depth", "mask"):
        load_control(ControlFile(out / f"mini-{kind}.safetensors", 1.0, kind), load_pipeline(out / "mini").unet)
    assert find_family(str(out / "mini-refiner"))[1] == 256
    refiner = DiffusersPrior(load_pipeline(out / "mini-refiner"), "a red cube")
    assert refiner.latent_shape(256, 256) == (4, 64, 64)
