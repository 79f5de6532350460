"""LoRA files of every layout: each layer's change of weight against NumPy, from the file's tensors alone."""

import json
import re
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dreamflow_core.priors.diffusers import load_pipeline
from dreamflow_core.state import BadFile

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from test_diffusers_prior import RESNET_NAMES, UNET_NAMES, make_pipeline, renamed, weights_of  # noqa: E402

FAMILIES = ("sd1", "sd2", "sdxl", "refiner")
CONV, LINEAR = "down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OUTPUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    for seed, family in enumerate(FAMILIES):
        make_pipeline(family, seed).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture(scope="module")
def before(folders):
    """Each family's weights as they are without a LoRA."""
    return {family: weights_of(load_pipeline(folder)) for family, folder in folders.items()}


def random(name, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def adaptable(before):
    """(component, name) of every linear and convolution layer of the UNet and the text encoders."""
    names = [name.removesuffix(".weight") for name, weight in before.items() if weight.ndim > 1]
    pairs = [tuple(name.split(".", 1)) for name in names if "embeddings." not in name]
    return [(component, name) for component, name in pairs if component != "vae"]


def whole(name):
    """A text encoder's module as files name it."""
    return name if name.startswith("text_") else f"text_model.{name}"


def factors(key, shape, rank):
    """down and up of a layer."""
    return random(key + "down", rank, *shape[1:]), random(key + "up", shape[0], rank, *[1] * (len(shape) - 2))


def product(down, up):
    """up @ down of a layer as a sum over its ranks, (out, in, ...)."""
    down, up = down.double().numpy(), up.double().numpy()
    return sum(np.multiply.outer(up[:, r].ravel(), down[r]) for r in range(len(down)))


def assert_changed(before, after, changes, weight=1.0):
    """Every weight has changed by `weight` times what NumPy says, and no other at all."""
    assert before.keys() == after.keys()
    for name, old in before.items():
        if name.removesuffix(".weight") in changes:
            expected = old.double().numpy() + weight * changes[name.removesuffix(".weight")]
            np.testing.assert_allclose(after[name].double().numpy(), expected, rtol=1e-5, atol=1e-4, err_msg=name)
            assert not torch.equal(old, after[name]), name
        else:
            assert torch.equal(old, after[name]), name


def original(name):
    """A UNet module's name in the original code, by the table of the single-file tests."""
    return renamed(renamed(name, RESNET_NAMES) if ".resnets." in name else name, UNET_NAMES)


def kohya(component, name, family):
    if component == "unet":
        return f"lora_unet_{(original(name) if family == 'sdxl' else name).replace('.', '_')}"
    number = {"sd1": "", "sd2": "", "refiner": "2"}.get(family, "1" if component == "text_encoder" else "2")
    return f"lora_te{number}_{whole(name).replace('.', '_')}"


def comfy(component, name, family):
    if component == "unet":
        return f"diffusion_model.{original(name)}"
    tower = "clip_g" if component == "text_encoder_2" else "clip_h" if family == "sd2" else "clip_l"
    return f"text_encoders.{tower}.transformer.{whole(name)}"


def lycoris(component, name, family):
    return f"lycoris_{name.replace('.', '_')}" if component == "unet" else kohya(component, name, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelling", [kohya, comfy, lycoris])
def test_layouts_with_an_alpha_for_each_layer(folders, before, family, spelling, tmp_path):
    tensors, changes = {}, {}
    for i, (component, name) in enumerate(adaptable(before[family])):
        shape, rank = before[family][f"{component}.{name}.weight"].shape, 1 + i % 4
        down, up = factors(name, shape, rank)
        key = spelling(component, name, family)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        alpha = rank
        if i % 5:
            alpha = 0.5 + i % 7
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        changes[f"{component}.{name}"] = alpha / rank * product(down, up)
    save_file(tensors, tmp_path / "style.safetensors")
    after = weights_of(load_pipeline(folders[family], loras=[(tmp_path / "style.safetensors", 0.7)]))
    assert_changed(before[family], after, changes, 0.7)


def peft(component, name):
    return (f"{component}.{name if component == 'unet' else whole(name)}", ".lora_A", ".lora_B")


def processors(component, name):
    """The first layout of diffusers, in which attention had LoRA layers of its own."""
    name = name if component == "unet" else whole(name)
    attention = re.search(r"^(.*)\.(attn\d|self_attn)\.(?:to_)?(q|k|v|out)(?:_proj|\.0|)$", name)
    if attention:
        place, kind, projection = attention.groups()
        processor = ".processor" if component == "unet" else ""
        return (f"{component}.{place}.{kind}{processor}.to_{projection}", "_lora.down", "_lora.up")
    inner = "lora" if component == "unet" or name == "text_projection" else "lora_linear_layer"
    return (f"{component}.{name}", f".{inner}.down", f".{inner}.up")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelling", [peft, processors])
def test_layouts_without_alphas(folders, before, family, spelling, tmp_path):
    tensors, changes = {}, {}
    for i, (component, name) in enumerate(adaptable(before[family])):
        down, up = factors(name, before[family][f"{component}.{name}.weight"].shape, 1 + i % 4)
        key, first, second = spelling(component, name)
        tensors |= {f"{key}{first}.weight": down, f"{key}{second}.weight": up}
        changes[f"{component}.{name}"] = product(down, up)
    save_file(tensors, tmp_path / "style.safetensors")
    after = weights_of(load_pipeline(folders[family], loras=[(tmp_path / "style.safetensors", -0.4)]))
    assert_changed(before[family], after, changes, -0.4)


@pytest.mark.parametrize("where", ["metadata", "folder"])
@pytest.mark.parametrize("rslora", [False, True])
def test_alphas_of_peft(folders, before, where, rslora, tmp_path):
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"to_q": 5, "attn1.to_v": 3},
        "use_rslora": rslora,
    }
    tensors, changes = {}, {}
    for component, name in adaptable(before["sd1"]):
        if component == "unet" and re.search(r"to_[qkv]$", name):
            rank = 2 if name.endswith("to_q") else 4
            down, up = factors(name, before["sd1"][f"{component}.{name}.weight"].shape, rank)
            prefix = "unet" if where == "metadata" else "base_model.model"
            tensors |= {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}
            alpha = 5 if name.endswith("to_q") else 3 if name.endswith("attn1.to_v") else 6
            changes[f"unet.{name}"] = alpha / (rank**0.5 if rslora else rank) * product(down, up)
    metadata = {f"unet.{name}": value for name, value in settings.items()} if where == "metadata" else None
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None)
    if where == "folder":
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert_changed(before["sd1"], weights_of(load_pipeline(folders["sd1"], loras=[(path, 1.0)])), changes)


def with_layer(folders, tmp_path, layer, tensors, *, weight=1.0, family="sd1", dtype=torch.float32):
    """What the weights become with a file of one layer of the UNet."""
    path = tmp_path / "layer.safetensors"
    save_file({f"lora_unet_{layer.replace('.', '_')}.{part}": tensor for part, tensor in tensors.items()}, path)
    return weights_of(load_pipeline(folders[family], dtype, loras=[(path, weight)]))


def test_convolution_in_three(folders, before, tmp_path):
    """LoCon's Tucker decomposition: 1 x 1 to the ranks, the kernel among them, 1 x 1 from them."""
    out, into, *kernel = before["sd1"][f"unet.{CONV}.weight"].shape
    down, mid, up = random("d", 3, into, 1, 1), random("m", 3, 3, *kernel), random("u", out, 3, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    after = with_layer(folders, tmp_path, CONV, tensors, weight=0.5)
    # What three convolutions in a row do to an image that is one pixel is the kernel of them all.
    change = np.zeros((out, into, *kernel))
    for m in range(3):
        for n in range(3):
            outer = np.multiply.outer(up[:, m, 0, 0].numpy(), down[n, :, 0, 0].numpy())
            change += np.multiply.outer(outer, mid[m, n].double().numpy())
    assert_changed(before["sd1"], after, {f"unet.{CONV}": 2 / 3 * change}, 0.5)


@pytest.mark.parametrize("layer", [CONV, LINEAR])
@pytest.mark.parametrize("axis", ["output", "input", "peft"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_dora(folders, before, layer, axis, weight, tmp_path):
    old = before["sd1"][f"unet.{layer}.weight"].double().numpy()
    down, up = factors(layer, old.shape, 4)
    count = old.shape[1 if axis == "input" else 0]
    magnitude = random("magnitude", count).abs() + 0.5
    whole_weight = old + 0.5 * product(down, up)
    new = np.empty_like(old)
    for i in range(count):
        row = (slice(None), i) if axis == "input" else i
        new[row] = float(magnitude[i]) * whole_weight[row] / np.sqrt((whole_weight[row] ** 2).sum())
    ones = [1] * (old.ndim - 2)
    if axis == "peft":
        shape = (1, count, 1, 1) if old.ndim == 4 else (count,)
        tensors = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": magnitude.reshape(shape)}
    else:
        scale = magnitude.reshape((1, count, *ones) if axis == "input" else (count, 1, *ones))
        tensors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": scale}
    tensors["alpha"] = torch.tensor(2.0)
    after = with_layer(folders, tmp_path, layer, tensors, weight=weight)
    assert_changed(before["sd1"], after, {f"unet.{layer}": new - old}, weight)


def test_full_differences_and_biases(folders, before, tmp_path):
    layer, norm = LINEAR, "down_blocks.0.resnets.0.norm1"
    tensors = {f"lora_unet_{layer.replace('.', '_')}.diff": random("a", 32, 32)}
    tensors |= {f"lora_unet_{norm.replace('.', '_')}.{part}": random(part, 16) for part in ("w_norm", "b_norm")}
    key = f"unet.{OUTPUT}"
    down, up = factors(OUTPUT, (32, 32), 2)
    tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.lora_B.bias": random("b", 32)}
    tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "full.safetensors")
    after = weights_of(load_pipeline(folders["sd1"], loras=[(tmp_path / "full.safetensors", 0.5)]))
    for name, change in {
        f"unet.{layer}.weight": random("a", 32, 32),
        f"unet.{norm}.weight": random("w_norm", 16),
        f"unet.{norm}.bias": random("b_norm", 16),
        f"{key}.weight": 0.5 * (up @ down),
        f"{key}.bias": 0.5 * random("b", 32),
    }.items():
        torch.testing.assert_close(after[name], before["sd1"][name] + 0.5 * change)
    changed = [name for name in after if not torch.equal(after[name], before["sd1"][name])]
    assert len(changed) == 5


def test_several_files_are_summed_before_they_are_rounded(folders, before, tmp_path):
    """In half precision a change of a third of a step is lost where each is rounded by itself."""
    weight = before["sd1"][f"unet.{LINEAR}.weight"].half()
    step = (torch.nextafter(weight, torch.full_like(weight, torch.inf)) - weight).float()
    save_file({f"unet.{LINEAR}.diff": step / 3}, tmp_path / "third.safetensors")
    files = [(tmp_path / "third.safetensors", 1.0)] * 3
    after = weights_of(load_pipeline(folders["sd1"], torch.float16, loras=files))
    assert torch.equal(after[f"unet.{LINEAR}.weight"], (weight.float() + step).half())
    magnitude = {"lora_down.weight": random("d", 2, 32), "lora_up.weight": random("u", 32, 2)}
    magnitude["dora_scale"] = torch.ones(32, 1)
    path = tmp_path / "dora.safetensors"
    save_file({f"lora_unet_{LINEAR.replace('.', '_')}.{part}": tensor for part, tensor in magnitude.items()}, path)
    orders = [[(path, 0.5), (files[0])], [(files[0]), (path, 0.5)]]
    one, other = (weights_of(load_pipeline(folders["sd1"], loras=order)) for order in orders)
    torch.testing.assert_close(one[f"unet.{LINEAR}.weight"], other[f"unet.{LINEAR}.weight"])


# LyCORIS


def kronecker(a, b):
    """Block by block: a[i, j] times b."""
    return np.block([[a[i, j] * b for j in range(a.shape[1])] for i in range(a.shape[0])])


@pytest.mark.parametrize("layer", [CONV, LINEAR])
def test_loha(folders, before, layer, tmp_path):
    pytest.importorskip("lycoris", reason="lycoris-lora is not installed")
    shape = before["sd1"][f"unet.{layer}.weight"].shape
    inner = int(np.prod(shape[1:]))
    parts = {f"hada_w{i}_{half}": random(f"{i}{half}", *size) for i in (1, 2) for half, size in
             {"a": (shape[0], 3), "b": (3, inner)}.items()}  # fmt: skip
    a, b, c, d = (part.double().numpy() for part in parts.values())
    change = 2 / 3 * ((a @ b) * (c @ d)).reshape(shape)
    after = with_layer(folders, tmp_path, layer, {**parts, "alpha": torch.tensor(2.0)}, weight=0.5)
    assert_changed(before["sd1"], after, {f"unet.{layer}": change}, 0.5)


@pytest.mark.parametrize("form", ["whole", "second in two", "both in two", "tucker"])
def test_lokr(folders, before, form, tmp_path):
    pytest.importorskip("lycoris", reason="lycoris-lora is not installed")
    layer = CONV if form == "tucker" else LINEAR
    shape = before["sd1"][f"unet.{layer}.weight"].shape
    first, second, scale = (4, 4), (shape[0] // 4, shape[1] // 4), 2 / 3
    parts = {"lokr_w1": random("1", *first)}
    if form == "both in two":
        parts = {"lokr_w1_a": random("1a", first[0], 3), "lokr_w1_b": random("1b", 3, first[1])}
    if form == "whole":
        parts["lokr_w2"], scale = random("2", *second), 1.0
    elif form == "tucker":
        parts |= {"lokr_w2_a": random("2a", 3, second[0]), "lokr_w2_b": random("2b", 3, second[1])}
        parts["lokr_t2"] = random("2t", 3, 3, *shape[2:])
    else:
        parts |= {"lokr_w2_a": random("2a", second[0], 3), "lokr_w2_b": random("2b", 3, second[1])}
    p = {name: part.double().numpy() for name, part in parts.items()}
    w1 = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if form == "tucker":
        change = np.empty(shape)
        for y in range(shape[2]):
            for x in range(shape[3]):
                change[..., y, x] = kronecker(w1, p["lokr_w2_a"].T @ p["lokr_t2"][..., y, x] @ p["lokr_w2_b"])
    else:
        change = kronecker(w1, p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"])
    after = with_layer(folders, tmp_path, layer, {**parts, "alpha": torch.tensor(2.0)}, weight=0.5)
    assert_changed(before["sd1"], after, {f"unet.{layer}": scale * change}, 0.5)


@pytest.mark.parametrize("layer", [CONV, LINEAR])
def test_oft(folders, before, layer, tmp_path):
    """The rotation is Cayley's of a skew matrix, and it turns blocks of outputs."""
    pytest.importorskip("lycoris", reason="lycoris-lora is not installed")
    old = before["sd1"][f"unet.{layer}.weight"].double().numpy()
    blocks = 0.1 * random("blocks", len(old) // 4, 4, 4)
    new, eye = old.copy(), np.eye(4)
    for i, block in enumerate(blocks.double().numpy()):
        skew = block - block.T
        turn = (eye + skew) @ np.linalg.inv(eye - skew)
        np.testing.assert_allclose(turn @ turn.T, eye, atol=1e-12)
        rows = old[4 * i : 4 * i + 4].reshape(4, -1)
        new[4 * i : 4 * i + 4] = (turn.T @ rows).reshape(4, *old.shape[1:])
    after = with_layer(folders, tmp_path, layer, {"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, weight=0.5)
    assert_changed(before["sd1"], after, {f"unet.{layer}": new - old}, 0.5)


# Refusals


def test_what_cannot_be_added_is_refused(folders, before, tmp_path):
    path = tmp_path / "style.safetensors"
    key = f"lora_unet_{LINEAR.replace('.', '_')}"
    down, up = factors(LINEAR, (32, 32), 4)
    good = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}

    def refuse(pattern, tensors, dtype=torch.float32, weight=1.0, error=BadFile):
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
        with pytest.raises(error, match=pattern) as caught:
            load_pipeline(folders["sd1"], dtype, loras=[(path, weight)])
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    for weight in (float("nan"), float("inf"), float("-inf")):
        refuse("must be a finite number", good, weight=weight, error=ValueError)
    refuse("lora_up.weight holds values that are no finite", {**good, f"{key}.lora_up.weight": up / 0})
    refuse("alpha holds values that are no finite", {**good, f"{key}.alpha": torch.tensor(torch.nan)})
    refuse("too large for float16", {**good, f"{key}.alpha": torch.tensor(1e6)}, torch.float16)
    refuse("is no LoRA of down", {f"{key}.lora_down.weight": down})
    refuse("is no DoRA of", {**good, f"{key}.dora_scale": up[:, :1], f"{key}.lora_magnitude_vector": up[:, 0]})
    refuse("is no LoKr of", {f"{key}.{part}": down for part in ("lokr_w1", "lokr_w2", "lokr_t2")})
    refuse("is no LoHa of", {f"{key}.hada_{part}": down for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1")})
    refuse("is no LoRA of alpha", {f"{key}.alpha": torch.tensor(1.0)})
    refuse("alpha of .* is not one number", {**good, f"{key}.alpha": torch.ones(2)})
    refuse("more than one down", {**good, f"{key}.lora_A.weight": down})
    refuse("two layers for one", {**good, f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up})
    refuse(r"up \(32, 3\).* does not fit \(32, 32\)", {**good, f"{key}.lora_up.weight": up[:, :3]})
    refuse(r"does not fit \(32, 32\)", {**good, f"{key}.dora_scale": torch.ones(7, 1)})
    # As many numbers as the layer has, in another shape.
    refuse(r"does not fit \(32, 32\)", {f"{key}.lora_down.weight": random("", 4, 64), f"{key}.lora_up.weight": up[:16]})
    refuse("has no bias", {f"unet.{LINEAR}.diff_b": torch.ones(32)})
    strange = {name.replace("mid_block", f"mid_block_{i}"): t for i in range(5) for name, t in good.items()}
    refuse(
        r"5 of its 6 layers fit none of the model's: lora_unet_mid_block_0\S+, lora_unet_mid_block_1\S+,"
        r" lora_unet_mid_block_2\S+ and others$",
        {**good, **strange},
    )
    refuse("1 of its 2 .*lora_te2_x", {**good, "lora_te2_x.lora_down.weight": down, "lora_te2_x.lora_up.weight": up})
    for kind, part in {
        "GLoRA": "a1.weight",
        "IA3": "on_input",
        "VeRA": "vera_lambda_b",
        "OFT of PEFT": "oft_R.weight",
        "BOFT of PEFT": "boft_R",
    }.items():
        refuse(f"is a {kind} file, which is not supported", {**good, f"{key}.{part}": torch.ones(1)})
    refuse("textual inversion", {**good, "bundle_emb.word.string_to_param.*": torch.ones(1, 8)})
    refuse("not a LoRA file of a known kind: weight is", {"weight": torch.ones(2)})


def test_lycoris_is_asked_for_by_name(folders, monkeypatch, tmp_path):
    monkeypatch.setattr("dreamflow_core.priors.lora_files.find_spec", lambda name: None)
    for kind, parts in {"LoKr": ("lokr_w1", "lokr_w2"), "OFT": ("oft_blocks",)}.items():
        with pytest.raises(BadFile, match=f"is a {kind} file, .*pip install lycoris-lora"):
            with_layer(folders, tmp_path, LINEAR, {part: torch.ones(2, 2) for part in parts})


@pytest.mark.parametrize("family", ["sd1", "sdxl", "refiner"])
def test_original_names_of_real_sizes(family):
    """The names that diffusers' own converter of checkpoints takes, for UNets of the real block structure."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    from dreamflow_core.priors.original_names import unet_names

    cross, plain = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
    down = {"sd1": (0, 0, 0, 1), "sdxl": (1, 0, 0), "refiner": (1, 0, 0, 1)}[family]
    kinds = [plain if kind else cross for kind in down]
    pooled = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8} if family != "sd1" else {}
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16)[: len(down)],
        down_block_types=[kind[0] for kind in kinds],
        up_block_types=[kind[1] for kind in reversed(kinds)],
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        transformer_layers_per_block=2,
        projection_class_embeddings_input_dim=16 if pooled else None,
        **pooled,
    )
    names, state = unet_names(unet), unet.state_dict()
    checkpoint = {f"model.diffusion_model.{original}": state[name] for original, name in names.items()}
    assert len(checkpoint) == len(state)
    converted = convert_ldm_unet_checkpoint(checkpoint, {**unet.config, "class_embed_type": None})
    assert converted.keys() == state.keys()
    assert all(converted[key] is state[key] for key in state)
