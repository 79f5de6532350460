"""Where a stage's checkpoints are kept in ComfyUI, and which job each belongs to."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link

CHECKPOINTS_KEPT = 8
"""The newest checkpoints that are kept. Those of finished stages count: a job of several stages that is queued
again after a restart takes them up where it was, without running the stages before once more."""


def checkpoint_folder() -> Path:
    """Where checkpoints live: it outlasts the server, and is not served over HTTP."""
    return Path(folder_paths.get_system_user_directory("dreamflow")) / "checkpoints"


def forget_old_checkpoints(folder: Path) -> None:
    """Remove all but the newest `CHECKPOINTS_KEPT`."""
    newest_first = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[CHECKPOINTS_KEPT:]:
        path.unlink(missing_ok=True)


def job_key(graph: Any, node_id: str) -> str:
    """Name of what a node computes: its class and inputs, and those of all nodes before it, whatever their ids.

    Args:
        graph: ComfyUI's `DynamicPrompt`.
    """

    @cache
    def key(node_id: str) -> str:
        node = graph.get_node(node_id)
        inputs = {
            name: [key(value[0]), value[1]] if is_link(value) else value for name, value in node["inputs"].items()
        }
        return hashlib.sha256(json.dumps([node["class_type"], inputs], sort_keys=True).encode()).hexdigest()

    return key(node_id)
