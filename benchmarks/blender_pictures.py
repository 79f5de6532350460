"""Pictures of GLB files by Blender, run by a Python that has its module (`pip install bpy`) and needs nothing else.

    python benchmarks/blender_pictures.py JOB.json

The job has the files and the folder for their pictures, a list of cameras as their axes and positions, their fields of
view in degrees, the size, and how each file is moved and scaled. Base colours are shown without light.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import bpy
from mathutils import Matrix

TO_BLENDER = Matrix(((1, 0, 0, 0), (0, 0, -1, 0), (0, 1, 0, 0), (0, 0, 0, 1)))
"""glTF's Y is up, Blender's Z."""


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    for file in job["files"]:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        bpy.ops.import_scene.gltf(filepath=file["path"])
        place(file["centre"], file["scale"])
        for material in bpy.data.materials:
            without_light(material)
        settings(job["size"])
        for number, camera in enumerate(job["cameras"]):
            look(camera)
            bpy.context.scene.render.filepath = f"{file['pictures']}-{number}.png"
            bpy.ops.render.render(write_still=True)


def place(centre: list[float], scale: float) -> None:
    """Move the whole scene as our own pictures are framed."""
    frame = bpy.data.objects.new("frame", None)
    bpy.context.collection.objects.link(frame)
    for thing in bpy.data.objects:
        if thing.parent is None and thing is not frame:
            thing.parent = frame
    offset = TO_BLENDER @ Matrix.Translation([-value for value in centre]) @ TO_BLENDER.inverted()
    frame.matrix_world = Matrix.Scale(scale, 4) @ offset


def without_light(material: bpy.types.Material) -> None:
    """Show the base colour as it is, opaque; materials that glTF calls unlit do so already."""
    material.use_backface_culling = False
    nodes, links = material.node_tree.nodes, material.node_tree.links
    shader = next((node for node in nodes if node.type == "BSDF_PRINCIPLED"), None)
    if shader is None:
        return
    light = nodes.new("ShaderNodeEmission")
    base = shader.inputs["Base Color"]
    if base.is_linked:
        links.new(base.links[0].from_socket, light.inputs["Color"])
    else:
        light.inputs["Color"].default_value = base.default_value
    output = next(node for node in nodes if node.type == "OUTPUT_MATERIAL")
    links.new(light.outputs[0], output.inputs["Surface"])


def settings(size: int) -> None:
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", 16, False
    scene.cycles.max_bounces, scene.cycles.transparent_max_bounces = 1, 8
    scene.render.film_transparent = True
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    scene.view_settings.view_transform, scene.view_settings.look = "Standard", "None"
    scene.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    bpy.context.collection.objects.link(scene.camera)


def look(camera: dict) -> None:
    axes = Matrix(
        [[*row, position] for row, position in zip(zip(*camera["axes"]), camera["position"])] + [[0, 0, 0, 1]]
    )
    bpy.context.scene.camera.matrix_world = TO_BLENDER @ axes
    bpy.context.scene.camera.data.angle = math.radians(camera["fov"])
    bpy.context.scene.camera.data.clip_start = 0.01


main()
