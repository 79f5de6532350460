"""The three stages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..dreamflow_core.apfo import Checkpoint
from ..dreamflow_core.pipeline import extract_mesh, optimise_mesh, optimise_nerf, turntable
from ..dreamflow_core.preparing import listening
from ..dreamflow_core.prior import Look
from ..dreamflow_core.schedule import Schedule
from ..dreamflow_core.settings.cameras import ViewRange
from ..dreamflow_core.settings.scenes import BACKGROUNDS, LOOKS, TARGETS, HashGridSettings, MeshSettings, NeRFSettings
from ..dreamflow_core.settings.stages import ExtractSettings, MeshStage, NeRFStage, TurntableSettings
from .adapter import meshes
from .adapter.conditioning import Conditioning
from .adapter.levels import native_schedule
from .adapter.prior import ComfyPrior
from .adapter.running import HIDDEN, Preparations, run
from .sockets import GuidanceSettings, NeRF
from .widgets import checkpoint_input, choice, flow_inputs, number, prior_inputs, stage_inputs

if TYPE_CHECKING:
    from ..dreamflow_core.scenes.nerf import NeRFScene

PREVIEW_VIEWS = 8
"""Pictures of a stage's preview output."""


class DreamFlowNeRFOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowNeRFOptimize",
            display_name="NeRF Optimize",
            category="DreamFlow",
            description="Stage 1: a radiance field whose pictures from all sides look like what the model would paint.",
            search_aliases=["text to 3d", "dreamfusion", "apfo"],
            inputs=[
                *prior_inputs(),
                io.Vae.Input("vae", tooltip="The model's own."),
                *flow_inputs(),
                number(NeRFSettings, "size", 16, 4096, _SIZE, id="resolution", advanced=False),
                number(
                    HashGridSettings,
                    "finest",
                    4,
                    8192,
                    "Cells per axis of the finest detail; about the resolution.",
                    id="grid_finest",
                ),
                number(HashGridSettings, "levels", 1, 32, "Levels of detail of the hash grid.", id="grid_levels"),
                number(
                    HashGridSettings,
                    "entries_log2",
                    4,
                    24,
                    "Memory of a level of detail: 2 to the power of this.",
                    id="grid_entries_log2",
                ),
                number(NeRFSettings, "samples", 8, 4096, "Steps of a ray across the scene."),
                choice(
                    NeRFSettings,
                    "background",
                    BACKGROUNDS,
                    "random: every picture on a colour of its own, so holes stay open. learned: a soft surround.",
                ),
                number(NeRFSettings, "orientation", 0.0, 100.0, "Weight of the loss on surfaces facing away."),
                number(NeRFSettings, "opacity", 0.0, 100.0, "Weight of the loss on half-transparent rays."),
                number(NeRFSettings, "distortion", 0.0, 100.0, "Weight of the loss on matter spread along a ray."),
                number(NeRFSettings, "grid_rate", 1e-6, 10.0, "Learning rate of the hash grid."),
                number(NeRFSettings, "head_rate", 1e-6, 10.0, "Learning rate of all else."),
                number(NeRFSettings, "final_rate", 1e-6, 1.0, _FINAL_RATE),
                checkpoint_input(),
                *stage_inputs(),
                NeRF.Input("nerf", optional=True, tooltip="A field to start from instead of a ball."),
            ],
            outputs=[NeRF.Output(display_name="NERF"), io.Image.Output(display_name="preview")],
            hidden=HIDDEN,
        )

    @classmethod
    def execute(
        cls,
        resolution: int,
        save_every: float = Checkpoint.every,
        cameras: ViewRange | None = None,
        guidance: GuidanceSettings | None = None,
        nerf: NeRFScene | None = None,
        **others: Any,
    ) -> io.NodeOutput:
        flow, scene = _split(others)
        grid = {name.removeprefix("grid_"): scene.pop(name) for name in _GRID if name in scene}
        settings = NeRFSettings(HashGridSettings(**grid), size=resolution, **scene)
        stage = NeRFStage(scene=settings, **_how(cameras, guidance))
        # The nodes' inference mode would make parameters that cannot be trained.
        with torch.inference_mode(False):
            prior, schedule, seed = _prior(size=resolution, views=stage.views, **flow)
            work = partial(optimise_nerf, prior, schedule, stage, seed=seed, start=nerf)
            field = run(cls, work, asdict(stage), save_every)
            return io.NodeOutput(field, _preview(lambda: field.view, resolution, stage.views))


class DreamFlowMeshExtract(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamFlowMeshExtract",
            display_name="Mesh Extract",
            category="DreamFlow",
            description="The surface of a radiance field as one closed mesh with UVs and a texture.",
            search_aliases=["marching cubes", "nerf to mesh"],
            inputs=[
                NeRF.Input("nerf"),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.1,
                    tooltip="Density at the surface. 0 finds it.",
                ),
                number(ExtractSettings, "faces", 4, 10000000, "Triangles, at most.", advanced=False),
                number(ExtractSettings, "texture_size", 16, 8192, "Side of the texture, in texels.", advanced=False),
                number(
                    ExtractSettings, "resolution", 16, 1024, "Nodes per axis of the grid on which the surface is found."
                ),
            ],
            outputs=[io.Mesh.Output(display_name="MESH")],
        )

    @classmethod
    def execute(cls, nerf: NeRFScene, threshold: float, **settings: int) -> io.NodeOutput:
        from ..dreamflow_core.mesh.topology import vertex_normals

        with listening(Preparations()):
            mesh = extract_mesh(nerf, ExtractSettings(threshold=threshold or None, **settings))
        # Without normals viewers shade every triangle flat.
        normals = vertex_normals(mesh.vertices, mesh.faces)
        return io.NodeOutput(meshes.to_comfy(replace(mesh, normals=normals)))


class DreamFlowMeshTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _mesh_schema(
            "DreamFlowMeshTune",
            "Mesh Tune",
            "Stage 2: changes a mesh's texture, shape or both until its pictures look like what the model would paint.",
        )

    @classmethod
    def execute(
        cls,
        mesh: Any,
        resolution: int,
        texture_size: int = 0,
        unwrap: bool = MeshStage.unwrap,
        save_every: float = Checkpoint.every,
        cameras: ViewRange | None = None,
        guidance: GuidanceSettings | None = None,
        **others: Any,
    ) -> io.NodeOutput:
        flow, scene = _split(others)
        settings = MeshSettings(size=resolution, **scene)
        how = _how(cameras, guidance)
        stage = MeshStage(scene=settings, texture_size=texture_size or None, unwrap=unwrap, **how)
        with listening(Preparations()):
            given = meshes.read(mesh, stage.texture_size)
        with torch.inference_mode(False):
            prior, schedule, seed = _prior(size=resolution, views=stage.views, **flow)
            work = partial(optimise_mesh, prior, schedule, given, stage, seed=seed)
            made = run(cls, work, asdict(stage), save_every)
            result = meshes.changed(mesh, given, made, moved="vertices" in settings.rates())
            preview = _preview(lambda: meshes.look(made), resolution, stage.views)
            return io.NodeOutput(result, preview, meshes.to_file(made, result))


class DreamFlowMeshRefine(DreamFlowMeshTune):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _mesh_schema(
            "DreamFlowMeshRefine",
            "Mesh Refine",
            "Stage 3: the same as Mesh Tune at a high resolution, for a second model such as the SDXL refiner.",
        )


_SIZE = "Side of the pictures that the model denoises, in pixels: what it was made for, or 64 for the demo model."

_FILE = (
    "The mesh as a GLB file. A 3D file that came in keeps all that did not change: other maps, transparency, names, "
    "nodes, UV sets, animations. MESH has no place for some of it."
)

_FINAL_RATE = "Share of the learning rates that is left at the end."


def _mesh_schema(node_id: str, display_name: str, description: str) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category="DreamFlow",
        description=description,
        search_aliases=["texture mesh", "apfo"],
        inputs=[
            *prior_inputs(),
            io.Vae.Input("vae", tooltip="The model's own."),
            *flow_inputs(),
            meshes.mesh_input("From any node, or a 3D file (GLB, OBJ, PLY). It gets the UVs and texture it lacks."),
            choice(MeshSettings, "optimise", TARGETS, "What may change.", advanced=False),
            number(MeshSettings, "size", 16, 4096, _SIZE, id="resolution", advanced=False),
            io.Int.Input(
                "texture_size",
                default=0,
                min=0,
                max=8192,
                step=64,
                optional=True,
                tooltip="Side of a new atlas; a smaller texture is enlarged to it. 0 keeps a texture as it is.",
            ),
            choice(
                MeshSettings,
                "geometry_look",
                LOOKS,
                "What the model sees while the shape or the normal map alone changes. normal: the normals as colours. "
                "colour: the mesh as it looks, for models that have never seen such pictures.",
            ),
            number(MeshSettings, "texture_rate", 1e-6, 10.0, "Learning rate of the texture."),
            number(
                MeshSettings,
                "colour_drift",
                0.0,
                1.0,
                "Most that the mean colour may move from where it started. 1 leaves it free.",
                step=0.001,
            ),
            number(MeshSettings, "geometry_rate", 1e-6, 10.0, "Learning rate of the shape."),
            number(MeshSettings, "normal_rate", 1e-6, 10.0, "Learning rate of the normal map."),
            number(MeshSettings, "final_rate", 1e-6, 1.0, _FINAL_RATE),
            number(MeshSettings, "smoothing", 0.0, 1000.0, "How far a change of the shape spreads over its surface."),
            number(MeshSettings, "bending", 0.0, 1000.0, "Weight of the loss on sharp edges."),
            checkpoint_input(),
            *stage_inputs(),
            # Workflows know widgets by their places: a new one comes last.
            io.Boolean.Input(
                "unwrap",
                default=MeshStage.unwrap,
                optional=True,
                advanced=True,
                tooltip="Make new UVs, on which no texel shows two places, and bake the texture into them.",
            ),
        ],
        outputs=[
            io.Mesh.Output(display_name="MESH"),
            io.Image.Output(display_name="preview"),
            io.File3DGLB.Output(display_name="model_3d", tooltip=_FILE),
        ],
        hidden=HIDDEN,
    )


_GRID = ("grid_finest", "grid_levels", "grid_entries_log2")
_FLOW = ("model", "positive", "negative", "vae", "sigmas", "seed", "cfg", "iterations")


def _split(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs that every stage has, and the scene's own settings."""
    return {name: inputs[name] for name in _FLOW}, {n: value for n, value in inputs.items() if n not in _FLOW}


def _how(cameras: ViewRange | None, guidance: GuidanceSettings | None) -> dict[str, Any]:
    """The settings that all stages share; what is not connected keeps the stage's own default."""
    how = {} if guidance is None else {"method": guidance.method, "phi": guidance.phi}
    return how if cameras is None else {**how, "views": cameras}


def _prior(
    *,
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    vae: Any,
    sigmas: Tensor,
    seed: int,
    cfg: float,
    iterations: int,
    size: int,
    views: ViewRange,
) -> tuple[ComfyPrior, Schedule, int]:
    """The prior and the schedule of a stage, checked, and its seed."""
    schedule = native_schedule(model, sigmas, iterations)
    prior = ComfyPrior(model, positive, negative, vae, cfg=cfg, size=size, seed=seed, views=views.views)
    prior.check_views(views)
    return prior, schedule, seed


def _preview(look: Callable[[], Look], size: int, views: ViewRange) -> Tensor:
    """IMAGE (B, H, W, 3) of the scene from all around, on white; all white where it cannot be drawn."""
    (radius, _), (fov, _) = views.radius, views.fov
    settings = replace(TurntableSettings(), views=PREVIEW_VIEWS, size=size, radius=radius, fov=fov)
    try:
        return turntable(look(), settings).on((1.0, 1.0, 1.0)).movedim(1, -1).cpu()
    except Exception as error:
        # The stage's result is worth more than pictures of it.
        logging.warning("DreamFlow cannot draw the preview: %s", error)
        return torch.ones(PREVIEW_VIEWS, size, size, 3)
