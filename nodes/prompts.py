"""Prompts that hold for some views only."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dreamflow_core.cameras import AROUND, BELOW_ELEVATION, OVERHEAD_ELEVATION, SECTOR, VIEW_WORDING
from .adapter.conditioning import Conditioning, tag_view

_ALL_AROUND = (-180.0, 180.0)


def view_range(name: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Azimuths and elevations (degrees) of the views that `cameras.view_name` gives this name."""
    if name == "overhead":
        return _ALL_AROUND, (OVERHEAD_ELEVATION, 90.0)
    if name == "below":
        return _ALL_AROUND, (-90.0, BELOW_ELEVATION)
    middle = AROUND.index(name) * SECTOR
    return (middle - SECTOR / 2, middle + SECTOR / 2), (BELOW_ELEVATION, OVERHEAD_ELEVATION)


class DreamFlowViewPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        words = [
            io.String.Input(
                name, default=default, tooltip=f"Added to the text for {name} views; empty adds nothing.", optional=True
            )
            for name, default in VIEW_WORDING.items()
        ]
        return io.Schema(
            node_id="DreamFlowViewPrompt",
            display_name="View-Dependent Prompt",
            category="DreamFlow/conditioning",
            description="One prompt in as many wordings as there are kinds of views. "
            "Each entry holds for its own views, so the model is always asked for what the camera sees.",
            search_aliases=["text encode", "front side back"],
            inputs=[
                io.Clip.Input("clip"),
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="What to make."),
                *words,
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, **words: str) -> io.NodeOutput:
        if clip is None:
            raise ValueError(
                "the clip input is empty: the checkpoint may have no text encoder, load one with Load CLIP"
            )
        entries: Conditioning = []
        for name, default in VIEW_WORDING.items():
            tokens = _tokenized(clip, text, words.get(name, default))
            entries += tag_view(clip.encode_from_tokens_scheduled(tokens), *view_range(name))
        return io.NodeOutput(entries)


def _tokenized(clip: Any, text: str, view: str) -> Any:
    """The text and the words for a view: behind it, or in front of a text that takes more than one chunk.

    The first chunk counts most, and is the only one that pooled vectors know.
    """
    tokens = clip.tokenize(", ".join(part for part in (text, view) if part))
    if any(len(chunks) > 1 for chunks in tokens.values()):
        return clip.tokenize(", ".join(part for part in (view, text) if part))
    return tokens


class DreamFlowViewRange(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowViewRange",
            display_name="Set View Range",
            category="DreamFlow/conditioning",
            description="Makes a conditioning hold for some views only. Combine several for prompts by view.",
            inputs=[
                io.Conditioning.Input("conditioning"),
                io.Float.Input(
                    "azimuth_from",
                    default=_ALL_AROUND[0],
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    tooltip="Degrees around the object: 0 is its front, 90 its side on +X, 180 its back.",
                ),
                io.Float.Input(
                    "azimuth_to",
                    default=_ALL_AROUND[1],
                    min=-360.0,
                    max=720.0,
                    step=1.0,
                    tooltip="May pass 180: 135 to 225 is the back.",
                ),
                io.Float.Input(
                    "elevation_from",
                    default=-90.0,
                    min=-90.0,
                    max=90.0,
                    step=1.0,
                    tooltip="Degrees above the horizon.",
                ),
                io.Float.Input(
                    "elevation_to",
                    default=90.0,
                    min=-90.0,
                    max=90.0,
                    step=1.0,
                    tooltip="Degrees above the horizon.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls,
        conditioning: Conditioning,
        azimuth_from: float,
        azimuth_to: float,
        elevation_from: float,
        elevation_to: float,
    ) -> io.NodeOutput:
        return io.NodeOutput(tag_view(conditioning, (azimuth_from, azimuth_to), (elevation_from, elevation_to)))
