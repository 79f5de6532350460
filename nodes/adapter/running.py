"""How a stage runs as a node: progress and previews on the canvas, interrupts."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from PIL import Image

from ...dreamflow_core.apfo import Cancelled, Checkpoint, Progress
from ...dreamflow_core.pictures import contact_sheet, to_pillow
from ...dreamflow_core.preparing import listening
from ...dreamflow_core.state import BadFile
from .resume import checkpoint_folder, forget_old_checkpoints, job_key

T = TypeVar("T", covariant=True)

HIDDEN = [io.Hidden.dynprompt, io.Hidden.unique_id]
"""What a node has to ask for so that `run` can tell its job from others."""

PREVIEW_EVERY = 0.5
"""Seconds between previews, at least."""
PREVIEW_SHARE = 0.1
"""Previews take no more than this share of the time."""
PREVIEW_SIZE = 512
"""Larger previews are scaled down to this side."""


class Work(Protocol[T]):
    """A stage of `dreamflow_core.pipeline` that only lacks what it reports to."""

    def __call__(
        self,
        *,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        checkpoint: Checkpoint,
    ) -> T: ...


def run(node: type[io.ComfyNode], work: Work[T], settings: dict[str, Any], save_every: float) -> T:
    """Run a stage inside a node that asked for `HIDDEN`.

    It continues if the same node with everything before it in the graph was started earlier and did not end.

    Args:
        node: the class that `execute` was called on.
        work: the stage.
        settings: of the stage, as JSON values. A checkpoint made with others is not used.
        save_every: seconds between checkpoints.

    Raises:
        comfy.model_management.InterruptProcessingException: the user stopped it; a checkpoint was saved.
    """
    path = checkpoint_folder() / f"{job_key(node.hidden.dynprompt, node.hidden.unique_id)}.safetensors"
    checkpoint = Checkpoint(path, settings, save_every, resume=True)

    def attempt() -> T:
        with listening(Preparations()):
            return work(
                on_progress=Reporter(), cancelled=comfy.model_management.processing_interrupted, checkpoint=checkpoint
            )

    try:
        return attempt()
    except BadFile as error:
        if not path.exists():
            raise
        logging.warning("DreamFlow starts the stage from the beginning, as its checkpoint cannot be used: %s", error)
        path.unlink()
        return attempt()
    except Cancelled:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise
    finally:
        forget_old_checkpoints(path.parent)


class Preparations:
    """Shows on the node how far the work before the first iteration is; raises if the user stops it."""

    def __init__(self) -> None:
        self.what = ""

    def __call__(self, what: str, share: float) -> None:
        if what != self.what:
            self.what, self.bar = what, comfy.utils.ProgressBar(100)
        self.bar.update_absolute(100 * share)


class Reporter:
    """Shows progress, and now and then the current render, on the node."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None
        self.preview_due = -math.inf

    def __call__(self, progress: Progress) -> None:
        # The bar would raise at once; the loop saves its checkpoint before it stops.
        if comfy.model_management.processing_interrupted():
            return
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(progress.steps)
        self.bar.update_absolute(progress.step, progress.steps, self._preview(progress))

    def _preview(self, progress: Progress) -> tuple[str, Image.Image, int] | None:
        start = time.monotonic()
        if start < self.preview_due and progress.step < progress.steps:
            return None
        try:
            with torch.no_grad():
                images = progress.preview().float().cpu()
            picture = to_pillow(contact_sheet(images, columns=math.ceil(math.sqrt(len(images)))))
        except Exception as error:
            logging.warning("DreamFlow cannot draw previews: %s", error)
            self.preview_due = math.inf
            return None
        now = time.monotonic()
        self.preview_due = now + max(PREVIEW_EVERY, (now - start) / PREVIEW_SHARE)
        return "JPEG", picture, PREVIEW_SIZE
