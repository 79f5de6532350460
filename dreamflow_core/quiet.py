"""Keeps from the user what libraries print that does not concern them: what is named here, around our own calls only.

Everything else that a library has to say is still said, and no setting of it stays changed: inside ComfyUI other
packs use the same libraries.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module

import torch

_STDERR = 2
_NO_DRIVER = b"Could not find or load the NVIDIA CUDA driver"


@contextmanager
def without_messages(messages: Mapping[str, str]) -> Iterator[None]:
    """Inside, loggers drop what contains a text.

    Args:
        messages: names of loggers, each with its text.
    """
    with ExitStack() as stack:
        for name, text in messages.items():
            logger, wanted = logging.getLogger(name), _lacks(text)
            logger.addFilter(wanted)
            stack.callback(logger.removeFilter, wanted)
        yield


def _lacks(text: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: text not in record.getMessage()


@contextmanager
def bars_on_terminals(*libraries: str) -> Iterator[None]:
    """Inside, libraries of Hugging Face draw their progress bars only if standard error is a terminal."""
    with ExitStack() as stack:
        for library in () if sys.stderr and sys.stderr.isatty() else libraries:
            settings = import_module(f"{library}.utils.logging")
            if settings.is_progress_bar_enabled():
                settings.disable_progress_bar()
                stack.callback(settings.enable_progress_bar)
        yield


@contextmanager
def quiet_warp() -> Iterator[None]:
    """Inside, Warp says nothing of what it is and which kernels it compiles; warnings and errors it does say."""
    import warp as wp

    level = wp.config.log_level
    wp.config.log_level = max(level, wp.LOG_WARNING)
    try:
        yield
    finally:
        wp.config.log_level = level


@contextmanager
def without_driver_warning() -> Iterator[None]:
    """Inside, Warp does not say that there is no CUDA driver, unless torch sees a GPU.

    Its native code writes that line by itself, whatever its log level. So standard error is kept in a file until the
    end, and everything else in it is written then.
    """
    if torch.cuda.is_available() or sys.stderr is None:
        yield
        return
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(_STDERR)
        os.dup2(kept.fileno(), _STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            kept.seek(0)
            with open(_STDERR, "wb", closefd=False) as out:
                out.writelines(line for line in kept if _NO_DRIVER not in line)
