"""Gradients through ComfyUI's frozen modules against plain autograd on float32 twins with normal weights."""

from __future__ import annotations

from contextlib import contextmanager

import comfy.model_management
import comfy.ops
import tiny
import torch
from helpers import SIGMA, close, noise, noised, prior
from pack.dreamflow_core.lora import LoRA
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
    for storage, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 3e-2)):
        vae = tiny.vae(storage)
        found = prior(model, tiny.text(1), vae=vae).run(lambda session: gradient(session.encode))
        with torch.inference_mode(False):
            twin = tiny.vae(torch.float32)
            twin.first_stage_model.load_state_dict(
                {k: v.float() for k, v in vae.first_stage_model.state_dict().items()}
            )
            twin.first_stage_model.requires_grad_(False)
            expected = gradient(
                lambda x, twin=twin: model.model.process_latent_in(twin.first_stage_model.encode(x * 2 - 1))
            )
        close(found, expected, tolerance)


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


def _phi_gradient(family: str, storage: torch.dtype) -> torch.Tensor:
    """Of phi's LoRA through a session on a MODEL as a loader node gives it: with inference tensors."""
    model = tiny.model(family, storage)
    parameter = next(model.model.diffusion_model.parameters())
    assert parameter.is_inference() and parameter.dtype == storage, (parameter.dtype, storage)

    def body(session) -> torch.Tensor:
        lora = _adapter(session.network)
        with torch.enable_grad(), lora.attached(), lora.on():
            estimate = session.denoise(noised(model), SIGMA, None, guided=False)
            (estimate * noise(channels=estimate.shape[1])).sum().backward()
        return _gradient(lora)

    return prior(model, *tiny.texts(family), vae=tiny.vae(channels=tiny.channels(family))).run(body)


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
