"""Pictures in and out of files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .state import BadFile, write_bytes


def load_picture(path: Path) -> Tensor:
    """A picture file as (3, H, W) in [0, 1], without its transparency.

    Raises:
        BadFile: the file is missing or is not a picture.
    """
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture.convert("RGB"))
    except FileNotFoundError as error:
        raise BadFile(f"there is no picture {path}") from error
    except UnidentifiedImageError as error:
        raise BadFile(f"{path} is not a picture that can be read") from error
    return torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255


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
