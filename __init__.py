"""DreamFlow for ComfyUI: the pack's face. Headless use imports `dreamflow_core` instead."""

import sys

MINIMUM_COMFYUI = "0.33.0"
"""The oldest ComfyUI whose API the nodes use."""


def _comfyui_is_new_enough() -> bool:
    """Whether the nodes can be loaded; if not, says so in one line of the log."""
    import logging
    import re

    try:
        from comfyui_version import __version__ as version
    except ImportError:
        version = "older"
    found, needed = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version, MINIMUM_COMFYUI))
    if found < needed:
        logging.error("DreamFlow needs ComfyUI %s or newer, and this one is %s: update it.", MINIMUM_COMFYUI, version)
    return found >= needed


# Test runners and packaging tools import this file as well; only ComfyUI has `folder_paths` loaded.
if "folder_paths" in sys.modules:
    if _comfyui_is_new_enough():
        from .nodes import comfy_entrypoint

        WEB_DIRECTORY = "web"
        __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
    else:
        # A pack without nodes: ComfyUI then has nothing to add to the line above.
        NODE_CLASS_MAPPINGS: dict = {}
        __all__ = ["NODE_CLASS_MAPPINGS"]
