"""DreamFlow for ComfyUI: the pack's face. Headless use imports `dreamflow_core` instead."""

import sys

# Test runners and packaging tools import this file as well; only ComfyUI has `folder_paths` loaded.
if "folder_paths" in sys.modules:
    from .nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
