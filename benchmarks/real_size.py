"""What the stages cost with a model as large as real ones: random weights in the shapes of SD 1.5 and SDXL.

    python benchmarks/real_size.py [--family sd1|sdxl] [--size 512] [--views 4] [--dtype fp16] [--save-memory]
                                   [--iterations 5]

Time and memory do not depend on the values of the weights, so this needs no download. Prints, for the radiance
field and for a mesh's texture, at the full size from the first iteration on: seconds an iteration, the share of them
outside denoiser calls (forward passes of the prior and of phi, and phi's backward pass) and the most memory the GPU
had; without one, the process so far.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import torch
import transformers

from dreamflow_core.apfo import Phi
from dreamflow_core.cli.run import peak_memory
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.pipeline import extract_mesh, optimise_mesh, optimise_nerf
from dreamflow_core.priors.diffusers import DiffusersPrior
from dreamflow_core.priors.load import DTYPES
from dreamflow_core.scenes.nerf import NeRFScene
from dreamflow_core.settings.cameras import ViewRange
from dreamflow_core.settings.scenes import MeshSettings, NeRFSettings
from dreamflow_core.settings.stages import ExtractSettings, MeshStage, NeRFStage, ScheduleSettings

SIZES = {"sd1": 512, "sdxl": 1024}
"""Pixels a side that a family is made for."""
TEXT = {"hidden_act": "quick_gelu", "bos_token_id": 56, "eos_token_id": 57, "pad_token_id": 57}
SMALL = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def tokenizer() -> transformers.CLIPTokenizer:
    """Spells every word out; real vocabularies are a download."""
    letters = "abcdefghijklmnopqrstuvwxyz,-"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def pipeline(family: str) -> Any:
    """A diffusers pipeline of the family's shapes, of torch's default type and on its default device."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=SIZES[family],
        scaling_factor=0.18215 if family == "sd1" else 0.13025,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    parts: dict[str, Any] = {"vae": vae, "scheduler": scheduler, "tokenizer": tokenizer()}
    parts["text_encoder"] = transformers.CLIPTextModel(transformers.CLIPTextConfig(**SMALL, **TEXT))
    if family == "sd1":
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        absent = dict.fromkeys(("safety_checker", "feature_extractor"))
        return diffusers.StableDiffusionPipeline(unet=unet, **parts, **absent, requires_safety_checker=False)
    second = transformers.CLIPTextConfig(**LARGE, **TEXT, projection_dim=1280)
    unet = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    parts |= {"text_encoder_2": transformers.CLIPTextModelWithProjection(second), "tokenizer_2": tokenizer()}
    return diffusers.StableDiffusionXLPipeline(unet=unet, **parts)


def make_prior(family: str, dtype: torch.dtype, save_memory: bool, device: torch.device) -> DiffusersPrior:
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            pipe = pipeline(family)
    finally:
        torch.set_default_dtype(torch.float32)
    return DiffusersPrior(pipe, "a red cube", save_memory=save_memory)


class Clock:
    """Seconds in the functions it wraps, with the GPU's work in them."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments, **options):
            start = self.now()
            result = function(*arguments, **options)
            self.seconds += self.now() - start
            return result

        return wrapped

    @contextmanager
    def watching(self, prior: DiffusersPrior):
        """Inside, denoiser calls are timed."""
        denoise, learn = prior.denoise, Phi.learn
        prior.denoise, Phi.learn = self.timed(denoise), self.timed(learn)  # type: ignore[method-assign]
        try:
            yield
        finally:
            prior.denoise, Phi.learn = denoise, learn  # type: ignore[method-assign]


def report(name: str, prior: DiffusersPrior, run: Callable[[int], Any], iterations: int) -> None:
    """Run a stage briefly, then for its time and memory."""
    run(1)
    clock = Clock(prior.device)
    if prior.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(prior.device)
    with clock.watching(prior):
        start = clock.now()
        run(iterations)
        total = clock.now() - start
    memory = peak_memory()["cuda" if prior.device.type == "cuda" else "cpu"] / 1024
    print(
        f"  {name:18s} {total / iterations:6.2f} s an iteration, {100 * (1 - clock.seconds / total):3.0f} % outside "
        f"the denoiser, most memory {memory:5.1f} GiB",
        flush=True,
    )


def stages(prior: DiffusersPrior, mesh: Mesh, size: int, views: int) -> dict[str, Callable[[int], Any]]:
    schedule, cameras = ScheduleSettings(0.9, 0.2), ViewRange(views=views)
    nerf = NeRFStage(scene=NeRFSettings(size=size, refine_until=0), views=cameras)
    paint = MeshStage(scene=MeshSettings("texture", size=size), views=cameras)

    def levels(count: int):
        return replace(schedule, levels=count).build(prior.sigma_at)

    return {
        "radiance field": lambda count: optimise_nerf(prior, levels(count), nerf, seed=0),
        "mesh, texture": lambda count: optimise_mesh(prior, levels(count), mesh, paint, seed=0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=list(SIZES), default="sd1")
    parser.add_argument("--size", type=int, default=None, help="pixels a side; the family's own if left out")
    parser.add_argument("--views", type=int, default=ViewRange().views)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16", help="of the UNet and text encoders")
    parser.add_argument("--save-memory", action="store_true", help="as the option of the dreamflow command")
    parser.add_argument("--iterations", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prior = make_prior(options.family, DTYPES[options.dtype], options.save_memory, device)
    size = options.size or SIZES[options.family]
    mesh = extract_mesh(NeRFScene(NeRFSettings(), seed=0), ExtractSettings())
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    unet = sum(p.numel() for p in prior.network.parameters())
    print(f"{options.family}: UNet of {unet / 1e9:.2f} billion weights in {options.dtype}; ", end="")
    print(f"{options.views} views of {size} pixels; on {name}")
    for title, run in stages(prior, mesh, size, options.views).items():
        report(title, prior, run, options.iterations)


if __name__ == "__main__":
    main()
