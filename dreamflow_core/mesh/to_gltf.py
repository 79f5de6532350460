"""What other formats show, as a glTF document."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ..pictures import reading_picture
from .beside import PictureFile
from .colours import to_linear
from .gltf_document import Document
from .gltf_draft import Draft
from .gltf_materials import Material, Pixels, Texture
from .prepare import BARE
from .scene import Part, Scene

ROUGHNESS = 0.9
"""Of materials that say nothing of it; glTF's own default is a rough metal."""
_BARE = (*to_linear(np.full(3, BARE)).tolist(), 1.0)
_LINEAR, _LINEAR_MIPMAP_LINEAR = 9729, 9987
_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg"}


def to_gltf(scene: Scene, path: Path) -> Document:
    """A document of one node whose primitives are the scene's parts, in their order; single precision.

    Where nothing has a colour it is the grey in which such a mesh is drawn (`prepare.BARE`); glTF's own would be white.

    Args:
        path: names the node and the mesh.

    Raises:
        BadFile: a texture cannot be read.
    """
    draft = Draft(Document(path, b'{"asset":{"version":"2.0","generator":"DreamFlow for ComfyUI"}}'))
    given = scene.materials
    if all(part.material is None and part.colours is None for part in scene.parts):
        given = {number: replace(material, base_colour=_BARE) for number, material in given.items()}
    materials = {number: _material(draft, material) for number, material in given.items()}
    primitives = [_primitive(draft, part, materials[part.material]) for part in scene.parts]
    mesh = draft.add("meshes", name=path.stem, primitives=primitives)
    draft.tree |= {"scene": 0, "scenes": [{"nodes": [draft.add("nodes", name=path.stem, mesh=mesh)]}]}
    return Document(path, draft.glb())


def new_texture(draft: Draft, image: int, wrap: tuple[int, int]) -> int:
    """The number of a texture that shows an image, filtered, and wrapped so."""
    wraps = {"wrapS": wrap[0], "wrapT": wrap[1]}
    sampler = draft.add("samplers", magFilter=_LINEAR, minFilter=_LINEAR_MIPMAP_LINEAR, **wraps)
    return draft.add("textures", source=image, sampler=sampler)


def _primitive(draft: Draft, part: Part, material: int) -> dict[str, Any]:
    attributes = {"POSITION": draft.accessor(part.positions.astype(np.float32), bounds=True)}
    if part.normals is not None:
        attributes["NORMAL"] = draft.accessor(part.normals.astype(np.float32))
    for number, uvs in part.uvs.items():
        attributes[f"TEXCOORD_{number}"] = draft.accessor(uvs.astype(np.float32))
    if part.colours is not None:
        channels = 3 if (part.colours[:, 3] == 1).all() else 4
        attributes["COLOR_0"] = draft.accessor(part.colours[:, :channels].astype(np.float32))
    return {"attributes": attributes, "indices": draft.indices(part.faces), "material": material}


def _material(draft: Draft, material: Material) -> int:
    base: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": ROUGHNESS}
    if material.base_colour != Material().base_colour:
        base["baseColorFactor"] = [float(value) for value in material.base_colour]
    made: dict[str, Any] = {"name": material.name} if material.name else {}
    if material.base_texture is not None:
        base["baseColorTexture"] = _texture(draft, material.base_texture)
    made["pbrMetallicRoughness"] = base
    if material.normal_texture is not None:
        made["normalTexture"] = _texture(draft, material.normal_texture)
    if material.alpha_mode != "OPAQUE":
        made["alphaMode"] = material.alpha_mode
    if material.double_sided:
        made["doubleSided"] = True
    if material.unlit:
        made["extensions"] = {"KHR_materials_unlit": {}}
    return draft.add("materials", **made)


def _texture(draft: Draft, texture: Texture) -> dict[str, Any]:
    used: dict[str, Any] = {"index": new_texture(draft, _image(draft, texture.picture), texture.wrap)}
    if (texture.offset, texture.scale) != ((0.0, 0.0), (1.0, 1.0)):
        transform = {"offset": list(texture.offset), "scale": list(texture.scale)}
        used["extensions"] = {"KHR_texture_transform": transform}
    return used


def _image(draft: Draft, picture: Pixels) -> int:
    """The file itself where glTF takes it; how a camera was held when it was taken, glTF does not know."""
    if not isinstance(picture, PictureFile):
        return draft.image(to_bytes(picture.pixels))
    data, name = picture.path.read_bytes(), picture.path.stem
    with reading_picture(picture.path), Image.open(io.BytesIO(data)) as file:
        kind = _AS_THEY_ARE.get(file.format or "")
        if kind is not None and file.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return draft.encoded_image(data, kind, name)
    return draft.image(to_bytes(picture.pixels), name)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Pixels of 8 bits, of 16 or of fractions in [0, 1]."""
    if values.dtype == np.uint16:
        values = values / np.float32(65535)
    return values if values.dtype == np.uint8 else (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
