#!/usr/bin/env bash
# diffusers' add_noise ignores the timesteps it is given, once a scheduler has served a pipeline
#
# Expected:  `scheduler.add_noise(samples, noise, timesteps)` noises each sample to its own timestep, whatever the
#            scheduler did before: its documentation says that the timesteps determine the level.
# Version:   diffusers 0.42.1 with torch 2.13.0
# Behaviour: after `set_begin_index`, which image to image and inpainting pipelines call, the level is that of the
#            scheduler's own next step, for every sample. Once a run has ended that is no noise at all.
#            `set_timesteps` starts afresh. Nothing is raised or logged.
# Output:    EulerDiscreteScheduler, noise at timesteps [999, 555, 111]
#              fresh: 14.615 1.950 0.369
#              begun: 14.615 14.615 14.615
#              after a run: 0.000 0.000 0.000
#              by DDPMScheduler: 0.998 0.890 0.346
#            DPMSolverMultistepScheduler, noise at timesteps [999, 599, 200]
#              fresh: 0.998 0.916 0.496
#              begun: 0.998 0.998 0.998
#              after a run: 0.000 0.000 0.000
#              by DDPMScheduler: 0.998 0.916 0.496
# Hurt:      score distillation, evaluation of a denoiser and fine-tuning that take `pipe.scheduler` for their noise:
#            the model sees clean latents and is told that they are noisy, and a batch of timesteps is one level.
# To do:     take noise from a `DDPMScheduler.from_config(pipe.scheduler.config)` of your own. Its noised samples are
#            what the model takes, without `scale_model_input`; so its levels are not Euler's sigmas.
set -euo pipefail
PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$PYTHON" -m venv "$folder"
"$folder/bin/pip" install --quiet diffusers==0.42.1 torch==2.13.0
HF_HOME="$folder/cache" "$folder/bin/python" -W ignore - <<'END'
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

TABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")  # Stable Diffusion's


def levels(scheduler, timesteps):
    """How much noise each of three samples gets in one call: samples are zeros, the noise is ones."""
    return scheduler.add_noise(torch.zeros(3, 1), torch.ones(3, 1), timesteps).flatten().tolist()


for kind in (EulerDiscreteScheduler, DPMSolverMultistepScheduler):
    scheduler = kind(**TABLE)
    scheduler.set_timesteps(10)
    asked = scheduler.timesteps[[0, 4, 8]]
    seen = {"fresh": levels(scheduler, asked)}
    scheduler.set_begin_index(0)
    seen["begun"] = levels(scheduler, asked)
    latents = torch.zeros(1, 1)
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(torch.zeros_like(noisy), timestep, latents).prev_sample
    seen["after a run"] = levels(scheduler, asked)
    seen["by DDPMScheduler"] = levels(DDPMScheduler.from_config(scheduler.config), asked.long())
    print(f"{kind.__name__}, noise at timesteps {[int(t) for t in asked]}")
    for name, noise in seen.items():
        print(f"  {name}:", *(f"{level:.3f}" for level in noise))
    for name in ("fresh", "by DDPMScheduler"):
        assert seen[name][0] > seen[name][1] > seen[name][2] > 0
    assert seen["begun"] == seen["fresh"][:1] * 3 and seen["after a run"] == [0] * 3, "the behaviour has changed"
END
