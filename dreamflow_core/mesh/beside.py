"""The files beside a mesh file that it names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..pictures import reading_picture, to_colours


def beside(path: Path, name: str) -> Path | None:
    """The file of that name in `path`'s folder or below; None if there is none.

    Backslashes part folders as slashes do. Of a name that is absolute or leads out of the folder, as one from another
    machine, only the last part counts.
    """
    name = os.path.normpath(name.strip().strip('"').replace("\\", "/")).replace("\\", "/")
    if ":" in name or name.startswith(("/", "../")):
        name = name.rpartition("/")[2]
    place = path.parent / name
    return place if os.path.isfile(place) else None


@dataclass(frozen=True, eq=False)
class PictureFile:
    """A texture in a file of its own, of any format that Pillow reads."""

    path: Path

    @cached_property
    def pixels(self) -> np.ndarray:
        """RGBA, (H, W, 4), opaque; uint8, or uint16 for grey of 16 bits.

        Raises:
            BadFile: it is not a picture, is cut off, or is too large.
        """
        with reading_picture(self.path), Image.open(self.path) as picture:
            kind = np.uint16 if picture.mode.startswith("I") else np.uint8
            most = np.iinfo(kind).max
            colours = (to_colours(picture) * most).round().astype(kind)
        return np.pad(colours, ((0, 0), (0, 0), (0, 1)), constant_values=most)
