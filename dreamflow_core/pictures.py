"""Pictures in and out of files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .state import BadFile, reading, write_bytes

_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose grey of mode "I" has 16 bits."""


def load_picture(path: Path) -> Tensor:
    """A picture file as (3, H, W) in [0, 1], as viewers show it on white; of an animation the first picture.

    Raises:
        BadFile: the file is missing, cut, too large or not a picture, or its pixels have no known range.
    """
    if not path.exists():
        raise BadFile(f"there is no picture {path}")
    with reading_picture(path), Image.open(path) as picture:
        return torch.from_numpy(to_colours(picture, background=1.0)).permute(2, 0, 1)


@contextmanager
def reading_picture(path: Path) -> Iterator[None]:
    """`reading`, in which a picture that Pillow only warns of as too large is refused, too."""
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except UnidentifiedImageError as error:
            raise BadFile(f"{path} is not a picture that can be read") from error


def to_colours(picture: Image.Image, background: float | None = None) -> np.ndarray:
    """A picture's colours (H, W, 3) in [0, 1], float32, turned as its EXIF tag says.

    Args:
        background: grey in [0, 1] behind transparent parts; None leaves transparency out.

    Raises:
        ValueError: its pixels have no known range, as those of float pictures.
    """
    sixteen_bits = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _SIXTEEN_BITS)
    picture = ImageOps.exif_transpose(picture)
    if sixteen_bits:
        # Pillow would clip them to 255.
        grey = np.asarray(picture).astype(np.float32) / 65535
        clear = picture.info.get("transparency")
        if clear is not None and background is not None:
            grey[grey == np.float32(clear) / 65535] = background
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {picture.mode}) have no known range: save it with 8 or 16 bits")
    if background is None or not picture.has_transparency_data:
        return np.asarray(picture.convert("RGB"), np.float32) / 255
    values = np.asarray(picture.convert("RGBA"), np.float32) / 255
    return values[..., :3] * values[..., 3:] + background * (1 - values[..., 3:])


def save_picture(path: Path, image: Tensor) -> None:
    """Write (3, H, W) in [0, 1] as a PNG file."""
    data = io.BytesIO()
    to_pillow(image).save(data, "PNG")
    write_bytes(path, data.getvalue())


def to_pillow(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] as an 8-bit RGB picture."""
    return Image.fromarray((image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def contact_sheet(images: Tensor, columns: int) -> Tensor:
    """(B, 3, H, W) -> one picture, rows filled left to right, the rest white."""
    blank = images.new_ones(-len(images) % columns, *images.shape[1:])
    grid = torch.cat([images, blank]).unflatten(0, (-1, columns))
    return grid.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def save_animation(path: Path, images: Tensor, seconds: float) -> None:
    """Write (B, 3, H, W) in [0, 1] as an endless GIF file that takes `seconds` a round."""
    frames = [Image.fromarray(_pixels(image)) for image in images]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=1000 * seconds / len(frames), loop=0)
    write_bytes(path, data.getvalue())


def _pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] as (H, W, 3) bytes."""
    return (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
