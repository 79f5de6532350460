"""What the nodes do around the stages: meshes in and out, prompts by view, cameras, jobs and their checkpoints."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import folder_paths
import numpy as np
import tiny
import torch
from comfy_api.latest import Types, io
from comfy_execution.graph import DynamicPrompt
from comfy_extras.nodes_gaussian_splat import _lookat_camera_info
from comfy_extras.nodes_save_3d import MeshToFile3D
from gltf_file import GltfFile
from helpers import close, same
from pack.dreamflow_core.cameras import VIEW_NAMES, orbit, view_name
from pack.dreamflow_core.mesh.gltf_document import Document
from pack.dreamflow_core.mesh.mesh import BadMesh, Mesh
from pack.dreamflow_core.mesh.prepare import uv_warning
from pack.dreamflow_core.settings.cameras import ViewRange
from pack.dreamflow_core.state import BadFile
from pack.nodes.adapter import meshes, resume, running
from pack.nodes.adapter.cameras import from_viewer
from pack.nodes.adapter.conditioning import entries_for, tag_view
from pack.nodes.control import DreamFlowControlNet
from pack.nodes.prompts import view_range
from pack.nodes.scheduler import DreamFlowScheduler
from pack.nodes.stages import DreamFlowMeshRefine, DreamFlowMeshTune


def check_each_view_has_the_one_wording_that_cameras_name():
    entries = [entry for name in VIEW_NAMES for entry in tag_view([[None, {}]], *view_range(name))]
    for azimuth in np.arange(-179.5, 180, 3.0):
        for elevation in np.arange(-88.5, 89, 3.0):
            (place,) = entries_for(entries, azimuth, elevation)
            assert VIEW_NAMES[place] == view_name(azimuth, elevation), (azimuth, elevation)


def tetrahedron(**attributes) -> Mesh:
    vertices = [[0.5, 0.5, 0.5], [-0.5, -0.5, 0.5], [-0.5, 0.5, -0.5], [0.5, -0.5, -0.5]]
    return Mesh(np.array(vertices), np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]), **attributes)


def textured() -> Mesh:
    generator = np.random.default_rng(0)
    return tetrahedron(
        uvs=generator.random((4, 2)), texture=generator.random((8, 8, 3)), normals=np.eye(4)[:, :3] + [0, 0, 1e-3]
    )


def equal(a: Mesh, b: Mesh, tolerance: float = 1e-6) -> None:
    for name in ("vertices", "faces", "uvs", "texture", "normals", "colours"):
        mine, other = getattr(a, name), getattr(b, name)
        assert (mine is None) == (other is None), name
        if mine is not None:
            np.testing.assert_allclose(mine, other, atol=tolerance, err_msg=name)
    assert a.unlit == b.unlit


def check_meshes_go_to_comfyui_and_back():
    for mesh in (textured(), tetrahedron(colours=np.linspace(0, 1, 12).reshape(4, 3), unlit=True), tetrahedron()):
        equal(meshes.read(meshes.to_comfy(mesh)), mesh)


def check_a_file_of_comfyui_is_the_same_mesh():
    mesh = textured()
    (file,) = MeshToFile3D.execute(meshes.to_comfy(mesh)).args
    read = meshes.read(file)
    np.testing.assert_allclose(read.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_allclose(read.uvs, mesh.uvs, atol=1e-6)
    np.testing.assert_allclose(read.texture, mesh.texture, atol=1 / 255)


def check_vertex_colours_are_linear_in_a_mesh():
    (grey,) = meshes.to_comfy(tetrahedron(colours=np.full((4, 3), 0.5))).vertex_colors.unique().tolist()
    assert abs(grey - 0.2140) < 1e-4


def check_padding_is_not_part_of_a_mesh():
    mesh = textured()
    made = meshes.to_comfy(mesh)
    padded = Types.MESH(
        torch.cat([made.vertices, torch.zeros(1, 3, 3)], 1),
        torch.cat([made.faces, torch.zeros(1, 2, 3, dtype=made.faces.dtype)], 1),
        uvs=torch.cat([made.uvs, torch.zeros(1, 3, 2)], 1),
        texture=made.texture,
        vertex_counts=torch.tensor([4]),
        face_counts=torch.tensor([4]),
    )
    read = meshes.read(padded)
    assert len(read.vertices) == 4 and len(read.faces) == 4 and len(read.uvs) == 4


def check_what_is_not_one_mesh_is_refused():
    made = meshes.to_comfy(tetrahedron())
    two = Types.MESH(made.vertices.repeat(2, 1, 1), made.faces.repeat(2, 1, 1))
    for mesh, message in ((two, "2 meshes"), (None, "choose a file")):
        try:
            meshes.read(mesh)
        except BadMesh as error:
            assert message in str(error)
        else:
            raise AssertionError(message)


def check_a_stage_keeps_what_it_knows_nothing_of():
    source = meshes.to_comfy(textured())
    source.normal_map, source.tangents = torch.rand(1, 8, 8, 3), torch.rand(1, 4, 4)
    source.material = {"roughness_factor": 0.3}
    before = meshes.read(source)
    painted = replace(before, texture=1 - before.texture)
    result = meshes.changed(source, before, painted, moved=False)
    close(result.texture, 1 - source.texture, 1e-6)
    for name in ("vertices", "tangents", "normal_map"):
        same(getattr(result, name), getattr(source, name))
    assert result.material == source.material
    moved = replace(before, vertices=before.vertices * 1.1)
    result = meshes.changed(source, before, moved, moved=True)
    close(result.vertices, source.vertices * 1.1, 1e-6)
    # The tangents of the source were made for another shape.
    same(result.normal_map, source.normal_map)
    assert result.tangents.shape == source.tangents.shape and not result.tangents.equal(source.tangents)
    bumpy = replace(before, normal_map=1 - before.normal_map)
    result = meshes.changed(source, before, bumpy, moved=False)
    close(result.normal_map, 1 - source.normal_map, 1e-6)
    assert not result.tangents.equal(source.tangents)
    same(result.vertices, source.vertices)


def check_a_file_keeps_what_a_stage_did_not_change():
    source = meshes.to_comfy(textured())
    source.metallic_roughness, source.emissive = torch.rand(1, 8, 8, 3), torch.rand(1, 8, 8, 3)
    (file,) = MeshToFile3D.execute(source).args
    before = meshes.read(file)
    painted = replace(before, texture=1 - before.texture)
    given, made = (Document(Path("a.glb"), f.get_data().getvalue()) for f in (file, meshes.to_file(painted, None)))

    def picture(document: Document, used: dict[str, int]) -> bytes:
        image = document.tree["images"][document.tree["textures"][used["index"]]["source"]]
        return bytes(document.view(image["bufferView"]))

    old, new = (document.tree["materials"][0] for document in (given, made))
    base, other = "baseColorTexture", "metallicRoughnessTexture"
    for of_old, of_new, name in (
        (old, new, "emissiveTexture"),
        (old["pbrMetallicRoughness"], new["pbrMetallicRoughness"], other),
        (old["pbrMetallicRoughness"], new["pbrMetallicRoughness"], base),
    ):
        assert (picture(given, of_old[name]) == picture(made, of_new[name])) == (name != base)
    assert made.tree["nodes"] == given.tree["nodes"]
    # A MESH that came from no file is what ComfyUI makes of it.
    mesh = meshes.read(source)
    theirs, ours = MeshToFile3D.execute(source)[0], meshes.to_file(mesh, source)
    assert ours.get_data().getvalue() == theirs.get_data().getvalue()


def check_new_uvs_come_with_their_vertices():
    """Also where there are as many vertices as before, in another order."""
    source = meshes.to_comfy(replace(textured(), normals=None))
    source.material = {"roughness_factor": 0.3}
    before = meshes.read(source)
    order = np.array([2, 3, 1, 0])
    after = replace(
        before, vertices=before.vertices[order], faces=np.argsort(order)[before.faces], uvs=before.uvs[order] / 2
    )
    equal(meshes.read(meshes.changed(source, before, after, moved=False)), after)


def check_the_texture_is_baked_into_new_uvs_if_asked():
    """Two triangles that lie on one place of the texture."""
    uvs = np.tile([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]], (2, 1))
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]])
    mesh = Mesh(corners - 0.3, [[0, 1, 2], [3, 4, 5]], uvs=uvs, texture=np.full((64, 64, 3), 0.5))
    model, (positive, negative) = tiny.model("sd1"), tiny.texts("sd1")
    (sigmas,) = DreamFlowScheduler.execute(model, {"range": "own", "start": 0.8, "end": 0.2}, 2).args
    flow = {"model": model, "positive": positive, "negative": negative, "vae": tiny.vae(), "sigmas": sigmas}
    how = {"optimise": "texture", "resolution": 64, "seed": 1, "cfg": 2.0, "iterations": 1}
    for unwrap in (False, True):
        with own_user_folder():
            node = in_a_graph(DreamFlowMeshTune)
            given = {"mesh": meshes.to_comfy(mesh), "cameras": ViewRange(views=1), "texture_size": 64}
            made, *_ = node.execute(**flow, **how, **given, unwrap=unwrap).args
        assert made.texture.shape == (1, 64, 64, 3)
        assert meshes.read(made).uvs.tolist() == mesh.uvs.tolist() or unwrap
        assert (uv_warning(meshes.read(made)) is None) == unwrap


def check_a_files_new_atlas_has_the_size_that_is_asked_for():
    file = GltfFile()
    for grey in (50, 200):
        texture = file.texture(np.full((4, 4, 3), grey, np.uint8))
        material = file.add("materials", pbrMetallicRoughness={"baseColorTexture": {"index": texture}})
        file.show(file.quad(material=material), translation=[grey / 100, 0, 0])
    model, (positive, negative) = tiny.model("sd1"), tiny.texts("sd1")
    (sigmas,) = DreamFlowScheduler.execute(model, {"range": "own", "start": 0.8, "end": 0.2}, 2).args
    flow = {"model": model, "positive": positive, "negative": negative, "vae": tiny.vae(), "sigmas": sigmas}
    how = {"optimise": "texture", "resolution": 64, "seed": 1, "cfg": 2.0, "iterations": 1}
    for size, side in ((0, 512), (64, 64)):
        with own_user_folder(), tempfile.TemporaryDirectory() as folder:
            given = {"mesh": Types.File3D(str(file.save(Path(folder)))), "cameras": ViewRange(views=1)}
            made, *_ = in_a_graph(DreamFlowMeshTune).execute(**flow, **how, **given, texture_size=size).args
        assert made.texture.shape == (1, side, side, 3)


def check_a_new_widget_is_the_last_and_may_be_left_out():
    for node in (DreamFlowMeshTune, DreamFlowMeshRefine):
        *_, last = node.define_schema().inputs
        assert last.id == "unwrap" and last.optional and last.advanced and last.default is False


def check_a_viewers_camera_looks_where_it_should():
    target = torch.tensor([0.3, -0.2, 0.1])
    ups = []
    for roll in (0.0, 25.0):
        info = _lookat_camera_info([1.0, 2.0, 2.5], target, 50.0, "cpu", zoom=2.0, roll=roll)
        camera = from_viewer(info)
        close(camera.position(), torch.tensor([[1.0, 2.0, 2.5]]), 1e-6)
        assert abs(math.tan(math.radians(float(camera.fov)) / 2) - math.tan(math.radians(25)) / 2) < 1e-6
        x, y, _, w = camera.world_to_clip()[0] @ torch.cat([target, torch.ones(1)])
        assert w > 0 and max(abs(x), abs(y)) < 1e-5
        ups.append(camera.axes()[1][0])
    assert abs(float(ups[0] @ ups[1]) - math.cos(math.radians(25))) < 1e-5
    info = _lookat_camera_info([1.0, 2.0, 2.5], target, 50.0, "cpu")
    without = from_viewer({name: value for name, value in info.items() if name != "quaternion"})
    close(without.rotation, from_viewer(info).rotation, 1e-5)


def check_a_camera_on_the_orbit_is_the_same_in_a_viewer():
    ours = orbit(3, 20.0, 3.0, 40.0)
    for i in range(3):
        info = _lookat_camera_info(ours.position()[i], [0.0, 0.0, 0.0], 40.0, "cpu")
        close(from_viewer(info).world_to_clip(), ours[i : i + 1].world_to_clip(), 1e-5)


def job(text: str, ids: str, seed: int = 1) -> str:
    first, second, last = ids
    graph = {
        first: {"class_type": "Loader", "inputs": {"name": "a"}, "_meta": {"title": ids}},
        second: {"class_type": "Text", "inputs": {"clip": [first, 1], "text": text}},
        last: {"class_type": "Stage", "inputs": {"model": [first, 0], "positive": [second, 0], "seed": seed}},
    }
    return resume.job_key(DynamicPrompt(graph), last)


def check_a_job_is_what_is_computed_whatever_its_nodes_are_called():
    assert job("cube", "123") == job("cube", "987")
    assert len({job("cube", "123"), job("cone", "123"), job("cube", "123", seed=2)}) == 3


def check_the_newest_checkpoints_are_kept():
    with tempfile.TemporaryDirectory() as folder:
        for age in range(resume.CHECKPOINTS_KEPT + 3):
            path = Path(folder) / f"{age}.safetensors"
            path.touch()
            os.utime(path, (1e9 - age, 1e9 - age))
        resume.forget_old_checkpoints(Path(folder))
        kept = {int(path.stem) for path in Path(folder).iterdir()}
    assert kept == set(range(resume.CHECKPOINTS_KEPT))


@contextmanager
def own_user_folder() -> Iterator[None]:
    """Checkpoints go to a folder of their own."""
    before = folder_paths.get_user_directory()
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_user_directory(folder)
        try:
            yield
        finally:
            folder_paths.set_user_directory(before)


def in_a_graph(node):
    """The class of a node as ComfyUI calls it, alone in its graph."""
    graph = DynamicPrompt({"1": {"class_type": node.__name__, "inputs": {}}})
    return node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.dynprompt: graph, io.Hidden.unique_id: "1"}})


def check_a_stage_with_a_useless_checkpoint_starts_anew():
    with own_user_folder():
        node = in_a_graph(DreamFlowMeshTune)
        path = resume.checkpoint_folder() / f"{resume.job_key(node.hidden.dynprompt, '1')}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not a checkpoint")

        def work(*, checkpoint, **_):
            if checkpoint.path.exists():
                raise BadFile("broken")
            return "done"

        assert running.run(node, work, {}, 60.0) == "done"


def check_a_stage_s_result_outlives_its_previews():
    """Neither a picture of the finished mesh nor one on the canvas during the run can end the run."""

    def fail(*_, **__):
        raise RuntimeError("no memory for pictures")

    model, (positive, negative) = tiny.model("sd1"), tiny.texts("sd1")
    (sigmas,) = DreamFlowScheduler.execute(model, {"range": "own", "start": 0.8, "end": 0.2}, 2).args
    flow = {"model": model, "positive": positive, "negative": negative, "vae": tiny.vae(), "sigmas": sigmas}
    painted = {
        "mesh": meshes.to_comfy(tetrahedron()),
        "optimise": "texture",
        "resolution": 64,
        "texture_size": 16,
        "seed": 1,
    }
    with own_user_folder(), patch.object(running, "contact_sheet", fail), patch.object(meshes, "look", fail):
        node = in_a_graph(DreamFlowMeshTune)
        made, preview, _ = node.execute(**flow, **painted, cfg=2.0, iterations=1, cameras=ViewRange(views=1)).args
    assert made.texture.shape == (1, 16, 16, 3)
    assert preview.shape[1:] == (64, 64, 3) and preview.min() == 1


def check_any_mesh_is_refined_with_a_depth_control_net():
    """The third workflow with tiny models: a bare cube from a file, far from the origin."""
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)])
    (file,) = MeshToFile3D.execute(meshes.to_comfy(Mesh(corners * 20.0 + 100, faces))).args
    model = tiny.model("sd1")
    texts = DreamFlowControlNet.execute(
        tiny.text(1), tiny.text(2), tiny.control_net(), "depth", 0.8, start_percent=0.0, end_percent=1.0
    ).args
    (sigmas,) = DreamFlowScheduler.execute(model, {"range": "own", "start": 0.8, "end": 0.2}, 2).args
    with own_user_folder():
        made, preview, _ = (
            in_a_graph(DreamFlowMeshRefine)
            .execute(
                model=model,
                positive=texts[0],
                negative=texts[1],
                vae=tiny.vae(),
                sigmas=sigmas,
                seed=1,
                cfg=2.0,
                iterations=1,
                mesh=file,
                optimise="texture",
                resolution=64,
                texture_size=64,
                cameras=ViewRange(views=1),
            )
            .args
        )
    assert made.texture.shape == (1, 64, 64, 3) and made.uvs.shape[1] == made.vertices.shape[1]
    close(made.vertices[0].amin(0), torch.full((3,), 100.0), 1e-5)
    close(made.vertices[0].amax(0), torch.full((3,), 120.0), 1e-5)
    # It was grey; the model painted it.
    assert made.texture.std() > 1e-3
    assert preview.shape[1:] == (64, 64, 3) and not preview.is_inference()
