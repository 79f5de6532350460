"""A checkpoint that an earlier version wrote in ComfyUI is found, and its stage goes on (`tests/before`)."""

from __future__ import annotations

import shutil
from pathlib import Path

import comfy.utils
import torch
from checks_nodes import own_user_folder
from comfy_api.latest import io
from comfy_execution.graph import DynamicPrompt
from pack.nodes.adapter import resume
from pack.nodes.demo_model import DreamFlowDemoModel
from pack.nodes.guidance import DreamFlowGuidance
from pack.nodes.stages import DreamFlowNeRFOptimize

BEFORE = Path(__file__).parents[1] / "before"
SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.5]
STAGE = {
    "seed": 5,
    "cfg": 2.0,
    "iterations": 1,
    "resolution": 64,
    "grid_finest": 8,
    "grid_levels": 2,
    "grid_entries_log2": 6,
    "samples": 16,
}
LINKS = {
    "model": ["1", 0],
    "positive": ["2", 0],
    "negative": ["2", 0],
    "vae": ["1", 2],
    "sigmas": ["4", 0],
    "guidance": ["3", 0],
}
GUIDANCE = {"method": "sds", "phi_rank": 1, "phi_learning_rate": 0.001}
GRAPH = {
    "1": {"class_type": "DreamFlowDemoModel", "inputs": {"model": "demo"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red sphere"}},
    "3": {"class_type": "DreamFlowGuidance", "inputs": GUIDANCE},
    "4": {"class_type": "ManualSigmas", "inputs": {"sigmas": "8, 4, 2, 1, 0.5"}},
    "5": {"class_type": "DreamFlowNeRFOptimize", "inputs": {**LINKS, **STAGE}},
}
"""The job that was stopped after two of its four iterations."""


def check_a_checkpoint_of_before_is_continued():
    hidden = {io.Hidden.dynprompt: DynamicPrompt(GRAPH), io.Hidden.unique_id: "5"}
    node = DreamFlowNeRFOptimize.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
    model, clip, vae = DreamFlowDemoModel.execute("demo").args
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a red sphere"))
    (guidance,) = DreamFlowGuidance.execute(**GUIDANCE).args
    sigmas = torch.tensor(SIGMAS)
    steps = []
    with own_user_folder():
        resume.checkpoint_folder().mkdir(parents=True)
        (kept,) = BEFORE.glob(resume.job_key(DynamicPrompt(GRAPH), "5") + "*")
        shutil.copy(kept, resume.checkpoint_folder())
        comfy.utils.set_progress_bar_global_hook(lambda step, *_, **__: steps.append(step))
        try:
            node.execute(model=model, positive=text, negative=text, vae=vae, sigmas=sigmas, guidance=guidance, **STAGE)
        finally:
            comfy.utils.set_progress_bar_global_hook(None)
    assert steps == [3, 4], steps
