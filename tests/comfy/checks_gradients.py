"""Gradients through ComfyUI's frozen modules against plain autograd on float32 twins with normal weights."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.sd
import comfy.utils
import tiny
import torch
from helpers import SIGMA, cameras, close, noise, noised, prior, same, step
from pack.dreamflow_core.lora import LoRA
from pack.nodes.adapter import session as sessions
from pack.nodes.adapter.conditioning import tag_view
from torch import nn

STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


def check_phi_gradients_whatever_the_weights_are_stored_as():
    for family in ("sd1", "flux"):
        for storage in STORAGE:
            _same_gradients(family, storage, 1e-3)


def check_phi_gradients_of_every_family():
    for family in ("sd2", "sdxl", "refiner", "sd3"):
        _same_gradients(family, torch.float32, 1e-3)


def check_phi_gradients_with_weights_cast_into_a_reused_buffer():
    with _one_buffer_for_all_casts():
        _same_gradients("sd1", torch.bfloat16, 1e-3)
        # The emulation is of the real trap: without the frozen layers the gradient is wrong.
        wrong = _twin_gradient("sd1", torch.bfloat16, stored=True)
    right = _twin_gradient("sd1", torch.bfloat16)
    assert ((wrong - right).norm() / right.norm()) > 0.1


def check_phi_gradients_with_weights_patched_on_the_fly():
    """As where a LoRA is added to offloaded weights each time they are used."""
    model, halved = tiny.model("sd1").clone(), tiny.model("sd1")
    changed = [f"diffusion_model.{name}" for name in model.model.diffusion_model.state_dict() if ".attn1." in name]
    for name in changed:
        model.add_weight_wrapper(name, lambda weight: weight / 2)
        halved.add_patches({name: ("diff", (-comfy.utils.get_attr(halved.model, name) / 2,))})
    found = _phi_gradient("sd1", model=model)
    assert any(getattr(layer, "weight_function", None) for layer in model.model.modules())
    close(found, _phi_gradient("sd1", model=halved), 1e-5)


def check_offloaded_weights():
    """As on a GPU too small for the model: ComfyUI casts each layer's weights, and adds LoRAs, as they are used."""
    texts = tiny.texts("sd1")
    images = torch.rand(2, 3, 64, 64)

    def results(encoder, expect_offloaded: bool) -> tuple[torch.Tensor, ...]:
        model, _ = comfy.sd.load_lora_for_models(tiny.model("sd1"), None, tiny.lora(), 0.8, 0)
        estimate = prior(model, *texts).run(lambda s: s.denoise(noised(model), SIGMA, None, guided=True))
        same(estimate, step(model, *texts, 7.5))
        patched = [layer for layer in model.model.modules() if getattr(layer, "weight_function", None)]
        assert bool(patched) == expect_offloaded
        z = prior(model, *texts, vae=encoder).run(lambda session: session.encode(images))
        return estimate, _phi_gradient("sd1", model=model), z

    expected = results(tiny.vae(), False)
    load = comfy.model_patcher.ModelPatcher.load

    def load_little(patcher, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        return load(patcher, device_to, lowvram_model_memory=100_000)

    comfy.model_patcher.ModelPatcher.load = load_little
    try:
        found = results(tiny.vae(), True)
    finally:
        comfy.model_patcher.ModelPatcher.load = load
    for a, b in zip(found, expected):
        close(a, b, 1e-5)


def check_phi_gradients_through_quantised_layers():
    """Against a float32 model with the weights that the quantised ones stand for."""
    # The last rounds activations as well.
    for algorithm, tolerance in (("float8_e4m3fn", 1e-3), ("nvfp4", 1e-3), ("int8_tensorwise", 1e-2)):
        quantised = tiny.quantised("flux", algorithm)
        linear = quantised.model.diffusion_model.single_blocks[0].linear1
        assert not isinstance(linear, nn.Linear) and isinstance(linear.weight, comfy.quant_ops.QuantizedTensor)
        plain = {}
        for name, layer in quantised.model.diffusion_model.named_modules():
            for key, weight in layer.named_parameters(recurse=False):
                if isinstance(weight, comfy.quant_ops.QuantizedTensor):
                    weight = weight.to(torch.float32).dequantize()
                    if (scale := getattr(layer, "pre_quant_scale", None)) is not None:
                        weight = weight * scale
                if key in ("weight", "bias", "scale"):
                    plain[f"{name}.{key}"] = weight.float()
        with torch.inference_mode(False):
            twin = tiny.model("flux")
            twin.model.diffusion_model.load_state_dict(plain)
        close(_phi_gradient("flux", model=quantised), _phi_gradient("flux", model=twin), tolerance)


def check_phi_gradients_when_memory_is_short():
    """The same gradients from a fraction of the kept activations."""
    for family in ("sd1", "sdxl", "sd3", "flux"):
        plenty, short = Kept(), Kept()
        with plenty.counted():
            expected = _phi_gradient(family, torch.float32)
        with _short_of_memory(), short.counted():
            found = _phi_gradient(family, torch.float32)
        close(found, expected, 1e-5)
        assert short.bytes < 0.5 * plenty.bytes, (family, short.bytes, plenty.bytes)


def check_phi_gradients_with_patches_of_single_blocks():
    """Blocks that run again in the backward pass meet the patches that are theirs (IPAdapter hangs on so)."""
    model, calls = tiny.model("sd1").clone(), []

    def patch(q, k, v, extra):
        calls.append(extra["block"])
        return q * 0.5 + (k * v).mean(1, keepdim=True)

    model.set_model_attn2_replace(patch, "middle", 0)
    expected = _phi_gradient("sd1", model=model)
    plain = _phi_gradient("sd1", model=tiny.model("sd1"))
    assert (expected - plain).norm() > 1e-2 * plain.norm()
    with _short_of_memory():
        close(_phi_gradient("sd1", model=model), expected, 1e-5)
    assert len(calls) == 3 and set(calls) == {("middle", 0)}, calls


def check_phi_gradients_with_weight_hooks_of_each_view():
    """One backward pass over views whose prompts patch the weights differently."""
    hooks = comfy.hooks.create_hook_lora(tiny.lora(), 1.0, 0.0)
    front = comfy.hooks.set_hooks_for_conditioning(tag_view(tiny.text(1), (-90, 90), (-90, 90)), hooks)
    texts = [*front, *tag_view(tiny.text(4), (90, 270), (-90, 90))], tiny.text(2)
    views = cameras((0, 0), (180, 0))
    for context in (nullcontext(), _short_of_memory()):
        with context:
            front_alone, back_alone, both = (
                _phi_gradient("sd1", torch.float32, texts=texts, views=views, rows=rows) for rows in ([0], [1], [0, 1])
            )
        close(both, front_alone + back_alone, 1e-5)
    # Under the other view's weights it would be another gradient.
    unhooked = [[embedding, {k: v for k, v in options.items() if k != "hooks"}] for embedding, options in texts[0]]
    plain = _phi_gradient("sd1", torch.float32, texts=(unhooked, texts[1]), views=views, rows=[0])
    assert (plain - front_alone).norm() > 1e-2 * plain.norm()


def check_vae_gradients_when_memory_is_short():
    model, images = tiny.model("sd1"), torch.rand(2, 3, 64, 64)

    def gradient(session) -> torch.Tensor:
        x = images.clone().requires_grad_(True)
        with torch.enable_grad():
            (session.encode(x) * noise()).sum().backward()
        return x.grad

    expected = prior(model, tiny.text(1)).run(gradient)
    with _short_of_memory():
        same(prior(model, tiny.text(1)).run(gradient), expected)


def check_vae_gradients():
    with torch.inference_mode(False):
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        towards = noise()

        def gradient(encode) -> torch.Tensor:
            x = images.clone().requires_grad_(True)
            with torch.enable_grad():
                (encode(x) * towards).sum().backward()
            return x.grad

    model = tiny.model("sd1")

    def plain(vae, dtype: torch.dtype) -> torch.Tensor:
        """By autograd through a copy of the encoder that computes in this type."""
        encoder = copy.deepcopy(vae.first_stage_model).to(dtype)
        encoder.load_state_dict(
            {name: value.to(dtype).clone() for name, value in vae.first_stage_model.state_dict().items()}
        )
        return gradient(lambda x: model.model.process_latent_in(encoder.encode((x * 2 - 1).to(dtype)).float()))

    # A VAE computes in the type it is stored in, so against float32 its own rounding shows.
    for storage, rounding in ((torch.float32, 1e-3), (torch.float16, 1e-2), (torch.bfloat16, 3e-2)):
        vae = tiny.vae(storage)
        found = prior(model, tiny.text(1), vae=vae).run(lambda session: gradient(session.encode))
        with torch.inference_mode(False):
            close(found, plain(vae, storage), 1e-3)
            close(found, plain(vae, torch.float32), rounding)


def check_vae_encodes_and_decodes_as_comfyui_does():
    model = tiny.model("sd1")
    images = torch.rand(2, 3, 64, 64)
    for vae in (tiny.vae(), tiny.vae(torch.bfloat16)):
        z, decoded = prior(model, tiny.text(1), vae=vae).run(
            lambda session: (z := session.encode(images), session.decode(z))
        )
        with torch.no_grad():
            latents = torch.cat([vae.encode(image[None]) for image in images.movedim(1, -1)])
        close(z, model.model.process_latent_in(latents), 1e-6)
        close(decoded, vae.decode(model.model.process_latent_out(z)).movedim(-1, 1), 1e-6)


def _same_gradients(family: str, storage: torch.dtype, tolerance: float) -> None:
    close(_phi_gradient(family, storage), _twin_gradient(family, storage), tolerance)


def _phi_gradient(
    family: str,
    storage: torch.dtype | None = None,
    *,
    model=None,
    texts=None,
    views=None,
    rows: list[int] | None = None,
) -> torch.Tensor:
    """Of phi's LoRA through a session on a MODEL as a loader node gives it: with inference tensors."""
    if model is None:
        model = tiny.model(family, storage)
        parameter = next(model.model.diffusion_model.parameters())
        assert parameter.is_inference() and parameter.dtype == storage, (parameter.dtype, storage)
    rows = rows or [0, 1]

    def body(session) -> torch.Tensor:
        lora = _adapter(session.network)
        shown = None if views is None else views[rows]
        with torch.enable_grad(), lora.attached(), lora.on():
            estimate = session.denoise(noised(model)[rows], SIGMA, shown, guided=False)
            (estimate * noise(channels=estimate.shape[1])[rows]).sum().backward()
        return _gradient(lora)

    texts, vae = texts or tiny.texts(family), tiny.vae(channels=tiny.channels(family))
    gradient = prior(model, *texts, vae=vae).run(body)
    assert not any("forward" in vars(module) for module in model.model.modules())
    return gradient


def _twin_gradient(family: str, storage: torch.dtype, stored: bool = False) -> torch.Tensor:
    """The same by plain autograd; weights are rounded to `storage`, and kept in it if `stored`."""
    with torch.inference_mode(False):
        model = tiny.model(family, storage)
        if not stored:
            state = {name: weight.float() for name, weight in model.model.diffusion_model.state_dict().items()}
            model = tiny.model(family, torch.float32)
            model.model.diffusion_model.load_state_dict(state)
        network = model.model
        lora = _adapter(network.diffusion_model)
        positive, _ = tiny.texts(family)
        levels = prior(model, positive, vae=tiny.vae(channels=tiny.channels(family))).levels
        native = levels.native(SIGMA)
        x = noised(model) * levels.signal(native)
        extra = network.extra_conds(
            noise=x,
            device="cpu",
            cross_attn=positive[0][0],
            width=64,
            height=64,
            prompt_type="positive",
            **positive[0][1],
        )
        for layer in network.modules():
            if isinstance(layer, nn.LayerNorm):
                # Flux adds to the norm's input in place, which plain autograd refuses.
                layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))
        conds = {name: value.process_cond(len(x), area=None).cond for name, value in extra.items()}
        comfy.model_management.in_training = True
        with torch.enable_grad(), lora.attached(), lora.on():
            estimate = network.apply_model(x, torch.full((len(x),), native), **conds)
            (estimate * noise(channels=x.shape[1])).sum().backward()
        comfy.model_management.in_training = False
        return _gradient(lora)


def _adapter(network: nn.Module) -> LoRA:
    lora = LoRA(network, 2, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in lora.adapters:
            layer.up.copy_(torch.randn(layer.up.shape, generator=generator) * 0.05)
    return lora


def _gradient(lora: LoRA) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in lora.parameters() if p.grad is not None])


@contextmanager
def _short_of_memory():
    """Any network is taken to need more memory than there is."""
    before = sessions._KEPT_FOR_BACKWARD
    sessions._KEPT_FOR_BACKWARD = 1e12
    try:
        yield
    finally:
        sessions._KEPT_FOR_BACKWARD = before


class Kept:
    """Counts the bytes that autograd keeps for backward passes."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def counted(self):
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            self.sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


@contextmanager
def _one_buffer_for_all_casts():
    """Casts overwrite each other, as with offloaded weights on a GPU."""
    original = comfy.ops.cast_bias_weight
    with torch.inference_mode(False):
        buffer = torch.empty(1 << 22)

    def cast(*args, **kwargs):
        result = original(*args, **kwargs)
        weight = result[0]
        place = buffer[: weight.numel()].view(weight.shape)
        with torch.no_grad():
            place.data.copy_(weight)
        return (place, *result[1:])

    comfy.ops.cast_bias_weight = cast
    try:
        yield
    finally:
        comfy.ops.cast_bias_weight = original
