"""The materials of a glTF 2.0 file: what they multiply, and the pictures that they take it from.

Source: glTF 2.0 specification, 3.8 "Texture Data" and 3.9 "Materials"; the extensions are named where they are read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..state import BadFile
from .colours import to_linear
from .gltf_document import Document, convert
from .mesh import BadMesh, Floats

REPEAT, CLAMP_TO_EDGE, MIRRORED_REPEAT = 10497, 33071, 33648
NEAREST = 9728

TRANSFORM = "KHR_texture_transform"
SPECULAR_GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"
_WEBP = "EXT_texture_webp"
_BASISU = "KHR_texture_basisu"
_FORMATS = ("PNG", "JPEG", "WEBP")


class Pixels(Protocol):
    """What a texture shows."""

    @property
    def pixels(self) -> np.ndarray:
        """RGBA, (H, W, 4), uint8 or uint16."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of the file.

    Attributes:
        path: the glTF file.
        number: the image's number in it.
        name: its name or URI in the file; may be empty.
        data: the bytes of the PNG, JPEG or WebP file.
    """

    path: Path
    number: int
    name: str
    data: bytes

    @cached_property
    def pixels(self) -> np.ndarray:
        """RGBA, (H, W, 4), uint8, or uint16 for grey of 16 bits. 16 bits of colour come as 8; profiles do not count.

        Raises:
            BadFile: it is not a picture, or is cut off.
        """
        try:
            with Image.open(io.BytesIO(self.data), formats=_FORMATS) as file:
                if file.mode.startswith("I"):
                    grey = np.asarray(file).astype(np.uint16)
                    return np.stack([grey, grey, grey, np.full_like(grey, 65535)], axis=-1)
                # Not every kind of picture can become RGBA at once.
                picture = file if file.has_transparency_data else file.convert("RGB")
                return np.asarray(picture.convert("RGBA"))
        except UnidentifiedImageError as error:
            raise BadFile(f"{self._place} is no {', '.join(_FORMATS)} picture") from error
        # Parsers meet foreign bytes with every kind of exception.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadFile(f"{self._place} cannot be read: {reason}") from error

    @property
    def _place(self) -> str:
        return f"{self.path}: its image {' '.join([str(self.number), self.name]).strip()}"


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture as a material uses it.

    Attributes:
        number: the texture's number in the file.
        picture: what it shows.
        tex_coord: which set of UVs it is seen through.
        wrap: REPEAT, CLAMP_TO_EDGE or MIRRORED_REPEAT, horizontally and vertically.
        nearest: seen from near, texels are squares; if not, colours are interpolated between them.
        offset, rotation, scale: of KHR_texture_transform; the rotation in radians.
        strength: `scale` of a normal map, `strength` of an occlusion map, 1 for others.
    """

    number: int
    picture: Pixels
    tex_coord: int
    wrap: tuple[int, int]
    nearest: bool
    offset: tuple[float, float]
    rotation: float
    scale: tuple[float, float]
    strength: float

    def transform(self, uvs: Floats) -> Floats:
        """Where UVs (P, 2) lie in the picture before they are wrapped, (P, 2), origin at its top left.

        The rotation is the one of the extension's text and of its examples. Its GLSL turns the other way; see
        https://github.com/KhronosGroup/glTF/issues/1563.
        """
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        return (np.asarray(uvs, np.float64) * self.scale) @ np.array([[cos, -sin], [sin, cos]]) + self.offset

    def sample(self, uvs: Floats, display: bool = True) -> Floats:
        """RGBA at UVs (P, 2), (P, 4) in [0, 1], linear where the picture is display-referred (sRGB).

        Raises:
            BadFile: the picture cannot be read.
        """
        pixels = self.picture.pixels
        size = np.array(pixels.shape[1::-1])
        texels = self.transform(uvs) * size - (0 if self.nearest else 0.5)
        corner = np.floor(texels)
        fraction = texels - corner
        if self.nearest:
            return self._texels(pixels, corner, display)
        colours = np.zeros((len(texels), 4))
        for step in np.ndindex(2, 2):
            weight = np.where(step, fraction, 1 - fraction).prod(axis=-1, keepdims=True)
            colours += weight * self._texels(pixels, corner + step, display)
        return colours

    def _texels(self, pixels: np.ndarray, places: Floats, display: bool) -> Floats:
        """The values of texels (P, 2), counted to the right and down, wherever they are wrapped to, (P, 4)."""
        places = places.astype(np.int64)
        column, row = (_wrap(places[:, axis], pixels.shape[1 - axis], self.wrap[axis]) for axis in range(2))
        values = pixels[row, column]
        most = np.iinfo(pixels.dtype).max
        levels = np.arange(most + 1) / most
        colours = to_linear(levels) if display else levels
        return np.concatenate([colours[values[:, :3]], levels[values[:, 3:]]], axis=-1)


@dataclass(frozen=True, eq=False)
class Material:
    """A material; `Material()` is the one of primitives without.

    Factors are linear. Textures are None where the material has none.

    Attributes:
        number: the material's number in the file, None for the default one.
        name: its name in the file; may be empty.
        base_colour: (4,) red, green, blue and alpha, which multiply `base_texture` and COLOR_0. With
            KHR_materials_pbrSpecularGlossiness these are its diffuse factor and texture.
        base_texture: display-referred (sRGB); alpha is linear.
        unlit: the base colour already contains the light (KHR_materials_unlit).
        alpha_mode: OPAQUE, MASK or BLEND.
        alpha_cutoff: the smallest alpha that MASK shows.
        double_sided: faces are seen from behind too.
        metallic, roughness: factors of `metallic_roughness_texture`, whose blue and green they multiply.
        normal_texture, occlusion_texture: linear.
        emissive: (3,), times KHR_materials_emissive_strength, multiplies `emissive_texture`, which is
            display-referred (sRGB).
    """

    number: int | None = None
    name: str = ""
    base_colour: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    base_texture: Texture | None = None
    unlit: bool = False
    alpha_mode: str = "OPAQUE"
    alpha_cutoff: float = 0.5
    double_sided: bool = False
    metallic: float = 1.0
    roughness: float = 1.0
    metallic_roughness_texture: Texture | None = None
    normal_texture: Texture | None = None
    occlusion_texture: Texture | None = None
    emissive: tuple[float, ...] = (0.0, 0.0, 0.0)
    emissive_texture: Texture | None = None

    def textures(self) -> Iterator[Texture]:
        """Those that it has."""
        yield from (value for value in vars(self).values() if isinstance(value, Texture))

    def coverage(self, alpha: Floats) -> Floats:
        """How much of the surface is there, in [0, 1], where the base colour has these alphas."""
        if self.alpha_mode == "MASK":
            return (alpha >= self.alpha_cutoff).astype(alpha.dtype)
        return alpha if self.alpha_mode == "BLEND" else np.ones_like(alpha)


class MaterialReader:
    """Makes a document's materials, each with the pictures that others share."""

    def __init__(self, document: Document):
        self._document = document
        self._pictures: dict[int, Picture] = {}

    def read(self, number: Any) -> Material:
        """The material of that number; the default one for None.

        Raises:
            BadMesh: something that it refers to is missing, or is a kind of picture that cannot be read.
        """
        if number is None:
            return Material()
        material = self._document.item("materials", number)
        extensions = material.get("extensions", {})
        metallic = material.get("pbrMetallicRoughness", {})
        base, colour, texture = metallic, "baseColorFactor", "baseColorTexture"
        if SPECULAR_GLOSSINESS in extensions:
            base, colour, texture = extensions[SPECULAR_GLOSSINESS], "diffuseFactor", "diffuseTexture"
        default = Material()
        strength = extensions.get("KHR_materials_emissive_strength", {}).get("emissiveStrength", 1.0)
        alpha_mode = material.get("alphaMode", default.alpha_mode)
        if alpha_mode not in ("OPAQUE", "MASK", "BLEND"):
            raise BadMesh(f"its material {number} has the alphaMode {alpha_mode}, which glTF does not know")
        return Material(
            number=number,
            name=material.get("name", ""),
            base_colour=_numbers(base, colour, default.base_colour),
            base_texture=self._texture(base, texture),
            unlit="KHR_materials_unlit" in extensions,
            alpha_mode=alpha_mode,
            alpha_cutoff=float(material.get("alphaCutoff", default.alpha_cutoff)),
            double_sided=bool(material.get("doubleSided", default.double_sided)),
            metallic=float(metallic.get("metallicFactor", default.metallic)),
            roughness=float(metallic.get("roughnessFactor", default.roughness)),
            metallic_roughness_texture=self._texture(metallic, "metallicRoughnessTexture"),
            normal_texture=self._texture(material, "normalTexture", "scale"),
            occlusion_texture=self._texture(material, "occlusionTexture", "strength"),
            emissive=tuple(strength * value for value in _numbers(material, "emissiveFactor", default.emissive)),
            emissive_texture=self._texture(material, "emissiveTexture"),
        )

    def _texture(self, part: dict[str, Any], name: str, strength: str = "") -> Texture | None:
        """The texture that a part of a material has under a name."""
        if name not in part:
            return None
        used = part[name]
        texture = self._document.item("textures", used.get("index"))
        sampler = self._document.item("samplers", texture["sampler"]) if "sampler" in texture else {}
        transform = used.get("extensions", {}).get(TRANSFORM, {})
        wrap = (sampler.get("wrapS", REPEAT), sampler.get("wrapT", REPEAT))
        if not {REPEAT, CLAMP_TO_EDGE, MIRRORED_REPEAT}.issuperset(wrap):
            raise BadMesh(f"its texture {used['index']} wraps by {wrap}, which glTF does not know")
        offset, scale = (_numbers(transform, key, (value, value)) for key, value in (("offset", 0.0), ("scale", 1.0)))
        return Texture(
            number=used["index"],
            picture=self._picture(used["index"], texture),
            tex_coord=transform.get("texCoord", used.get("texCoord", 0)),
            wrap=wrap,
            nearest=sampler.get("magFilter") == NEAREST,
            offset=(offset[0], offset[1]),
            rotation=float(transform.get("rotation", 0.0)),
            scale=(scale[0], scale[1]),
            strength=float(used.get(strength, 1.0)),
        )

    def _picture(self, number: int, texture: dict[str, Any]) -> Picture:
        """What a texture shows: the WebP picture, or else the one of plain glTF."""
        extensions = texture.get("extensions", {})
        source = extensions.get(_WEBP, {}).get("source", texture.get("source"))
        if source is None:
            if _BASISU in extensions:
                command = f"with KTX-Software installed, {convert('ktxdecompress')}"
                raise BadMesh(f"its texture {number} is {_BASISU}, which is not read; convert it first: {command}")
            raise BadMesh(f"its texture {number} has no image that can be read, only {', '.join(extensions) or 'none'}")
        image = self._document.item("images", source)
        if source not in self._pictures:
            uri = image.get("uri", "")
            data = self._document.resource(uri) if uri else bytes(self._document.view(image.get("bufferView")))
            name = image.get("name", "" if uri.startswith("data:") else uri)
            self._pictures[source] = Picture(self._document.path, source, name, data)
        return self._pictures[source]


def _wrap(texels: np.ndarray, size: int, mode: int) -> np.ndarray:
    if mode == REPEAT:
        return texels % size
    if mode == CLAMP_TO_EDGE:
        return np.clip(texels, 0, size - 1)
    texels = texels % (2 * size)
    return np.where(texels < size, texels, 2 * size - 1 - texels)


def _numbers(part: dict[str, Any], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """As many numbers as the default has."""
    values = tuple(float(value) for value in part.get(name, default))
    if len(values) != len(default):
        raise BadMesh(f"its {name} has {len(values)} numbers, not {len(default)}")
    return values
