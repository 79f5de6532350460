"""Pictures of scenes in files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..pictures import contact_sheet, save_animation, save_picture
from ..pipeline import turntable
from ..prior import Look
from ..settings.stages import TurntableSettings

BACKGROUND = (1.0, 1.0, 1.0)
_PREVIEW = TurntableSettings(views=8, size=128)


@contextmanager
def warned(pictures: Path | str) -> Iterator[None]:
    """Inside, what fails costs a warning: the result that is drawn has been written, and is worth more."""
    try:
        yield
    except Exception as error:
        logging.warning("%s cannot be drawn: %s", pictures, " ".join(str(error).split()) or type(error).__name__)


def save_preview(path: Path, look: Look) -> None:
    """A few views side by side, as PNG."""
    save_picture(path, contact_sheet(turntable(look, _PREVIEW).on(BACKGROUND), columns=4))


def save_turntable(folder: Path, look: Look, settings: TurntableSettings) -> None:
    """turntable.png, all views side by side, and turntable.gif, one after the other."""
    views = turntable(look, settings).on(BACKGROUND)
    save_picture(folder / "turntable.png", contact_sheet(views, columns=6))
    save_animation(folder / "turntable.gif", views, seconds=4.0)
