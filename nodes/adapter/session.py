"""ComfyUI's guided sampling session, as the session that an optimisation runs in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, cast

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension as extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...dreamflow_core.cameras import Cameras
from ...dreamflow_core.prior import Look, Session, T
from .conditioning import Conditioning, entries_anywhere, entries_for
from .controls import Controls
from .frozen import frozen_autograd, recomputed_blocks, training_kernels
from .joining import Conds, joined
from .levels import NoiseLevels

Entries = tuple[tuple[int, ...], ...]
"""Which entries of the positive and of the negative conditioning."""

# Where a MODEL's patches change how estimates are combined; phi is evaluated without any of them.
_GUIDANCE_OPTIONS = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
    "disable_cfg1_optimization",
)
# Memory next to ComfyUI's estimates for a forward pass alone: of an encoder's forward and backward pass, and of
# what a network keeps for its backward pass (measured on the layers of SD 1.5).
_ENCODER_BACKWARD = 3
_KEPT_FOR_BACKWARD = 12


class Terms(Protocol):
    """What a session needs to know of the prior that it serves.

    Attributes:
        levels: the model's own noise levels.
        cfg: guidance scale.
        vae: the model's, or None where scenes are latents.
        size: side of the pictures that are denoised, in pixels; 0 if that is not known.
        seed: given to nodes that hang on the model and ask for one.
    """

    levels: NoiseLevels
    cfg: float
    vae: Any
    size: int
    seed: int

    def conditionings(self) -> list[tuple[str, Conditioning]]:
        """The positive and the negative one, with their names."""
        ...


class Guider(comfy.samplers.CFGGuider):
    """Prepares a sampling session and leaves the conditionings to the sampler.

    Conditioning entries act on each other when they are processed (areas, ControlNets), so each view's own
    must be processed apart from the other views'.
    """

    def inner_sample(
        self,
        noise,
        latent_image,
        device,
        sampler,
        sigmas,
        denoise_mask,
        callback,
        disable_pbar,
        seed,
        latent_shapes=None,
    ):
        self.inner_model.latent_shapes = latent_shapes
        options = comfy.model_patcher.create_model_options_clone(self.model_options)
        options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
        wrappers = extension.get_all_wrappers(extension.WrappersMP.SAMPLER_SAMPLE, options, is_model_options=True)
        run = extension.WrapperExecutor.new_class_executor(sampler.sample, sampler, wrappers)
        extra = {"model_options": options, "seed": seed}
        return run.execute(self, sigmas, extra, callback, noise, latent_image, denoise_mask, disable_pbar)


class ComfySession(comfy.samplers.Sampler):
    """A loaded model: a `dreamflow_core` Session, and the sampler that its body runs in.

    The body runs outside inference mode. What ComfyUI does for a KSampler too runs inside it, as there: weights
    and what ControlNets keep are inference tensors, which nothing can change in place outside.
    """

    def __init__(self, prior: Terms, controls: Controls, look: Look | None, body: Callable[[Session], T]):
        self._prior, self._controls, self._look, self._body = prior, controls, look, body
        self._pairs: dict[Entries, Conds] = {}
        self.result: Any = None

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """Called once by the guider, with everything loaded; runs the body."""
        self._guider, self._options, self._noise = guider, extra_args["model_options"], noise
        self._conds = guider.conds
        self.network: nn.Module = guider.inner_model.diffusion_model
        self.device: torch.device = guider.model_patcher.load_device
        try:
            with torch.inference_mode(False), torch.no_grad(), self._differentiable(), _uninterrupted_layers():
                self.result = self._body(cast(Session, self))
        finally:
            guider.conds = self._conds
            # ComfyUI does this only for a session that ends well.
            comfy.sampler_helpers.cleanup_models(self._conds, guider.loaded_models)
        return noise

    def encode(self, images: Tensor) -> Tensor:
        vae = self._prior.vae
        again = partial(checkpoint, self._encode, use_reentrant=False, preserve_rng_state=False)
        encode = again if self._short_of_memory else self._encode
        return torch.cat([encode(image[None]) for image in images.to(vae.device)]).to(self.device)

    def decode(self, latents: Tensor) -> Tensor:
        if self._prior.vae is None:
            return _approximate_colours(latents, self._guider.inner_model.latent_format)
        with torch.inference_mode():
            in_use = mm.loaded_models(only_currently_used=True)
            images = self._prior.vae.decode(self._guider.inner_model.process_latent_out(latents))
            # Decoding may have pushed the model out of the GPU.
            mm.load_models_gpu(in_use)
        return images.clone().movedim(-1, 1).clamp(0, 1).float()

    def denoise(self, z_t: Tensor, sigma: float, views: Cameras | None, *, guided: bool) -> Tensor:
        """See `Session.denoise`; gradients do not pass through ControlNets.

        Raises:
            ValueError: the latents have another shape than the prior's, for which areas and sizes were set.
        """
        if z_t.shape[1:] != self._noise.shape[1:]:
            raise ValueError(f"latents of shape {tuple(z_t.shape[1:])} in a session for {tuple(self._noise.shape[1:])}")
        level = self._prior.levels.native(sigma)
        x = z_t * self._prior.levels.signal(level)
        batches = [(self._pair(entries), rows) for entries, rows in self._groups(views, len(z_t)).items()]
        order = torch.cat([rows for _, rows in batches])
        if len(batches) > 1 and (together := joined([(conds, len(rows)) for conds, rows in batches])):
            batches = [(together, order)]
        parts = [self._estimate(conds, views, rows, x[rows], level, guided) for conds, rows in batches]
        return torch.cat(parts)[torch.argsort(order)]

    def _groups(self, views: Cameras | None, count: int) -> dict[Entries, Tensor]:
        """Rows of the batch by the (positive, negative) entries that hold for them."""
        conditionings = self._prior.conditionings()
        if views is None:
            entries = tuple(entries_anywhere(conditioning) for _, conditioning in conditionings)
            return {entries: torch.arange(count)}
        groups = defaultdict(list)
        for row, direction in enumerate(zip(views.azimuth.tolist(), views.elevation.tolist())):
            groups[tuple(entries_for(conditioning, *direction) for _, conditioning in conditionings)].append(row)
        return {entries: torch.tensor(rows) for entries, rows in groups.items()}

    def _estimate(
        self,
        conds: Conds,
        views: Cameras | None,
        rows: Tensor,
        x: Tensor,
        level: float,
        guided: bool,
    ) -> Tensor:
        """The model's denoised estimate at its own level, as in a KSampler step with these processed entries."""
        guider = self._guider
        sigma = torch.full((len(x),), level, device=x.device)
        options = comfy.model_patcher.create_model_options_clone(self._options)
        transformer = options.setdefault("transformer_options", {})
        transformer["sample_sigmas"] = torch.stack([sigma[0], torch.zeros_like(sigma[0])])
        if not guided:
            for name in _GUIDANCE_OPTIONS:
                options.pop(name, None)
        guider.conds = conds
        guider.cfg = self._prior.cfg if guided else 1.0
        self._controls.show(self._look, views, rows, self._prior.size)
        self._rewind(guider.conds)
        if not torch.is_grad_enabled():
            with torch.inference_mode():
                estimate = guider(x, sigma, model_options=options, seed=self._prior.seed)
            return estimate.clone()
        # Copies on other GPUs know nothing of phi, and fast attention kernels have no backward pass.
        options.pop("multigpu_clones", None)
        transformer["optimized_attention_override"] = _differentiable_attention
        with training_kernels():
            return guider(x, sigma, model_options=options, seed=self._prior.seed)

    @torch.inference_mode()
    def _pair(self, entries: Entries) -> Conds:
        """The named entries of both conditionings, processed together as a KSampler would."""
        if entries not in self._pairs:
            names = [name for name, _ in self._prior.conditionings()]
            for name, indices in zip(names, entries):
                if not indices:
                    raise ValueError(f"no entry of {name} holds for a view that is denoised")
            conds = {name: [self._conds[name][i].copy() for i in indices] for name, indices in zip(names, entries)}
            latent = torch.zeros_like(self._noise)
            self._pairs[entries] = comfy.samplers.process_conds(
                self._guider.inner_model,
                torch.zeros_like(self._noise),
                conds,
                self.device,
                latent,
                seed=self._prior.seed,
                latent_shapes=[latent.shape],
            )
        return self._pairs[entries]

    def _rewind(self, conds: Conds) -> None:
        """Hook keyframes only move forward in a KSampler's run; here levels may come in any order."""
        groups = [hooks for entries in conds.values() for c in entries if (hooks := c.get("hooks")) is not None]
        moving = [hooks for hooks in groups if any(not hook.hook_keyframe.is_empty() for hook in hooks.hooks)]
        for hooks in moving:
            hooks.reset()
        if moving:
            self._guider.inner_model.current_patcher.clear_cached_hook_weights()

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Everything the body uses is loaded, and gradients pass through it."""
        guider, vaes = self._guider, [] if self._prior.vae is None else [self._prior.vae]
        shape = (1, 3, self._prior.size, self._prior.size)
        encoder = sum(_ENCODER_BACKWARD * vae.memory_used_encode(shape, vae.vae_dtype) for vae in vaes)
        views = len(self._noise)
        forward = guider.inner_model.memory_required([2 * views, *self._noise.shape[1:]])
        with torch.inference_mode():
            mm.load_models_gpu(
                [guider.model_patcher, *(vae.patcher for vae in vaes), *guider.loaded_models],
                memory_required=2 * forward + encoder,
            )
        kept = views * encoder + _KEPT_FOR_BACKWARD * forward / 2
        self._short_of_memory = kept > mm.get_free_memory(self.device)
        patcher = guider.inner_model.current_patcher

        def remember() -> Callable[[], Any]:
            return partial(patcher.apply_hooks, patcher.current_hooks)

        with ExitStack() as stack:
            stack.enter_context(frozen_autograd(self.network, remember))
            for module in (*(vae.first_stage_model for vae in vaes), *(m.model for m in guider.loaded_models)):
                stack.enter_context(frozen_autograd(module))
            if self._short_of_memory:
                stack.enter_context(recomputed_blocks(self.network, remember))
            yield

    def _encode(self, image: Tensor) -> Tensor:
        """What VAE.encode does for one image (1, 3, H, W), with gradients, then to the model's latent space."""
        vae = self._prior.vae
        pixels = vae.vae_encode_crop_pixels(image.movedim(1, -1)).movedim(-1, 1)
        pixels = vae.process_input(pixels).to(vae.vae_dtype)
        if getattr(vae.first_stage_model, "comfy_has_chunked_io", False):
            latent = vae.first_stage_model.encode(pixels, device=vae.device)
        else:
            latent = vae.first_stage_model.encode(pixels)
        latent = latent.float()
        if vae.format_encoded is not None:
            latent = vae.format_encoded(latent)
        return self._guider.inner_model.process_latent_in(latent)


def _approximate_colours(latents: Tensor, latent_format: Any) -> Tensor:
    """Latents (B, C, h, w) as small pictures (B, 3, h, w) in [0, 1], by ComfyUI's own linear map, grey without one."""
    factors = latent_format.latent_rgb_factors
    if factors is None:
        return latents.mean(1, keepdim=True).expand(-1, 3, -1, -1).float().sigmoid()
    colours = latents.float().movedim(1, -1) @ torch.tensor(factors).to(latents.device)
    bias = latent_format.latent_rgb_factors_bias
    if bias is not None:
        colours = colours + torch.tensor(bias).to(colours)
    return (colours.movedim(-1, 1) / 2 + 0.5).clamp(0, 1)


def _differentiable_attention(_fast: Callable, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


@contextmanager
def _uninterrupted_layers() -> Iterator[None]:
    """ComfyUI interrupts in the midst of any layer; here the loop's caller does, between two iterations.

    Else an interrupted iteration would be half done, with no state to save.
    """
    before = comfy.ops.run_every_op
    comfy.ops.run_every_op = lambda: None
    try:
        yield
    finally:
        comfy.ops.run_every_op = before
